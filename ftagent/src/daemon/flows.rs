//! Flow exporters beside the loop: their thread is told what changes, and its reports go the way of the node's own.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use ftagent_common::api::{NodeCommand, NodeConfig, Order};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::error;

use super::Daemon;
use crate::config::Config;
use crate::control::Answer;
use crate::engine::{OperatorOrder, Settings};
use crate::flows::{Event, FlowOrder, FlowsStatus, Worker, WorkerHandle};
use crate::sync::Outgoing;

/// The thread of the exporters, if the configuration has any.
#[derive(Default)]
pub(super) struct Exporters {
    running: Option<(WorkerHandle, JoinHandle<()>)>,
}

impl Exporters {
    /// Binds the sockets and begins to read.
    pub(super) fn start(config: &Config, settings: &Settings, state_dir: &Path, boot: &str) -> Result<Self> {
        if config.flow_exporters.is_empty() {
            return Ok(Self::default());
        }
        let path = state_dir.join("flows.json");
        let (worker, handle) = Worker::bind(config.flow_exporters.clone(), settings, path, boot.to_owned())?;
        let thread = tokio::task::spawn_blocking(move || worker.run());
        Ok(Self { running: Some((handle, thread)) })
    }

    /// What the thread has to tell; never, where there is none.
    pub(super) async fn next(&mut self) -> Option<Event> {
        match &mut self.running {
            Some((handle, _)) => handle.events.recv().await,
            None => std::future::pending().await,
        }
    }

    /// The newest status; a second old at most.
    pub(super) fn status(&self) -> Arc<FlowsStatus> {
        self.running.as_ref().map(|(handle, _)| Arc::clone(&handle.status.borrow())).unwrap_or_default()
    }

    fn order(&self, order: FlowOrder) {
        let Some((handle, _)) = &self.running else { return };
        if let Err(error) = handle.orders.try_send(order) {
            error!(%error, "the thread of the flow exporters takes no order");
        }
    }

    pub(super) fn set_settings(&self, settings: &Settings) {
        self.order(FlowOrder::Settings(Box::new(settings.clone())));
    }

    pub(super) fn set_remote(&self, config: &NodeConfig) {
        self.order(FlowOrder::Remote(Box::new(config.clone())));
    }

    /// Hands on what is said about an incident of an exporter; whether it is one.
    pub(super) fn take_command(&self, command: &NodeCommand) -> bool {
        let Order::ResolveIncident { incident, .. } = command.order else { return false };
        let is_ours = self.status().has_incident(incident);
        if is_ours {
            self.order(FlowOrder::Command { incident, command: command.clone() });
        }
        is_ours
    }

    /// The same for an operator, who gets `answer` from the thread; gives it back if it is no incident of an exporter.
    pub(super) fn take_order(
        &self,
        order: &OperatorOrder,
        answer: oneshot::Sender<Answer>,
    ) -> Result<(), oneshot::Sender<Answer>> {
        match *order {
            OperatorOrder::Resolve { incident, false_positive } if self.status().has_incident(incident) => {
                self.order(FlowOrder::Resolve { incident, false_positive, answer });
                Ok(())
            }
            _ => Err(answer),
        }
    }

    /// Lets the thread save what it knows, and end.
    pub(super) async fn stop(self) -> Result<(), tokio::task::JoinError> {
        let Some((handle, thread)) = self.running else { return Ok(()) };
        drop(handle);
        thread.await
    }
}

impl Daemon {
    pub(super) fn on_flows(&mut self, event: Event) {
        match event {
            Event::Report(report) => self.send_report(report),
            Event::Ack(ack) => self.send(Outgoing::Ack(ack)),
        }
    }
}
