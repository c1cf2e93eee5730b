//! People and scripts beside the fleet: they read, they order, and they change what all nodes do.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tokio::time::{interval, sleep, timeout};

use super::agent::World;
use super::messages::{Identity, operator};
use super::wire::Wire;
use crate::clock::now;

/// Between two readings, and between two changes.
const READ_EVERY: Duration = Duration::from_millis(100);
const CHANGE_EVERY: Duration = Duration::from_millis(400);
/// After this long a change is lost: streams look for themselves every ten seconds.
const LOST: Duration = Duration::from_secs(5);

/// Reads lists and single things, one after the other.
pub(super) async fn read(world: &World, token: &str, nodes: &[Identity]) {
    let mut wire = Wire::default();
    let mut ticks = interval(READ_EVERY);
    for n in 0_usize.. {
        ticks.tick().await;
        let node = nodes[n * 7 % nodes.len()].uuid;
        let path = match n % 5 {
            0 => "/api/v1/nodes?limit=50".to_owned(),
            1 => format!("/api/v1/nodes/{node}"),
            2 => "/api/v1/incidents?limit=50".to_owned(),
            3 => format!("/api/v1/nodes/{node}/metrics"),
            _ => "/api/v1/firewall-rules?limit=50".to_owned(),
        };
        let sent = now();
        match wire.call(&world.place, &operator(token, "GET", &path, b"")).await {
            Ok(answer) => {
                world.tally.operators.add(sent.elapsed());
                world.tally.answered(answer.status);
            }
            Err(_) => {
                world.tally.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Changes what all nodes do, and orders single ones, in turn; each time waits for it to arrive.
///
/// Times are taken from before the request is sent: they hold the way there, the commit and the way to the node.
pub(super) async fn change(world: &World, token: &str, streaming: &[Identity]) {
    let mut wire = Wire::default();
    for n in 0_usize.. {
        let (method, path, body) = if n % 2 == 0 {
            ("POST", "/api/v1/allowlist".to_owned(), json!({ "ip_address": "198.51.100.99", "label": "now" }))
        } else {
            let path = format!("/api/v1/nodes/{}/commands", streaming[n * 13 % streaming.len()].uuid);
            let order = json!({ "order": { "type": "unblock", "source": "198.51.100.7/32" } });
            ("POST", path, order)
        };
        let for_all = n % 2 == 0;
        let request = operator(token, method, &path, body.to_string().as_bytes());
        let entry = send(world, &mut wire, &request, for_all, streaming.len()).await;
        sleep(CHANGE_EVERY).await;
        if let Some(id) = entry.filter(|_| for_all) {
            // Away again; that is a change for all as well.
            let request = operator(token, "DELETE", &format!("/api/v1/allowlist/{id}"), b"");
            send(world, &mut wire, &request, true, streaming.len()).await;
            sleep(CHANGE_EVERY).await;
        }
    }
}

/// Sends a change and waits until it has arrived; the id of what was made.
async fn send(world: &World, wire: &mut Wire, request: &[u8], for_all: bool, streaming: usize) -> Option<i64> {
    world.reached.store(0, Ordering::Release);
    world.arrived.store(false, Ordering::Release);
    let mark = if for_all { &world.change } else { &world.order };
    mark.store(world.mark(), Ordering::Release);
    let answer = wire.call(&world.place, request).await;
    let good = answer.as_ref().is_ok_and(|answer| world.tally.answered(answer.status));
    let arrived = async {
        let all = || world.reached.load(Ordering::Acquire) >= streaming as u64;
        while !(if for_all { all() } else { world.arrived.load(Ordering::Acquire) }) {
            sleep(Duration::from_millis(2)).await;
        }
    };
    let whole = good && timeout(LOST, arrived).await.is_ok();
    mark.store(0, Ordering::Release);
    if !whole {
        let missing =
            if for_all { (streaming as u64).saturating_sub(world.reached.load(Ordering::Acquire)) } else { 1 };
        world.tally.lost.fetch_add(missing, Ordering::Relaxed);
    }
    let answer: serde_json::Value = serde_json::from_slice(&answer.ok()?.body).ok()?;
    answer["entry"]["id"].as_i64()
}
