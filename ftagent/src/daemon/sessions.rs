//! Who is connected, looked at every second beside the loop: reading the machine's records may wait for its disk.

use std::io;

use tokio::task::JoinSet;
use tracing::warn;

use super::Daemon;
use crate::clock;
use crate::ground::Host;
use crate::sessions::{Reader, Sessions, SessionsError};

/// So long what was seen last holds when a look fails: one look that fails in the middle of an attack must not take every
/// rule back.
const GRACE_NS: u64 = 10_000_000_000;

type Seen = Result<Sessions, SessionsError>;

/// The reader, which is away while it looks.
#[derive(Default)]
pub(super) struct Watch {
    reader: Option<Reader>,
    looks: JoinSet<(Reader, Seen)>,
    succeeded_ns: Option<u64>,
}

impl Watch {
    /// Looks for the first time, at once: nothing automated acts before it is known who is connected.
    pub(super) fn start(host: &mut Host) -> Self {
        let mut reader = Reader::new(host.control_ports());
        let now_ns = clock::mono_ns();
        let seen = reader.look(now_ns);
        let succeeded_ns = seen.is_ok().then_some(now_ns);
        host.set_sessions(seen);
        Self { reader: Some(reader), looks: JoinSet::new(), succeeded_ns }
    }

    /// What is to be said of a look that does not end, as one that waits for a broken disk.
    fn overdue(&self, now_ns: u64) -> Option<SessionsError> {
        let is_late = self.succeeded_ns.is_none_or(|then| now_ns.saturating_sub(then) >= GRACE_NS);
        (!self.looks.is_empty() && is_late).then_some(SessionsError::Late)
    }

    /// Waits for what is seen next; giving the wait up loses nothing.
    pub(super) async fn seen(&mut self) -> Seen {
        match self.looks.join_next().await {
            Some(Ok((reader, seen))) => {
                self.reader = Some(reader);
                seen
            }
            Some(Err(error)) => Err(SessionsError::Sockets(io::Error::other(error))),
            None => std::future::pending().await,
        }
    }
}

impl Daemon {
    /// Looks, unless the look before has not ended.
    pub(super) fn look_at_sessions(&mut self) {
        if let Some(late) = self.sessions.overdue(clock::mono_ns())
            && self.host.set_sessions(Err(late))
        {
            self.apply_host();
        }
        let watch = &mut self.sessions;
        if !watch.looks.is_empty() {
            return;
        }
        let mut reader = watch.reader.take().unwrap_or_else(|| Reader::new(self.host.control_ports()));
        watch.looks.spawn_blocking(move || {
            let seen = reader.look(clock::mono_ns());
            (reader, seen)
        });
    }

    pub(super) fn on_sessions(&mut self, seen: Seen) {
        let now_ns = clock::mono_ns();
        match &seen {
            Ok(_) => self.sessions.succeeded_ns = Some(now_ns),
            Err(error) if self.sessions.succeeded_ns.is_some_and(|then| now_ns.saturating_sub(then) < GRACE_NS) => {
                warn!(%error, "a look at the sessions in use failed; those seen before hold for some seconds");
                return;
            }
            Err(_) => {}
        }
        if self.host.set_sessions(seen) {
            self.apply_host();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_look_that_does_not_end_is_noticed() {
        let mut watch = Watch { succeeded_ns: Some(5), ..Watch::default() };
        assert!(watch.overdue(5 + GRACE_NS).is_none(), "nothing is under way");
        watch.looks.spawn(std::future::pending());
        assert!(watch.overdue(4 + GRACE_NS).is_none());
        assert!(matches!(watch.overdue(5 + GRACE_NS), Some(SessionsError::Late)));
    }
}
