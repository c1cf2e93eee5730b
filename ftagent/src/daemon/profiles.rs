//! The daemon and the thread of the attack profiles.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::oneshot;

use super::Daemon;
use crate::config::Config;
use crate::control::Answer;
use crate::engine::{Engine, OrderOutcome};
use crate::ground::Host;
use crate::profile::{Event, Options, ProfileOrder, Profiles, Tools};
use crate::sync::{Link, Outgoing};

/// Where OpenSSH is told its ports.
const SSH: &str = "/etc/ssh";
/// How long who ordered at the control socket waits: less than its conversations last.
const PATIENCE: Duration = Duration::from_secs(8);

/// Starts the thread, which first puts right what the last agent left half done.
pub(super) fn start(config: &Config, host: &Host, engine: &Engine, boot: &str) -> Result<Profiles> {
    let options = Options {
        state_dir: config.state_dir.clone(),
        boot: boot.to_owned(),
        friends: host.friends(engine.allowlist()),
        ssh: Path::new(SSH).to_owned(),
        tools: Tools::default(),
    };
    Profiles::start(options).context("the attack profiles")
}

impl Daemon {
    pub(super) fn on_profile(&mut self, event: Event) {
        self.send(message(event));
    }

    /// Tells what the node keeps now; nothing happens where that is as before.
    pub(super) fn tell_profiles(&mut self) {
        let friends = self.host.friends(self.engine.allowlist());
        self.profiles.set_friends(&friends);
    }

    /// The answer comes when the firewall is done, or says that it takes longer.
    pub(super) fn order_profile(&self, order: ProfileOrder, answer: oneshot::Sender<Answer>) {
        let outcome = self.profiles.order(order);
        tokio::spawn(async move {
            let outcome = match tokio::time::timeout(PATIENCE, outcome).await {
                Ok(Ok(outcome)) => Answer::Order { outcome },
                Ok(Err(_)) => Answer::Error { message: "the agent is stopping".to_owned() },
                Err(_) => {
                    let detail = "under way; `ftagent profile` shows when it is done".to_owned();
                    Answer::Order { outcome: OrderOutcome::Done { detail } }
                }
            };
            // Whoever asked may have gone.
            drop(answer.send(outcome));
        });
    }
}

/// Takes back what is on trial, and hands over what there is to say of it.
pub(super) async fn stop(profiles: Profiles, link: Option<&Link>) -> Result<()> {
    let events = tokio::task::spawn_blocking(|| profiles.stop()).await.context("the thread of the profiles")?;
    let Some(link) = link else { return Ok(()) };
    for event in events {
        link.outgoing.send(message(event)).await.context("the link is gone")?;
    }
    Ok(())
}

/// Undoes what other tools hold while what is on trial is taken back: each may take longer than the other has.
pub(super) async fn beside(
    undo: impl FnOnce() + Send + 'static,
    take_back: impl Future<Output = Result<()>>,
) -> (Result<()>, Result<()>) {
    let undo = async { tokio::task::spawn_blocking(undo).await.context("the threads of other tools") };
    tokio::join!(undo, take_back)
}

fn message(event: Event) -> Outgoing {
    match event {
        Event::Ack(ack) => Outgoing::Ack(ack),
        Event::Report(report) => Outgoing::Profile(report),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_trial_ends_while_other_tools_are_slow() {
        let (taken_back, waits) = std::sync::mpsc::channel();
        let undo = move || waits.recv_timeout(Duration::from_secs(20)).expect("the profile does not wait for this");
        let (undone, done) = beside(undo, async move { Ok(taken_back.send(())?) }).await;
        assert!(undone.is_ok() && done.is_ok(), "{undone:?} {done:?}");
    }

    #[test]
    fn the_service_waits_for_what_is_undone() {
        let unit = include_str!("../../../dist/ftagent.service");
        let secs = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")?.parse::<u64>().ok());
        // A command of a firewall has half a minute, a request to a cloud a quarter; each may come twice.
        assert!(secs.is_some_and(|secs| secs >= 60), "{secs:?}");
    }
}
