//! What nodes say and ask.

use std::collections::VecDeque;

use ftagent_common::api::{
    CommandAck, Heartbeat, IncidentReport, MetricsBatch, NodeCommand, NodeConfig, StreamMessage,
};
use serde_json::json;
use uuid::Uuid;

use super::App;
use crate::domain::{Actor, Fingerprint, IncidentSummary, MetricsWindow, Problem, check_batch, check_report};
use crate::store::{Recorded, Result};

/// Seconds between two pings of a stream; agents give up after 45.
pub const STREAM_PING_SECS: u64 = 10;

impl App {
    /// A node is alive.
    pub async fn heartbeat(&self, node: Uuid, heartbeat: &Heartbeat) -> Result<u64> {
        if !heartbeat.threshold_ratio.is_finite() || heartbeat.agent_version.chars().count() > 128 {
            return Err(Problem::field("agent_version", "must be at most 128 characters").into());
        }
        self.store.heartbeat(node, heartbeat, self.now()).await?;
        self.store.config_version(node).await
    }

    /// Keeps samples; answers how many of them.
    pub async fn record_metrics(&self, node: Uuid, batch: MetricsBatch) -> Result<usize> {
        let samples = check_batch(batch, self.now())?;
        self.store.record_metrics(node, &samples).await?;
        Ok(samples.len())
    }

    /// What the node should do.
    pub async fn node_config(&self, node: Uuid) -> Result<NodeConfig> {
        self.store.node_config(node).await
    }

    /// The version of it, without reading it all.
    pub async fn config_version(&self, node: Uuid) -> Result<u64> {
        self.store.config_version(node).await
    }

    /// The orders that the node did not acknowledge yet.
    pub async fn pending_commands(&self, node: Uuid) -> Result<Vec<NodeCommand>> {
        Ok(self.store.pending_commands(node, 0).await?.into_iter().map(|(_, command)| command).collect())
    }

    /// Keeps a node's report of an incident.
    pub async fn record_incident(&self, actor: &Actor, node: Uuid, report: IncidentReport) -> Result<Recorded> {
        let recorded = self.store.record(node, check_report(report), self.now()).await?;
        if recorded.applied {
            self.sending.wake();
            self.runbooks_due.notify_one();
            let incident = IncidentSummary::from(&recorded.incident);
            let what = if recorded.opened { "opened" } else { "updated" };
            self.events.announce(actor.workspace(), "incident", json!({ "what": what, "incident": incident }));
        }
        if recorded.ordered {
            self.wake(&[node]);
        }
        if recorded.staged > 0 {
            let data = json!({ "what": "changed", "incident": recorded.incident.report.uuid });
            self.events.announce(actor.workspace(), "staged", data);
        }
        Ok(recorded)
    }

    /// A node did, or could not do, what it was told.
    pub async fn acknowledge(&self, actor: &Actor, node: Uuid, ack: &CommandAck) -> Result<()> {
        let cut = |text: &str| text.chars().take(4_096).collect::<String>();
        let ack = CommandAck { error: cut(&ack.error), output: cut(&ack.output), ..ack.clone() };
        let fact = self.fact(actor, "command.acknowledge", format!("command/{}", ack.command_id)).with(&ack);
        self.store.acknowledge(node, &ack, fact).await
    }

    /// What is new for a stream since it last looked; a ping if nothing is.
    pub async fn poll_stream(&self, state: &mut StreamState) -> Result<VecDeque<StreamMessage>> {
        self.still_admitted(state.node, state.shown).await?;
        let mut messages = VecDeque::new();
        let mut version = self.store.config_version(state.node).await?;
        if state.version != Some(version) {
            let config = self.store.node_config(state.node).await?;
            version = config.version;
            state.version = Some(version);
            messages.push_back(StreamMessage::Config { config });
        }
        for (number, command) in self.store.pending_commands(state.node, state.command).await? {
            state.command = number;
            messages.push_back(StreamMessage::Command { command });
        }
        if messages.is_empty() || (state.command > 0 && !state.greeted) {
            // The first line is `config` or `ping`, before any command.
            if !matches!(messages.front(), Some(StreamMessage::Config { .. })) {
                messages.push_front(StreamMessage::Ping { version });
            }
        }
        state.greeted = true;
        Ok(messages)
    }

    /// A node's time series.
    pub async fn metrics(
        &self,
        actor: &Actor,
        node: Uuid,
        window: MetricsWindow,
    ) -> Result<Vec<crate::domain::MetricsPoint>> {
        self.store.metrics(actor.workspace(), node, window).await
    }
}

/// How far a stream has got.
pub struct StreamState {
    node: Uuid,
    /// The configuration that the node has.
    version: Option<u64>,
    /// The number of the last command sent on this stream; a new stream begins again.
    command: i64,
    greeted: bool,
    /// The certificate that opened the stream.
    shown: Option<Fingerprint>,
}

impl StreamState {
    /// A new stream of `node`, which says that it has the configuration `version` and showed a certificate, or none.
    pub const fn new(node: Uuid, version: Option<u64>, shown: Option<Fingerprint>) -> Self {
        Self { node, version, command: 0, greeted: false, shown }
    }
}
