//! Are the sources forged? A verdict with its reasons.
//!
//! Blocking forged addresses fills maps and hurts their owners, so the verdict asks for many sources first and then
//! for a sign that real hosts do not show: one TTL from all over the world, addresses that nobody can have,
//! or addresses drawn evenly from the whole space.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ftagent_common::packet::Ip;

use super::features::{Stats, ratio};
use crate::engine::window::Seen;

/// Fewer distinct sources than this can be blocked one by one, forged or not.
const MANY: usize = 10;

/// No site has this many hosts that all send to one target, at one distance from it.
const CROWD: u64 = 4_096;

/// Whether sources are judged forged, and why or why not.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    pub(super) spoofed: bool,
    /// Not by their TTL alone, which a proxy or a site gives to all that comes through it.
    pub(super) is_certain: bool,
    pub(super) reasons: Vec<String>,
}

/// Judges the sources of `samples`; `clean` is what the target saw before.
pub(super) fn judge(stats: &Stats, samples: &[Seen], clean: &[Seen]) -> Verdict {
    let distinct = stats.sources.distinct();
    // Where most packets come from few addresses, these are worth blocking whatever the rest is.
    let concentrated = stats.sources.needed_for(0.8);
    if distinct < MANY && stats.source_spread() > 0.5 {
        let reasons = vec![format!("{} samples are too few to judge {distinct} sources by", stats.n)];
        return Verdict { reasons, ..Verdict::default() };
    }
    let many = if stats.source_spread() > 0.5 { MANY } else { 2 * MANY };
    if distinct < many || concentrated < many - 2 {
        let reasons = vec![format!("{concentrated} sources send 80 % of the packets: few enough to block by address")];
        return Verdict { reasons, ..Verdict::default() };
    }
    let sources: BTreeSet<Ip> = stats.sources.items.iter().map(|(ip, _)| *ip).collect();
    let estimated = stats.estimated_sources(samples);
    let mut reasons = Vec::new();

    let slash16: BTreeSet<[u8; 16]> = sources.iter().map(prefix16).collect();
    let few_ttls = stats.ttls.needed_for(0.95);
    // No router forwards a TTL of 0: there it is not known.
    let ttls_known = stats.ttls.top() != Some(0);
    if ttls_known && few_ttls <= 2 && (slash16.len() >= MANY - 2 || estimated >= CROWD) {
        reasons.push(format!(
            "about {estimated} sources in {} networks share {few_ttls} TTL values: one sender wrote them all",
            slash16.len().max(1)
        ));
    }
    let by_ttl = reasons.len();
    let impossible = ratio(sources.iter().filter(|ip| is_bogon(**ip)).count(), distinct);
    if impossible >= 0.03 && sources.iter().filter(|ip| is_bogon(**ip)).count() >= 3 {
        reasons.push(format!("{:.0} % of the sources are addresses that nobody can send from", impossible * 100.0));
    }
    if let Some(why) = evenly_drawn(&sources) {
        reasons.push(why);
    }
    if let Some(why) = other_ttls_than_before(samples, clean) {
        reasons.push(why);
    }
    if reasons.is_empty() {
        let why = if ttls_known {
            format!("{distinct} sources with {} TTL values look like real hosts", stats.ttls.distinct())
        } else {
            format!("nothing says that {distinct} sources are forged; their TTL is not known")
        };
        return Verdict { reasons: vec![why], ..Verdict::default() };
    }
    Verdict { spoofed: true, is_certain: reasons.len() > by_ttl, reasons }
}

fn prefix16(ip: &Ip) -> [u8; 16] {
    let mut octets = ip.octets();
    let kept = if ip.is_v4() { 14 } else { 4 };
    octets[kept..].fill(0);
    octets
}

/// Addresses that no packet from another network may carry (RFC 6890); private ones are left out, since a node may
/// stand inside such a network.
fn is_bogon(ip: Ip) -> bool {
    match IpAddr::from(ip) {
        IpAddr::V4(v4) => {
            let [a, ..] = v4.octets();
            a == 0 || a == 127 || a >= 224
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            // Outside of global unicast, unique local and link-local.
            !(0x2000..0x4000).contains(&first) && first & 0xfe00 != 0xfc00 && first & 0xffc0 != 0xfe80
        }
    }
}

/// Whether the first bits are spread as dice would: Pearson's statistic over the sixteenths of 0.0.0.0 to 223.0.0.0.
/// Real hosts crowd where networks are allocated: their statistic is several times its expectation.
fn evenly_drawn(sources: &BTreeSet<Ip>) -> Option<String> {
    let mut counts = [0u32; 14];
    let mut octets = BTreeSet::new();
    for ip in sources.iter().filter(|ip| ip.is_v4()) {
        let first = ip.octets()[12];
        octets.insert(first);
        if let Some(count) = counts.get_mut(usize::from(first >> 4)) {
            *count += 1;
        }
    }
    let n: u32 = counts.iter().sum();
    if n < 100 {
        return None;
    }
    let expected = f64::from(n) / counts.len() as f64;
    let statistic: f64 = counts.iter().map(|c| (f64::from(*c) - expected).powi(2) / expected).sum();
    // 13 degrees of freedom: a fair draw exceeds 27.7 once in a hundred.
    (statistic < 27.7).then(|| {
        format!(
            "{n} sources are spread evenly over {} first octets, as drawn at random (chi² {statistic:.0})",
            octets.len()
        )
    })
}

/// Whether networks that were seen before now come from elsewhere.
fn other_ttls_than_before(samples: &[Seen], clean: &[Seen]) -> Option<String> {
    let before: BTreeMap<[u8; 16], u8> = clean.iter().map(|s| (prefix16(&s.src), s.ttl)).collect();
    let compared: Vec<bool> =
        samples.iter().filter_map(|s| before.get(&prefix16(&s.src)).map(|ttl| ttl.abs_diff(s.ttl) > 3)).collect();
    let differ = compared.iter().filter(|d| **d).count();
    (compared.len() >= 8 && ratio(differ, compared.len()) >= 0.7)
        .then(|| format!("{differ} of {} packets have another TTL than their network showed before", compared.len()))
}
