//! One step of an action: what is run, what undoes it, and how its object is known.

use serde::{Deserialize, Serialize};

/// A command with the one that undoes it, as [`Preview`](crate::api::Preview) shows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolStep {
    #[serde(rename = "do")]
    pub run: Vec<String>,
    /// Empty: nothing is to be undone.
    pub undo: Vec<String>,
    /// Its success says that the object is there already, and somebody else's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unless: Vec<String>,
}

impl ToolStep {
    /// What the step makes: two steps with the same object are one, whatever else they say of it.
    pub fn object(&self) -> String {
        let words = if self.undo.is_empty() { &self.run } else { &self.undo };
        words.join("\u{1f}")
    }

    /// Seconds after which running the step again keeps its object from ending by itself; none where that is of no use.
    pub fn renew_secs(&self) -> Option<u64> {
        let [program, verb, .., option, secs, _] = self.run.as_slice() else { return None };
        if program != "ipset" || verb != "add" || option != "timeout" {
            return None;
        }
        secs.parse::<u64>().ok().map(|secs| (secs / 2).max(1))
    }
}
