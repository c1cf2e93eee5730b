//! Firewall rules: trigger, action, scope, cooldown.

use std::collections::BTreeSet;

use ftagent_common::api::{Action, FirewallRule, NodeMeans, PreviewContext, RuleExecution, Trigger, preview};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::problem::Check;
use super::{Problem, Timestamp};

/// The most nodes that one rule names.
const MAX_NODES: usize = 10_000;

/// Where a rule is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum RuleScope {
    /// On every node of the workspace, later ones included.
    // With braces: serde lets a variant without them have unknown fields.
    All {},
    /// On the nodes named, 1 to 10,000.
    Nodes { nodes: BTreeSet<Uuid> },
}

impl Default for RuleScope {
    fn default() -> Self {
        Self::All {}
    }
}

impl RuleScope {
    /// Whether the rule is in force on `node`.
    pub fn covers(&self, node: Uuid) -> bool {
        match self {
            Self::All {} => true,
            Self::Nodes { nodes } => nodes.contains(&node),
        }
    }
}

/// A rule to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRule {
    pub name: String,
    pub trigger: Trigger,
    pub action: Action,
    pub scope: RuleScope,
    pub cooldown_minutes: u32,
    pub enabled: bool,
}

impl NewRule {
    /// # Errors
    /// A name of other than 1 to 128 characters, a cooldown of other than 1 to 1,440 minutes, a trigger, action or
    /// scope out of bounds.
    pub fn check(self) -> Result<Self, Problem> {
        let mut check = Check::default();
        check.line("name", &self.name, 1, 128);
        check.that((1..=1_440).contains(&self.cooldown_minutes), "cooldown_minutes", || {
            format!("must be 1 to 1440 minutes, got {}", self.cooldown_minutes)
        });
        trigger_into(&mut check, &self.trigger);
        if let Err(e) = self.action.validate() {
            check.that(false, &format!("action.{}", e.field), || e.message);
        }
        if let RuleScope::Nodes { nodes } = &self.scope {
            check.that((1..=MAX_NODES).contains(&nodes.len()), "scope.nodes", || {
                format!("must name 1 to {MAX_NODES} nodes, got {}", nodes.len())
            });
        }
        check.done().map(|()| self)
    }

    /// What an operator should know before the rule is saved.
    pub fn warnings(&self) -> Vec<String> {
        preview(&self.action, &example_context()).warnings
    }
}

/// What to change of a rule; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RulePatch {
    pub name: Option<String>,
    pub trigger: Option<Trigger>,
    pub action: Option<Action>,
    pub scope: Option<RuleScope>,
    pub cooldown_minutes: Option<u32>,
    pub enabled: Option<bool>,
}

impl RulePatch {
    /// The rule as it would be afterwards, not yet checked.
    pub fn applied_to(self, rule: &Rule) -> NewRule {
        NewRule {
            name: self.name.unwrap_or_else(|| rule.name.clone()),
            trigger: self.trigger.unwrap_or(rule.trigger),
            action: self.action.unwrap_or_else(|| rule.action.clone()),
            scope: self.scope.unwrap_or_else(|| rule.scope.clone()),
            cooldown_minutes: self.cooldown_minutes.unwrap_or(rule.cooldown_minutes),
            enabled: self.enabled.unwrap_or(rule.enabled),
        }
    }
}

/// A rule as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Rule {
    pub id: i64,
    pub name: String,
    pub trigger: Trigger,
    pub action: Action,
    pub scope: RuleScope,
    /// Minutes between two firings for the same node and target, 1 to 1,440.
    pub cooldown_minutes: u32,
    pub enabled: bool,
    /// What an operator should know, such as that a whole protocol is dropped.
    pub warnings: Vec<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Rule {
    /// The rule as a node needs it.
    pub fn to_wire(&self) -> FirewallRule {
        FirewallRule {
            id: self.id,
            name: self.name.clone(),
            trigger: self.trigger,
            action: self.action.clone(),
            cooldown_minutes: self.cooldown_minutes,
        }
    }
}

/// The example incident that previews use when no other is named, in addresses reserved for documentation.
pub fn example_context() -> PreviewContext {
    PreviewContext {
        target: "203.0.113.50/32".parse().expect("a constant prefix"),
        sources: vec!["198.51.100.7".parse().expect("a constant address")],
        spoofed: false,
        spared: Vec::new(),
        node: NodeMeans::default(),
    }
}

/// An execution with the node that carried it out.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Execution {
    pub node: Uuid,
    #[serde(flatten)]
    pub execution: RuleExecution,
}

fn trigger_into(check: &mut Check, trigger: &Trigger) {
    if let Trigger::PpsThreshold { pps } = trigger {
        check.that((1..=1_000_000_000).contains(pps), "trigger.pps", || {
            format!("must be 1 to 1000000000 packets/s, got {pps}")
        });
    }
}

/// # Errors
/// A threshold of other than 1 to 10^9 packets/s.
pub fn check_trigger(trigger: &Trigger) -> Result<(), Problem> {
    let mut check = Check::default();
    trigger_into(&mut check, trigger);
    check.done()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> NewRule {
        NewRule {
            name: "block UDP floods".to_owned(),
            trigger: Trigger::PpsThreshold { pps: 50_000 },
            action: serde_json::from_str(r#"{"type":"xdp_drop_source"}"#).expect("an action"),
            scope: RuleScope::All {},
            cooldown_minutes: 5,
            enabled: true,
        }
    }

    #[test]
    fn every_bound_is_named_by_its_field() {
        type Change = fn(&mut NewRule);
        let table: [(&str, Change); 7] = [
            ("name", |r| r.name.clear()),
            ("name", |r| r.name = "a\0b".to_owned()),
            ("cooldown_minutes", |r| r.cooldown_minutes = 0),
            ("cooldown_minutes", |r| r.cooldown_minutes = 1_441),
            ("trigger.pps", |r| r.trigger = Trigger::PpsThreshold { pps: 0 }),
            ("scope.nodes", |r| r.scope = RuleScope::Nodes { nodes: BTreeSet::new() }),
            ("action.ttl_secs", |r| r.action = Action::XdpDropSource { sources: vec![], ttl_secs: 0 }),
        ];
        assert_eq!(rule().check(), Ok(rule()));
        for (field, change) in table {
            let mut changed = rule();
            change(&mut changed);
            let Err(Problem::Invalid(fields)) = changed.check() else { panic!("{field} was accepted") };
            assert_eq!(fields[0].field, field);
        }
    }

    #[test]
    fn a_broad_rule_carries_its_warning() {
        let mut broad = rule();
        assert!(broad.warnings().is_empty());
        broad.action = serde_json::from_str(r#"{"type":"xdp_drop_protocol","protocol":"udp"}"#).expect("an action");
        assert!(!broad.warnings().is_empty());
    }
}
