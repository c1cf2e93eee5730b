//! What `ftagent status` and the metrics show of decisions.

use std::collections::BTreeMap;

use ftagent_common::abi::RuleHits;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::lists::ListAction;

/// The decisions, and how LAPI does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrowdsecStatus {
    pub url: String,
    pub action: ListAction,
    /// Under which its frames are counted.
    pub rule: u64,
    /// Whether the newest question was answered.
    pub connected: bool,
    /// When one was last.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub answered_at: Option<OffsetDateTime>,
    /// Bans that are known and not over.
    pub bans: u64,
    /// Prefixes in force by kind: `ipv4_addresses`, `ipv4_ranges`, `ipv6_addresses`, `ipv6_ranges`. Those that a wider one
    /// covers for as long are not counted.
    pub in_force: BTreeMap<String, u64>,
    /// Decisions that are not enforced, by why; `beyond_max`: more than `max_decisions`.
    pub not_enforced: BTreeMap<String, u64>,
    /// Answers that had every decision in them.
    pub whole_answers: u64,
    /// Answers with changes alone.
    pub changes: u64,
    /// Questions that failed, by kind.
    pub failures: BTreeMap<String, u64>,
    /// Why the newest question had no answer; what is known stays in force until it ends.
    pub last_error: Option<String>,
    /// The node's own addresses cannot be read: nothing new comes into force.
    #[serde(default)]
    pub kept_back: bool,
    /// Why decisions would not survive a restart.
    pub fault: Option<String>,
    /// Milliseconds from the newest answer to what the kernel was to be told of it.
    pub took_ms: u64,
    /// Frames dropped for decisions, or that would have been.
    #[serde(default)]
    pub packets: u64,
    #[serde(default)]
    pub bytes: u64,
}

impl CrowdsecStatus {
    pub(crate) fn new(url: &str, action: ListAction) -> Self {
        Self {
            url: url.to_owned(),
            action,
            rule: super::rule().0,
            connected: false,
            answered_at: None,
            bans: 0,
            in_force: BTreeMap::new(),
            not_enforced: BTreeMap::new(),
            whole_answers: 0,
            changes: 0,
            failures: BTreeMap::new(),
            last_error: None,
            kept_back: false,
            fault: None,
            took_ms: 0,
            packets: 0,
            bytes: 0,
        }
    }

    /// Adds what the kernel counted.
    #[must_use]
    pub fn complete(mut self, hits: &RuleHits) -> Self {
        (self.packets, self.bytes) = (hits.counter.packets, hits.counter.bytes);
        self
    }

    /// Prefixes in force.
    pub fn prefixes(&self) -> u64 {
        self.in_force.values().sum()
    }

    /// What an operator should know.
    pub fn warnings(&self) -> Vec<String> {
        let error = self.last_error.as_ref().map(|error| {
            let (count, asked) = (self.prefixes(), &self.url);
            format!("crowdsec: {error}; {count} prefixes stay in force until their decisions end, and new ones of {asked} are not heard of")
        });
        let beyond = self
            .not_enforced
            .get("beyond_max")
            .map(|count| format!("crowdsec: {count} decisions are not enforced: raise crowdsec.max_decisions"));
        let fault = self.fault.as_ref().map(|fault| format!("crowdsec: {fault}"));
        let kept_back = self
            .kept_back
            .then(|| "crowdsec: nothing new comes into force until the node's own addresses can be read".to_owned());
        error.into_iter().chain(beyond).chain(kept_back).chain(fault).collect()
    }

    /// For people, after its name.
    pub fn text(&self) -> String {
        let state = if self.connected { "connected" } else { "away" };
        let counts = |counts: &BTreeMap<String, u64>| {
            let words: Vec<String> =
                counts.iter().map(|(what, count)| format!("{count} {}", what.replace('_', " "))).collect();
            words.join(", ")
        };
        let mut text = format!("{} {state}, {} bans: {} prefixes in force", self.url, self.bans, self.prefixes());
        if self.prefixes() > 0 {
            text += &format!(" ({})", counts(&self.in_force));
        }
        if self.action == ListAction::Evaluate {
            text += ", only evaluated";
        }
        text += &format!(", {} packets", self.packets);
        if !self.not_enforced.is_empty() {
            text += &format!("; not enforced: {}", counts(&self.not_enforced));
        }
        match &self.last_error {
            Some(error) => text + &format!("; {error}"),
            None => text,
        }
    }
}
