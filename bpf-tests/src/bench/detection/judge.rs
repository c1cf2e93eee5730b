//! Trials and how they are judged: the confusion table, the failures, the figures.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use ftagent_common::vocab::AttackFamily;

use super::super::stats::{quantile, sorted};
use super::trial::{Found, Play};

/// Failures whose reasons are printed.
const MOST_TOLD: usize = 60;
/// Lines of an explanation that are printed.
const MOST_LINES: usize = 8;

/// One attack as it was labelled, played and named.
#[derive(Clone, Debug)]
pub(super) struct Trial {
    pub(super) name: String,
    /// The collectors' or the generator's word.
    pub(super) label: String,
    /// Other words that are right.
    pub(super) acceptable: Vec<String>,
    pub(super) targets: BTreeSet<IpAddr>,
    pub(super) play: Play,
    pub(super) found: Found,
}

impl Trial {
    /// Whether the family is the label's, whatever the confidence.
    pub(super) fn is_named_right(&self) -> bool {
        std::iter::once(&self.label).chain(&self.acceptable).any(|word| is_family(word, self.found.family))
    }

    /// Whether all incidents are on what was attacked, and all that was attacked has one.
    pub(super) fn is_target_right(&self) -> bool {
        self.found.targets == self.targets
    }

    /// Named right and certain enough to act.
    pub(super) fn is_sure(&self) -> bool {
        self.is_named_right() && self.found.confidence >= 0.5
    }

    fn told(&self) -> String {
        let Play { pps, one_in, .. } = self.play;
        let mut text = format!(
            "{} at {pps} packets/s to each target, one sample in {one_in}: {} called {} with confidence {:.2}",
            self.name, self.label, self.found.family, self.found.confidence
        );
        if !self.is_target_right() {
            _ = write!(text, ", on {:?} instead of {:?}", self.found.targets, self.targets);
        }
        text
    }
}

/// Whether `family` is what a collector calls `word`.
fn is_family(word: &str, family: AttackFamily) -> bool {
    match word {
        "synack_reflection" | "tcp_reflection" => family == AttackFamily::SynAckFlood,
        "udp_reflection_other" => family.is_amplification() || family == AttackFamily::MultiVector,
        "dhcp_flood" => family == AttackFamily::UdpFlood,
        "slowloris" => family == AttackFamily::HttpFlood,
        word => family.as_str() == word,
    }
}

/// Labels against names, and how often.
pub(super) fn confusion(title: &str, trials: &[Trial]) -> String {
    let mut counts: BTreeMap<(&str, &str), (usize, bool)> = BTreeMap::new();
    for trial in trials {
        let entry = counts.entry((&trial.label, trial.found.family.as_str())).or_insert((0, trial.is_named_right()));
        entry.0 += 1;
    }
    let mut text = format!("\n{title}: label, name given, trials\n");
    for ((label, name), (count, right)) in counts {
        let mark = if right { "" } else { "  WRONG" };
        _ = writeln!(text, "  {label:26} {name:26} {count:>5}{mark}");
    }
    text
}

/// What failed, with the engine's own reasons.
pub(super) fn failures(title: &str, trials: &[Trial]) -> String {
    let failed: Vec<&Trial> = trials.iter().filter(|t| !t.is_sure() || !t.is_target_right()).collect();
    if failed.is_empty() {
        return String::new();
    }
    let mut text =
        format!("\n{title}: {} of {} trials named wrong, unsure, or on the wrong target\n", failed.len(), trials.len());
    for trial in failed.iter().take(MOST_TOLD) {
        _ = writeln!(text, "  {}", trial.told());
        for line in trial.found.explanation.iter().take(MOST_LINES) {
            _ = writeln!(text, "      {line}");
        }
    }
    if failed.len() > MOST_TOLD {
        _ = writeln!(text, "  and {} more", failed.len() - MOST_TOLD);
    }
    text
}

/// Share of the trials for which `is` holds, in percent.
pub(super) fn percent(trials: &[Trial], is: impl Fn(&Trial) -> bool) -> Option<f64> {
    let right = trials.iter().filter(|trial| is(trial)).count();
    (!trials.is_empty()).then(|| right as f64 * 100.0 / trials.len() as f64)
}

/// p50 and p99 of `value`; what never happened counts as long as the longest trial.
pub(super) fn delays<'a>(
    trials: impl Iterator<Item = &'a Trial>,
    value: impl Fn(&Found) -> Option<f64>,
) -> [Option<f64>; 2] {
    let all = sorted(trials.map(|t| value(&t.found).unwrap_or(t.play.lasts_ms as f64)).collect());
    [quantile(&all, 0.5), quantile(&all, 0.99)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(label: &str, family: AttackFamily, confidence: f64) -> Trial {
        let target: IpAddr = "203.0.113.5".parse().expect("an address");
        Trial {
            name: "a trial".to_owned(),
            label: label.to_owned(),
            acceptable: vec!["udp_flood".to_owned()],
            targets: [target].into(),
            play: Play { pps: 60_000, one_in: 1, lasts_ms: 1_000, phase_ms: 0 },
            found: Found {
                family,
                confidence,
                targets: [target].into(),
                surest: confidence,
                opened_ms: None,
                ruled_ms: Some(7.0),
                explanation: vec!["because".to_owned()],
            },
        }
    }

    #[test]
    fn collectors_words_and_acceptable_ones_are_right() {
        let table = [
            ("slowloris", AttackFamily::HttpFlood, true),
            ("synack_reflection", AttackFamily::SynAckFlood, true),
            ("udp_reflection_other", AttackFamily::IsakmpAmplification, true),
            ("dhcp_flood", AttackFamily::UdpFlood, true),
            ("syn_flood", AttackFamily::UdpFlood, true),
            ("syn_flood", AttackFamily::AckFlood, false),
        ];
        for (label, family, right) in table {
            assert_eq!(trial(label, family, 0.9).is_named_right(), right, "{label} {family}");
        }
    }

    #[test]
    fn what_is_wrong_unsure_or_elsewhere_is_told_with_its_reason() {
        let right = trial("syn_flood", AttackFamily::SynFlood, 0.9);
        assert_eq!(failures("f", std::slice::from_ref(&right)), "");
        let unsure = trial("syn_flood", AttackFamily::SynFlood, 0.4);
        let wrong = trial("syn_flood", AttackFamily::AckFlood, 0.9);
        let mut elsewhere = right.clone();
        elsewhere.targets.clear();
        let trials = [right, unsure, wrong, elsewhere];
        let text = failures("f", &trials);
        assert!(text.contains("3 of 4") && text.contains("because") && text.contains("instead of {}"), "{text}");
        let table = confusion("c", &trials);
        assert!(table.contains("ack_flood                      1  WRONG"), "{table}");
        assert_eq!(percent(&trials, Trial::is_named_right), Some(75.0));
        assert_eq!(percent(&[], Trial::is_named_right), None);
        assert_eq!(delays(trials.iter(), |f| f.opened_ms), [Some(1_000.0); 2], "never counts as the whole trial");
    }
}
