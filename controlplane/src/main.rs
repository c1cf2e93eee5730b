//! The command line of the control plane: arguments, configuration, exit codes.

mod ca;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use controlplane::app::App;
use controlplane::cli::{Cli, Command, RoleWord, SubscriptionWord, TokenCommand};
use controlplane::config::Config;
use controlplane::domain::{Actor, NewToken, Page, Role, Subscription};
use controlplane::{http, maintenance, server};
use tracing_subscriber::EnvFilter;

/// Thousands of connections in turns on a few threads: the C library's allocator spends more on each, and gives less of
/// it back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("error: {fault:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    if matches!(cli.command, Command::Openapi) {
        println!("{}", openapi().context("the document cannot be written")?);
        return Ok(());
    }
    let config = Config::load(
        &cli.settings,
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
    )?;
    // Answers to many calls at once wake more tasks than a worker's own queue holds; the others wait in the common one.
    // Looked into every 61 tasks, as it is unless said otherwise, it would leave them there for as long as all are busy.
    let runtime = tokio::runtime::Builder::new_multi_thread().global_queue_interval(2).enable_all().build()?;
    runtime.block_on(async {
        match &cli.command {
            Command::Serve { token_file } => {
                start_logging(&config);
                server::serve(&config, token_file.as_deref()).await
            }
            Command::Migrate => {
                let app = server::open(&config).await?;
                println!("{} is up to date", config.database);
                app.close().await;
                Ok(())
            }
            Command::Backup { file } => maintenance::backup(&config, file).await,
            Command::Restore { file } => maintenance::restore(&config, file).await,
            Command::Export { file } => maintenance::export(&config, file).await,
            Command::Import { file } => maintenance::import(&config, file).await,
            Command::CheckConfig => {
                server::check_files(&config)?;
                print!("{}", toml::to_string(&config).context("the configuration cannot be written")?);
                Ok(())
            }
            Command::Openapi => Ok(()),
            Command::Token(command) => {
                let app = server::open(&config).await?;
                let done = token(&app, command).await;
                app.close().await;
                done
            }
            Command::Ca(command) => {
                let app = server::open(&config).await?;
                let done = ca::run(&app, command).await;
                app.close().await;
                done
            }
            Command::Subscription { state } => {
                let app = server::open(&config).await?;
                let done = subscription(&app, *state).await;
                app.close().await;
                done
            }
        }
    })
}

fn start_logging(config: &Config) {
    let filter = EnvFilter::new(&config.log);
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let logs = logs.with_ansi(std::io::stderr().is_terminal());
    if config.log_json { logs.json().init() } else { logs.init() }
}

async fn system(app: &App) -> Result<Actor> {
    let workspace = app.first_workspace().await.context("the workspace is made by the first `serve`")?;
    Ok(Actor::System { workspace })
}

async fn token(app: &App, command: &TokenCommand) -> Result<()> {
    let system = system(app).await?;
    match command {
        TokenCommand::Create { name, role, rate_limit } => {
            let role = match role {
                RoleWord::Owner => Role::Owner,
                RoleWord::Admin => Role::Admin,
                RoleWord::Analyst => Role::Analyst,
                RoleWord::Readonly => Role::Readonly,
            };
            let new = NewToken { name: name.clone(), role, rate_limit: *rate_limit, expires_at: None };
            let (_, value) = app.create_token(&system, new).await?;
            println!("deploy token: {}", value.reveal());
        }
        TokenCommand::List => {
            let mut page = Page { limit: 500, offset: 0 };
            loop {
                let listed = app.tokens(&system, page).await?;
                for token in &listed.entries {
                    let state = if token.revoked_at.is_some() { "revoked" } else { "valid" };
                    println!("{}\t{}\t{}\t{state}\t{}", token.id, token.role.as_str(), token.created_at, token.name);
                }
                page.offset += u64::from(page.limit);
                if page.offset >= listed.total {
                    break;
                }
            }
        }
        TokenCommand::Revoke { id } => {
            let token = app.revoke_token(&system, *id).await?;
            println!("revoked {} {}", token.id, token.name);
        }
    }
    Ok(())
}

async fn subscription(app: &App, state: SubscriptionWord) -> Result<()> {
    let state = match state {
        SubscriptionWord::Active => Subscription::Active,
        SubscriptionWord::Inactive => Subscription::Inactive,
    };
    app.subscribe(&system(app).await?, state).await?;
    println!("the subscription is {}", state.as_str());
    Ok(())
}

/// The document with a line for each value and no indentation: a change shows as a change of lines, in half the bytes.
fn openapi() -> Result<String> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    serde::Serialize::serialize(&http::document(), &mut serializer)?;
    Ok(String::from_utf8(text)?)
}
