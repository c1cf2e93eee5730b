//! Decisions of CrowdSec beside the loop: their thread is told whom they may not touch, and what it decides goes into the
//! tables of the lists.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use ftagent_common::api::AllowEntry;
use tokio::task::JoinHandle;
use tracing::error;

use super::Daemon;
use crate::crowdsec::{CrowdsecStatus, Decided, Handle, Spared, Worker};
use crate::engine::Guard;

/// The thread, if the configuration asks for decisions.
#[derive(Default)]
pub(super) struct Crowdsec {
    running: Option<(Handle, JoinHandle<std::io::Result<()>>)>,
    /// What was known when the thread failed.
    last: Option<CrowdsecStatus>,
}

impl Crowdsec {
    /// Waits for other decisions; for ever where none are asked for. Giving the wait up loses nothing.
    pub(super) async fn decided(&mut self) -> Arc<Decided> {
        if let Some((handle, _)) = &mut self.running {
            while handle.decided.changed().await.is_ok() {
                if let Some(decided) = handle.decided.borrow_and_update().clone() {
                    return decided;
                }
            }
            error!("the thread of CrowdSec's decisions ended: those in force end by themselves");
            let mut last = handle.status.borrow().clone();
            last.connected = false;
            last.last_error = Some("the thread of the decisions failed: restart the agent".to_owned());
            self.last = Some(last);
            self.running = None;
        }
        std::future::pending().await
    }

    /// Tells the thread the allowlist in force.
    pub(super) fn set_allow(&self, allow: &[AllowEntry]) {
        self.tell(|spared| spared.allow = allow.iter().map(|entry| entry.prefix).collect());
    }

    /// Tells the thread what the node is and depends on.
    pub(super) fn set_guard(&self, guard: &Guard) {
        self.tell(|spared| {
            spared.unreadable = guard.unreadable.is_some();
            spared.own = own(guard);
        });
    }

    fn tell(&self, change: impl FnOnce(&mut Spared)) {
        let Some((handle, _)) = &self.running else { return };
        handle.spared.send_if_modified(|spared| {
            let before = spared.clone();
            change(spared);
            *spared != before
        });
    }

    pub(super) fn status(&self) -> Option<CrowdsecStatus> {
        let running = self.running.as_ref().map(|(handle, _)| handle.status.borrow().clone());
        running.or_else(|| self.last.clone())
    }

    /// What an operator should know.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.status().map(|status| status.warnings()).unwrap_or_default()
    }

    /// Ends the thread, which saves what it knows.
    pub(super) async fn stop(self) -> Result<()> {
        let Some((handle, thread)) = self.running else { return Ok(()) };
        drop(handle);
        thread.await.context("it panicked")?.context("it had no runtime")
    }
}

fn own(guard: &Guard) -> Vec<ipnet::IpNet> {
    let sessions = guard.sessions.iter().map(|session| session.peer.into());
    guard.own.iter().copied().chain(guard.infrastructure.iter().map(|(prefix, _)| *prefix)).chain(sessions).collect()
}

impl Daemon {
    pub(super) fn start_crowdsec(&mut self) -> Result<()> {
        let Some(config) = &self.config.crowdsec else { return Ok(()) };
        let settings = self.host.settings(&self.config.settings);
        let spared = Spared {
            unreadable: settings.guard.unreadable.is_some(),
            allow: self.engine.desired().allow.iter().map(|entry| entry.prefix).collect(),
            own: own(&settings.guard),
        };
        let path = self.config.state_dir.join("crowdsec.bin");
        let (worker, handle) = Worker::new(config, path, spared).context("crowdsec")?;
        let thread = tokio::task::spawn_blocking(move || worker.run());
        self.crowdsec.running = Some((handle, thread));
        self.lists.await_decisions(crate::clock::mono_ns());
        Ok(())
    }

    pub(super) fn on_decided(&mut self, decided: Arc<Decided>) {
        self.lists.take_decisions(decided);
        self.look_at_lists();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::lists::ListAction;

    #[tokio::test]
    async fn a_thread_that_failed_is_a_warning() {
        let mut status = CrowdsecStatus::new("http://lapi", ListAction::Block);
        status.connected = true;
        let (decided, status) = (watch::channel(None).1, watch::channel(status).1);
        let handle = Handle { spared: watch::channel(Spared::default()).0, decided, status };
        let running = Some((handle, tokio::spawn(async { Ok(()) })));
        let mut crowdsec = Crowdsec { running, last: None };
        assert!(crowdsec.warnings().is_empty());
        let waited = tokio::time::timeout(std::time::Duration::from_millis(50), crowdsec.decided()).await;
        assert!(waited.is_err(), "there is nothing to hear any more");
        assert!(crowdsec.warnings()[0].contains("restart the agent"), "{:?}", crowdsec.warnings());
        assert!(crowdsec.status().is_some_and(|status| !status.connected));
    }
}
