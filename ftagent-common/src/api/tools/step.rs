//! One step of an action: what is run, what undoes it, and how its object is known.

use serde::{Deserialize, Serialize};

use super::firewalld_drop_source::RichRule;
use super::members::Members;

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
    /// What `run` puts into a set, and `undo` takes out of it, on standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<Members>,
}

impl ToolStep {
    /// What the step makes: two steps with the same object are one, whatever else they say of it.
    pub fn object(&self) -> String {
        if let Some(members) = &self.members {
            return members.object();
        }
        let words = if self.undo.is_empty() { &self.run } else { &self.undo };
        if let Some(rule) = RichRule::of(words) {
            return rule.object();
        }
        words.join("\u{1f}")
    }

    /// Seconds after which running the step again keeps its object from ending by itself; none where that is of no use.
    pub fn renew_secs(&self) -> Option<u64> {
        if let Some(members) = &self.members {
            return Some(u64::from(members.ttl_secs / 2).max(1));
        }
        // Of an agent that had a step for every member.
        let [program, verb, .., option, secs, _] = self.run.as_slice() else { return None };
        if program != "ipset" || verb != "add" || option != "timeout" {
            return None;
        }
        secs.parse::<u64>().ok().map(|secs| (secs / 2).max(1))
    }
}
