//! The narrowest filter that covers an attack, and what it would have hit before.
//!
//! Starts from everything that the attack's packets share and gives up the parts that cost most coverage, until
//! [`COVERAGE`] is reached. Coverage and collateral are measured, not assumed.

use ftagent_common::api::Signature;
use ftagent_common::packet::{Fragment, proto, tcp_flag};
use ftagent_common::vocab::TrafficClass;

use super::features::Ranking;
use crate::engine::rules::Matches;
use crate::engine::window::Seen;

/// Share of the attack that a signature must cover.
pub const COVERAGE: f64 = 0.95;
/// Share of the earlier traffic that it may hit.
pub const COLLATERAL: f64 = 0.01;
/// Earlier samples below which nothing can be said of the traffic before.
const KNOWN: usize = 16;

/// Lengths of SYN datagrams with the options that real systems send (RFC 9293 section 3.2): whatever the samples
/// say, a filter that hits these hits clients.
const CLIENT_SYN_LENGTHS: [[u16; 6]; 2] = [[44, 48, 52, 56, 60, 64], [64, 68, 72, 76, 80, 84]];

/// A signature and how far it can be trusted.
#[derive(Clone, Debug)]
pub struct Measured {
    pub signature: Signature,
    /// It may be used to drop: coverage and collateral are good, and it is narrow enough for what is known.
    pub usable: bool,
    pub why: String,
}

/// What `signature` matches, towards nobody in particular.
pub fn matches_of(signature: &Signature) -> Matches {
    Matches {
        source: None,
        target: None,
        protocol: signature.protocol,
        src_port: signature.src_port,
        dst_port: signature.dst_port,
        length: signature.length,
        ttl: signature.ttl,
        icmp_type: None,
        tcp_flags: signature.tcp_flags,
        fragment: signature.fragment,
        dscp: None,
        payload: None,
        sources: Vec::new(),
    }
}

/// Whether `seen` meets `matches`, addresses aside.
pub fn meets(matches: &Matches, seen: &Seen) -> bool {
    let later = matches!(seen.fragment, Fragment::Middle | Fragment::Last);
    let within = |range: Option<[u16; 2]>, value: u16| range.is_none_or(|[low, high]| (low..=high).contains(&value));
    let within8 = |range: Option<[u8; 2]>, value: u8| range.is_none_or(|[low, high]| (low..=high).contains(&value));
    matches.protocol.is_none_or(|p| p == seen.protocol)
        && (matches.src_port.is_none() || !later && within(matches.src_port, seen.src_port))
        && (matches.dst_port.is_none() || !later && within(matches.dst_port, seen.dst_port))
        && within(matches.length, seen.ip_len)
        && within8(matches.ttl, seen.ttl)
        && within8(matches.icmp_type, seen.icmp_type)
        && matches.tcp_flags.is_none_or(|[mask, value]| seen.tcp_flags & mask == value)
        && matches.fragment.is_none_or(|wanted| wanted == (seen.fragment != Fragment::Whole))
}

fn coverage(matches: &Matches, samples: &[Seen]) -> f64 {
    let weight = |s: &Seen| f64::from(s.weight);
    let total: f64 = samples.iter().map(weight).sum();
    samples.iter().filter(|s| meets(matches, s)).map(weight).sum::<f64>() / total.max(1.0)
}

/// The shortest range that holds `share` of all values: the rest is background that came along.
fn range(ranking: &Ranking<u16>, share: f64) -> Option<[u16; 2]> {
    let mut items = ranking.items.clone();
    items.sort_unstable_by_key(|(v, _)| *v);
    let wanted = share * items.iter().map(|(_, w)| w).sum::<f64>();
    let mut best: Option<[u16; 2]> = None;
    let (mut begin, mut held) = (0, 0.0);
    for (high, weight) in &items {
        held += weight;
        // As much is let go at the beginning as is not needed.
        while held - items[begin].1 >= wanted {
            held -= items[begin].1;
            begin += 1;
        }
        let low = items[begin].0;
        if held >= wanted && best.is_none_or(|[l, h]| high - low < h - l) {
            best = Some([low, *high]);
        }
    }
    best
}

/// The shortest range of nearly all values, or else of as many as a signature needs, if it is narrow enough to say
/// something.
fn narrow(ranking: &Ranking<u16>, widest: u16) -> Option<[u16; 2]> {
    [0.98, COVERAGE].into_iter().filter_map(|share| range(ranking, share)).find(|[low, high]| high - low <= widest)
}

/// The narrowest filter over `attack`, measured against it and against `clean`.
pub fn synthesise(attack: &[Seen], clean: &[Seen]) -> Option<Measured> {
    if attack.len() < 5 {
        return None;
    }
    let mut best = everything_shared(attack);
    while coverage(&best, attack) < COVERAGE {
        let parts = without_one_part(&best);
        best = parts.into_iter().max_by(|a, b| coverage(a, attack).total_cmp(&coverage(b, attack)))?;
    }
    let covered = coverage(&best, attack);
    let (collateral, known) = collateral(&best, attack, clean);
    let narrow = is_narrow(&best);
    let why = if collateral > COLLATERAL {
        format!("it would hit {:.1} % of the traffic before", collateral * 100.0)
    } else if !known && !narrow {
        "too little is known of the traffic before for a filter this wide".to_owned()
    } else {
        String::new()
    };
    let signature = Signature {
        protocol: best.protocol,
        src_port: best.src_port,
        dst_port: best.dst_port,
        length: best.length,
        ttl: best.ttl,
        tcp_flags: best.tcp_flags,
        fragment: best.fragment,
        coverage: round(covered),
        collateral: round(collateral),
    };
    let says_something = best != Matches { protocol: best.protocol, fragment: best.fragment, ..Matches::default() }
        || !matches!(best.protocol, Some(proto::TCP | proto::UDP) | None)
        || best.fragment == Some(true);
    let why = if says_something { why } else { "nothing but the protocol is shared".to_owned() };
    Some(Measured { usable: why.is_empty(), signature, why })
}

fn round(share: f64) -> f64 {
    // The sum of nothing is a negative zero.
    (share * 1_000.0).round() / 1_000.0 + 0.0
}

fn everything_shared(attack: &[Seen]) -> Matches {
    let protocols = Ranking::of(attack, |s| s.protocol);
    let fragments = Ranking::of(attack, |s| s.fragment != Fragment::Whole);
    let flags = Ranking::of(attack, |s| s.tcp_flags);
    let protocol = protocols.top().filter(|_| protocols.top_share() >= COVERAGE);
    let fragment = fragments.top().filter(|_| fragments.top_share() >= COVERAGE);
    let has_ports = matches!(protocol, Some(proto::TCP | proto::UDP)) && fragment != Some(true);
    let ports = |ranking: &Ranking<u16>| narrow(ranking, 15).filter(|_| has_ports);
    // 0 is a TTL that is not known.
    let ttl = narrow(&Ranking::of(attack, |s| u16::from(s.ttl)), 12).filter(|[low, _]| *low > 0);
    Matches {
        protocol,
        src_port: ports(&Ranking::of(attack, |s| s.src_port)),
        dst_port: ports(&Ranking::of(attack, |s| s.dst_port)),
        length: narrow(&Ranking::of(attack, |s| s.ip_len), 400),
        ttl: ttl.map(|[low, high]| [low as u8, high as u8]),
        tcp_flags: flags
            .top()
            .filter(|_| protocol == Some(proto::TCP) && fragment != Some(true) && flags.top_share() >= COVERAGE)
            .map(|value| [tcp_flag::ALL, value]),
        // Fragments and whole datagrams differ in what a filter can read: always said.
        fragment,
        ..Matches::default()
    }
}

fn without_one_part(matches: &Matches) -> Vec<Matches> {
    let mut fewer = Vec::new();
    let mut add = |there: bool, less: Matches| {
        if there {
            fewer.push(less);
        }
    };
    add(matches.ttl.is_some(), Matches { ttl: None, ..matches.clone() });
    add(matches.length.is_some(), Matches { length: None, ..matches.clone() });
    add(matches.src_port.is_some(), Matches { src_port: None, ..matches.clone() });
    add(matches.dst_port.is_some(), Matches { dst_port: None, ..matches.clone() });
    add(matches.tcp_flags.is_some(), Matches { tcp_flags: None, ..matches.clone() });
    add(matches.fragment.is_some(), Matches { fragment: None, ..matches.clone() });
    add(matches.protocol.is_some(), Matches { protocol: None, ..matches.clone() });
    fewer
}

/// Share of the earlier traffic that `matches` would have hit, and whether enough of it is known.
///
/// The worse of two shares: of all samples, and of those of the attack's own class. A filter that hits every new
/// connection of a busy server hits few of its packets and all of its clients.
fn collateral(matches: &Matches, attack: &[Seen], clean: &[Seen]) -> (f64, bool) {
    let class = Ranking::of(attack, |s| s.class).top();
    let same: Vec<Seen> = clean.iter().filter(|s| Some(s.class) == class).copied().collect();
    let of_all = coverage(matches, clean);
    let of_class = if same.len() >= 3 { coverage(matches, &same) } else { 0.0 };
    let mut worst = of_all.max(of_class);
    let mut known = clean.len() >= KNOWN;
    if class == Some(TrafficClass::TcpSyn) {
        let lengths = CLIENT_SYN_LENGTHS[usize::from(attack.iter().any(|s| s.version == 6))];
        let hits_clients = matches.length.is_none_or(|[low, high]| lengths.iter().any(|l| (low..=high).contains(l)));
        if hits_clients && same.len() < 20 {
            worst = worst.max(0.5);
        }
        known = true;
    }
    (worst, known)
}

/// Whether a filter is so specific that it can be trusted without knowing the traffic before.
fn is_narrow(matches: &Matches) -> bool {
    let length = matches.length.is_some_and(|[low, high]| high - low <= 16);
    let ttl = matches.ttl.is_some_and(|[low, high]| high - low <= 2);
    let port = matches.src_port.is_some() || matches.dst_port.is_some();
    length && (ttl || port) || matches.src_port.is_some() && port || matches.fragment == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_along_does_not_widen_a_range() {
        let with = |stray: &[u16]| {
            let mut flood = Flood::udp();
            flood.src_port = Some(53);
            let mut samples = flood.samples(1_000);
            samples.iter_mut().zip(stray).for_each(|(s, port)| s.src_port = *port);
            narrow(&Ranking::of(&samples, |s| s.src_port), 15)
        };
        assert_eq!(with(&[]), Some([53, 53]));
        assert_eq!(with(&[0; 40]), Some([53, 53]), "on one side alone");
        assert_eq!(with(&(0..40).collect::<Vec<u16>>()), Some([53, 53]));
        assert_eq!(with(&(1_000..1_100).collect::<Vec<u16>>()), None, "a tenth is no background");
    }
    use crate::engine::classify::testing::{Flood, clean_web};

    #[test]
    fn forged_syns_without_options_get_a_filter_that_spares_clients() {
        let attack = Flood::syn().samples(500);
        let clean = clean_web(60);
        let measured = synthesise(&attack, &clean).expect("a signature");
        assert!(measured.usable, "{}", measured.why);
        assert_eq!(measured.signature.length, Some([40, 40]));
        assert!(measured.signature.coverage >= COVERAGE);
        assert_eq!(measured.signature.collateral, 0.0);
        let matches = matches_of(&measured.signature);
        assert!(clean.iter().all(|s| !meets(&matches, s)));
    }

    #[test]
    fn without_earlier_samples_syns_with_options_are_spared() {
        let mut flood = Flood::syn();
        flood.ip_len = 60;
        let measured = synthesise(&flood.samples(500), &[]).expect("a signature");
        assert!(!measured.usable);
    }

    #[test]
    fn a_port_that_clean_traffic_uses_is_no_filter() {
        let mut flood = Flood::udp();
        flood.lengths = Some((60, 1_400));
        let mut clean = flood.samples(40);
        clean.iter_mut().for_each(|s| s.ttl = 58);
        let measured = synthesise(&flood.samples(500), &clean).expect("a signature");
        assert!(measured.signature.collateral > 0.5 || measured.signature.ttl.is_some());
    }
}
