//! From the first attack packet to the drop.

use super::{Goal, Options};

/// Measures nothing in this build, and says so.
///
/// # Errors
/// Never.
pub fn run(_options: &Options, _progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Goal>> {
    Ok(vec![Goal::missing(
        "P9",
        "first attack packet to drop",
        "ms",
        "p50 <= 120 ms, p99 <= 250 ms",
        "not measured in this build",
    )])
}
