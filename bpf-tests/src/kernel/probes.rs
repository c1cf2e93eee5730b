//! Rows about single features of the kernel: the agent's table against what the kernel does when asked.

use ftagent::xdp::adapt::declares;
use ftagent::xdp::kernel::{Support, TABLE};

use super::Outcome;

/// One row for each feature. On a kernel as its authors released it the answer and the version agree; where they do
/// not, the table is wrong.
pub(super) fn rows() -> Vec<(&'static str, Outcome)> {
    let support = Support::here();
    let missing = support.missing(|_| true);
    let rows = TABLE.iter().map(|entry| {
        let has = !missing.iter().any(|missing| missing.feature == entry.feature);
        let use_ = if entry.switch.is_none_or(declares) { "" } else { " (no use yet)" };
        let outcome = match (has, support.version() >= entry.since) {
            (true, true) => Outcome::Ok(format!("since {}{use_}", entry.since)),
            (false, false) => Outcome::Missing(format!("needs {}: {}{use_}", entry.since, entry.instead)),
            (has, _) => Outcome::Failed(format!("the table says since {}, the kernel says {has}", entry.since)),
        };
        (entry.name, outcome)
    });
    rows.collect()
}
