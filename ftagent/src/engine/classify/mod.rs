//! What kind of attack it is: a pure function from samples to a named, explained verdict.
//!
//! Each family claims the samples that it explains, in the order of `CLAIMS`; what is claimed is a part of the
//! attack. One part gives its family, several real ones give `multi_vector`. A part's fit says how little ordinary
//! traffic looks like it, and becomes the confidence.

mod amplification;
mod application;
mod conversation;
mod dns;
pub mod features;
mod http;
mod other;
pub mod payload;
pub mod signature;
mod spoof;
mod tcp;
mod tunnelled;
mod udp;

use ftagent_common::packet::{Ip, proto};
use ftagent_common::vocab::AttackFamily;

use super::window::Seen;
use features::{Ranking, Stats};
pub use payload::Shape;
use signature::Measured;

/// Who claims samples, in order. Floods of tunnels first, whatever is inside; then answers, since what reflectors send
/// would otherwise be plain UDP, fragments and ICMP.
const CLAIMS: &[fn(&mut Claims<'_>)] = &[
    tunnelled::claim,
    amplification::claim,
    other::claim_fragments,
    udp::claim,
    tcp::claim,
    other::claim_icmp,
    other::claim_gre,
    other::claim_rest,
];

/// A part below this share of the attack is background.
const REAL_SHARE: f64 = 0.12;
/// A part below this fit is not held to be an attack.
pub const REAL_FIT: f64 = 0.5;
/// Samples that make a verdict as sure as it can be.
pub const ENOUGH: usize = 50;

/// Samples being divided among the families.
struct Claims<'a> {
    samples: &'a [Seen],
    clean: &'a [Seen],
    /// Packets per second towards the target.
    pps: f64,
    /// The time over which the samples were taken.
    span_secs: f64,
    taken: Vec<bool>,
    parts: Vec<Part>,
    rejected: Vec<(AttackFamily, String)>,
}

impl Claims<'_> {
    /// Samples that nobody claimed yet, with their indexes.
    fn open(&self) -> impl Iterator<Item = (usize, &Seen)> {
        self.samples.iter().enumerate().filter(|(i, _)| !self.taken[*i])
    }

    fn select(&self, is: impl Fn(&Seen) -> bool) -> Vec<usize> {
        self.open().filter(|(_, s)| is(s)).map(|(i, _)| i).collect()
    }

    fn samples_of(&self, members: &[usize]) -> Vec<Seen> {
        members.iter().map(|i| self.samples[*i]).collect()
    }

    fn take(&mut self, part: Part) {
        for i in &part.members {
            self.taken[*i] = true;
        }
        self.parts.push(part);
    }

    fn reject(&mut self, family: AttackFamily, why: String) {
        self.rejected.push((family, why));
    }
}

/// What one family explains.
struct Part {
    family: AttackFamily,
    subtype: Option<&'static str>,
    /// How little ordinary traffic looks like it, 0 to 1.
    fit: f64,
    why: Vec<String>,
    members: Vec<usize>,
}

impl Part {
    fn new(
        family: AttackFamily,
        subtype: Option<&'static str>,
        fit: f64,
        why: Vec<String>,
        mut members: Vec<usize>,
    ) -> Self {
        members.sort_unstable();
        Self { family, subtype, fit, why, members }
    }
}

/// One vector of the attack, with what a response needs to know of it.
#[derive(Clone, Debug)]
pub struct Vector {
    pub family: AttackFamily,
    pub subtype: Option<&'static str>,
    /// Share of the target's packets, 0 to 1.
    pub share: f64,
    pub fit: f64,
    pub spoofed: bool,
    pub spoof_reasons: Vec<String>,
    pub signature: Option<Measured>,
    pub stats: Stats,
    pub estimated_sources: u64,
    /// Its traffic classes with their shares, largest first.
    pub classes: Vec<(ftagent_common::vocab::TrafficClass, f64)>,
}

/// What the traffic towards one target is.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub family: AttackFamily,
    pub subtype: Option<String>,
    /// 0 to 1: how sure that it is an attack, and this one.
    pub confidence: f64,
    pub spoofed: bool,
    /// Real vectors, largest share first; at least one unless there were no samples.
    pub vectors: Vec<Vector>,
    /// Samples it rests on.
    pub samples: usize,
    pub estimated_sources: u64,
    pub sources: Vec<(Ip, f64)>,
    pub src_ports: Vec<(u16, f64)>,
    pub dst_ports: Vec<(u16, f64)>,
    pub explanation: Vec<String>,
}

/// Entries of the lists in a report.
const TOP: usize = 10;

/// Classifies `samples` of one target. `clean` is what it received before; `pps` is its current rate.
pub fn classify(samples: &[Seen], clean: &[Seen], pps: f64) -> Verdict {
    let span_secs = span_secs(samples);
    let pps = pps.max(rate_of(samples, span_secs));
    let mut claims = Claims {
        samples,
        clean,
        pps,
        span_secs,
        taken: vec![false; samples.len()],
        parts: Vec::new(),
        rejected: Vec::new(),
    };
    for claim in CLAIMS {
        claim(&mut claims);
    }
    let Claims { parts, rejected, .. } = claims;
    let total: f64 = samples.iter().map(|s| f64::from(s.weight)).sum();
    let mut parts: Vec<(f64, Part)> = parts
        .into_iter()
        .map(|p| (p.members.iter().map(|i| f64::from(samples[*i].weight)).sum::<f64>() / total.max(1.0), p))
        .collect();
    parts.sort_by(|a, b| (b.0 * b.1.fit).total_cmp(&(a.0 * a.1.fit)).then(a.1.family.cmp(&b.1.family)));

    let mut explanation = Vec::new();
    for (share, part) in &parts {
        let name = named(part.family, part.subtype);
        for why in &part.why {
            explanation.push(format!("{name}, {:.0} % of the packets, fit {:.2}: {why}", share * 100.0, part.fit));
        }
    }
    explanation.extend(rejected.into_iter().take(TOP).map(|(family, why)| format!("not {family}: {why}")));

    // The first part is an attack's if any is; what is weak beside it is background.
    let real: Vec<(f64, Part)> = parts
        .into_iter()
        .enumerate()
        .filter(|(rank, (share, part))| *rank == 0 || *share >= REAL_SHARE && part.fit >= REAL_FIT)
        .map(|(_, part)| part)
        .collect();
    let attack: f64 = real.iter().map(|(share, _)| share).sum();
    let evidence = (0.45 + 0.55 * samples.len() as f64 / ENOUGH as f64).min(1.0);
    let fit = real.iter().map(|(share, p)| share * p.fit).sum::<f64>() / attack.max(f64::EPSILON);
    // Much that the attack does not explain makes the verdict less sure.
    let confidence = if real.is_empty() { 0.0 } else { fit * evidence * (0.7 + 0.3 * attack.min(1.0)) };
    let vectors: Vec<Vector> = real.into_iter().map(|(share, part)| vector(share, part, samples, clean)).collect();
    let (family, subtype) = match vectors.as_slice() {
        [] => (AttackFamily::Unknown, None),
        [one] => (one.family, one.subtype.map(str::to_owned)),
        _ => (AttackFamily::MultiVector, None),
    };
    for v in &vectors {
        let judged = if v.spoofed { "forged" } else { "not forged" };
        explanation.extend(v.spoof_reasons.iter().map(|why| format!("{}: sources judged {judged}: {why}", v.family)));
        let Some(s) = v.signature.as_ref().filter(|s| !s.usable) else { continue };
        let port = v.stats.src_ports.shares(1).first().filter(|(port, share)| *port != 0 && *share >= 0.1).copied();
        explanation.push(match port.filter(|_| v.family.is_amplification()) {
            Some((port, _)) => format!("{}: the answers go by their source port {port}; {}", v.family, s.why),
            None => format!("{}: no filter to drop by: {}", v.family, s.why),
        });
    }
    explanation.push(format!("{} samples, evidence {evidence:.2}, confidence {confidence:.2}", samples.len()));
    let stats = Stats::of(samples);
    let ports = |ranking: &Ranking<u16>| ranking.shares(TOP);
    Verdict {
        family,
        subtype,
        confidence: (confidence * 100.0).round() / 100.0,
        spoofed: vectors.first().is_some_and(|v| v.spoofed),
        estimated_sources: stats.estimated_sources(samples),
        sources: stats.sources.shares(TOP),
        src_ports: ports(&stats.src_ports),
        dst_ports: ports(&stats.dst_ports),
        samples: samples.len(),
        vectors,
        explanation,
    }
}

/// Seconds from the first of the samples to the last.
fn span_secs(samples: &[Seen]) -> f64 {
    let times = || samples.iter().map(|s| s.time_ns);
    times().max().unwrap_or(0).saturating_sub(times().min().unwrap_or(0)) as f64 / 1e9
}

/// Packets per second that the samples themselves tell: at least so many came while they were taken, though the rate may
/// have fallen since, or may be read over a longer time.
fn rate_of(samples: &[Seen], span_secs: f64) -> f64 {
    const SHORTEST_SECS: f64 = 0.02;
    if samples.len() < 20 || span_secs < SHORTEST_SECS {
        return 0.0;
    }
    samples.iter().map(|s| f64::from(s.weight)).sum::<f64>() / span_secs
}

fn named(family: AttackFamily, subtype: Option<&str>) -> String {
    subtype.map_or_else(|| family.to_string(), |s| format!("{family}/{s}"))
}

fn vector(share: f64, part: Part, samples: &[Seen], clean: &[Seen]) -> Vector {
    let members: Vec<Seen> = part.members.iter().map(|i| samples[*i]).collect();
    let stats = Stats::of(&members);
    // Reflectors are real hosts that were lied to: their addresses are their own.
    let reflected = part.family.is_amplification() || part.family == AttackFamily::SynAckFlood;
    let forged = if reflected {
        let reasons = vec!["reflectors answer from their own addresses".to_owned()];
        spoof::Verdict { reasons, ..spoof::Verdict::default() }
    } else {
        spoof::judge(&stats, &members, clean)
    };
    // Errors of reflectors come along with the answers and are limited by themselves: no filter is of both.
    let answers: Vec<Seen> = members.iter().filter(|s| s.protocol == proto::UDP).copied().collect();
    Vector {
        family: part.family,
        subtype: part.subtype,
        share,
        fit: part.fit,
        spoofed: forged.spoofed,
        spoof_reasons: forged.reasons,
        signature: signature::synthesise(if part.family.is_amplification() { &answers } else { &members }, clean),
        estimated_sources: stats.estimated_sources(&members),
        classes: Ranking::of(&members, |s| s.class).shares(TOP),
        stats,
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
