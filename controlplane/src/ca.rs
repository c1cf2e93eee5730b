//! `controlplane ca`: what the command line shows of the built-in authority.

use anyhow::{Context as _, Result, bail};
use controlplane::app::App;
use controlplane::cli::CaCommand;
use controlplane::domain::{Actor, RootState};
use controlplane::pki::pem;
use controlplane::server::announce_owner;
use ftagent_common::api::CertificateRequest;

/// Runs one of the commands.
///
/// # Errors
/// What the use case refuses.
pub(crate) async fn run(app: &App, command: &CaCommand) -> Result<()> {
    if matches!(command, CaCommand::Init) && app.first_workspace().await.is_err() {
        // Before the first `serve`: a server with `tls_names` needs the authority to start.
        announce_owner(app, None).await?;
    }
    let workspace = app.first_workspace().await.context("the workspace is made by `serve` or `ca init`")?;
    let system = Actor::System { workspace };
    match command {
        CaCommand::Init => {
            let name = app.init_authority(&system).await?;
            println!("made {name}; give agents what `controlplane ca roots` prints as their ca_certificate");
            println!("its key opens with secrets_key_file alone: back that file up, apart from the database");
        }
        CaCommand::Roots => print!("{}", roots(app, &system).await?),
        CaCommand::List => list(app, &system).await?,
        CaCommand::Issue { node, csr: None } => {
            let until = app.let_enroll(&system, *node).await?;
            println!("node {node} may get a certificate with its key alone until {until}");
        }
        CaCommand::Issue { node, csr: Some(path) } => {
            let csr = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            print!("{}", app.issue(&system, *node, &CertificateRequest { csr }).await?.certificate);
        }
        CaCommand::Renew { node, .. } => {
            app.ask_to_renew(&system, *node).await?;
            match node {
                Some(node) => println!("node {node} is told to renew its certificate"),
                None => println!("all nodes are told to renew their certificates"),
            }
        }
        CaCommand::Revoke { id: Some(id), .. } => {
            let revoked = app.revoke_certificate(&system, *id).await?;
            println!("revoked {} of node {} {}", revoked.serial, revoked.node, revoked.node_name);
        }
        CaCommand::Revoke { node: Some(node), .. } => {
            println!("revoked {} certificates of node {node}", app.revoke_node(&system, *node).await?);
        }
        CaCommand::Revoke { .. } => bail!("name a certificate, or --node and a uuid"),
        CaCommand::Rotate => {
            println!("made {}, which signs nothing yet: nodes learn of it now", app.rotate_authority(&system).await?);
            println!("then: controlplane ca promote");
        }
        CaCommand::Promote { force } => {
            app.promote_authority(&system, *force).await?;
            println!("the next root signs now, and nodes renew their certificates");
            println!("then: controlplane ca retire");
        }
        CaCommand::Retire { force } => {
            app.retire_authority(&system, *force).await?;
            println!(
                "old roots are trusted no more; replace agents' ca_certificate by `controlplane ca roots` in time"
            );
        }
    }
    Ok(())
}

async fn roots(app: &App, system: &Actor) -> Result<String> {
    let roots = app.roots(system).await?;
    let text: String = roots.iter().filter(|r| r.state.is_trusted()).map(|r| pem(&r.certificate)).collect();
    if text.is_empty() {
        bail!("there is no authority: make it with `controlplane ca init`");
    }
    Ok(text)
}

async fn list(app: &App, system: &Actor) -> Result<()> {
    for root in app.roots(system).await? {
        println!("root\t{}\t{}\tuntil {}\t{}", root.name, root.state.as_str(), root.not_after, root.fingerprint);
    }
    let now = app.now();
    for certificate in app.certificates(system).await? {
        let state = match certificate.revoked_at {
            Some(_) => "revoked",
            None if certificate.not_after <= now => "expired",
            None if certificate.root_state == RootState::Retired => "retired",
            None => "valid",
        };
        let (id, node, name) = (certificate.id, certificate.node, certificate.node_name);
        println!(
            "{id}\t{node}\t{name}\t{state}\tuntil {}\t{}\t{}",
            certificate.not_after, certificate.serial, certificate.root
        );
    }
    Ok(())
}
