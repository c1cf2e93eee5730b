//! What happens by itself: idempotent jobs, until the server drains.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::warn;

use crate::app::{App, Retention};

/// How soon what a process that died had claimed is looked for: it is free at the second look.
const LOOK: Duration = Duration::from_secs(1);

/// Runs every job until the server drains; a fault is logged and the job tried again at its next turn.
pub async fn run(app: Arc<App>, retention: Retention, draining: watch::Receiver<bool>) {
    // Pruning a large fleet takes long, and nobody's deliveries shall wait for that.
    tokio::join!(upkeep(&app, retention, draining.clone()), free_claims(&app, draining));
}

async fn upkeep(app: &App, retention: Retention, mut draining: watch::Receiver<bool>) {
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
            ("prune", app.prune(retention).await)
        } else {
            ("node status", app.notice_status(&mut seen).await)
        };
        if let Err(fault) = done {
            warn!(job, error = %fault, "a job failed: it will be tried again");
        }
    }
}

async fn free_claims(app: &App, mut draining: watch::Receiver<bool>) {
    let mut looks = every(LOOK);
    let mut fails = false;
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            _ = draining.wait_for(|d| *d) => return,
        }
        let done = app.free_claims().await;
        if let (Err(fault), false) = (&done, fails) {
            warn!(job = "free claims", error = %fault, "a job failed: it is tried again every second");
        }
        fails = done.is_err();
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
