//! What happened in a scenario, whether it is what should have happened, and the line for machines.

use serde::Serialize;
use uuid::Uuid;

use ftagent_common::vocab::AttackFamily;

use super::Story;

/// One scenario. Times are in milliseconds; frames are what reached the protected node's wire.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ScenarioReport {
    pub name: String,
    pub run: u32,
    pub expected_family: Option<AttackFamily>,
    /// Other families that are right as well.
    #[serde(skip)]
    pub acceptable: Vec<AttackFamily>,
    pub family: Option<AttackFamily>,
    pub target_ok: Option<bool>,
    pub confidence: Option<f64>,
    pub spoofed: Option<bool>,
    /// First attack packet to incident.
    pub detect_ms: Option<f64>,
    /// First attack packet to the first frame dropped by a rule of the incident.
    pub drop_ms: Option<f64>,
    pub sent: u64,
    pub passed: u64,
    pub dropped: u64,
    pub clean_requests: u64,
    pub clean_lost: u64,
    pub incident_uuid: Option<Uuid>,
    /// Last attack packet to no rule and no map entry of the incident left; the hold-down is part of it.
    pub undo_ms: Option<f64>,
    /// Clean frames that left the client and did not get through; the connections sent them again.
    pub clean_frames_dropped: u64,
    /// The 99th percentile of answered clean requests.
    pub clean_p99_ms: Option<f64>,
    /// Frames that the generator handed over and the wire lost; they are not in `sent`.
    pub lost_on_wire: u64,
    /// What did not happen as it should; empty if all is well.
    pub problems: Vec<String>,
}

/// The machine-readable line.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub ok: bool,
    pub scenarios: Vec<ScenarioReport>,
    /// Over all scenarios with an attack.
    pub drop_ms_p50: Option<f64>,
    pub drop_ms_p99: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Report {
    /// All well means: every scenario was played, and none has a problem.
    pub(super) fn new(scenarios: Vec<ScenarioReport>, error: Option<String>) -> Self {
        let ok = error.is_none() && !scenarios.is_empty() && scenarios.iter().all(|s| s.problems.is_empty());
        let mut drops: Vec<f64> = scenarios.iter().filter_map(|s| s.drop_ms).collect();
        drops.sort_by(f64::total_cmp);
        let quantile = |share: f64| {
            let rank = (share * drops.len() as f64).ceil() as usize;
            drops.get(rank.saturating_sub(1)).copied()
        };
        Self { ok, drop_ms_p50: quantile(0.5), drop_ms_p99: quantile(0.99), scenarios, error }
    }

    pub(super) fn fail(&mut self, error: String) {
        self.ok = false;
        self.error.get_or_insert(error);
    }

    /// The line.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("numbers, texts and lists are always JSON")
    }
}

/// First attack packet to drop may take this long, in milliseconds.
const MAX_DROP_MS: f64 = 1000.0;

/// What is wrong with a report; what the measurement itself found is in `problems` already.
pub fn judge(report: &ScenarioReport) -> Vec<String> {
    let mut problems = Vec::new();
    let mut fail = |problem: String| problems.push(problem);
    if report.clean_requests == 0 {
        fail("no clean request was made".into());
    }
    if report.clean_lost > 0 {
        fail(format!("{} of {} clean requests were lost", report.clean_lost, report.clean_requests));
    }
    if report.sent != report.passed + report.dropped {
        fail(format!("{} sent is not {} passed + {} dropped", report.sent, report.passed, report.dropped));
    }
    let Some(expected) = report.expected_family else {
        if report.dropped > 0 || report.clean_frames_dropped > 0 {
            fail(format!("{} clean frames were dropped", report.dropped + report.clean_frames_dropped));
        }
        if let Some(family) = report.family {
            fail(format!("clean traffic was taken for {family}"));
        }
        return problems;
    };
    if report.sent == 0 {
        fail("no attack frame was sent".into());
    }
    match report.family {
        None => fail("not detected".into()),
        Some(family) if family != expected && !report.acceptable.contains(&family) => {
            fail(format!("called {family}, is {expected}"));
        }
        Some(_) => {}
    }
    if report.target_ok == Some(false) {
        fail("the incident names another target".into());
    }
    if report.confidence.is_some_and(|confidence| confidence < 0.5) {
        fail("detected with a confidence below 0.5".into());
    }
    if report.dropped == 0 {
        fail("nothing was dropped".into());
    }
    match report.drop_ms {
        // What no host can have sent never reaches a rule: it is refused from the first frame on.
        None if report.passed == 0 && report.dropped == report.sent => {}
        None => fail("no rule of the incident dropped anything".into()),
        Some(millis) if millis > MAX_DROP_MS => fail(format!("{millis:.0} ms until the first drop")),
        Some(_) => {}
    }
    if report.family.is_some() && report.incident_uuid.is_none() {
        fail("the incident is not at the control plane".into());
    }
    if report.undo_ms.is_none() {
        fail("what was done is not undone".into());
    }
    problems
}

/// The end of a scenario on the screen.
pub(super) fn tell(report: &ScenarioReport, story: &Story) {
    if report.expected_family.is_some() {
        let share = 100.0 * report.dropped as f64 / (report.sent as f64).max(1.0);
        story.note(&format!(
            "sent {} = passed {} + dropped {} ({share:.1} % dropped in the kernel)",
            thousands(report.sent),
            thousands(report.passed),
            thousands(report.dropped)
        ));
    }
    let p99 = report.clean_p99_ms.map_or(String::new(), |ms| format!(", p99 {ms:.1} ms"));
    story.note(&format!("clean: {} requests, {} lost{p99}", report.clean_requests, report.clean_lost));
    for problem in &report.problems {
        story.bad(problem);
    }
    if report.problems.is_empty() {
        story.good(if report.expected_family.is_some() {
            "seen, named, dropped, reported, undone"
        } else {
            "no incident"
        });
    }
}

/// All scenarios with an attack in one table.
pub(super) fn tell_all(reports: &[ScenarioReport], story: &Story) {
    let attacks: Vec<_> = reports.iter().filter(|report| report.expected_family.is_some()).collect();
    if attacks.len() < 2 {
        return;
    }
    story.heading("expected               reported               target conf. forged detect    drop  dropped  clean");
    for report in attacks {
        let family = |family: Option<AttackFamily>| family.map_or("-", AttackFamily::as_str);
        let yes = |word: Option<bool>| word.map_or("-", |word| if word { "yes" } else { "no" });
        let millis = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
        let line = format!(
            "{:<22} {:<22} {:<6} {:<5} {:<6} {:>7} {:>7} {:>6.1} % {:>6}",
            family(report.expected_family),
            family(report.family),
            yes(report.target_ok),
            report.confidence.map_or("-".to_owned(), |confidence| format!("{confidence:.2}")),
            yes(report.spoofed),
            millis(report.detect_ms),
            millis(report.drop_ms),
            100.0 * report.dropped as f64 / (report.sent as f64).max(1.0),
            if report.clean_lost == 0 { "kept".to_owned() } else { format!("-{}", report.clean_lost) },
        );
        if report.problems.is_empty() { story.row(&line) } else { story.bad_row(&line) }
    }
}

/// 1234567 as `1,234,567`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attack() -> ScenarioReport {
        ScenarioReport {
            name: "syn".into(),
            run: 1,
            expected_family: Some(AttackFamily::SynFlood),
            family: Some(AttackFamily::SynFlood),
            target_ok: Some(true),
            confidence: Some(0.9),
            spoofed: Some(true),
            detect_ms: Some(80.0),
            drop_ms: Some(90.0),
            sent: 100,
            passed: 10,
            dropped: 90,
            clean_requests: 50,
            incident_uuid: Some(Uuid::from_u128(1)),
            undo_ms: Some(2100.0),
            ..ScenarioReport::default()
        }
    }

    fn clean() -> ScenarioReport {
        ScenarioReport { name: "clean".into(), clean_requests: 50, ..ScenarioReport::default() }
    }

    #[test]
    fn what_is_refused_from_the_first_frame_on_needs_no_rule() {
        let refused = ScenarioReport { drop_ms: None, passed: 0, dropped: 100, ..attack() };
        assert_eq!(judge(&refused), Vec::<String>::new());
    }

    #[test]
    fn what_went_well_has_no_problem() {
        assert_eq!(judge(&attack()), Vec::<String>::new());
        assert_eq!(judge(&clean()), Vec::<String>::new());
        let other = ScenarioReport {
            family: Some(AttackFamily::MultiVector),
            acceptable: vec![AttackFamily::MultiVector],
            ..attack()
        };
        assert_eq!(judge(&other), Vec::<String>::new());
    }

    #[test]
    fn every_single_thing_that_goes_wrong_is_a_problem() {
        let rows: Vec<(&str, ScenarioReport)> = vec![
            ("a frame is missing", ScenarioReport { passed: 9, ..attack() }),
            ("a frame is too many", ScenarioReport { passed: 11, ..attack() }),
            ("a request is lost", ScenarioReport { clean_lost: 1, ..attack() }),
            ("no request was made", ScenarioReport { clean_requests: 0, ..attack() }),
            ("not detected", ScenarioReport { family: None, ..attack() }),
            ("another family", ScenarioReport { family: Some(AttackFamily::UdpFlood), ..attack() }),
            ("another target", ScenarioReport { target_ok: Some(false), ..attack() }),
            ("unsure", ScenarioReport { confidence: Some(0.4), ..attack() }),
            ("nothing dropped", ScenarioReport { passed: 100, dropped: 0, ..attack() }),
            ("no rule dropped", ScenarioReport { drop_ms: None, ..attack() }),
            ("late", ScenarioReport { drop_ms: Some(1001.0), ..attack() }),
            ("not reported", ScenarioReport { incident_uuid: None, ..attack() }),
            ("not undone", ScenarioReport { undo_ms: None, ..attack() }),
            ("nothing sent", ScenarioReport { sent: 0, passed: 0, dropped: 0, ..attack() }),
            ("clean taken for an attack", ScenarioReport { family: Some(AttackFamily::HttpFlood), ..clean() }),
            ("a clean frame dropped", ScenarioReport { clean_frames_dropped: 1, ..clean() }),
            ("a clean request lost", ScenarioReport { clean_lost: 1, ..clean() }),
        ];
        for (name, report) in rows {
            assert!(!judge(&report).is_empty(), "{name}");
        }
    }

    #[test]
    fn all_is_well_only_if_everything_was_played_without_a_problem() {
        assert!(Report::new(vec![clean(), attack()], None).ok);
        assert!(!Report::new(Vec::new(), None).ok);
        assert!(!Report::new(vec![attack()], Some("interrupted".into())).ok);
        assert!(!Report::new(vec![ScenarioReport { problems: vec!["late".into()], ..attack() }], None).ok);
        let mut report = Report::new(vec![attack()], None);
        report.fail("pins are left".into());
        assert!(!report.ok);
    }

    #[test]
    fn the_line_has_the_documented_fields() {
        let line = Report::new(vec![attack()], None).to_line();
        assert!(!line.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(value["ok"], true);
        for field in [
            "name",
            "expected_family",
            "family",
            "target_ok",
            "confidence",
            "spoofed",
            "detect_ms",
            "drop_ms",
            "sent",
            "passed",
            "dropped",
            "clean_requests",
            "clean_lost",
            "incident_uuid",
            "undo_ms",
        ] {
            assert!(value["scenarios"][0].get(field).is_some(), "{field}");
        }
        assert_eq!(value["scenarios"][0]["family"], "syn_flood");
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
    }
}
