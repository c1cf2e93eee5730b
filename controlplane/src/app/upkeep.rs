//! What the server does for itself: readiness, pruning, answers kept for repeats.

use std::collections::HashMap;
use std::time::Duration;

use ftagent_common::vocab::NodeStatus;
use serde_json::json;
use tracing::{debug, info};
use uuid::Uuid;

use super::App;
use crate::store::{Answered, Claim, Key, Result};

/// How long a first answer is given again: a day.
const ANSWER_SECS: i64 = 86_400;
/// Commands that nobody acknowledged for a day are given up: an order that old would surprise.
const COMMAND_SECS: i64 = 86_400;

/// A value that no feed had for so long gets another sid when it comes back: half a year.
const SID_SECS: i64 = 180 * 86_400;

/// Certificates are listed for a month after their end.
const CERTIFICATE_SECS: i64 = 30 * 86_400;

/// For how long metrics are kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// By the second.
    pub seconds_hours: i64,
    /// By the minute, after that.
    pub minutes_days: i64,
}

impl App {
    /// Whether the database can be read and written.
    pub(crate) async fn check(&self) -> Result<()> {
        self.store.check().await
    }

    /// Goes on where a server of the same database was killed.
    ///
    /// # Errors
    /// The database cannot answer.
    pub async fn take_over(&self) -> Result<()> {
        self.store.take_over().await
    }

    /// Frees what other processes that died had claimed.
    pub(crate) async fn free_claims(&self) -> Result<()> {
        let freed = self.store.free_claims().await?;
        if freed > 0 {
            info!(freed, "a control plane died: what it had claimed is free");
        }
        Ok(())
    }

    /// Waits for the last commit and closes the database.
    pub async fn close(&self) {
        self.store.close().await;
    }

    /// Takes an `Idempotency-Key`, or gives the first answer to it within a day; waits where another process is about
    /// to answer.
    pub(crate) async fn claim(&self, caller: &str, key: &Key) -> Result<Claim> {
        let mut wait = Duration::from_millis(5);
        loop {
            let claim = self.store.claim(caller, key, self.now(), self.now().plus_secs(-ANSWER_SECS)).await?;
            if claim != Claim::UnderWay || wait > Duration::from_secs(5) {
                return Ok(claim);
            }
            tokio::time::sleep(wait).await;
            wait = wait * 3 / 2;
        }
    }

    /// Gives a key free that will not be answered now.
    pub(crate) async fn release(&self, caller: &str, key_hash: [u8; 32]) -> Result<()> {
        self.store.release(caller, key_hash).await
    }

    /// Keeps a first answer.
    pub(crate) async fn remember(&self, caller: &str, key_hash: [u8; 32], answered: &Answered) -> Result<()> {
        self.store.remember(caller, key_hash, answered, self.now()).await
    }

    /// Thins out and deletes what is older than is kept.
    pub(crate) async fn prune(&self, retention: Retention) -> Result<()> {
        if !self.store.lead().await? {
            // The rows are another process's to delete; the files here may be this one's alone.
            return self.sweep_captures().await;
        }
        let now = self.now();
        let seconds_before = now.plus_secs(-retention.seconds_hours * 3_600);
        let minutes_before = now.plus_secs(-retention.minutes_days * 86_400);
        let metrics = self.store.prune_metrics(seconds_before, minutes_before).await?;
        let answers = self.store.forget_answers(now.plus_secs(-ANSWER_SECS)).await?;
        let commands = self.store.expire_commands(now.plus_secs(-COMMAND_SECS)).await?;
        let staged = self.store.expire_staged(now).await?;
        let indicators = self.store.forget_indicators(now).await?;
        let sids = self.store.forget_sids(now.plus_secs(-SID_SECS)).await?;
        let deliveries = self.prune_deliveries(now).await?;
        // An hour is more than any clock is off.
        let windows = self.store.forget_windows(now.plus_secs(-3_600)).await?;
        let executions = self.prune_executions(now).await?;
        let certificates = self.store.forget_certificates(now.plus_secs(-CERTIFICATE_SECS)).await?;
        debug!(
            windows,
            staged, executions, certificates, indicators, sids, metrics, answers, commands, deliveries, "pruned"
        );
        self.prune_pcaps().await?;
        self.sweep_captures().await
    }

    /// Announces nodes whose status changed since the last look, kept in `seen`; the first look only remembers. Of
    /// several processes one announces, and the others look so that each can go on in its place.
    pub(crate) async fn notice_status(&self, seen: &mut HashMap<Uuid, NodeStatus>) -> Result<()> {
        let leads = self.store.lead().await?;
        let nodes = self.store.all_nodes(self.now()).await?;
        let mut now_seen = HashMap::with_capacity(nodes.len());
        for node in nodes {
            if let Some(before) = seen.get(&node.uuid).filter(|before| leads && **before != node.status) {
                info!(node = %node.uuid, name = node.name, %before, now = %node.status, "a node's status changed");
                let data = json!({ "what": "status", "node": node.uuid, "before": before, "status": node.status });
                self.events.announce(node.workspace, "node", data);
            }
            now_seen.insert(node.uuid, node.status);
        }
        *seen = now_seen;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ftagent_common::api::DeployRequest;

    use super::*;
    use crate::app::{CaptureLimits, Captures, Sending, Vault};
    use crate::clock::ManualClock;
    use crate::domain::{Actor, Deployment, Secret, Timestamp};
    use crate::outbound::Outbound;
    use crate::store::files::CaptureFiles;
    use crate::store::sql::{Database, SqlStore};

    #[tokio::test]
    async fn a_node_that_falls_silent_is_announced_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = SqlStore::open(&Database::Sqlite(folder.path().join("cp.sqlite"))).await.expect("a store");
        let clock = Arc::new(ManualClock::new(Timestamp::from_secs(1_000)));
        let files = CaptureFiles::open(&folder.path().join("captures")).expect("a folder");
        let captures = Captures::new(files, CaptureLimits::default());
        let vault = Vault::new(&Secret::from_random([7; 32]));
        let sending = Sending::new(vault, Outbound::new(false), Duration::from_secs(1));
        let app = App::new(Arc::new(store), clock.clone(), captures, sending);
        app.bootstrap().await.expect("a workspace");
        let system = Actor::System { workspace: app.first_workspace().await.expect("a workspace") };
        let request: DeployRequest = serde_json::from_str(r#"{"name":"edge-1"}"#).expect("a request");
        let deployment = Deployment::check(request).expect("within bounds");
        let (node, _) = app.deploy(&system, &deployment).await.expect("deployed");
        let heartbeat = r#"{"protocol_version":1,"agent_version":"1","mode":"enforce"}"#;
        app.heartbeat(node, &serde_json::from_str(heartbeat).expect("a heartbeat")).await.expect("heard");

        let mut listener = app.events().listen();
        let mut seen = HashMap::new();
        for secs in [0, 89, 1, 5] {
            clock.advance(secs);
            app.notice_status(&mut seen).await.expect("noticed");
        }
        let event = listener.try_recv().expect("an event");
        let expected = json!({ "what": "status", "node": node, "before": "online", "status": "offline" });
        assert_eq!((event.kind.as_ref(), event.data), ("node", expected));
        assert!(listener.try_recv().is_err(), "one change, one event");
    }
}
