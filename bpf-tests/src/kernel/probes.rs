//! Rows about single features of the kernel: the agent's table against what the kernel does when asked.

use super::Outcome;

/// One row for each feature.
pub(super) fn rows() -> Vec<(&'static str, Outcome)> {
    Vec::new()
}
