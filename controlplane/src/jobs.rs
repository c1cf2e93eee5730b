//! What happens by itself: one idempotent job each, one after the other until the server drains.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ftagent_common::vocab::NodeStatus;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::app::App;
use crate::http::ANSWER_SECS;
use crate::store::Result;

/// Commands that nobody acknowledged for a day are given up: an order that old would surprise.
const COMMAND_SECS: i64 = 86_400;

/// For how long metrics are kept.
#[derive(Clone, Copy)]
pub struct Retention {
    pub seconds_hours: i64,
    pub minutes_days: i64,
}

/// Runs every job until the server drains; a fault is logged and the job tried again at its next turn.
pub async fn run(app: Arc<App>, retention: Retention, mut draining: watch::Receiver<bool>) {
    let mut pruning = every(Duration::from_secs(60));
    let mut noticing = every(Duration::from_secs(5));
    let mut seen = HashMap::new();
    loop {
        let prunes = tokio::select! {
            _ = pruning.tick() => true,
            _ = noticing.tick() => false,
            _ = draining.wait_for(|d| *d) => return,
        };
        let (job, done) = if prunes {
            ("prune", prune(&app, retention).await)
        } else {
            ("node status", notice_status(&app, &mut seen).await)
        };
        if let Err(fault) = done {
            warn!(job, error = %fault, "a job failed: it will be tried again");
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Thins out and deletes what is older than is kept.
async fn prune(app: &App, retention: Retention) -> Result<()> {
    let now = app.now();
    let seconds_before = now.plus_secs(-retention.seconds_hours * 3_600);
    let minutes_before = now.plus_secs(-retention.minutes_days * 86_400);
    let metrics = app.store.prune_metrics(seconds_before, minutes_before).await?;
    let answers = app.store.forget_answers(now.plus_secs(-ANSWER_SECS)).await?;
    let commands = app.store.expire_commands(now.plus_secs(-COMMAND_SECS)).await?;
    debug!(metrics, answers, commands, "pruned");
    Ok(())
}

/// Announces nodes whose status changed since the last look; the first look only remembers.
async fn notice_status(app: &App, seen: &mut HashMap<Uuid, NodeStatus>) -> Result<()> {
    let nodes = app.store.all_nodes(app.now()).await?;
    let mut now_seen = HashMap::with_capacity(nodes.len());
    for (workspace, node) in nodes {
        if let Some(before) = seen.get(&node.uuid).filter(|before| **before != node.status) {
            info!(node = %node.uuid, name = node.name, %before, now = %node.status, "a node's status changed");
            let data = json!({ "what": "status", "node": node.uuid, "before": before, "status": node.status });
            app.events().announce(workspace, "node", data);
        }
        now_seen.insert(node.uuid, node.status);
    }
    *seen = now_seen;
    Ok(())
}
