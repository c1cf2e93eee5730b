//! What other control planes on the same database must hear: whose streams to wake or end, and events.
//!
//! ```text
//! process A: commit --> its own streams and watchers, at once
//!                   --> outbox (bounded) --> the database's channel --> process B: its streams and watchers
//! ```
//! Nothing here is needed for the truth, which is in the database. Word that is lost, because a process died before it
//! told, is made up by streams themselves, which look at their version with every ping; whoever was cut off from the
//! channel wakes all of its streams and tells its watchers that they missed something.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};
use uuid::Uuid;

use super::App;
use crate::domain::WorkspaceId;
use crate::store::{Listener, StoreError};

/// Notices that wait to be told while the database does not answer; after that many, listeners are told to look at all.
const OUTBOX: usize = 4_096;
/// Bytes of one text on the channel; PostgreSQL takes 7,999.
const TEXT_BYTES: usize = 7_900;
/// Texts that are told at once.
const BATCH: usize = 32;
/// Texts of one notice; a larger one is told as `Missed`.
const MAX_PARTS: usize = 64;
/// Nodes named in one notice.
const NODES: usize = 1_000;
/// Processes whose notices can be half heard at the same time.
const SENDERS: usize = 64;
/// How often a process that has nothing to tell says so.
const ALIVE: Duration = Duration::from_secs(20);
/// After a silence of this length, one's own word included, the channel is broken.
const SILENCE: Duration = Duration::from_secs(60);
/// How long to wait before the channel is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Notice {
    /// These nodes' configuration or commands changed.
    Wake(Vec<Uuid>),
    /// Those of all nodes of this workspace did.
    WakeAll(i64),
    /// What those of all nodes of this workspace have in common did.
    WakeShared(i64),
    /// The node is gone: its streams end.
    End(Uuid),
    Event {
        workspace: i64,
        kind: String,
        data: Value,
    },
    /// More happened than could be told.
    Missed,
    /// Nothing happened.
    Alive,
}

/// Where notices are left; without other processes they go nowhere.
#[derive(Clone, Default)]
pub(super) struct Relay(Arc<Outbox>);

#[derive(Default)]
struct Outbox {
    sender: OnceLock<mpsc::Sender<Notice>>,
    overflowed: AtomicBool,
}

impl Relay {
    /// Leaves a notice for the other processes.
    pub(super) fn leave(&self, notice: impl FnOnce() -> Notice) {
        if let Some(sender) = self.0.sender.get()
            && sender.try_send(notice()).is_err()
        {
            self.0.overflowed.store(true, Ordering::Relaxed);
        }
    }
}

impl App {
    /// Tells other processes on this database and hears from them, until the server drains; at once done where there
    /// can be none.
    pub async fn relay(self: Arc<Self>, mut draining: watch::Receiver<bool>) {
        let mut next = match self.store.listen().await {
            Ok(None) => return,
            Ok(Some(listener)) => Some(listener),
            Err(fault) => {
                warn!(error = %fault, "other control planes cannot be heard: it will be tried again");
                None
            }
        };
        let ours = Uuid::new_v4().simple().to_string();
        let mut hearing = Hearing { ours: ours.clone(), partial: HashMap::new() };
        let (sender, outbox) = mpsc::channel(OUTBOX);
        self.relay.0.sender.set(sender).expect("one relay is run, at the start");
        let working = async {
            loop {
                let mut listener = match next.take() {
                    Some(listener) => listener,
                    None => self.listen_again(&mut hearing).await,
                };
                // The old one is gone before the next is asked for: it holds a connection.
                let fault = self.hear_all(&mut *listener, &mut hearing).await;
                warn!(error = %fault, "word from other control planes is cut off: it will be tried again");
            }
        };
        tokio::select! {
            () = working => {}
            () = self.tell(ours, outbox) => {}
            _ = draining.wait_for(|d| *d) => {}
        }
    }

    /// Hears until the channel breaks.
    async fn hear_all(&self, listener: &mut dyn Listener, hearing: &mut Hearing) -> StoreError {
        loop {
            let Ok(heard) = tokio::time::timeout(SILENCE, listener.next()).await else {
                let source = std::io::Error::from(std::io::ErrorKind::TimedOut);
                return StoreError::Unavailable { reason: "it is silent", source: Box::new(source) };
            };
            match heard {
                Ok(Some(text)) => {
                    if let Some(notice) = hearing.take(&text) {
                        self.hear(notice);
                    }
                }
                Ok(None) => self.hear(Notice::Missed),
                Err(fault) => return fault,
            }
        }
    }

    /// Whether this process hears others on its database.
    pub fn listens(&self) -> bool {
        self.relay.0.sender.get().is_some()
    }

    async fn listen_again(&self, hearing: &mut Hearing) -> Box<dyn Listener> {
        loop {
            tokio::time::sleep(AGAIN).await;
            if let Ok(Some(listener)) = self.store.listen().await {
                info!("word from other control planes comes again");
                hearing.partial.clear();
                self.hear(Notice::Missed);
                return listener;
            }
        }
    }

    /// Tells what is left in the outbox, in order, as often as it takes.
    async fn tell(&self, ours: String, mut outbox: mpsc::Receiver<Notice>) {
        let mut number = 0_u64;
        let mut notices = Vec::new();
        loop {
            match tokio::time::timeout(ALIVE, outbox.recv_many(&mut notices, BATCH)).await {
                Ok(0) => return,
                Ok(_) => {}
                Err(_) => notices.push(Notice::Alive),
            }
            if self.relay.0.overflowed.swap(false, Ordering::Relaxed) {
                notices.push(Notice::Missed);
            }
            let mut texts = Vec::new();
            for notice in notices.drain(..) {
                number += 1;
                texts.extend(texts_of(&ours, number, &notice));
            }
            for batch in texts.chunks(BATCH) {
                while let Err(fault) = self.store.tell(batch).await {
                    warn!(error = %fault, "other control planes cannot be told: it will be tried again");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    fn hear(&self, notice: Notice) {
        match notice {
            Notice::Wake(nodes) => nodes.into_iter().for_each(|node| self.pushes.wake_here(node)),
            Notice::WakeAll(workspace) => self.pushes.wake_workspace_here(WorkspaceId(workspace)),
            Notice::WakeShared(workspace) => self.pushes.wake_shared_here(WorkspaceId(workspace)),
            Notice::End(node) => {
                self.keys.forget(node);
                self.pushes.end_here(node);
            }
            Notice::Event { workspace, kind, data } => {
                self.events.announce_here(Some(WorkspaceId(workspace)), kind.into(), data);
            }
            Notice::Alive => {}
            Notice::Missed => {
                self.keys.forget_all();
                self.pushes.wake_all_here();
                self.events.announce_here(None, "missed".into(), serde_json::json!({}));
            }
        }
    }
}

/// The notice as texts that fit: `SENDER NUMBER PART PARTS JSON`. The number keeps two equal notices apart, which
/// PostgreSQL would deliver as one.
fn texts_of(ours: &str, number: u64, notice: &Notice) -> Vec<String> {
    if let Notice::Wake(nodes) = notice
        && nodes.len() > NODES
    {
        let parts = nodes.chunks(NODES).enumerate();
        return parts
            .flat_map(|(n, nodes)| texts_of(&format!("{ours}.{n}"), number, &Notice::Wake(nodes.to_vec())))
            .collect();
    }
    let json = serde_json::to_string(notice).expect("notices have string keys and always serialise");
    let mut pieces = Vec::new();
    let mut rest = json.as_str();
    while !rest.is_empty() {
        let end =
            (0..=rest.len().min(TEXT_BYTES - 100)).rev().find(|i| rest.is_char_boundary(*i)).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    if pieces.len() > MAX_PARTS {
        return texts_of(ours, number, &Notice::Missed);
    }
    let parts = pieces.len();
    pieces.iter().enumerate().map(|(n, piece)| format!("{ours} {number} {n} {parts} {piece}")).collect()
}

/// What a later version of this program tells and this one does not know is something that was missed.
fn notice_of(json: &str) -> Notice {
    serde_json::from_str(json).unwrap_or(Notice::Missed)
}

/// Puts notices together again.
struct Hearing {
    ours: String,
    /// What came of each sender's newest notice, and how many parts of it.
    partial: HashMap<String, (usize, String)>,
}

impl Hearing {
    /// The notice, once this text completes one of another process; `Missed` where a part of it is.
    fn take(&mut self, text: &str) -> Option<Notice> {
        let mut words = text.splitn(5, ' ');
        let sender = words.next().filter(|sender| !sender.starts_with(&self.ours))?;
        let _number = words.next()?;
        let part: usize = words.next()?.parse().ok()?;
        let parts: usize = words.next()?.parse().ok().filter(|parts| *parts <= MAX_PARTS)?;
        let piece = words.next()?;
        if parts == 1 {
            return Some(notice_of(piece));
        }
        if part == 0 {
            // Those who died in the middle never end theirs.
            if self.partial.len() >= SENDERS {
                self.partial.clear();
            }
            self.partial.insert(sender.to_owned(), (0, String::new()));
        }
        let Some((have, whole)) = self.partial.get_mut(sender).filter(|(have, _)| *have == part) else {
            self.partial.remove(sender);
            return Some(Notice::Missed);
        };
        *have += 1;
        whole.push_str(piece);
        if *have < parts {
            return None;
        }
        let (_, whole) = self.partial.remove(sender)?;
        Some(notice_of(&whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(notice: &Notice, reader: &str) -> Vec<Notice> {
        let mut hearing = Hearing { ours: reader.to_owned(), partial: HashMap::new() };
        let texts = texts_of("a", 7, notice);
        assert!(texts.iter().all(|text| text.len() <= TEXT_BYTES));
        texts.iter().filter_map(|text| hearing.take(text)).collect()
    }

    #[test]
    fn notices_of_any_size_arrive_whole_and_ones_own_do_not() {
        let event = |text: String| Notice::Event { workspace: 1, kind: "rule".to_owned(), data: Value::String(text) };
        let nodes: Vec<_> = (0..2_500).map(Uuid::from_u128).collect();
        for notice in [Notice::End(Uuid::nil()), event("é".repeat(40_000)), event(String::new()), Notice::Missed] {
            assert_eq!(through(&notice, "b"), std::slice::from_ref(&notice));
            assert!(through(&notice, "a").is_empty());
        }
        let heard = through(&Notice::Wake(nodes.clone()), "b");
        let woken: Vec<_> = heard
            .into_iter()
            .flat_map(|notice| match notice {
                Notice::Wake(nodes) => nodes,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(woken, nodes);
        assert_eq!(through(&event("x".repeat(2_000_000)), "b"), [Notice::Missed], "too large to be told");
    }

    #[test]
    fn a_part_that_is_missing_is_told() {
        let data = Value::String("x".repeat(20_000));
        let texts = texts_of("a", 1, &Notice::Event { workspace: 1, kind: "rule".to_owned(), data });
        let mut hearing = Hearing { ours: "b".to_owned(), partial: HashMap::new() };
        assert!(texts.len() > 2);
        assert_eq!(hearing.take(&texts[0]), None);
        assert_eq!(hearing.take(&texts[2]), Some(Notice::Missed));
        assert!(hearing.partial.is_empty());
        for junk in ["", "a", "a 1 0 1", "a 1 0 99999 {}", "a b c d e"] {
            assert_eq!(hearing.take(junk), None, "{junk}");
        }
        for unknown in ["a 1 0 1 {", r#"a 1 0 1 {"wake_some":[1]}"#] {
            assert_eq!(hearing.take(unknown), Some(Notice::Missed), "{unknown}");
        }
    }
}
