//! Queries to a name server: those of resolvers and their clients, and floods of them.

use ftagent_common::vocab::AttackFamily;

use super::features::{Ranking, Stats, estimated, ratio};
use super::{Claims, Part, spoof};
use crate::engine::window::Seen;

/// Samples that a judgement of the names needs.
const NAMES: usize = 20;
/// How often a second a resolver may ask for one name, lost packets and short lifetimes included: it keeps what it heard.
const SAME_NAME: f64 = 10.0;

/// The part of the samples `members`, which are queries.
pub(super) fn part(claims: &Claims<'_>, members: Vec<usize>) -> Part {
    let samples = claims.samples_of(&members);
    let stats = Stats::of(&samples);
    let forged = spoof::judge(&stats, &samples, claims.clean);
    let mut why = vec![format!(
        "{} sources send DNS queries to port 53 for {} names",
        stats.sources.distinct(),
        stats.prefixes.distinct()
    )];
    let pps = claims.pps * ratio(samples.len(), claims.samples.len());
    let (fit, sign) = if forged.spoofed {
        (0.92, "the sources are judged forged".to_owned())
    } else if stats.sources.top_share() >= 0.5 {
        (0.7, format!("one source sends {:.0} % of them", stats.sources.top_share() * 100.0))
    } else if let Some(sign) = random_labels(&stats, &samples) {
        (0.75, sign)
    } else if let Some(sign) = again_and_again(&samples, pps) {
        (0.7, sign)
    } else {
        (0.45, "a name server's clients look like this too".to_owned())
    };
    why.push(sign);
    Part::new(AttackFamily::DnsFlood, None, fit, why, members)
}

/// Names that are drawn: every query asks another, with long first labels that nobody could pronounce. Half of the
/// letters in words of most languages are vowels or a little less, of drawn ones a quarter with the y.
fn random_labels(stats: &Stats, samples: &[Seen]) -> Option<String> {
    let long: Vec<&Seen> = samples.iter().filter(|s| s.label.len >= 7).collect();
    let sum = |value: fn(&Seen) -> u8| long.iter().map(|s| u32::from(value(s))).sum::<u32>();
    let (letters, vowels) = (sum(|s| s.label.letters), sum(|s| s.label.vowels));
    let share = f64::from(vowels) / f64::from(letters.max(1));
    // Names that are counted up begin alike.
    let begin_alike = Ranking::of(samples, |s| s.label.first).needed_for(0.8) < 6;
    let are_other = stats.prefixes.distinct() * 10 >= samples.len() * 9;
    (samples.len() >= NAMES && long.len() * 10 >= samples.len() * 8 && are_other && share < 0.29 && !begin_alike).then(
        || format!("every query asks for another name, and only {:.0} % of their letters are vowels", share * 100.0),
    )
}

/// The same source asking for the same name ever again.
fn again_and_again(samples: &[Seen], pps: f64) -> Option<String> {
    let pairs = estimated(samples, |s| (s.src, s.prefix));
    if samples.len() < NAMES || samples.len() < pairs.met + 5 {
        return None;
    }
    let each = pps / pairs.all.max(1.0);
    (each >= SAME_NAME).then(|| format!("each source asks for the same name {each:.0} times a second"))
}
