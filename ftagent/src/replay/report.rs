//! What a replay found, for people and for programs.

use std::fmt::Write as _;

use ftagent_common::api::{ExecutionOutcome, IncidentReport, Signature, TimelineEntry};
use time::OffsetDateTime;

use super::{Options, Outcome, Sampling};
use crate::engine::words;
use crate::engine::{Matches, ThresholdMode};

/// A line of JSON for each incident, with the fields of the incident API.
pub fn json(outcome: &Outcome) -> String {
    outcome.incidents.iter().fold(String::new(), |mut text, report| {
        text.push_str(&serde_json::to_string(report).expect("a report is a plain value"));
        text.push('\n');
        text
    })
}

// Writing to a string cannot fail: the results below are ignored for that reason.

/// The summary, the time line of all incidents, and each incident; with `explain` also why it is what it is.
pub fn text(outcome: &Outcome, options: &Options, explain: bool) -> String {
    let mut text = summary(outcome, options);
    if outcome.incidents.is_empty() {
        _ = writeln!(text, "\nno incident");
        return text;
    }
    _ = writeln!(text, "\nTIME LINE, seconds since the first packet");
    for line in time_line(outcome) {
        _ = writeln!(text, "{line}");
    }
    for (number, report) in outcome.incidents.iter().enumerate() {
        _ = write!(text, "\nINCIDENT {}  {}", number + 1, incident_text(report, outcome.began, explain));
    }
    if outcome.forgotten > 0 {
        _ = writeln!(text, "\nand {} more reports of further incidents", outcome.forgotten);
    }
    text
}

fn summary(outcome: &Outcome, options: &Options) -> String {
    let mut text = String::new();
    let secs = outcome.lasted_ns as f64 / 1e9;
    let pace = match options.rate_pps {
        Some(pps) => format!("at {} packets/s", grouped(pps)),
        None => "at their own times".to_owned(),
    };
    _ = writeln!(
        text,
        "{}: {} packets, {} bytes in {secs:.3} s {pace}",
        options.file.display(),
        grouped(outcome.frames),
        grouped(outcome.bytes)
    );
    let whom = match outcome.protect.as_slice() {
        [] => "every destination".to_owned(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let sampled = match options.sampling {
        Sampling::Adaptive => format!("at most {} samples/s", grouped(u64::from(options.limits.samples_per_sec))),
        Sampling::OneIn(one_in) => format!("one packet in {} sampled", grouped(u64::from(one_in))),
    };
    let d = &options.settings.detection;
    let limit = match d.threshold {
        ThresholdMode::Dynamic => format!(
            "{} packets/s or {} bit/s, or {} times what is normal",
            grouped(d.floor_pps),
            grouped(d.floor_bps),
            d.multiplier
        ),
        ThresholdMode::Static { pps, bps } => format!("{} packets/s or {} bit/s", grouped(pps), grouped(bps)),
    };
    _ = writeln!(text, "protected: {whom}; an attack is more than {limit}");
    _ = writeln!(
        text,
        "mode {}, {sampled}; {} packets passed, {} dropped",
        options.settings.mode,
        grouped(outcome.passed),
        grouped(outcome.dropped)
    );
    let notes = [
        (outcome.elsewhere, "packets to other destinations were not looked at"),
        (outcome.not_ip, "frames are not IP"),
        (outcome.unreadable, "frames are malformed, so that not even their destination is known"),
        (outcome.unknown, "packets are of a link layer that is not known here"),
        (outcome.uncounted, "packets went to more destinations than datapath.max_targets"),
        (
            if options.rate_pps.is_none() { outcome.backwards } else { 0 },
            "time stamps lie before that of an earlier packet; these follow at once",
        ),
    ];
    for (count, what) in notes.iter().filter(|(count, _)| *count > 0) {
        _ = writeln!(text, "note: {} {what}", grouped(*count));
    }
    if outcome.elsewhere > 0 && outcome.passed + outcome.dropped == 0 {
        _ = writeln!(text, "note: nothing went to a protected destination; --target 0.0.0.0/0 --target ::/0 takes all");
    }
    if outcome.cut {
        _ = writeln!(text, "note: the file breaks off in the middle of a packet");
    }
    text
}

/// Everything that happened, in its order, and where the capture ends.
fn time_line(outcome: &Outcome) -> Vec<String> {
    let end = outcome.lasted_ns as f64 / 1e9;
    let mut all: Vec<(f64, u8, String)> = Vec::new();
    for (number, report) in outcome.incidents.iter().enumerate() {
        for TimelineEntry { at, kind, text } in &report.timeline {
            let line = format!("#{:<3} {kind:<9} {text}", number + 1);
            all.push(((*at - outcome.began).as_seconds_f64(), 0, line));
        }
    }
    all.push((end, 1, "the capture ends; nothing follows".to_owned()));
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    all.into_iter().map(|(at, _, line)| format!("{at:>10.3}  {line}")).collect()
}

/// One incident in full. Times are seconds since `began`.
fn incident_text(report: &IncidentReport, began: OffsetDateTime, explain: bool) -> String {
    let since = |at: OffsetDateTime| (at - began).as_seconds_f64();
    let mut text = String::new();
    let subtype = report.subtype.as_ref().map_or_else(String::new, |s| format!("/{s}"));
    _ = writeln!(text, "{}{subtype} on {}", report.family, report.target);
    let end = report.resolved_at.map_or_else(|| "not resolved".to_owned(), |at| format!("resolved {:.3} s", since(at)));
    _ = writeln!(
        text,
        "  severity {}, confidence {:.2}, sources {}{}",
        report.severity,
        report.confidence,
        if report.spoofed { "judged forged" } else { "not judged forged" },
        if report.carpet_bombing { ", carpet bombing" } else { "" },
    );
    _ = writeln!(text, "  opened {:.3} s, {end}", since(report.started_at));
    let t = &report.threshold;
    let normal = t.baseline.map_or_else(|| "nothing learnt yet".to_owned(), |n| format!("normal is {}", grouped(n)));
    _ = writeln!(
        text,
        "  {}: peak {:.1} times the threshold of {} ({}; {normal})",
        t.quantity,
        t.ratio,
        grouped(t.value),
        t.origin
    );
    _ = writeln!(
        text,
        "  peak {} packets/s, {} bit/s; {} of {} packets dropped; about {} sources",
        grouped(report.peak_pps),
        grouped(report.peak_bps),
        grouped(report.dropped_packets),
        grouped(report.packets),
        grouped(report.source_count)
    );
    if report.vectors.len() > 1 {
        let parts: Vec<String> =
            report.vectors.iter().map(|v| format!("{} {:.0} %", v.family, v.share * 100.0)).collect();
        _ = writeln!(text, "  vectors: {}", parts.join(", "));
    }
    if let Some(s) = &report.signature {
        _ = writeln!(
            text,
            "  filter: {} (covers {:.1} % of the attack, {:.1} % of what came before)",
            signature_words(s),
            s.coverage * 100.0,
            (s.collateral * 100.0).max(0.0)
        );
    }
    if !explain {
        return text;
    }
    _ = writeln!(text, "  why:");
    for line in &report.explanation {
        _ = writeln!(text, "    {line}");
    }
    let classes: Vec<String> =
        report.protocols.iter().take(4).map(|c| format!("{} {:.0} %", c.class, c.share * 100.0)).collect();
    _ = writeln!(text, "    counted: {}", classes.join(", "));
    let list = |name: &str, items: Vec<String>| {
        if items.is_empty() { String::new() } else { format!("    {name}: {}\n", items.join(", ")) }
    };
    let sources = report.top_sources.iter().take(5).map(|s| format!("{} {:.1} %", s.ip, s.share * 100.0)).collect();
    let ports = |ports: &[ftagent_common::api::PortShare]| {
        ports.iter().filter(|p| p.port != 0).take(5).map(|p| format!("{} {:.1} %", p.port, p.share * 100.0)).collect()
    };
    text += &list("top sources", sources);
    text += &list("top source ports", ports(&report.top_src_ports));
    text += &list("top destination ports", ports(&report.top_dst_ports));
    let done = report.executions.iter().filter(|e| e.outcome != ExecutionOutcome::Undone);
    let commands: Vec<String> = done.flat_map(|e| &e.commands).map(|command| command.join(" ")).collect();
    if !commands.is_empty() {
        _ = writeln!(text, "  what the agent would do:");
    }
    let shown = 10;
    for command in commands.iter().take(shown) {
        _ = writeln!(text, "    {command}");
    }
    if commands.len() > shown {
        _ = writeln!(text, "    and {} more", commands.len() - shown);
    }
    text
}

/// The filter in the words of `ftagent rules`.
fn signature_words(s: &Signature) -> String {
    words::words(&Matches {
        protocol: s.protocol,
        src_port: s.src_port,
        dst_port: s.dst_port,
        length: s.length,
        ttl: s.ttl,
        tcp_flags: s.tcp_flags,
        fragment: s.fragment,
        ..Matches::default()
    })
}

/// Digits in groups of three.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        let table = [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345_678, "12,345,678")];
        for (value, expected) in table {
            assert_eq!(grouped(value), expected);
        }
    }
}
