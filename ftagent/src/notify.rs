//! What the service manager is told, where there is one.

use sd_notify::NotifyState;

/// The agent enforces.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The agent lives: systemd restarts it when it does not say so within `WatchdogSec`.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// The agent was asked to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
