//! What nodes say and ask.

use std::collections::VecDeque;

use ftagent_common::api::{CommandAck, Heartbeat, IncidentReport, MetricsBatch, NodeCommand, StreamMessage};
use serde_json::json;
use uuid::Uuid;

use super::{App, News};
use crate::domain::{
    Actor, Fingerprint, IncidentSummary, MetricsWindow, Problem, VersionedConfig, check_batch, check_report,
};
use crate::store::{Look, Looked, Recorded, Result, Seen, Wanted};

/// Seconds between two pings of a stream; agents give up after 45.
pub const STREAM_PING_SECS: u64 = 10;

impl App {
    /// A node is alive.
    pub async fn heartbeat(&self, node: Uuid, heartbeat: &Heartbeat) -> Result<u64> {
        if !heartbeat.threshold_ratio.is_finite() || heartbeat.agent_version.chars().count() > 128 {
            return Err(Problem::field("agent_version", "must be at most 128 characters").into());
        }
        self.store.heartbeat(node, heartbeat, self.now()).await
    }

    /// Keeps samples; answers how many of them.
    pub async fn record_metrics(&self, actor: &Actor, node: Uuid, batch: MetricsBatch) -> Result<usize> {
        let samples = check_batch(batch, self.now())?;
        if self.keeps_series() {
            self.store.record_metrics(node, &samples).await?;
        }
        if let Some(series) = &self.series {
            series.offer(actor.workspace(), node, &samples);
        }
        Ok(samples.len())
    }

    /// What the node should do, unless it has the version `known`; with the version.
    pub async fn node_config(&self, node: Uuid, known: Option<u64>) -> Result<(u64, Option<VersionedConfig>)> {
        let config = known.map_or(Wanted::Always, Wanted::Unless);
        let looked = self.store.look(Look { node, config, commands_after: None, seen: None }).await?;
        Ok((looked.version, looked.config))
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
            self.pushes.wake(&[node]);
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
    pub async fn poll_stream(&self, state: &mut StreamState, news: News) -> Result<VecDeque<StreamLine>> {
        self.still_admitted(state.node, state.shown).await?;
        let mut lines = VecDeque::new();
        let config = state.version.map_or(Wanted::Always, Wanted::Unless);
        // Commands are a node's own.
        let (seen, commands_after) = match (news, state.seen) {
            (News::Shared, Some(seen)) => (Some(seen), None),
            _ => (None, Some(state.command)),
        };
        let question = Look { node: state.node, config, commands_after, seen };
        let Looked { version, config, commands, seen } = self.store.look(question).await?;
        state.seen = Some(seen);
        if let Some(config) = config {
            state.version = Some(version);
            lines.push_back(StreamLine::Config(config));
        }
        let first_command = !state.greeted && !commands.is_empty();
        for (number, command) in commands {
            state.command = number;
            lines.push_back(StreamLine::message(StreamMessage::Command { command }));
        }
        if lines.is_empty() || first_command {
            // The first line is `config` or `ping`, before any command.
            if !matches!(lines.front(), Some(StreamLine::Config(_))) {
                lines.push_front(StreamLine::message(StreamMessage::Ping { version }));
            }
        }
        state.greeted = true;
        Ok(lines)
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

/// One line of a stream.
#[derive(Debug)]
pub enum StreamLine {
    /// The message `config`, which many nodes share.
    Config(VersionedConfig),
    Message(Box<StreamMessage>),
}

impl StreamLine {
    fn message(message: StreamMessage) -> Self {
        Self::Message(Box::new(message))
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
    /// The node's own, as it was when the stream last looked at it.
    seen: Option<Seen>,
    /// The certificate that opened the stream.
    shown: Option<Fingerprint>,
}

impl StreamState {
    /// A new stream of `node`, which says that it has the configuration `version` and showed a certificate, or none.
    pub const fn new(node: Uuid, version: Option<u64>, shown: Option<Fingerprint>) -> Self {
        Self { node, version, command: 0, greeted: false, seen: None, shown }
    }
}
