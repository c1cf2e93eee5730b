//! The packets of a capture as a list.

use std::io::{self, Read};
use std::net::IpAddr;

use ftagent_common::packet::{Fragment, proto};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use super::Budget;
use super::decode::{Decoded, Decoder, Reading};
use super::frames::{Frame, Frames};
use super::link;
use super::mark::PacketVerdict;
use super::names::{fault, name_of, tunnel};
use crate::domain::Page;

/// Which part of a datagram a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FragmentPart {
    First,
    Middle,
    Last,
}

/// One packet. What it does not have, or what cannot be read, is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PacketRow {
    /// Its place in the file, from 1, as other programs count.
    pub number: u64,
    /// RFC 3339, UTC, with nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub time: Option<String>,
    /// The number of its interface within its section of the file.
    pub interface: u32,
    /// Such as `ethernet`, `linux_sll2` or `raw`.
    pub link_type: String,
    /// Bytes of the frame on the wire.
    pub bytes: u32,
    /// Bytes of it in the file.
    pub captured_bytes: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub src_ip: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub dst_ip: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_port: Option<u16>,
    /// The last header's, such as `udp` or `arp`; `ip_<number>` or `ethertype_<hex>` where it has no name here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Bytes after the last header that is known, as the headers say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_bytes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// Of TCP: `FIN`, `SYN`, `RST`, `PSH`, `ACK`, `URG`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_flags: Option<Vec<&'static str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// Absent for a whole datagram.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragment: Option<FragmentPart>,
    /// Ids of its VLANs, outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vlans: Vec<u16>,
    /// `gre`, `ipip` or `ipv6`: everything else here is of the packet inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<&'static str>,
    /// The source of the packet around it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub outer_src_ip: Option<IpAddr>,
    /// `undecoded` (a link layer that is not read), `unreadable`, or why the datapath calls it malformed, such as
    /// `truncated`: what is there is what its first headers say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<&'static str>,
    /// What became of it, if the agent wrote that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<PacketVerdict>,
    /// Why, such as `blocked_source`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The rule's id at the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<u64>,
    /// Of how many frames it is a sample.
    pub one_in: u32,
    /// Samples before it that were left out of the file.
    pub left_out: u64,
    /// Of somebody else than the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// A page of packets, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketPage {
    pub packets: Vec<PacketRow>,
    /// Packets in the file, as far as it could be read.
    pub total: u64,
    /// The file breaks off, is damaged, or has more than is read at once.
    pub truncated: bool,
    /// What is wrong with the file, in words.
    pub errors: Vec<String>,
}

/// Lists the packets of a page, and counts them all.
///
/// # Errors
/// The disk fails.
pub fn packets(reader: impl Read, page: Page, budget: Budget<'_>) -> io::Result<PacketPage> {
    let mut frames = Frames::open(reader, budget)?;
    let mut decoder = Decoder::default();
    let mut rows = Vec::new();
    let mut total = 0;
    while let Some(frame) = frames.next()? {
        total = frame.number;
        if frame.number > page.offset && (rows.len() as u64) < u64::from(page.limit) {
            let decoded = decoder.decode(&frame);
            rows.push(row(&frame, &decoded));
        }
    }
    let flaws = frames.flaws();
    Ok(PacketPage { packets: rows, total, truncated: flaws.truncated, errors: flaws.sentences() })
}

/// A time as people and programs read it; nothing beyond the year 9999.
pub(super) fn rfc3339(time_ns: u64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp_nanos(time_ns.into()).ok()?.format(&Rfc3339).ok()
}

/// The names of TCP's flags that are set.
pub(super) fn flag_names(flags: u8) -> Vec<&'static str> {
    const NAMES: [&str; 6] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];
    NAMES.iter().enumerate().filter(|(bit, _)| flags >> bit & 1 != 0).map(|(_, name)| *name).collect()
}

fn row(frame: &Frame<'_>, decoded: &Decoded<'_>) -> PacketRow {
    let p = &decoded.packet;
    let addresses = decoded.has_addresses();
    let is_whole = decoded.reading == Reading::Ip;
    let begins = is_whole && matches!(p.fragment, Fragment::Whole | Fragment::First);
    let is_icmp = begins && matches!(p.protocol, proto::ICMP | proto::ICMPV6);
    PacketRow {
        number: frame.number,
        time: frame.time_ns.and_then(rfc3339),
        interface: frame.interface,
        link_type: link::name(frame.link).into_owned(),
        bytes: frame.wire_len,
        captured_bytes: frame.captured,
        src_ip: addresses.then(|| decoded.src()),
        dst_ip: addresses.then(|| decoded.dst()),
        src_port: decoded.has_ports().then_some(p.src_port),
        dst_port: decoded.has_ports().then_some(p.dst_port),
        protocol: name_of(decoded),
        payload_bytes: is_whole.then_some(decoded.payload_len),
        ttl: addresses.then_some(p.ttl),
        tcp_flags: (begins && p.protocol == proto::TCP).then(|| flag_names(p.tcp_flags)),
        icmp_type: is_icmp.then_some(p.icmp_type),
        icmp_code: is_icmp.then_some(p.icmp_code),
        fragment: match p.fragment {
            _ if !addresses => None,
            Fragment::Whole => None,
            Fragment::First => Some(FragmentPart::First),
            Fragment::Middle => Some(FragmentPart::Middle),
            Fragment::Last => Some(FragmentPart::Last),
        },
        vlans: decoded.vlans().to_vec(),
        tunnel: tunnel(p.tunnel),
        outer_src_ip: p.tunnel.is_open().then(|| p.outer_src.into()),
        problem: match decoded.reading {
            Reading::Ip | Reading::NotIp => None,
            Reading::Malformed(why) => Some(fault(why)),
            Reading::Unreadable => Some("unreadable"),
            Reading::Undecoded => Some("undecoded"),
        },
        verdict: frame.mark.verdict,
        reason: frame.mark.reason.map(|reason| reason.as_str()),
        rule: frame.mark.rule,
        one_in: frame.mark.one_in,
        left_out: frame.mark.missed,
        comment: frame.mark.comment.clone(),
    }
}
