//! What a rule matches as words, and back: the one spelling in previews, executions and on the command line.
//!
//! `protocol udp source-port 53 length 512-1500 whole`; the names are FlowSpec's (RFC 8955 section 4).

use ftagent_common::abi::PAYLOAD_BYTES;
use ftagent_common::packet::proto;
use ipnet::IpNet;

use super::rules::Matches;

/// What a rule matches besides its target; a source stands here where other parts stand beside it.
pub fn words(m: &Matches) -> String {
    let mut words = Vec::new();
    words.extend(m.source.map(|source| format!("source {source}")));
    let range = |name: &str, low: u16, high: u16| {
        if low == high { format!("{name} {low}") } else { format!("{name} {low}-{high}") }
    };
    words.extend(m.protocol.map(|number| match PROTOCOLS.iter().find(|(_, n)| *n == number) {
        Some((name, _)) => format!("protocol {name}"),
        None => format!("protocol {number}"),
    }));
    words.extend(m.src_port.map(|[low, high]| range("source-port", low, high)));
    words.extend(m.dst_port.map(|[low, high]| range("destination-port", low, high)));
    words.extend(m.length.map(|[low, high]| range("length", low, high)));
    words.extend(m.ttl.map(|[low, high]| range("ttl", low.into(), high.into())));
    words.extend(m.icmp_type.map(|[low, high]| range("icmp-type", low.into(), high.into())));
    words.extend(m.tcp_flags.map(|[mask, value]| format!("tcp-flags {value:#04x}/{mask:#04x}")));
    words.extend(m.fragment.map(|f| if f { "fragment".to_owned() } else { "whole".to_owned() }));
    words.extend(m.dscp.map(|[low, high]| range("dscp", low.into(), high.into())));
    words.extend(m.payload.as_ref().map(|bytes| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("payload {hex}")
    }));
    if words.is_empty() { ANYTHING.to_owned() } else { words.join(" ") }
}

const ANYTHING: &str = "any protocol";

const PROTOCOLS: [(&str, u8); 6] = [
    ("tcp", proto::TCP),
    ("udp", proto::UDP),
    ("icmp", proto::ICMP),
    ("icmpv6", proto::ICMPV6),
    ("gre", proto::GRE),
    ("esp", proto::ESP),
];

/// The words are not those of a match.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write for example \"protocol udp source-port 53 length 512-1500\"")]
pub struct NotAMatch(String);

/// Reads [`words`].
///
/// # Errors
/// Names the word that is wrong.
pub fn parse(text: &str) -> Result<Matches, NotAMatch> {
    let mut matches = Matches::default();
    if text.trim() == ANYTHING {
        return Ok(matches);
    }
    let mut rest = text.split_whitespace();
    while let Some(name) = rest.next() {
        let mut value = || rest.next().ok_or_else(|| NotAMatch(format!("{name:?} needs a value")));
        match name {
            "protocol" => matches.protocol = Some(protocol(value()?)?),
            "source-port" => matches.src_port = Some(range(name, value()?)?),
            "destination-port" => matches.dst_port = Some(range(name, value()?)?),
            "length" => matches.length = Some(range(name, value()?)?),
            "ttl" => matches.ttl = Some(byte_range(name, value()?)?),
            "icmp-type" => matches.icmp_type = Some(byte_range(name, value()?)?),
            "tcp-flags" => matches.tcp_flags = Some(flags(value()?)?),
            "source" => matches.source = Some(source(value()?)?),
            "dscp" => matches.dscp = Some(dscp(value()?)?),
            "payload" => matches.payload = Some(payload(value()?)?),
            "fragment" => matches.fragment = Some(true),
            "whole" => matches.fragment = Some(false),
            other => return Err(NotAMatch(format!("{other:?} is nothing that a rule matches"))),
        }
    }
    if text.trim().is_empty() {
        return Err(NotAMatch(format!("nothing is named; {ANYTHING:?} matches everything")));
    }
    let has_ports = matches!(matches.protocol, Some(proto::TCP | proto::UDP));
    if (matches.src_port.is_some() || matches.dst_port.is_some()) && !has_ports {
        return Err(NotAMatch("ports need \"protocol tcp\" or \"protocol udp\"".to_owned()));
    }
    Ok(matches)
}

fn protocol(text: &str) -> Result<u8, NotAMatch> {
    let named = PROTOCOLS.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
    let number = named.or_else(|| text.parse().ok());
    number.ok_or_else(|| NotAMatch(format!("protocol {text:?} is neither a name nor a number from 0 to 255")))
}

fn range(name: &str, text: &str) -> Result<[u16; 2], NotAMatch> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let error = || NotAMatch(format!("{name} {text:?} is no number or range from 0 to 65535"));
    let range = [low.parse().map_err(|_| error())?, high.parse().map_err(|_| error())?];
    if range[0] > range[1] { Err(error()) } else { Ok(range) }
}

fn byte_range(name: &str, text: &str) -> Result<[u8; 2], NotAMatch> {
    let [low, high] = range(name, text)?;
    let error = |_| NotAMatch(format!("{name} {text:?} goes from 0 to 255"));
    Ok([u8::try_from(low).map_err(error)?, u8::try_from(high).map_err(error)?])
}

fn source(text: &str) -> Result<IpNet, NotAMatch> {
    let parsed = text.parse::<std::net::IpAddr>().map(IpNet::from).or_else(|_| text.parse::<IpNet>());
    let net = parsed.map_err(|_| NotAMatch(format!("source {text:?} is neither an address nor a prefix")))?;
    if net.trunc() == net { Ok(net) } else { Err(NotAMatch(format!("source {text} has host bits"))) }
}

fn dscp(text: &str) -> Result<[u8; 2], NotAMatch> {
    let range = byte_range("dscp", text)?;
    if range[1] < 64 { Ok(range) } else { Err(NotAMatch(format!("dscp {text:?} goes from 0 to 63"))) }
}

/// The first bytes after the transport header, in hexadecimal.
fn payload(text: &str) -> Result<Vec<u8>, NotAMatch> {
    let error =
        || NotAMatch(format!("payload {text:?} is not 1 to {PAYLOAD_BYTES} bytes in hexadecimal, two digits each"));
    if !text.is_ascii() || text.is_empty() || !text.len().is_multiple_of(2) || text.len() > 2 * PAYLOAD_BYTES {
        return Err(error());
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| error())).collect()
}

fn flags(text: &str) -> Result<[u8; 2], NotAMatch> {
    let error = || NotAMatch(format!("tcp-flags {text:?} is no value and mask such as 0x02/0x3f"));
    let hex = |part: &str| u8::from_str_radix(part.strip_prefix("0x")?, 16).ok();
    let (value, mask) = text.split_once('/').ok_or_else(error)?;
    let (value, mask) = (hex(value).ok_or_else(error)?, hex(mask).ok_or_else(error)?);
    if value & !mask != 0 { Err(error()) } else { Ok([mask, value]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back_as_what_they_say() {
        let full = Matches {
            protocol: Some(6),
            src_port: Some([1, 1]),
            dst_port: Some([80, 90]),
            length: Some([40, 44]),
            ttl: Some([50, 64]),
            tcp_flags: Some([0x3f, 0x02]),
            fragment: Some(false),
            source: Some("198.51.100.0/24".parse().expect("a prefix")),
            dscp: Some([8, 10]),
            payload: Some(vec![0xff, 0x00, 0x54]),
            ..Matches::default()
        };
        let icmp = Matches { protocol: Some(1), icmp_type: Some([8, 8]), fragment: Some(true), ..Matches::default() };
        for matches in [full, icmp, Matches { protocol: Some(132), ..Matches::default() }, Matches::default()] {
            assert_eq!(parse(&words(&matches)), Ok(matches.clone()), "{}", words(&matches));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("", "nothing is named"),
            ("colour red", "colour"),
            ("protocol", "needs a value"),
            ("protocol xyz", "xyz"),
            ("source-port 53", "ports need"),
            ("protocol udp source-port 9-2", "9-2"),
            ("ttl 300", "0 to 255"),
            ("dscp 64", "0 to 63"),
            ("payload 0", "hexadecimal"),
            ("payload 0g", "hexadecimal"),
            ("payload 0001020304050607080910111213141516", "1 to 16"),
            ("source 10.0.0.1/8", "host bits"),
            ("protocol tcp tcp-flags 0x12/0x02", "0x12/0x02"),
        ];
        for (text, part) in table {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
