//! A few real links of the agent among the simulated nodes: its HTTP, its queue on disk, its reading of the stream.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use ftagent::sync::spool::Limits;
use ftagent::sync::{Incoming, Link, LinkConfig, Secret, Timing};
use ftagent_common::api::DeployRequest;
use tokio::task::JoinSet;

use super::agent::World;
use super::messages::wall;

/// So many; they use more of the CPU than simulated nodes.
pub(super) const LINKS: u64 = 4;

/// Starts them; each deploys itself, and ends with what is given back.
pub(super) async fn start(world: &Arc<World>, token: &str, folder: &Path) -> anyhow::Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    for n in 0..LINKS {
        let name = format!("real-{n}");
        let state_dir = folder.join(&name);
        std::fs::create_dir_all(&state_dir)?;
        let empty = String::new;
        let deploy = DeployRequest { name, ip: empty(), location: empty(), os: empty(), interface: "eth0".to_owned() };
        let config = LinkConfig {
            urls: vec![format!("http://{}", world.place.server)],
            ca_file: None,
            client: None,
            state_dir,
            deploy_token: Some(Secret::new(token)),
            deploy,
            limits: Limits::default(),
            timing: Timing::default(),
            captures: None,
            wall,
        };
        let link = Link::start(config).await.context("a real link")?;
        tasks.spawn(follow(world.clone(), link));
    }
    Ok(tasks)
}

async fn follow(world: Arc<World>, mut link: Link) {
    link.heartbeat.send_replace(Some(super::messages::heartbeat(1)));
    let mut first = true;
    while let Some(incoming) = link.incoming.recv().await {
        if !matches!(incoming, Incoming::Config(_)) {
            continue;
        }
        if first {
            world.tally.linked.fetch_add(1, Ordering::Relaxed);
            first = false;
        } else if let Some(time) = world.since_change() {
            world.tally.links.add(time);
        }
    }
}
