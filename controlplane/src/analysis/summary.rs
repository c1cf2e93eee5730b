//! The analysis in a few sentences, made of its numbers.

use ftagent_common::vocab::AttackFamily;

use super::report::Analysis;

/// Four sentences at most, and one about damage.
pub(super) fn summary(analysis: &Analysis) -> String {
    if analysis.packets_in_file == 0 {
        let why = analysis.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
        return format!("The file holds no packets that can be read{why}.");
    }
    let mut sentences = vec![what(analysis), sources(analysis)];
    sentences.extend(ports(analysis));
    sentences.extend(fate(analysis));
    if analysis.truncated {
        sentences.push("The file could not be read to its end.".to_owned());
    }
    sentences.join(" ")
}

fn what(analysis: &Analysis) -> String {
    let about = if analysis.scaled { "about " } else { "" };
    let packets = number(analysis.total_packets);
    let bytes = size(analysis.total_bytes);
    let name = match analysis.attack_vector {
        AttackFamily::Unknown => "No attack can be told from these packets alone".to_owned(),
        AttackFamily::MultiVector => {
            let parts: Vec<String> =
                analysis.vectors.iter().map(|v| format!("{} ({:.0} %)", words(v.family), v.share * 100.0)).collect();
            format!("Attack with several vectors: {}", parts.join(", "))
        }
        family => {
            let mut name = words(family);
            // Names of protocols are spelled in capitals already.
            name[..1].make_ascii_uppercase();
            name
        }
    };
    let target = analysis.target.as_ref().map_or_else(String::new, |t| format!(" to {}", t.ip));
    let time = match (analysis.duration_secs, analysis.pps, analysis.bps) {
        (Some(secs), Some(pps), Some(bps)) => {
            format!(" in {secs:.1} s: {} packets/s, {} Mbit/s", decimal(pps), decimal(bps / 1e6))
        }
        _ => String::new(),
    };
    let mostly = if analysis.target.as_ref().is_some_and(|t| t.share < 0.95) { ", most of them" } else { "," };
    let target = if target.is_empty() { target } else { format!("{mostly}{target}") };
    format!("{name}; {about}{packets} packets, {bytes}{time}{target}.")
}

fn sources(analysis: &Analysis) -> String {
    let about = if analysis.unique_sources_approximate { "about " } else { "" };
    let count = number(analysis.unique_sources);
    let plural = if analysis.unique_sources == 1 { "" } else { "s" };
    match analysis.top_sources.first() {
        Some(top) if analysis.unique_sources > 1 => {
            format!("They come from {about}{count} source{plural}; {} sends {:.1} %.", top.ip, top.share * 100.0)
        }
        Some(top) => format!("They come from {}.", top.ip),
        None => "None of them has an address that can be read.".to_owned(),
    }
}

fn ports(analysis: &Analysis) -> Option<String> {
    let from = analysis.source_ports.first().filter(|p| p.share >= 0.5);
    let to = analysis.destination_ports.first().filter(|p| p.share >= 0.5);
    let words = |side: &str, port: &super::report::PortShare| {
        format!("{} {} port {} ({:.0} %)", side, port.protocol.to_uppercase(), port.port, port.share * 100.0)
    };
    match (from, to) {
        (Some(from), Some(to)) => Some(format!("They go {} and {}.", words("from", from), words("to", to))),
        (Some(from), None) => {
            Some(format!("They go {} to {} ports and more.", words("from", from), analysis.destination_ports.len()))
        }
        (None, Some(to)) => Some(format!("They go {}.", words("to", to))),
        (None, None) => None,
    }
}

fn fate(analysis: &Analysis) -> Option<String> {
    let verdicts = analysis.verdicts.as_ref()?;
    let reason = verdicts.reasons.first().map_or_else(String::new, |r| format!(", first of all for {}", r.reason));
    let share = verdicts.dropped_share * 100.0;
    Some(match (verdicts.dropped, verdicts.would_drop) {
        (0, 0) => "The node dropped none of them.".to_owned(),
        (0, would) => format!("The node would have dropped {} of them{reason}, and let them pass.", number(would)),
        _ => format!("The node dropped {share:.1} % of them{reason}."),
    })
}

/// A family as people write it: `DNS amplification`, `SYN flood`.
fn words(family: AttackFamily) -> String {
    const NAMES: [&str; 23] = [
        "udp", "syn", "ack", "rst", "tcp", "icmp", "dns", "http", "gre", "ntp", "ssdp", "cldap", "snmp", "wsd", "mdns",
        "tftp", "qotd", "ripv1", "ard", "isakmp", "dvr", "coap", "openvpn",
    ];
    let of = |word: &str| match word {
        "ripv1" => "RIPv1".to_owned(),
        "mdns" => "mDNS".to_owned(),
        "openvpn" => "OpenVPN".to_owned(),
        "netbios" => "NetBIOS".to_owned(),
        "coap" => "CoAP".to_owned(),
        word if NAMES.contains(&word) => word.to_uppercase(),
        word => word.to_owned(),
    };
    let joined: Vec<String> = family.as_str().split('_').map(of).collect();
    joined.join(" ").replace("SYN ACK", "SYN-ACK")
}

/// A number with commas between thousands.
fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// With as many places as are of interest.
fn decimal(value: f64) -> String {
    if value >= 100.0 { number(value.round() as u64) } else { format!("{value:.2}") }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{} bytes", number(bytes)),
        10_000..10_000_000 => format!("{} kB", number(bytes / 1_000)),
        _ => format!("{} MB", number(bytes / 1_000_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_numbers_and_sizes_are_written_for_people() {
        for (family, expected) in [
            (AttackFamily::DnsAmplification, "DNS amplification"),
            (AttackFamily::SynAckFlood, "SYN-ACK flood"),
            (AttackFamily::FragmentFlood, "fragment flood"),
            (AttackFamily::MdnsAmplification, "mDNS amplification"),
            (AttackFamily::MemcachedAmplification, "memcached amplification"),
        ] {
            assert_eq!(words(family), expected);
        }
        assert_eq!(
            (number(0), number(999), number(1_000), number(12_345_678)),
            ("0".to_owned(), "999".to_owned(), "1,000".to_owned(), "12,345,678".to_owned())
        );
        assert_eq!(
            (size(9_999), size(10_000), size(10_000_000)),
            ("9,999 bytes".to_owned(), "10 kB".to_owned(), "10 MB".to_owned())
        );
    }
}
