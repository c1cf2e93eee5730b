//! The commands that ask the running agent, and how its answers look to people.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ftagent_common::api::{BaselineReport, IncidentReport, InterfaceReport};
use ftagent_common::vocab::{AttachMode, IncidentStatus};
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::cli::{Rate, RuleAction};
use crate::config::Config;
use crate::control::{Answer, Question, ask};
use crate::enforce::gate::GateReport;
use crate::engine::words;
use crate::engine::{Matches, OperatorOrder, OrderOutcome, Origin, TaskView, Verdict, Why};
use crate::flows::{ExporterStatus, ListenerStatus};
use crate::lists::{ListAction, ListStatus};
use crate::pcap::CapturesStatus;
use crate::pcap::shelf::Capture;
use crate::pcap::upload::{Progress, UploadsStatus};
use crate::profile::{ProfileOrder, ProfileStatus};
use crate::status::{RuleStatus, Status};
use crate::xdp::variant;

/// The guard's no, as an exit status of its own.
#[derive(Debug, thiserror::Error)]
#[error("refused: {0}")]
pub struct Refused(pub String);

/// Asks the agent of this configuration.
///
/// # Errors
/// When it does not run, or answers with an error.
pub async fn question(config: &Config, question: &Question) -> Result<Answer> {
    let path = config.socket();
    let answer = ask(&path, question).await.with_context(|| {
        format!("no agent answers at {}: is `ftagent run` (or the service) running, and are you root?", path.display())
    })?;
    match answer {
        Answer::Error { message } => bail!("{message}"),
        answer => Ok(answer),
    }
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).context("the agent answers in another version's words: restart it after an upgrade")
}

/// Prints `ftagent status`.
///
/// # Errors
/// As [`question`].
pub async fn status(config: &Config, as_json: bool) -> Result<()> {
    let Answer::Status { status } = question(config, &Question::Status {}).await? else { bail!("unexpected answer") };
    if as_json {
        println!("{status}");
    } else {
        print!("{}", status_text(&read(status)?));
    }
    Ok(())
}

/// Prints pictures of the traffic until `count` or Ctrl-C.
///
/// # Errors
/// As [`question`].
pub async fn top(config: &Config, as_json: bool, interval: f64, count: Option<u32>) -> Result<()> {
    use std::io::IsTerminal as _;
    let clear = std::io::stdout().is_terminal();
    for picture in 1u64.. {
        let Answer::Status { status } = question(config, &Question::Status {}).await? else {
            bail!("unexpected answer")
        };
        if as_json {
            println!("{}", status["engine"]);
        } else {
            let status: Status = read(status)?;
            // Home, then what remains of the last picture is cleared.
            let (home, rest) = if clear { ("\x1b[H", "\x1b[J") } else { ("", "") };
            print!("{home}{}{rest}", top_text(&status));
            use std::io::Write as _;
            std::io::stdout().flush()?;
        }
        if count.is_some_and(|count| picture >= u64::from(count)) {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs_f64(interval)) => {}
            ended = tokio::signal::ctrl_c() => return ended.context("Ctrl-C"),
        }
    }
    Ok(())
}

/// Prints `ftagent rules`.
///
/// # Errors
/// As [`question`].
pub async fn rules(config: &Config, as_json: bool) -> Result<()> {
    let Answer::Rules { rules } = question(config, &Question::Rules {}).await? else { bail!("unexpected answer") };
    if as_json {
        println!("{}", json!({ "rules": rules }));
        return Ok(());
    }
    let rules: Vec<RuleStatus> = read(rules)?;
    if rules.is_empty() {
        println!("no rules in force");
    }
    for rule in &rules {
        let end = rule.expires_in_secs.map_or_else(|| "no end".to_owned(), |secs| format!("ends in {secs} s"));
        println!(
            "#{:<6} {}{:<7} {}  [{}]  {} packets, {}  ({end})",
            rule.id.0,
            if rule.evaluate { "would " } else { "" },
            verdict_text(rule.verdict),
            matches_text(&rule.matches) + &more_text(rule.more_sources),
            origin_text(&rule.origin),
            rule.packets,
            bytes_text(rule.bytes),
        );
    }
    Ok(())
}

/// Prints `ftagent incidents`, or one of them in full.
///
/// # Errors
/// As [`question`], or when no incident has this id.
pub async fn incidents(config: &Config, as_json: bool, uuid: Option<uuid::Uuid>) -> Result<()> {
    let Answer::Incidents { incidents } = question(config, &Question::Incidents {}).await? else {
        bail!("unexpected answer")
    };
    let reports: Vec<IncidentReport> = read(incidents)?;
    let wanted: Vec<&IncidentReport> = reports.iter().filter(|r| uuid.is_none_or(|id| id == r.uuid)).collect();
    if let Some(uuid) = uuid
        && wanted.is_empty()
    {
        bail!("the agent remembers no incident {uuid}; `ftagent incidents` lists those it does");
    }
    if as_json {
        println!("{}", json!({ "incidents": wanted }));
    } else if wanted.is_empty() {
        println!("no incidents");
    } else if uuid.is_some() {
        wanted.iter().for_each(|report| print!("{}", incident_text(report)));
    } else {
        wanted.iter().for_each(|report| println!("{}", incident_line(report)));
    }
    Ok(())
}

/// Prints `ftagent captures`.
///
/// # Errors
/// As [`question`], or when the agent makes no captures.
pub async fn captures(config: &Config, as_json: bool) -> Result<()> {
    let Answer::Captures { captures } = question(config, &Question::Captures {}).await? else {
        bail!("unexpected answer")
    };
    let status: Option<CapturesStatus> = read(captures)?;
    if as_json {
        println!("{}", json!({ "enabled": status.is_some(), "captures": status }));
        return Ok(());
    }
    let Some(status) = status else {
        println!("there are no captures: pcap.enabled is false");
        return Ok(());
    };
    print!("{}", captures_text(&status));
    Ok(())
}

/// Prints `ftagent profile`.
///
/// # Errors
/// As [`question`].
pub async fn profile(config: &Config, as_json: bool) -> Result<()> {
    let Answer::Profile { profile } = question(config, &Question::Profile {}).await? else {
        bail!("unexpected answer")
    };
    if as_json {
        println!("{}", json!({ "profile": profile }));
        return Ok(());
    }
    match read::<Option<ProfileStatus>>(profile)? {
        None => println!("there is no profile on this node"),
        Some(profile) => {
            println!("{}", profile_text(&profile));
            let ports: Vec<String> = profile.kept.ports.iter().map(ToString::to_string).collect();
            let sources: Vec<String> = profile.kept.sources.iter().map(ToString::to_string).collect();
            println!("kept open: TCP ports {}; everything from {}", listed(&ports), listed(&sources));
        }
    }
    Ok(())
}

fn listed(words: &[String]) -> String {
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

fn profile_text(profile: &ProfileStatus) -> String {
    let name = if profile.profile.is_empty() { "of the control plane" } else { &profile.profile };
    let phase = match (profile.phase.as_str(), profile.left_secs) {
        ("trial", Some(left)) => format!("on trial, taken back in {left} s unless it is confirmed"),
        ("taking_back", _) => "being taken back".to_owned(),
        (phase, _) => phase.to_owned(),
    };
    format!(
        "{name} in {}: {phase}; {} rules and {} own, {} repairs (application {})",
        profile.suite.as_str(),
        profile.rules,
        profile.custom,
        profile.repairs,
        profile.application
    )
}

/// Gives an order about the attack profile and prints what became of it.
///
/// # Errors
/// As [`order`].
pub async fn profile_order(config: &Config, as_json: bool, order: ProfileOrder) -> Result<()> {
    let Answer::Order { outcome } = question(config, &Question::ProfileOrder { order }).await? else {
        bail!("unexpected answer")
    };
    print_outcome(outcome, as_json)
}

/// Gives an order and prints what became of it.
///
/// # Errors
/// [`Refused`] when the guard says no; else as [`question`].
pub async fn order(config: &Config, as_json: bool, order: OperatorOrder) -> Result<()> {
    let Answer::Order { outcome } = question(config, &Question::Order { order }).await? else {
        bail!("unexpected answer")
    };
    print_outcome(outcome, as_json)
}

fn print_outcome(outcome: OrderOutcome, as_json: bool) -> Result<()> {
    match outcome {
        OrderOutcome::Done { detail } if as_json => println!("{}", json!({ "ok": true, "detail": detail })),
        OrderOutcome::Done { detail } => println!("{detail}"),
        OrderOutcome::Refused { why } => {
            if as_json {
                println!("{}", json!({ "ok": false, "refused": why }));
            }
            return Err(Refused(why).into());
        }
    }
    Ok(())
}

/// An order to block or limit a source.
pub fn block(source: IpNet, ttl_secs: Option<u32>, limit: Option<Rate>) -> OperatorOrder {
    let (pps, bps) = limits(limit);
    OperatorOrder::Block { source, ttl_secs, pps, bps }
}

/// An order to do something to what goes to a target.
pub fn add_rule(
    target: IpNet,
    matches: Matches,
    action: RuleAction,
    ttl_secs: Option<u32>,
    evaluate: bool,
) -> OperatorOrder {
    let verdict = match action {
        RuleAction::Drop => Verdict::Drop,
        RuleAction::Limit(Rate::Pps(pps)) => Verdict::LimitPps { pps, burst: (pps / 10).max(1) },
        RuleAction::Limit(Rate::Bps(bps)) => Verdict::LimitBps { bps, burst: bps / 10 },
        RuleAction::Pass => Verdict::Pass,
        RuleAction::Sample => Verdict::Sample,
        RuleAction::Mark(dscp) => Verdict::Mark { dscp },
    };
    OperatorOrder::AddRule { target, matches, ttl_secs, verdict, evaluate }
}

fn limits(limit: Option<Rate>) -> (Option<u64>, Option<u64>) {
    match limit {
        None => (None, None),
        Some(Rate::Pps(pps)) => (Some(pps), None),
        Some(Rate::Bps(bps)) => (None, Some(bps)),
    }
}

// Writing to a string cannot fail: the results below are ignored for that reason.

/// The device, and whose frames come by it.
fn interface_name(interface: &InterfaceReport) -> String {
    match interface.serves.as_slice() {
        [] => interface.name.clone(),
        [own] if *own == interface.name => interface.name.clone(),
        served => format!("{} → {}", served.join(", "), interface.name),
    }
}

fn status_text(status: &Status) -> String {
    let mut text = String::new();
    let engine = &status.engine;
    _ = writeln!(
        text,
        "ftagent {} on {} (kernel {}), up {} s, mode {}",
        status.version, status.name, status.kernel, status.uptime_secs, status.mode
    );
    for interface in &status.interfaces {
        _ = write!(text, "interface  {:<12} {}", interface_name(interface), interface.mode);
        if interface.program == variant::FRAGS {
            _ = write!(text, ", frames in several buffers");
        }
        if let (Some(link), Some(program)) = (interface.link_id, interface.program_id) {
            _ = write!(text, " (link {link}, program {program})");
        }
        _ = writeln!(text, "{}{}", if interface.reason.is_empty() { "" } else { ": " }, interface.reason);
    }
    // Where there is no program, nothing is counted.
    let counts = |name: &str| status.interfaces.iter().any(|i| i.name == name && i.mode != AttachMode::Nftables);
    for interface in engine.interfaces.iter().filter(|i| i.idle_secs.is_none() && counts(&i.name)) {
        _ = writeln!(text, "interface  {}: no traffic yet since the agent started", interface.name);
    }
    _ = writeln!(text, "traffic    {}", totals_text(status));
    _ = writeln!(
        text,
        "baseline   {}, normally {} and {}; now {:.0} % of the nearest threshold",
        learning_text(&engine.baseline),
        pps_text(engine.baseline.pps),
        bps_text(engine.baseline.bps),
        engine.threshold_ratio * 100.0
    );
    _ = writeln!(
        text,
        "incidents  {} active; {} rules in force, {} refused by the guard",
        engine.active_incidents,
        engine.rules.len(),
        engine.refusals
    );
    for session in &status.sessions {
        _ = writeln!(text, "session    {} from {}: spared by everything automated", session.who(), session.peer);
    }
    if let Some(police) = status.means.police.as_ref().filter(|police| !police.is_best()) {
        _ = writeln!(text, "tc         {}", police.text());
    }
    for action in &engine.actions {
        _ = writeln!(text, "action     {}", action_text(action));
    }
    for list in &status.lists {
        _ = writeln!(text, "list       {}", list_text(list));
    }
    if let Some(crowdsec) = &status.crowdsec {
        _ = writeln!(text, "crowdsec   {}", crowdsec.text());
    }
    for site in &engine.sites {
        _ = writeln!(
            text,
            "requests   {}: {} a second, too many above {} ({})",
            site.target, site.rps, site.threshold, site.origin
        );
    }
    for log in &status.http.logs {
        let state = log.problem.clone().unwrap_or_else(|| format!("{} lines", log.counts.lines));
        _ = writeln!(text, "access log {} ({}): {state}", log.path.display(), log.format);
    }
    if let Some(captures) = &status.captures {
        _ = writeln!(
            text,
            "captures   {} ({} growing), {}; {} of samples in memory, {} samples lost",
            captures.captures.len(),
            captures.growing,
            bytes_text(captures.bytes),
            bytes_text(captures.memory_bytes),
            captures.samples_lost
        );
        if let Some(uploads) = &captures.uploads {
            _ = writeln!(text, "uploads    {}", uploads_text(uploads));
        }
    }
    for listener in &status.flow_exporters {
        for line in exporter_lines(listener) {
            _ = writeln!(text, "exporter   {line}");
        }
    }
    if !status.datapath.left_out.is_empty() {
        _ = writeln!(text, "left out   {} (datapath.without)", status.datapath.left_out.join(", "));
    }
    for lack in &status.datapath.lacking {
        _ = writeln!(text, "kernel     {lack}");
    }
    if let Some(chosen) = &status.datapath.fallback {
        _ = writeln!(text, "fall-back  {}", chosen.text());
    }
    if let Some(profile) = &status.profile {
        _ = writeln!(text, "profile    {}", profile_text(profile));
    }
    for line in status.gate.iter().flat_map(gate_text) {
        _ = writeln!(text, "gate       {line}");
    }
    match &status.link {
        None => _ = writeln!(text, "link       none: the agent works alone"),
        Some(link) => {
            let state = if link.status.connected { "connected" } else { "away" };
            // Of several, the one that is asked.
            let asked = if link.url.contains(',') { format!(" to {}", link.status.server) } else { String::new() };
            _ = write!(text, "link       {} {state}{asked}, {} messages wait", link.url, link.status.spool.queued);
            _ = writeln!(text, "{}", link.status.last_error.as_ref().map_or_else(String::new, |e| format!(": {e}")));
        }
    }
    for (interface, reasons) in &status.verdicts {
        let list: Vec<String> = reasons.iter().map(|(reason, count)| format!("{reason} {}", count.packets)).collect();
        _ = writeln!(
            text,
            "verdicts   {interface}: {}",
            if list.is_empty() { "nothing yet".to_owned() } else { list.join(", ") }
        );
    }
    _ = writeln!(text, "tick       {} us, at most {} us", status.tick_us.last, status.tick_us.max);
    for (event, count) in status.health.iter().filter(|(_, count)| **count > 0) {
        _ = writeln!(text, "WARNING    {event}: {count} times");
    }
    for warning in &status.warnings {
        _ = writeln!(text, "WARNING    {warning}");
    }
    text
}

/// How much is known of what is normal.
fn learning_text(baseline: &BaselineReport) -> String {
    let BaselineReport { targets, learning_targets, learnt_secs, learning_left_secs, known_hours, .. } = baseline;
    match (targets, learning_left_secs) {
        (0, _) => "nothing learnt yet".to_owned(),
        (_, None) => {
            format!("learnt from {learnt_secs} s and {known_hours} of 168 hours of the week, {targets} target(s)")
        }
        (_, Some(left)) => {
            format!(
                "learning, {learning_targets} of {targets} target(s) for up to {left} s more; the floor is their threshold"
            )
        }
    }
}

/// One action of another tool on one line.
fn action_text(action: &TaskView) -> String {
    let whose = match &action.why {
        Why::Rule { name, .. } => format!("rule {name}"),
        Why::Order { command, .. } => format!("order {command}"),
    };
    let wall = |at: time::OffsetDateTime| at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
    let mut text = format!(
        "{} ({}), {} command(s) of {}: {}, since {}, at most until {}",
        action.action.kind(),
        whose,
        action.commands,
        action.tool,
        action.state.as_str().replace('_', " "),
        wall(action.since),
        wall(action.until)
    );
    if let Some(error) = &action.last_error {
        text.push_str(": ");
        text.push_str(error);
    }
    text
}

fn captures_text(status: &CapturesStatus) -> String {
    let mut text = String::new();
    for capture in &status.captures {
        let at = |time: Option<time::OffsetDateTime>| {
            let shown = time.and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok());
            shown.unwrap_or_else(|| "nothing yet".to_owned())
        };
        let state = match capture.ended {
            None => "growing",
            Some(ended) => ended.as_str(),
        };
        _ = writeln!(
            text,
            "{}  {}  {} packets ({} dropped, {} left out), {}  {} to {}  {state}{}{}",
            capture.id(),
            capture.target,
            capture.packets,
            capture.dropped.map_or_else(|| "?".to_owned(), |dropped| dropped.to_string()),
            capture.missed,
            bytes_text(capture.bytes),
            at(capture.from),
            at(capture.to),
            if capture.complete || capture.ended.is_none() { "" } else { " (incomplete)" },
            status.uploads.as_ref().map_or_else(String::new, |uploads| upload_text(capture, uploads)),
        );
    }
    let sum = bytes_text(status.bytes);
    _ = writeln!(text, "{} captures, {sum}, in {}", status.captures.len(), status.dir.display());
    if let Some(uploads) = &status.uploads {
        _ = writeln!(text, "uploads: {}", uploads_text(uploads));
    }
    if let Some(fault) = &status.fault {
        _ = writeln!(text, "WARNING: {fault}");
    }
    text
}

fn uploads_text(uploads: &UploadsStatus) -> String {
    let count = |wanted| uploads.uploads.values().filter(|upload| upload.progress == wanted).count();
    let trouble = uploads.trouble.as_ref().map_or_else(String::new, |why| format!(": {why}"));
    format!(
        "{} at the control plane, {} refused, {} waiting{trouble}",
        count(Progress::Uploaded),
        count(Progress::Refused),
        uploads.waiting
    )
}

fn upload_text(capture: &Capture, uploads: &UploadsStatus) -> String {
    match uploads.uploads.get(&capture.id().to_string()) {
        Some(upload) => match upload.progress {
            Progress::UnderWay => format!("  {} of {} chunks uploaded", upload.received, upload.chunks()),
            Progress::Uploaded => "  uploaded".to_owned(),
            Progress::Refused => format!("  upload refused: {}", upload.why.as_deref().unwrap_or("no reason")),
        },
        None if capture.ended.is_some() => "  not uploaded yet".to_owned(),
        None => String::new(),
    }
}

fn totals_text(status: &Status) -> String {
    let totals = &status.engine.totals;
    format!("{}, {}, {} dropped", pps_text(totals.pps), bps_text(totals.bps), pps_text(totals.dropped_pps))
}

fn top_text(status: &Status) -> String {
    let engine = &status.engine;
    let mut text = format!("{}  {}  mode {}\n\n", status.name, totals_text(status), status.mode);
    _ = writeln!(
        text,
        "{:<24} {:>12} {:>14} {:>12} {:>9} {:>16} {:>7}",
        "TARGET", "PACKETS", "BITS", "DROPPED", "SOURCES", "NEAREST", "RATIO"
    );
    for target in engine.targets.iter().take(20) {
        _ = writeln!(
            text,
            "{:<24} {:>12} {:>14} {:>12} {:>9} {:>16} {:>6.2}{}",
            target.target.addr().to_string(),
            pps_text(target.pps),
            bps_text(target.bps),
            pps_text(target.dropped_pps),
            target.distinct_sources,
            target.quantity,
            target.ratio,
            if target.under_attack { "  ATTACK" } else { "" }
        );
    }
    let active: Vec<&IncidentReport> = engine.incidents.iter().filter(|i| i.status == IncidentStatus::Active).collect();
    if !active.is_empty() {
        _ = writeln!(text, "\nINCIDENTS");
        active.iter().for_each(|report| _ = writeln!(text, "{}", incident_line(report)));
    }
    for warning in &status.warnings {
        _ = writeln!(text, "WARNING {warning}");
    }
    text
}

fn incident_line(report: &IncidentReport) -> String {
    format!(
        "{} {:<9} {:<8} {} on {}  peak {} {}  confidence {:.2}{}  {} of {} packets dropped",
        report.uuid,
        report.status.as_str(),
        report.severity.as_str(),
        report.family,
        report.target,
        pps_text(report.peak_pps),
        bps_text(report.peak_bps),
        report.confidence,
        if report.spoofed { "  spoofed" } else { "" },
        report.dropped_packets,
        report.packets,
    )
}

fn incident_text(report: &IncidentReport) -> String {
    let mut text = format!("{}\n", incident_line(report));
    _ = writeln!(
        text,
        "  {} was {} against a threshold of {} ({}), {:.1} times",
        report.threshold.quantity,
        (report.threshold.value as f64 * report.threshold.ratio) as u64,
        report.threshold.value,
        report.threshold.origin,
        report.threshold.ratio
    );
    for line in &report.explanation {
        _ = writeln!(text, "  {line}");
    }
    for source in &report.top_sources {
        _ = writeln!(
            text,
            "  source {:<40} {:>5.1} %  {}",
            source.ip.to_string(),
            source.share * 100.0,
            pps_text(source.pps)
        );
    }
    for entry in &report.timeline {
        _ = writeln!(text, "  {}  {:<9} {}", entry.at, entry.kind, entry.text);
    }
    text
}

fn list_text(list: &ListStatus) -> String {
    let age = list.age_secs.map_or_else(|| "not loaded".to_owned(), |secs| format!("loaded {secs} s ago"));
    let did = match list.action {
        ListAction::Block => "dropped",
        ListAction::Evaluate => "would drop",
    };
    let last = list.last_match_secs.map_or_else(String::new, |secs| format!(", the last {secs} s ago"));
    format!(
        "{} ({}): {} IPv4, {} IPv6 prefixes, {} lines skipped, {age}; {did} {} packets, {}{last}",
        list.name,
        list.action.as_str(),
        list.v4,
        list.v6,
        list.skipped,
        list.packets,
        bytes_text(list.bytes)
    )
}

/// A line for each exporter of a socket, and one if others sent there.
fn exporter_lines(listener: &ListenerStatus) -> Vec<String> {
    let mut lines: Vec<String> = listener.exporters.iter().map(|e| exporter_text(listener, e)).collect();
    if listener.refused > 0 {
        lines.push(format!("{}: {} datagrams of strangers not read", listener.listen, listener.refused));
    }
    lines
}

fn exporter_text(listener: &ListenerStatus, exporter: &ExporterStatus) -> String {
    let ExporterStatus { address, counts, .. } = exporter;
    let Some(secs) = exporter.last_seen_secs else {
        return format!("{address} at {}: nothing yet", listener.listen);
    };
    let rate = exporter.sampling_rate.map_or_else(String::new, |rate| format!(", 1 in {rate}"));
    format!(
        "{address} at {} ({}{rate}): {}, {}; {} datagrams, {} records, the last {secs} s ago; {} datagrams and {} records \
         lost, {} malformed, {} without template",
        listener.listen,
        exporter.protocol,
        pps_text(exporter.pps),
        bps_text(exporter.bps),
        counts.datagrams,
        counts.records,
        counts.lost_datagrams,
        counts.lost_records,
        counts.malformed,
        counts.unknown_templates
    )
}

/// The lines of reflectors and the TCP gate.
fn gate_text(gate: &GateReport) -> Vec<String> {
    let learnt = match &gate.unlearnt {
        Some(why) => format!("flows are not learnt: {why}"),
        None => {
            let warm =
                if gate.warm_in_secs > 0 { format!(", whole in {} s", gate.warm_in_secs) } else { String::new() };
            format!("{} connections and {} queries learnt{warm}", gate.learnt.connections, gate.learnt.queries)
        }
    };
    let reflectors = gate.reflectors_off.as_ref().map_or("dropped".to_owned(), |why| format!("pass: {why}"));
    let syns = gate.no_cookies.as_ref().map_or("cookies".to_owned(), |why| format!("drop-first ({why})"));
    let targets = if gate.targets.is_empty() { "no target".to_owned() } else { gate.targets.join(", ") };
    vec![
        learnt,
        format!("answers nobody asked for: {reflectors}"),
        format!("{targets} behind the TCP gate; SYNs: {syns}"),
    ]
}

fn matches_text(matches: &Matches) -> String {
    let from = matches.source.map(|source| format!("from {source}"));
    let to = matches.target.map(|target| format!("to {target}"));
    let rest = Matches { source: None, ..matches.clone() };
    let rest = if matches.is_source_only() { None } else { Some(words::words(&rest)) };
    from.into_iter().chain(to).chain(rest).collect::<Vec<_>>().join(" ")
}

fn more_text(sources: usize) -> String {
    if sources == 0 { String::new() } else { format!(" and {sources} more") }
}

fn verdict_text(verdict: Verdict) -> String {
    match verdict {
        Verdict::Drop => "drop".to_owned(),
        Verdict::LimitPps { pps, .. } => format!("limit to {}", pps_text(pps)),
        Verdict::LimitBps { bps, .. } => format!("limit to {}", bps_text(bps)),
        Verdict::Pass => "pass".to_owned(),
        Verdict::Sample => "sample".to_owned(),
        Verdict::Mark { dscp } => format!("mark DSCP {dscp}"),
    }
}

fn origin_text(origin: &Origin) -> String {
    match origin {
        Origin::Operator => "operator".to_owned(),
        Origin::ControlPlane { .. } => "control plane".to_owned(),
        Origin::FirewallRule { name, .. } => format!("rule {name:?}"),
        Origin::Response { .. } => "automatic".to_owned(),
    }
}

fn scaled(value: u64, unit: &str) -> String {
    let value = value as f64;
    match value {
        v if v >= 1e9 => format!("{:.2} G{unit}", v / 1e9),
        v if v >= 1e6 => format!("{:.2} M{unit}", v / 1e6),
        v if v >= 1e3 => format!("{:.1} k{unit}", v / 1e3),
        v => format!("{v:.0} {unit}"),
    }
}

fn pps_text(pps: u64) -> String {
    scaled(pps, "pps")
}

fn bps_text(bps: u64) -> String {
    scaled(bps, "bit/s")
}

fn bytes_text(bytes: u64) -> String {
    scaled(bytes, "B")
}
