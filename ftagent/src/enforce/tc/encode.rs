//! One filter as the kernel takes it: pure. Layouts and numbers are those of `linux/pkt_cls.h` and `linux/rtnetlink.h`.
//!
//! By hand, as nf_tables' are: the netlink crates know no police, no cookies and half of flower.

use ipnet::IpNet;

use super::plan::{Action, Family, Narrow};
use crate::enforce::nftables::wire::{Attributes, attributes, find};
use crate::engine::RuleId;

/// What compares packets with a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Classifier {
    Flower,
    /// Words at offsets: no fragments, flags or ranges, ports only of IPv4 without options, and ICMP types only of IPv6
    /// without extension headers.
    U32,
}

/// A filter but for its cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    classifier: Classifier,
    keys: Attributes,
    action: (&'static str, Attributes),
}

/// What we write into an action: that it is ours, and of which filter it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cookie {
    /// The qdisc was made by us, and goes with the last filter.
    pub(super) made_qdisc: bool,
    pub(super) checksum: u32,
    /// 0 for those of the allowlist.
    pub(super) rule: RuleId,
}

/// A filter as a dump shows it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) preference: u16,
    pub(super) protocol: u16,
    pub(super) handle: u32,
    /// Absent if it is somebody else's.
    pub(super) cookie: Option<Cookie>,
    /// The head of a preference, or of a table in it.
    pub(super) is_head: bool,
    /// Whether its action limits packets.
    pub(super) has_packet_rate: bool,
}

const MAGIC: [u8; 3] = *b"fta";
/// `struct tcmsg`.
const MESSAGE: usize = 20;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const ACT_KIND: u16 = 1;
const ACT_OPTIONS: u16 = 2;
const ACT_COOKIE: u16 = 6;
const ACT_OK: i32 = 0;
const ACT_SHOT: i32 = 2;
/// The next filter decides.
const ACT_CONTINUE: i32 = -1;
const GACT_PARMS: u16 = 2;
const POLICE_TBF: u16 = 1;
const POLICE_RATE: u16 = 2;
const POLICE_RESULT: u16 = 5;
const POLICE_RATE64: u16 = 8;
const POLICE_PKTRATE64: u16 = 10;
const POLICE_PKTBURST64: u16 = 11;
/// Of `TCA_POLICE_RATE`: what frames of 512 sizes cost, which the kernel wants and has not used since 3.8.
const RATE_TABLE_BYTES: usize = 1_024;
/// `TC_LINKLAYER_ETHERNET`.
const ETHERNET: u8 = 1;
/// Of the kernel's clock for rates, fixed since 2.6.31.
const NS_PER_TICK: u128 = 64;

mod flower {
    pub(super) const ACT: u16 = 3;
    pub(super) const ETH_TYPE: u16 = 8;
    pub(super) const IP_PROTO: u16 = 9;
    pub(super) const V4_SRC: u16 = 10;
    pub(super) const V4_DST: u16 = 12;
    pub(super) const V6_SRC: u16 = 14;
    pub(super) const V6_DST: u16 = 16;
    pub(super) const FLAGS: u16 = 47;
    pub(super) const ICMP_TYPE: u16 = 51;
    pub(super) const ICMPV6_TYPE: u16 = 55;
    pub(super) const TCP_FLAGS: u16 = 71;
    pub(super) const IP_TOS: u16 = 73;
    pub(super) const IP_TTL: u16 = 75;
    pub(super) const PORT_SRC_MIN: u16 = 87;
    pub(super) const PORT_DST_MIN: u16 = 89;
    pub(super) const IS_FRAGMENT: u32 = 1;
}

mod u32 {
    pub(super) const SEL: u16 = 5;
    pub(super) const ACT: u16 = 7;
    pub(super) const TERMINAL: u8 = 1;
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMPV6: u8 = 58;

impl Classifier {
    /// As the kernel calls it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Flower => "flower",
            Self::U32 => "u32",
        }
    }

    fn act(self) -> u16 {
        match self {
            Self::Flower => flower::ACT,
            Self::U32 => u32::ACT,
        }
    }

    /// Says why not, where it cannot compare what a filter asks for.
    pub(super) fn takes(self, matched: &Narrow) -> Result<(), String> {
        let ports = matched.src_port.is_some() || matched.dst_port.is_some();
        match self {
            Self::Flower if ports && !matches!(matched.protocol, Some(TCP | UDP | SCTP)) => {
                Err("flower knows ports of TCP, UDP and SCTP alone".to_owned())
            }
            Self::Flower => Ok(()),
            Self::U32 => {
                let Narrow { protocol, icmp_type, tcp_flags, dscp, fragment, .. } = matched;
                let is_range = |range: &Option<[u16; 2]>| range.is_some_and(|[low, high]| low != high);
                let is_type_found = icmp_type.is_none() || *protocol == Some(ICMPV6);
                if tcp_flags.or(*dscp).is_some() || fragment.is_some() || !is_type_found {
                    return Err(
                        "u32 compares addresses, protocols, TTLs and ports alone; this kernel lacks flower".to_owned()
                    );
                }
                if is_range(&matched.src_port) || is_range(&matched.dst_port) {
                    return Err("u32 knows no ranges of ports; this kernel lacks flower".to_owned());
                }
                if ports && matched.family == Family::V6 {
                    return Err("u32 does not find ports behind IPv6 headers; this kernel lacks flower".to_owned());
                }
                Ok(())
            }
        }
    }
}

impl Family {
    /// `ETH_P_IP` and `ETH_P_IPV6`.
    pub(super) fn ether_type(self) -> u16 {
        match self {
            Self::V4 => 0x0800,
            Self::V6 => 0x86dd,
        }
    }
}

/// Encodes what is matched and what happens then.
pub(super) fn encode(classifier: Classifier, matched: &Narrow, action: Action) -> Result<Encoded, String> {
    classifier.takes(matched)?;
    let keys = match classifier {
        Classifier::Flower => flower_keys(matched),
        Classifier::U32 => u32_keys(matched),
    };
    Ok(Encoded { classifier, keys, action: action_of(action) })
}

/// A filter that no frame meets, which only tells whether the kernel has its parts.
pub(super) fn probe(classifier: Classifier, action: Action) -> Encoded {
    let keys = match classifier {
        Classifier::Flower => Attributes::default().bytes(flower::ETH_TYPE, &PROBE_PROTOCOL.to_be_bytes()),
        Classifier::U32 => u32_selector(&[]),
    };
    Encoded { classifier, keys, action: action_of(action) }
}

/// `ETH_P_802_EX1`: for local experiments.
pub(super) const PROBE_PROTOCOL: u16 = 0x88b5;

impl Encoded {
    /// The same for the same filter.
    pub(super) fn identity(&self) -> Vec<u8> {
        let (kind, options) = &self.action;
        [self.classifier.as_str().as_bytes(), &self.keys.bytes, kind.as_bytes(), &options.bytes].concat()
    }

    pub(super) fn checksum(&self) -> u32 {
        crc32fast::hash(&self.identity())
    }

    /// The attributes of a request that makes it.
    pub(super) fn attributes(&self, cookie: &Cookie) -> Attributes {
        let (kind, options) = &self.action;
        let action =
            Attributes::default().text(ACT_KIND, kind).nested(ACT_OPTIONS, options).bytes(ACT_COOKIE, &cookie.encode());
        let first = Attributes::default().nested(1, &action);
        let mut keys = self.keys.clone();
        keys = keys.nested(self.classifier.act(), &first);
        Attributes::default().text(TCA_KIND, self.classifier.as_str()).nested(TCA_OPTIONS, &keys)
    }
}

impl Cookie {
    fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..3].copy_from_slice(&MAGIC);
        bytes[3] = self.made_qdisc.into();
        bytes[4..8].copy_from_slice(&self.checksum.to_be_bytes());
        bytes[8..].copy_from_slice(&self.rule.0.to_be_bytes());
        bytes
    }

    /// Nothing if it is not ours.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; 16] = bytes.try_into().ok()?;
        let [a, b, c, flags, c0, c1, c2, c3, rule @ ..] = bytes;
        let is_ours = [a, b, c] == MAGIC && flags <= 1;
        is_ours.then(|| Self {
            made_qdisc: flags == 1,
            checksum: u32::from_be_bytes([c0, c1, c2, c3]),
            rule: RuleId(u64::from_be_bytes(rule)),
        })
    }
}

/// `struct tcmsg`.
pub(super) fn message(device: u32, handle: u32, parent: u32, preference: u16, protocol: u16) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(device.to_ne_bytes());
    bytes.extend(handle.to_ne_bytes());
    bytes.extend(parent.to_ne_bytes());
    bytes.extend((u32::from(preference) << 16 | u32::from(protocol.to_be())).to_ne_bytes());
    bytes
}

/// The device, handle and kind of a qdisc.
pub(super) fn seen_qdisc(body: &[u8]) -> Option<(u32, u32, String)> {
    let number = |at: usize| Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?));
    let kind = find(body.get(MESSAGE..)?, TCA_KIND)?;
    Some((number(4)?, number(8)?, String::from_utf8_lossy(kind).trim_end_matches('\0').to_owned()))
}

/// A filter of a dump; nothing if it makes no sense.
pub(super) fn seen(body: &[u8]) -> Option<Seen> {
    let number = |at: usize| Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?));
    let (handle, info) = (number(8)?, number(16)?);
    let list = body.get(MESSAGE..)?;
    let kind = find(list, TCA_KIND).unwrap_or_default();
    let act = match kind {
        b"flower\0" => flower::ACT,
        b"u32\0" => u32::ACT,
        _ => 0,
    };
    let options = find(list, TCA_OPTIONS).unwrap_or_default();
    let actions = if act == 0 { None } else { find(options, act) };
    let first = actions.and_then(|actions| attributes(actions).next()).map(|(_, action)| action).unwrap_or_default();
    let rates = find(first, ACT_OPTIONS).unwrap_or_default();
    Some(Seen {
        preference: (info >> 16) as u16,
        protocol: u16::from_be(info as u16),
        handle,
        cookie: find(first, ACT_COOKIE).and_then(Cookie::decode),
        is_head: handle == 0 || (kind == b"u32\0" && handle & 0xfff == 0),
        has_packet_rate: find(first, ACT_KIND) == Some(b"police\0") && find(rates, POLICE_PKTRATE64).is_some(),
    })
}

fn flower_keys(matched: &Narrow) -> Attributes {
    let mut keys = Attributes::default().bytes(flower::ETH_TYPE, &matched.family.ether_type().to_be_bytes());
    if let Some(protocol) = matched.protocol {
        keys = keys.bytes(flower::IP_PROTO, &[protocol]);
    }
    let (source, target) = match matched.family {
        Family::V4 => (flower::V4_SRC, flower::V4_DST),
        Family::V6 => (flower::V6_SRC, flower::V6_DST),
    };
    for (kind, net) in [(source, &matched.source), (target, &matched.target)] {
        if let Some(net) = net.filter(|net| net.prefix_len() > 0) {
            keys = keys.bytes(kind, &octets(net.network())).bytes(kind + 1, &octets(net.netmask()));
        }
    }
    let ports = match matched.protocol {
        Some(TCP) => [(18, 35), (19, 36)],
        Some(SCTP) => [(41, 39), (42, 40)],
        _ => [(20, 37), (21, 38)],
    };
    let ranges = [(matched.src_port, flower::PORT_SRC_MIN), (matched.dst_port, flower::PORT_DST_MIN)];
    for ((range, min), (exact, mask)) in ranges.into_iter().zip(ports) {
        keys = match range {
            None => keys,
            Some([low, high]) if low == high => keys.bytes(exact, &low.to_be_bytes()).bytes(mask, &[0xff; 2]),
            Some([low, high]) => keys.bytes(min, &low.to_be_bytes()).bytes(min + 1, &high.to_be_bytes()),
        };
    }
    let icmp = if matched.family == Family::V4 { flower::ICMP_TYPE } else { flower::ICMPV6_TYPE };
    for (kind, part) in [(icmp, matched.icmp_type), (flower::IP_TOS, matched.dscp), (flower::IP_TTL, matched.ttl)] {
        if let Some([value, mask]) = part {
            keys = keys.bytes(kind, &[value]).bytes(kind + 1, &[mask]);
        }
    }
    if let Some([value, mask]) = matched.tcp_flags {
        keys = keys.bytes(flower::TCP_FLAGS, &[0, value]).bytes(flower::TCP_FLAGS + 1, &[0, mask]);
    }
    if let Some(fragment) = matched.fragment {
        let value = if fragment { flower::IS_FRAGMENT } else { 0 };
        keys = keys.bytes(flower::FLAGS, &value.to_be_bytes());
        keys = keys.bytes(flower::FLAGS + 1, &flower::IS_FRAGMENT.to_be_bytes());
    }
    keys
}

fn octets(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// `(offset, mask, value)` of words of the packet.
type Word = (i32, u32, u32);

fn u32_keys(matched: &Narrow) -> Attributes {
    let mut words: Vec<Word> = Vec::new();
    let (source, target) = match matched.family {
        Family::V4 => (12, 16),
        Family::V6 => (8, 24),
    };
    for (offset, net) in [(source, &matched.source), (target, &matched.target)] {
        let Some(net) = net else { continue };
        words.extend(address_words(offset, net));
    }
    if let Some(protocol) = matched.protocol {
        words.push(match matched.family {
            Family::V4 => (8, 0x00ff_0000, u32::from(protocol) << 16),
            Family::V6 => (4, 0x0000_ff00, u32::from(protocol) << 8),
        });
    }
    if let Some([value, mask]) = matched.ttl {
        words.push(match matched.family {
            Family::V4 => (8, u32::from(mask) << 24, u32::from(value) << 24),
            Family::V6 => (4, mask.into(), value.into()),
        });
    }
    if let Some([value, mask]) = matched.icmp_type {
        // Of IPv6 alone: the protocol above says that it is the next header.
        words.push((40, u32::from(mask) << 24, u32::from(value) << 24));
    }
    if matched.src_port.is_some() || matched.dst_port.is_some() {
        // Without options the ports begin at 20; later fragments have none.
        words.extend([(0, 0x0f00_0000, 0x0500_0000), (4, 0x0000_1fff, 0)]);
    }
    if let Some([port, _]) = matched.src_port {
        words.push((20, 0xffff_0000, u32::from(port) << 16));
    }
    if let Some([port, _]) = matched.dst_port {
        words.push((20, 0x0000_ffff, u32::from(port)));
    }
    u32_selector(&words)
}

fn address_words(offset: i32, net: &IpNet) -> Vec<Word> {
    let (address, mask) = (octets(net.network()), octets(net.netmask()));
    let words = address.chunks(4).zip(mask.chunks(4)).zip((offset..).step_by(4));
    let word = |bytes: &[u8]| bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
    words
        .map(|((address, mask), offset)| (offset, word(mask), word(address)))
        .filter(|(_, mask, _)| *mask > 0)
        .collect()
}

/// `struct tc_u32_sel` with its keys.
fn u32_selector(words: &[Word]) -> Attributes {
    let count = u8::try_from(words.len()).expect("two addresses and what is behind them are two dozen words at most");
    let mut bytes = vec![u32::TERMINAL, 0, count, 0];
    bytes.extend([0; 12]);
    for (offset, mask, value) in words {
        bytes.extend(mask.to_be_bytes());
        bytes.extend(value.to_be_bytes());
        bytes.extend(offset.to_ne_bytes());
        bytes.extend([0; 4]);
    }
    Attributes::default().bytes(u32::SEL, &bytes)
}

fn action_of(action: Action) -> (&'static str, Attributes) {
    match action {
        Action::Pass => ("gact", gact(ACT_OK)),
        Action::Drop => ("gact", gact(ACT_SHOT)),
        Action::LimitPackets { pps, burst } => ("police", {
            let ticks = ticks(burst, pps);
            police(0, 0).bytes(POLICE_PKTRATE64, &pps.to_ne_bytes()).bytes(POLICE_PKTBURST64, &ticks.to_ne_bytes())
        }),
        Action::LimitBytes { bytes_per_sec, burst } => ("police", {
            let rate = u32::try_from(bytes_per_sec).unwrap_or(u32::MAX);
            let ticks = u32::try_from(ticks(burst, bytes_per_sec)).unwrap_or(u32::MAX);
            let with_table = police(rate, ticks).bytes(POLICE_RATE, &[0; RATE_TABLE_BYTES]);
            if bytes_per_sec > u64::from(u32::MAX) {
                with_table.bytes(POLICE_RATE64, &bytes_per_sec.to_ne_bytes())
            } else {
                with_table
            }
        }),
    }
}

/// How long so much takes at a rate, in ticks of the kernel's.
fn ticks(amount: u64, per_sec: u64) -> u64 {
    let ns = u128::from(amount) * 1_000_000_000 / u128::from(per_sec.max(1));
    u64::try_from((ns / NS_PER_TICK).max(1)).unwrap_or(u64::MAX)
}

/// `struct tc_gact`.
fn gact(action: i32) -> Attributes {
    let mut bytes = vec![0; 8];
    bytes.extend(action.to_ne_bytes());
    bytes.extend([0; 8]);
    Attributes::default().bytes(GACT_PARMS, &bytes)
}

/// `struct tc_police`: drops what is over the rate; what is not goes on to the next filter.
fn police(rate: u32, burst: u32) -> Attributes {
    let mut bytes = vec![0; 4];
    bytes.extend(ACT_SHOT.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(burst.to_ne_bytes());
    // However long what the driver put together is, its length alone is no reason to drop it.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(rate_spec(rate));
    bytes.extend(rate_spec(0));
    bytes.extend([0; 12]);
    Attributes::default().bytes(POLICE_TBF, &bytes).bytes(POLICE_RESULT, &ACT_CONTINUE.to_ne_bytes())
}

/// `struct tc_ratespec`.
fn rate_spec(rate: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    if rate > 0 {
        // Sizes in steps of 256: nothing reads the table, and the kernel refuses none.
        bytes[0] = 8;
        bytes[1] = ETHERNET;
        bytes[8..].copy_from_slice(&rate.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(net: &str) -> Narrow {
        let net: IpNet = net.parse().expect("a prefix");
        Narrow { source: Some(net), ..Narrow::any(Family::of(&net)) }
    }

    /// What a dump would show of it.
    fn dumped(encoded: &Encoded, cookie: &Cookie) -> Vec<u8> {
        let mut body = message(7, 3, 0, 49_002, 0x0800);
        body.extend(&encoded.attributes(cookie).bytes);
        body
    }

    #[test]
    fn our_filters_are_known_by_their_cookies() {
        for (made_qdisc, classifier) in [(true, Classifier::Flower), (false, Classifier::U32)] {
            let encoded = encode(classifier, &source("198.51.100.0/24"), Action::Drop).expect("encoded");
            let cookie = Cookie { made_qdisc, checksum: encoded.checksum(), rule: RuleId(7) };
            let seen = seen(&dumped(&encoded, &cookie)).expect("read");
            assert_eq!(seen.cookie, Some(cookie));
            assert_eq!((seen.preference, seen.protocol, seen.handle), (49_002, 0x0800, 3));
            assert!(!seen.is_head && !seen.has_packet_rate);
        }
        assert_eq!(Cookie::decode(b"somebody else's!"), None);
        assert_eq!(Cookie::decode(b"fta"), None);
        let limit = Action::LimitPackets { pps: 10, burst: 1 };
        let encoded = encode(Classifier::Flower, &source("2001:db8::/32"), limit).expect("encoded");
        let cookie = Cookie { made_qdisc: false, checksum: 1, rule: RuleId(1) };
        assert!(seen(&dumped(&encoded, &cookie)).expect("read").has_packet_rate);
    }

    #[test]
    fn words_of_u32_are_masked_addresses() {
        let v6: IpNet = "2001:db8:8000::/33".parse().expect("a prefix");
        assert_eq!(address_words(8, &v6), [(8, u32::MAX, 0x2001_0db8), (12, 0x8000_0000, 0x8000_0000)]);
        let v4: IpNet = "192.0.2.0/24".parse().expect("a prefix");
        assert_eq!(address_words(12, &v4), [(12, 0xffff_ff00, 0xc000_0200)]);
        assert_eq!(address_words(12, &"0.0.0.0/0".parse().expect("a prefix")), []);
    }

    #[test]
    fn what_follows_the_addresses_is_found_by_u32_where_ipv6_has_it() {
        let matched = Narrow {
            protocol: Some(ICMPV6),
            ttl: Some([255, 255]),
            icmp_type: Some([136, 254]),
            ..Narrow::any(Family::V6)
        };
        let next_header = (4, 0x0000_ff00, 58 << 8);
        let words = [next_header, (4, 0xff, 255), (40, 0xfe00_0000, 136 << 24)];
        assert_eq!(u32_keys(&matched), u32_selector(&words));
        assert_eq!(Classifier::U32.takes(&matched), Ok(()));
        let of_v4 = Narrow { protocol: Some(1), icmp_type: Some([8, 255]), ..Narrow::any(Family::V4) };
        assert!(Classifier::U32.takes(&of_v4).is_err());
    }

    #[test]
    fn bursts_are_times() {
        assert_eq!(ticks(100, 100), 1_000_000_000 / 64);
        assert_eq!(ticks(1, u64::MAX), 1, "never nothing");
        assert_eq!(ticks(u64::MAX, 1), u64::MAX);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop((seen(&bytes), seen_qdisc(&bytes), Cookie::decode(&bytes)));
        }
    }
}
