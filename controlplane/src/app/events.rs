//! What happened, for those who watch: `GET /events`.

use serde_json::Value;
use tokio::sync::broadcast;

use crate::domain::WorkspaceId;

/// How many events a slow watcher may be behind before it is told that it missed some.
const BACKLOG: usize = 1_024;

/// Something that a dashboard shows at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub workspace: WorkspaceId,
    /// `incident`, `rule`, `allowlist`, `threshold`, `node` or `workspace`.
    pub kind: &'static str,
    /// What happened and to what.
    pub data: Value,
}

/// Where events are announced; nobody listening is fine.
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl Events {
    /// Announces an event; it is gone if nobody listens.
    pub fn announce(&self, workspace: WorkspaceId, kind: &'static str, data: Value) {
        // Sending fails only when nobody listens.
        drop(self.0.send(Event { workspace, kind, data }));
    }

    /// Listens from now on, to every workspace: the caller keeps its own.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
