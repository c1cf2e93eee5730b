//! Ordinary traffic as it was captured, at its own times: nothing of it is an attack.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::Path;

use ftagent::engine::Settings;
use ftagent::replay::{Pace, Sampling};
use ftagent_lab::captures::Captures;
use ftagent_lab::replay::{ReplayError, each};

use super::trial::{Diary, SEC, node};

/// What a capture of ordinary traffic caused.
pub(super) struct Calm {
    pub(super) name: String,
    pub(super) incidents: usize,
    /// Of confidence 0.5 and more.
    pub(super) sure: usize,
    pub(super) blocked: usize,
    text: String,
}

/// Replays every benign capture, both directions as they were.
pub(super) fn run(captures: &Captures) -> Result<Vec<Calm>, ReplayError> {
    captures
        .class("benign")
        .map(|label| {
            let diary = own_times(&captures.path(label))?;
            let mut text = String::new();
            for report in diary.surest.values() {
                _ = writeln!(
                    text,
                    "  {}: {} on {}, confidence {:.2}",
                    label.file, report.family, report.target, report.confidence
                );
                report.explanation.iter().for_each(|line| _ = writeln!(text, "      {line}"));
            }
            Ok(Calm {
                name: label.file.clone(),
                incidents: diary.surest.len(),
                sure: diary.sure().count(),
                blocked: diary.blocked.len(),
                text,
            })
        })
        .collect()
}

fn own_times(path: &Path) -> Result<Diary, ReplayError> {
    let mut kernel = node(Settings::default(), Sampling::Adaptive);
    kernel.run_for(2 * SEC);
    let start = kernel.now_ns;
    let mut pace = Pace::new(None);
    each(path, &mut |packet| {
        let ns = start + pace.next(packet.at);
        kernel.frame(&packet.frame, packet.wire_len, ns);
        ControlFlow::Continue(())
    })?;
    kernel.run_for(20 * SEC);
    Ok(kernel.watch)
}

/// What each incident was, and what the engine said of it.
pub(super) fn told(all: &[Calm]) -> String {
    let text: String = all.iter().map(|calm| calm.text.as_str()).collect();
    if text.is_empty() { text } else { format!("\nincidents on benign captures\n{text}") }
}
