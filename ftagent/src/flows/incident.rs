//! What an incident that an exporter saw says besides: who saw it, and that nothing here can drop it.

use ftagent_common::api::{IncidentReport, TimelineEntry};

use crate::engine::classify::signature::COLLATERAL;
use crate::engine::{Matches, words};

/// Lines of an explanation, as the engine bounds them.
const MAX_LINES: usize = 24;
/// Interfaces that are named.
const MAX_INPUTS: usize = 3;

/// Who saw an incident, and how.
#[derive(Clone, Debug)]
pub(super) struct Witness {
    pub(super) exporter: String,
    pub(super) sampling_rate: Option<u32>,
    /// Interfaces by which the attack came, with their shares.
    pub(super) inputs: Vec<(u32, f64)>,
    /// Flow records tell means, and nothing of payloads.
    pub(super) is_flows: bool,
}

/// Adds to a report who saw it, and what can be done where the traffic passes.
pub(super) fn dress(report: &mut IncidentReport, witness: &Witness) {
    let seen = seen(witness);
    let advice = advice(report);
    let mut lines = vec![seen.clone()];
    if witness.is_flows {
        lines.push(
            "flow records: lengths are means of a flow, TTL and contents are not known; look at the signature's length \
             before you use it"
                .to_owned(),
        );
    }
    lines
        .push(format!("nothing was dropped: this traffic does not pass the node; recommended where it does: {advice}"));
    report.explanation.truncate(MAX_LINES - lines.len());
    report.explanation.extend(lines);
    // The same words at the same place in every report.
    let entry = TimelineEntry { at: report.started_at, kind: "note".to_owned(), text: seen };
    report.timeline.insert(report.timeline.len().min(1), entry);
}

fn seen(witness: &Witness) -> String {
    let rate = witness.sampling_rate.map_or_else(String::new, |n| format!(", one packet in {n} looked at"));
    let known: Vec<String> = witness
        .inputs
        .iter()
        .filter(|(input, _)| *input != 0)
        .take(MAX_INPUTS)
        .map(|(input, share)| format!("{input} ({:.0} %)", share * 100.0))
        .collect();
    let inputs = if known.is_empty() {
        "it does not say by which interface".to_owned()
    } else {
        format!("in by interface {}", known.join(", "))
    };
    format!("seen by exporter {}{rate}; {inputs}", witness.exporter)
}

fn advice(report: &IncidentReport) -> String {
    let target = report.target;
    let Some(signature) = &report.signature else {
        return format!("a rate limit, scrubbing or a blackhole for {target}");
    };
    let matches = Matches {
        target: Some(target),
        protocol: signature.protocol,
        src_port: signature.src_port,
        dst_port: signature.dst_port,
        length: signature.length,
        ttl: signature.ttl,
        tcp_flags: signature.tcp_flags,
        fragment: signature.fragment,
        ..Matches::default()
    };
    let (matches, coverage) = (words::words(&matches), signature.coverage * 100.0);
    // Rounding may have left a negative zero.
    let before = signature.collateral.max(0.0).abs() * 100.0;
    if signature.collateral <= COLLATERAL {
        format!(
            "a FlowSpec rule that drops {matches} ({coverage:.0} % of the attack, {before:.1} % of the traffic before), \
             else a blackhole for {target}"
        )
    } else {
        format!(
            "a rate limit for {matches} ({coverage:.0} % of the attack, but {before:.1} % of the traffic before: too much \
             to drop), scrubbing or a blackhole for {target}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_is_named_where_it_is_known() {
        let witness = |inputs: &[(u32, f64)]| Witness {
            exporter: "192.0.2.1 (sflow5)".to_owned(),
            sampling_rate: Some(512),
            inputs: inputs.to_vec(),
            is_flows: false,
        };
        assert_eq!(
            seen(&witness(&[(3, 0.92), (7, 0.08)])),
            "seen by exporter 192.0.2.1 (sflow5), one packet in 512 looked at; in by interface 3 (92 %), 7 (8 %)"
        );
        assert!(seen(&witness(&[(0, 1.0)])).ends_with("it does not say by which interface"));
    }
}
