//! The whole fleet: nodes are deployed as agents do it, then each has tasks of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, bail};
use ftagent_common::api::{DeployRequest, DeployResponse};
use serde_json::json;
use tokio::task::JoinSet;

use super::agent::{self, World};
use super::links::LINKS;
use super::messages::{Identity, operator};
use super::wire::Wire;

/// How many nodes, and how many of them hold a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub streaming: u32,
    pub polling: u32,
}

impl Size {
    /// Of `nodes` one in eleven streams, as in the goal: 1,000 of 11,000.
    pub const fn of(nodes: u32) -> Self {
        let streaming = nodes.div_ceil(11);
        Self { streaming, polling: nodes - streaming }
    }

    pub const fn nodes(self) -> u32 {
        self.streaming + self.polling
    }
}

/// Connections that deploy at a time.
const DEPLOYERS: u32 = 32;
/// A token of this limit is none that the bench meets.
const RATE: u32 = 1_000_000;

/// A token for the bench's own requests, which are more than a thousand a minute.
pub(super) async fn token(world: &World, owner: &str) -> anyhow::Result<String> {
    let body = json!({ "name": "bench", "role": "owner", "rate_limit": RATE }).to_string();
    let answer = ask(world, owner, "POST", "/api/v1/workspace/tokens", body.as_bytes()).await?;
    answer["value"].as_str().map(str::to_owned).context("a token without a value")
}

/// One request of an operator that must succeed.
pub(super) async fn ask(
    world: &World,
    token: &str,
    method: &str,
    path: &str,
    body: &[u8],
) -> anyhow::Result<serde_json::Value> {
    let answer = Wire::default().call(&world.place, &operator(token, method, path, body)).await?;
    if answer.status != 200 {
        bail!("{method} {path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
    }
    Ok(serde_json::from_slice(&answer.body)?)
}

/// Makes `count` nodes.
pub(super) async fn deploy(world: &Arc<World>, token: &str, count: u32) -> anyhow::Result<Vec<Identity>> {
    let mut tasks = JoinSet::new();
    for deployer in 0..DEPLOYERS {
        let (world, token) = (world.clone(), token.to_owned());
        tasks.spawn(async move {
            let mut wire = Wire::default();
            let mut made = Vec::new();
            for number in (deployer..count).step_by(DEPLOYERS as usize) {
                let request = DeployRequest {
                    name: format!("edge-{number}"),
                    ip: "203.0.113.5".to_owned(),
                    location: "bench".to_owned(),
                    os: "Debian 12".to_owned(),
                    interface: "eth0".to_owned(),
                };
                let request = operator(&token, "POST", "/api/deploy", &super::messages::json(&request));
                let answer = wire.call(&world.place, &request).await?;
                if answer.status != 200 {
                    bail!("a deployment: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
                }
                let DeployResponse { node_uuid, api_key, .. } = serde_json::from_slice(&answer.body)?;
                made.push(Identity { uuid: node_uuid, key: api_key });
            }
            anyhow::Ok(made)
        });
    }
    let mut nodes = Vec::with_capacity(count as usize);
    while let Some(made) = tasks.join_next().await {
        nodes.extend(made??);
    }
    Ok(nodes)
}

/// A workspace as operators have it: rules, and addresses that nothing may block.
pub(super) async fn furnish(world: &World, token: &str) -> anyhow::Result<()> {
    for n in 0..10 {
        let rule = json!({
            "name": format!("standing {n}"),
            "trigger": { "type": "any" },
            "action": { "type": "xdp_drop_source" },
        });
        ask(world, token, "POST", "/api/v1/firewall-rules", rule.to_string().as_bytes()).await?;
    }
    for n in 0..20 {
        let entry = json!({ "ip_address": format!("192.0.2.{n}"), "label": "ours" });
        ask(world, token, "POST", "/api/v1/allowlist", entry.to_string().as_bytes()).await?;
    }
    Ok(())
}

/// Starts every node; they end with what is given back.
pub(super) fn start(world: &Arc<World>, nodes: &[Identity], size: Size) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for (number, identity) in nodes.iter().enumerate() {
        // The golden ratio lays any number of nodes evenly over an interval.
        let offset = (number as f64 * 0.618_033_988_75).fract();
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let streams = number < size.streaming;
        tasks.spawn(agent::run(world.clone(), identity.clone(), number, streams, offset));
    }
    tasks
}

/// Waits until every stream is open.
pub(super) async fn connected(world: &World, size: Size, patience: Duration) -> anyhow::Result<()> {
    let open = || world.tally.streams.load(Ordering::Relaxed);
    let linked = || world.tally.linked.load(Ordering::Relaxed);
    let all = async {
        while open() < size.streaming.into() || linked() < LINKS {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(patience, all).await.is_err() {
        bail!(
            "of {} streams {} are open after {} s, and of {LINKS} real links {}",
            size.streaming,
            open(),
            patience.as_secs(),
            linked()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_eleven_streams() {
        assert_eq!(Size::of(11_000), Size { streaming: 1_000, polling: 10_000 });
        assert_eq!(Size::of(500).nodes(), 500);
        assert_eq!(Size::of(1), Size { streaming: 1, polling: 0 });
    }
}
