//! Decisions of CrowdSec and how LAPI does.

use super::text::{Kind, Text};
use crate::crowdsec::CrowdsecStatus;

pub(super) fn crowdsec(text: &mut Text, status: &CrowdsecStatus) {
    let action = status.action.as_str();
    text.family("ftagent_crowdsec_connected", Kind::Gauge, "1 while the newest question to LAPI was answered.");
    text.row(&[], status.connected.into());
    text.family("ftagent_crowdsec_bans", Kind::Gauge, "Decisions to ban that are known and not over.");
    text.row(&[], status.bans);
    text.family("ftagent_crowdsec_prefixes", Kind::Gauge, "Prefixes in force for decisions, by kind.");
    for (kind, count) in &status.in_force {
        text.row(&[("kind", kind), ("action", action)], *count);
    }
    text.family("ftagent_crowdsec_not_enforced", Kind::Gauge, "Decisions that are not enforced, by why.");
    for (why, count) in &status.not_enforced {
        text.row(&[("why", why)], *count);
    }
    text.family(
        "ftagent_crowdsec_answers_total",
        Kind::Counter,
        "Answers of LAPI, with every decision or with changes.",
    );
    text.row(&[("kind", "whole")], status.whole_answers);
    text.row(&[("kind", "changes")], status.changes);
    text.family("ftagent_crowdsec_failures_total", Kind::Counter, "Questions to LAPI that failed, by kind.");
    for (kind, count) in &status.failures {
        text.row(&[("kind", kind)], *count);
    }
    text.family(
        "ftagent_crowdsec_packets_total",
        Kind::Counter,
        "Frames from banned sources, dropped or only evaluated.",
    );
    text.row(&[("action", action)], status.packets);
    text.family("ftagent_crowdsec_bytes_total", Kind::Counter, "Bytes of frames from banned sources.");
    text.row(&[("action", action)], status.bytes);
}
