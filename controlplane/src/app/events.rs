//! What happened, for those who watch: `GET /events`.

use std::borrow::Cow;

use serde_json::Value;
use tokio::sync::broadcast;

use super::relay::{Notice, Relay};
use crate::domain::WorkspaceId;

/// How many events a slow watcher may be behind before it is told that it missed some.
const BACKLOG: usize = 1_024;

/// Something that a dashboard shows at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Whose; everybody's if none.
    pub workspace: Option<WorkspaceId>,
    /// `incident`, `rule`, `allowlist`, `threshold`, `node` or `workspace`; `missed` where some were lost.
    pub kind: Cow<'static, str>,
    /// What happened and to what.
    pub data: Value,
}

/// Where events are announced; nobody listening is fine.
pub struct Events {
    here: broadcast::Sender<Event>,
    relay: Relay,
}

impl Default for Events {
    fn default() -> Self {
        Self::new(Relay::default())
    }
}

impl Events {
    pub(super) fn new(relay: Relay) -> Self {
        Self { here: broadcast::Sender::new(BACKLOG), relay }
    }

    /// Announces an event, here and at every other process; it is gone if nobody listens.
    pub fn announce(&self, workspace: WorkspaceId, kind: &'static str, data: Value) {
        self.relay.leave(|| Notice::Event { workspace: workspace.0, kind: kind.to_owned(), data: data.clone() });
        self.announce_here(Some(workspace), kind.into(), data);
    }

    /// Announces what was announced elsewhere.
    pub(super) fn announce_here(&self, workspace: Option<WorkspaceId>, kind: Cow<'static, str>, data: Value) {
        // Sending fails only when nobody listens.
        drop(self.here.send(Event { workspace, kind, data }));
    }

    /// Listens from now on, to every workspace: the caller keeps its own.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.here.subscribe()
    }
}
