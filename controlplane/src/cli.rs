//! Arguments.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use uuid::Uuid;

/// Control plane of ftagent: nodes, incidents, firewall rules and audit records over REST.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub settings: Settings,
    #[command(subcommand)]
    pub command: Command,
}

/// What wins over the file and the environment (FTAGENT_CP_LISTEN and so on).
#[derive(Args, Default)]
pub struct Settings {
    /// Configuration file, TOML
    #[arg(long, global = true, env = "FTAGENT_CP_CONFIG")]
    pub config: Option<PathBuf>,
    /// Address to serve on; port 0 takes a free one
    #[arg(long, global = true)]
    pub listen: Option<SocketAddr>,
    /// Folder of the database and of captures
    #[arg(long, global = true)]
    pub data: Option<PathBuf>,
    /// sqlite:PATH or postgres://USER@HOST/NAME; a password belongs into the file or FTAGENT_CP_DATABASE
    #[arg(long, global = true, value_name = "URL")]
    pub database: Option<String>,
}

#[derive(Subcommand)]
pub enum Command {
    /// Serve the API; makes the database and the owner's token at first start
    Serve {
        /// Also write the owner's token, if one is made, to this file (mode 0600)
        #[arg(long, value_name = "PATH")]
        token_file: Option<PathBuf>,
    },
    /// Make the database or bring its schema up to date, then end
    Migrate,
    /// Write a copy of an SQLite database, as of one moment, while the server goes on
    Backup {
        /// Where to; it must not exist
        file: PathBuf,
    },
    /// Put a copy into the place of the SQLite database, with the server stopped; the old one is kept beside it
    Restore { file: PathBuf },
    /// Write everything in the database as JSON Lines, for any database, while the server goes on
    Export {
        /// Where to; it must not exist
        file: PathBuf,
    },
    /// Take an export into an empty database, whole or not at all
    Import { file: PathBuf },
    /// Read the configuration and print what is in force, then end
    CheckConfig,
    /// Print the OpenAPI document
    Openapi,
    /// Make, list and revoke tokens, with the server running or not
    #[command(subcommand)]
    Token(TokenCommand),
    /// The built-in certificate authority: certificates of nodes, and their rotation; with the server running or not
    #[command(subcommand)]
    Ca(CaCommand),
    /// Set whether a workspace may be written to
    Subscription { state: SubscriptionWord },
}

#[derive(Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it, this once
    Create {
        /// What the token is for
        #[arg(long)]
        name: String,
        #[arg(long, value_enum)]
        role: RoleWord,
        /// Requests a minute
        #[arg(long, value_name = "N")]
        rate_limit: Option<u32>,
    },
    /// List tokens, without their values
    List,
    /// Revoke a token by its id
    Revoke { id: i64 },
}

#[derive(Subcommand)]
pub enum CaCommand {
    /// Make the authority: its first root, whose key is sealed with `secrets_key_file`
    Init,
    /// Print the roots that are trusted, PEM: what an agent's `ca_certificate` must hold
    Roots,
    /// List roots and certificates
    List,
    /// Let a node get a certificate with its key alone, for an hour; or sign a request that you bring
    Issue {
        /// The node, by uuid
        node: Uuid,
        /// Sign this PKCS #10 request, PEM, and print the certificate
        #[arg(long, value_name = "FILE")]
        csr: Option<PathBuf>,
    },
    /// Have a node, or all, renew their certificates now
    #[command(group(ArgGroup::new("which").required(true).args(["node", "all"])))]
    Renew {
        /// The node, by uuid
        node: Option<Uuid>,
        /// Every node
        #[arg(long)]
        all: bool,
    },
    /// Revoke a certificate by its id, or all of a node's; it holds for the next request already
    #[command(group(ArgGroup::new("what").required(true).args(["id", "node"])))]
    Revoke {
        id: Option<i64>,
        /// Every certificate of this node, and its leave to enrol
        #[arg(long, value_name = "UUID")]
        node: Option<Uuid>,
    },
    /// Rotation, 1 of 3: make the next root, which nodes learn of by their configuration
    Rotate,
    /// Rotation, 2 of 3: the next root signs, and nodes renew their certificates
    Promote {
        /// Even if nodes do not know the root yet
        #[arg(long)]
        force: bool,
    },
    /// Rotation, 3 of 3: old roots are trusted no more
    Retire {
        /// Even if nodes have no certificate of the new root yet
        #[arg(long)]
        force: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub enum RoleWord {
    Owner,
    Admin,
    Analyst,
    Readonly,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum SubscriptionWord {
    Active,
    Inactive,
}
