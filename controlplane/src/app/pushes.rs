//! Who waits for changes of which node.
//!
//! A wake-up carries no data: whoever wakes reads the newest state. So nothing queues up behind a slow stream, and
//! several changes in a row cost it one reading. It only says whether that is what all nodes of the workspace share, or
//! something of the node's own as well: a change for all need not be looked up node by node.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::relay::{Notice, Relay};
use crate::domain::WorkspaceId;

/// Streams that one node may hold open; the oldest gives way, since it is most likely a connection that died unseen.
const MAX_STREAMS: usize = 4;

/// How often there was something new.
#[derive(Clone, Copy, Default)]
struct Turns {
    shared: u64,
    /// Of the node's own.
    own: u64,
}

impl Turns {
    fn shared(&mut self) {
        self.shared = self.shared.wrapping_add(1);
    }

    fn own(&mut self) {
        self.own = self.own.wrapping_add(1);
    }
}

/// What is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Only what all nodes of the workspace share.
    Shared,
    /// Perhaps something of the node's own.
    Own,
}

struct Channel {
    workspace: WorkspaceId,
    wake: watch::Sender<Turns>,
    /// Dropping the sender ends the stream.
    streams: VecDeque<(u64, oneshot::Sender<()>)>,
}

#[derive(Default)]
struct Waiting {
    nodes: HashMap<Uuid, Channel>,
    next: u64,
}

/// The streams of every node.
#[derive(Clone, Default)]
pub struct Pushes {
    here: Arc<Mutex<Waiting>>,
    relay: Relay,
}

impl Pushes {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn new(relay: Relay) -> Self {
        Self { relay, ..Self::default() }
    }

    /// Wakes the nodes' streams, here and at every other process.
    pub fn wake(&self, nodes: &[Uuid]) {
        if !nodes.is_empty() {
            self.relay.leave(|| Notice::Wake(nodes.to_vec()));
        }
        nodes.iter().for_each(|node| self.wake_here(*node));
    }

    pub(super) fn wake_here(&self, node: Uuid) {
        if let Some(channel) = self.lock().nodes.get(&node) {
            channel.wake.send_modify(Turns::own);
        }
    }

    /// Wakes the streams of all nodes of a workspace for what they share, here and at every other process.
    pub fn wake_shared(&self, workspace: WorkspaceId) {
        self.relay.leave(|| Notice::WakeShared(workspace.0));
        self.wake_shared_here(workspace);
    }

    pub(super) fn wake_shared_here(&self, workspace: WorkspaceId) {
        for channel in self.lock().nodes.values().filter(|channel| channel.workspace == workspace) {
            channel.wake.send_modify(Turns::shared);
        }
    }

    /// Wakes the streams of all nodes of a workspace, here and at every other process.
    pub fn wake_workspace(&self, workspace: WorkspaceId) {
        self.relay.leave(|| Notice::WakeAll(workspace.0));
        self.wake_workspace_here(workspace);
    }

    pub(super) fn wake_workspace_here(&self, workspace: WorkspaceId) {
        for channel in self.lock().nodes.values().filter(|channel| channel.workspace == workspace) {
            channel.wake.send_modify(Turns::own);
        }
    }

    pub(super) fn wake_all_here(&self) {
        for channel in self.lock().nodes.values() {
            channel.wake.send_modify(Turns::own);
        }
    }

    /// Ends the node's streams, here and at every other process.
    pub fn end(&self, node: Uuid) {
        self.relay.leave(|| Notice::End(node));
        self.end_here(node);
    }

    pub(super) fn end_here(&self, node: Uuid) {
        self.lock().nodes.remove(&node);
    }

    /// Waits for wake-ups of `node` from now on.
    pub fn subscribe(&self, node: Uuid, workspace: WorkspaceId) -> Subscription {
        let mut waiting = self.lock();
        let id = waiting.next;
        waiting.next += 1;
        let new = || Channel { workspace, wake: watch::Sender::default(), streams: VecDeque::new() };
        let channel = waiting.nodes.entry(node).or_insert_with(new);
        let (alive, ended) = oneshot::channel();
        channel.streams.push_back((id, alive));
        if channel.streams.len() > MAX_STREAMS {
            channel.streams.pop_front();
        }
        let wake = channel.wake.subscribe();
        let heard = wake.borrow().own;
        Subscription { node, id, wake, heard, ended, pushes: self.clone() }
    }

    /// How many streams are open.
    pub fn open(&self) -> usize {
        self.lock().nodes.values().map(|c| c.streams.len()).sum()
    }
}

/// One stream's place; leaves when dropped.
pub struct Subscription {
    node: Uuid,
    id: u64,
    wake: watch::Receiver<Turns>,
    /// How often there was something of the node's own.
    heard: u64,
    ended: oneshot::Receiver<()>,
    pushes: Pushes,
}

impl Subscription {
    /// Waits for the next wake-up; none when the stream must end.
    pub async fn woken(&mut self) -> Option<News> {
        tokio::select! {
            biased;
            _ = &mut self.ended => return None,
            changed = self.wake.changed() => changed.ok()?,
        }
        let own = self.wake.borrow_and_update().own;
        let news = if own == self.heard { News::Shared } else { News::Own };
        self.heard = own;
        Some(news)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut waiting = self.pushes.lock();
        if let Some(channel) = waiting.nodes.get_mut(&self.node) {
            channel.streams.retain(|(id, _)| *id != self.id);
            if channel.streams.is_empty() {
                waiting.nodes.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fifth_stream_ends_the_oldest_and_leaving_leaves_nothing_behind() {
        let pushes = Pushes::default();
        let node = Uuid::from_u128(1);
        let mut streams: Vec<_> = (0..5).map(|_| pushes.subscribe(node, WorkspaceId(1))).collect();
        pushes.wake(&[node]);
        assert_eq!(streams[0].woken().await, None);
        for stream in &mut streams[1..] {
            assert_eq!(stream.woken().await, Some(News::Own));
        }
        let mut strange = pushes.subscribe(Uuid::from_u128(2), WorkspaceId(2));
        pushes.wake_workspace(WorkspaceId(1));
        pushes.wake_shared(WorkspaceId(1));
        for stream in &mut streams[1..] {
            assert_eq!(stream.woken().await, Some(News::Own), "what is shared does not hide what is not");
        }
        pushes.wake_shared(WorkspaceId(1));
        for stream in &mut streams[1..] {
            assert_eq!(stream.woken().await, Some(News::Shared));
        }
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), strange.woken());
        assert!(waiting.await.is_err(), "another workspace's node was woken");
        drop(strange);
        assert_eq!(pushes.open(), 4);
        drop(streams);
        assert_eq!(pushes.open(), 0);
        assert!(pushes.lock().nodes.is_empty());
    }

    #[tokio::test]
    async fn a_deleted_nodes_streams_end() {
        let pushes = Pushes::default();
        let mut stream = pushes.subscribe(Uuid::nil(), WorkspaceId(1));
        pushes.end(Uuid::nil());
        assert_eq!(stream.woken().await, None);
    }
}
