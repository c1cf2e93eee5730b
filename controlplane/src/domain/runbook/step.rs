//! The steps of runbooks, and what each of them is told.

use ftagent_common::vocab::{AttackFamily, IncidentStatus, Severity};
use serde::{Deserialize, Serialize};

use super::Condition;
use crate::domain::mitigation::MAX_TTL_SECS;
use crate::domain::problem::Check;
use crate::domain::{Intent, parse_url};

/// The longest wait, seconds.
const MAX_WAIT: u32 = 3_600;

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "action_type", content = "action_config", rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Does nothing for a while.
    Wait {
        /// 1 to 3,600.
        #[schema(minimum = 1, maximum = 3_600)]
        seconds: u32,
    },
    /// Blocks and unblocks on the incident's node, or puts a firewall rule in and out of force.
    Iptables(NodeStepConfig),
    /// Tells a notification channel.
    NotifyChannel {
        channel_id: i64,
        /// At most 1,024 characters.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        #[schema(max_length = 1_024)]
        message: String,
    },
    /// Posts the attack as JSON; give `url`, or `integration_id` for a signed message of a webhook integration.
    Webhook {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(max_length = 2_048)]
        url: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        integration_id: Option<i64>,
        /// For one try of `url`, 1 to 30; 10 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(minimum = 1, maximum = 30)]
        timeout_secs: Option<u32>,
    },
    /// Turns Cloudflare's Under Attack Mode on. Not connected yet: it fails.
    CloudflareUam {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(max_length = 64)]
        zone_id: Option<String>,
    },
    /// Diverts through a scrubbing integration. No provider is connected yet: it fails.
    ScrubbingEnable { integration_id: i64 },
    /// Writes into the execution's history.
    Log {
        /// 1 to 1,024 characters.
        #[schema(min_length = 1, max_length = 1_024)]
        message: String,
    },
    /// Goes on only if it holds; else all steps after it are skipped.
    Condition(Condition),
    /// Announces a mitigation rule for the incident's target.
    MitigationRule {
        adapter_id: i64,
        intent_type: Intent,
        /// Seconds, 1 to 31,536,000; 3,600 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(minimum = 1, maximum = 31_536_000)]
        ttl: Option<u32>,
    },
    /// Changes the incident's status or severity; ending it orders the node to undo what was done.
    UpdateIncident {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<IncidentStatus>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        severity: Option<Severity>,
    },
    /// Writes a note on the incident.
    AddNote {
        /// 1 to 1,024 characters.
        #[schema(min_length = 1, max_length = 1_024)]
        text: String,
    },
}

/// What is to be done on the incident's node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeStepConfig {
    /// `block_sources`: the heaviest sources that are not allowlisted; refused while they are judged forged.
    /// `block_` and a family, such as `block_udp_flood`: the same, if the incident is of the family.
    /// `unblock_sources`: lifts these blocks. `enable_rule`, `disable_rule`: the firewall rule `rule_id`.
    pub cmd: String,
    /// How long blocks last, seconds, 1 to 86,400; 3,600 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 86_400)]
    pub ttl_secs: Option<u32>,
    /// How many sources, 1 to 100; 20 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub max_sources: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_id: Option<i64>,
}

/// A command that was understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeCommand {
    Block { only: Option<AttackFamily>, ttl_secs: u32, most: usize },
    Unblock { most: usize },
    Rule { id: i64, enabled: bool },
}

impl NodeStepConfig {
    /// What it asks for.
    ///
    /// # Errors
    /// No such command, or `enable_rule` without a rule; the field and what is wrong with it.
    pub(super) fn command(&self) -> Result<NodeCommand, (&'static str, &'static str)> {
        let most = self.max_sources.unwrap_or(20) as usize;
        let ttl_secs = self.ttl_secs.unwrap_or(3_600);
        let rule = |enabled| self.rule_id.map(|id| NodeCommand::Rule { id, enabled }).ok_or(("rule_id", "is required"));
        match self.cmd.as_str() {
            "block_sources" => Ok(NodeCommand::Block { only: None, ttl_secs, most }),
            "unblock_sources" => Ok(NodeCommand::Unblock { most }),
            "enable_rule" => rule(true),
            "disable_rule" => rule(false),
            other => match other.strip_prefix("block_").and_then(|family| family.parse().ok()) {
                Some(family) => Ok(NodeCommand::Block { only: Some(family), ttl_secs, most }),
                None => Err((
                    "cmd",
                    "must be block_sources, block_ and a family such as block_udp_flood, unblock_sources, enable_rule or \
                     disable_rule",
                )),
            },
        }
    }

    fn check(&self, check: &mut Check, path: &str) {
        let command = self.command();
        if let Err((field, why)) = command {
            check.that(false, &format!("{path}.{field}"), || why.to_owned());
        }
        bounded(check, path, "ttl_secs", self.ttl_secs, 1, 86_400);
        bounded(check, path, "max_sources", self.max_sources, 1, 100);
        let is_rule = matches!(command, Ok(NodeCommand::Rule { .. }));
        check.that(is_rule || command.is_err() || self.rule_id.is_none(), &format!("{path}.rule_id"), || {
            "is of enable_rule and disable_rule".to_owned()
        });
    }
}

fn bounded(check: &mut Check, path: &str, field: &str, value: Option<u32>, from: u32, to: u32) {
    let fits = value.is_none_or(|value| (from..=to).contains(&value));
    check.that(fits, &format!("{path}.{field}"), || format!("must be {from} to {to}"));
}

impl Step {
    /// The type's name on the wire.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Wait { .. } => "wait",
            Self::Iptables(_) => "iptables",
            Self::NotifyChannel { .. } => "notify_channel",
            Self::Webhook { .. } => "webhook",
            Self::CloudflareUam { .. } => "cloudflare_uam",
            Self::ScrubbingEnable { .. } => "scrubbing_enable",
            Self::Log { .. } => "log",
            Self::Condition(_) => "condition",
            Self::MitigationRule { .. } => "mitigation_rule",
            Self::UpdateIncident { .. } => "update_incident",
            Self::AddNote { .. } => "add_note",
        }
    }

    pub(super) fn check(&self, check: &mut Check, path: &str, allow_private: bool) {
        let field = |name: &str| format!("{path}.{name}");
        match self {
            Self::Wait { seconds } => bounded(check, path, "seconds", Some(*seconds), 1, MAX_WAIT),
            Self::Iptables(config) => config.check(check, path),
            Self::NotifyChannel { message, .. } => check.line(&field("message"), message, 0, 1_024),
            Self::Webhook { url, integration_id, timeout_secs } => {
                check.that(url.is_some() != integration_id.is_some(), path, || "give url or integration_id".to_owned());
                if let Some(Err(why)) = url.as_deref().map(|url| parse_url(url, allow_private)) {
                    check.that(false, &field("url"), || why);
                }
                bounded(check, path, "timeout_secs", *timeout_secs, 1, 30);
            }
            Self::CloudflareUam { zone_id } => {
                if let Some(zone) = zone_id {
                    check.line(&field("zone_id"), zone, 1, 64);
                }
            }
            Self::ScrubbingEnable { .. } => {}
            Self::Log { message } => check.line(&field("message"), message, 1, 1_024),
            Self::Condition(condition) => condition.check(check, path),
            Self::MitigationRule { ttl, .. } => bounded(check, path, "ttl", *ttl, 1, MAX_TTL_SECS),
            Self::UpdateIncident { status, severity } => {
                let some = status.is_some() || severity.is_some();
                check.that(some, path, || "give status or severity".to_owned());
                check.that(*status != Some(IncidentStatus::Active), &field("status"), || {
                    "must be resolved or false_positive: only traffic makes an incident active".to_owned()
                });
            }
            Self::AddNote { text } => check.line(&field("text"), text, 1, 1_024),
        }
    }
}
