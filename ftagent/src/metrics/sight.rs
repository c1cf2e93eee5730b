//! What the agent sees and knows: interfaces that fell silent, and how much is learnt.

use super::Snapshot;
use super::text::{Kind, Text};

/// Only interfaces that had frames since the start have a time without any.
pub(super) fn sight(text: &mut Text, snapshot: &Snapshot) {
    let help = "1 while an interface that had frames has none for detection.silent_secs.";
    text.family("ftagent_interface_silent", Kind::Gauge, help);
    for interface in &snapshot.traffic {
        text.row(&[("interface", interface.name.as_str())], u64::from(interface.silent));
    }
    let help = "Time since the newest frame of an interface, once it had any.";
    text.family("ftagent_interface_idle_seconds", Kind::Gauge, help);
    for interface in &snapshot.traffic {
        if let Some(idle) = interface.idle_secs {
            text.row(&[("interface", interface.name.as_str())], idle);
        }
    }
    let baseline = &snapshot.baseline;
    let learning = u64::from(baseline.learning_targets);
    let learnt = u64::from(baseline.targets).saturating_sub(learning);
    text.family("ftagent_baseline_targets", Kind::Gauge, "Targets with traffic, by whether enough of it is known.");
    for (state, count) in [("learning", learning), ("learnt", learnt)] {
        text.row(&[("state", state)], count);
    }
    let help = "Hours of the week, 0 to 168, of which the target known best has a rate of its own.";
    text.family("ftagent_baseline_known_week_slots", Kind::Gauge, help);
    text.row(&[], u64::from(baseline.known_hours));
}
