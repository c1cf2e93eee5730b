//! As many reports as the server takes: callers who send the next as soon as the last is answered, beside the fleet that
//! goes on at its own pace.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::agent::World;
use super::messages::{self, Identity, json, request, wall};
use super::wire::Wire;
use crate::clock::now;

/// Callers at a time; each has nodes of its own.
const CALLERS: usize = 480;
/// Of a hundred reports, so many update an incident, and so many are heartbeats, as far as a node may send them.
const INCIDENTS: u64 = 2;
const HEARTBEATS: u64 = 5;

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    /// Reports that were acknowledged, a second, the fleet's own among them.
    pub(super) events: f64,
    /// Of the callers alone.
    pub(super) callers: f64,
    pub(super) incidents: f64,
    /// Seconds of nodes' traffic, the fleet's own among them.
    pub(super) samples: f64,
}

/// Reports for `time`, beside everything that runs.
pub(super) async fn run(world: &Arc<World>, nodes: &[Identity], time: Duration) -> Taken {
    let taken: Arc<[AtomicU64; 2]> = Arc::default();
    let tally = &world.tally;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let own: Vec<Identity> = nodes.iter().skip(caller).step_by(CALLERS).cloned().collect();
        if !own.is_empty() {
            callers.spawn(call(world.clone(), caller as u64, own, taken.clone()));
        }
    }
    let before = [&tally.reports, &tally.samples].map(|count| count.load(Ordering::Relaxed));
    let began = now();
    tokio::time::sleep(time).await;
    callers.shutdown().await;
    let secs = began.elapsed().as_secs_f64();
    let rate = |count: &AtomicU64, before: u64| (count.load(Ordering::Relaxed) - before) as f64 / secs;
    let [sent, incidents] = &*taken;
    Taken {
        events: rate(&tally.reports, before[0]),
        callers: rate(sent, 0),
        incidents: rate(incidents, 0),
        samples: rate(&tally.samples, before[1]),
    }
}

async fn call(world: Arc<World>, caller: u64, nodes: Vec<Identity>, taken: Arc<[AtomicU64; 2]>) {
    let wire = Mutex::new(Wire::default());
    let started = wall();
    let attacks: Vec<Uuid> = nodes.iter().map(|_| Uuid::new_v4()).collect();
    for n in 0_u64.. {
        let index = usize::try_from(n % nodes.len() as u64).expect("an index");
        let node = &nodes[index];
        let round = n / nodes.len() as u64;
        // By caller, node and round, so that every node sends some of each and not all of them the same at once.
        let kind = ((caller << 32 | n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 100;
        let (path, body, incident) = if kind < INCIDENTS {
            let revision = u32::try_from(n + 1).unwrap_or(u32::MAX);
            let report = messages::incident(attacks[index], revision, started);
            (format!("/incidents/{}", attacks[index]), json(&report), true)
        } else if kind < INCIDENTS + HEARTBEATS && round == 0 {
            ("/heartbeat".to_owned(), json(&messages::heartbeat(1)), false)
        } else {
            let number = u32::try_from(index).unwrap_or(0);
            ("/metrics".to_owned(), json(&messages::metrics(wall(), 5, number)), false)
        };
        if world.call(&wire, &request(node, "POST", &path, "", &body)).await.is_some() {
            let [sent, incidents] = &*taken;
            for count in [sent, &world.tally.reports] {
                count.fetch_add(1, Ordering::Relaxed);
            }
            if incident {
                incidents.fetch_add(1, Ordering::Relaxed);
            } else if path == "/metrics" {
                world.tally.samples.fetch_add(5, Ordering::Relaxed);
            }
        }
    }
}
