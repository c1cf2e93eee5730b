//! The settings map of `lab_generate`, word by word as the BPF program declares it.

use std::net::IpAddr;

use ftagent_common::packet::{Packet, proto};
use ipnet::IpNet;

use super::{Vary, listed};
use crate::checksum::{Places, locate};

/// The length of `Settings` in words of 32 bits.
const LEN: usize = 30;
pub(super) type Words = [u32; LEN];

mod bit {
    pub(super) const SOURCE: u32 = 1 << 0;
    pub(super) const SOURCE_PORT: u32 = 1 << 1;
    pub(super) const DESTINATION_PORT: u32 = 1 << 2;
    pub(super) const DESTINATION: u32 = 1 << 3;
    pub(super) const TTL: u32 = 1 << 4;
    pub(super) const PAYLOAD: u32 = 1 << 5;
    pub(super) const IP_ID: u32 = 1 << 6;
    pub(super) const SUM_HAS_ADDRESSES: u32 = 1 << 7;
    pub(super) const IPV6: u32 = 1 << 8;
    pub(super) const UDP: u32 = 1 << 9;
    pub(super) const LISTED: u32 = 1 << 10;
}

const NO_SUM: u32 = 0xffff;

/// The settings for a template, or what is wrong with it.
pub(super) fn words(template: &[u8], vary: &Vary) -> Result<Words, &'static str> {
    let (packet, places) = locate(template).ok_or("it is no IP frame, or a malformed one")?;
    let v6 = packet.version == 6;
    let mut flags = if v6 { bit::IPV6 } else { 0 };
    let l4 = usize::from(packet.l4_offset);

    if vary.listed.is_some() && (v6 || vary.sources.is_some()) {
        return Err("listed sources are IPv4, and the only ones");
    }
    let (src, src_mask) = match vary.sources {
        _ if vary.listed.is_some() => {
            flags |= bit::LISTED;
            ([0, 0, 0, u32::from_ne_bytes(listed::BASE.octets())], [0; 4])
        }
        Some(net) => {
            flags |= bit::SOURCE;
            (prefix(net, v6)?, host_bits(net))
        }
        None => (packet.src.0, [0; 4]),
    };
    let (dst, dst_mask) = match vary.destinations {
        Some(net) => {
            flags |= bit::DESTINATION;
            (prefix(net, v6)?, u32::from_be(host_bits(net)[3]))
        }
        None => (packet.dst.0, 0),
    };
    let has_ports = matches!(packet.protocol, proto::TCP | proto::UDP) && places.transport_sum.is_some();
    let mut ports = |range: &Option<std::ops::RangeInclusive<u16>>, flag| match range {
        None => Ok((0, 1)),
        Some(_) if !has_ports => Err("ports shall vary, but it has none"),
        Some(range) if range.is_empty() => Err("a port range is empty"),
        Some(range) => {
            flags |= flag;
            Ok((u32::from(*range.start()), u32::from(range.end() - range.start()) + 1))
        }
    };
    let (src_port, src_ports) = ports(&vary.source_ports, bit::SOURCE_PORT)?;
    let (dst_port, dst_ports) = ports(&vary.destination_ports, bit::DESTINATION_PORT)?;
    let (ttl, ttls) = match &vary.ttls {
        None => (u32::from(packet.ttl), 1),
        Some(range) if range.is_empty() => return Err("the TTL range is empty"),
        Some(range) => {
            flags |= bit::TTL;
            (u32::from(*range.start()), u32::from(range.end() - range.start()) + 1)
        }
    };
    let payload_at = usize::from(packet.payload_offset);
    if vary.payload {
        if payload_at + 4 > places.transport.end || payload_at % 2 != 0 {
            return Err("its payload shall vary, but has fewer than four bytes");
        }
        flags |= bit::PAYLOAD;
    }
    if vary.ip_id && !v6 {
        flags |= bit::IP_ID;
    }
    if packet.protocol == proto::UDP {
        flags |= bit::UDP;
    }
    if v6 || packet.protocol != proto::ICMP {
        flags |= bit::SUM_HAS_ADDRESSES;
    }

    // A UDP checksum of zero stays: the sender computes none.
    let sum_at = places
        .transport_sum
        .filter(|&at| !(packet.protocol == proto::UDP && !v6 && template[at] == 0 && template[at + 1] == 0));
    let l4_sum = transport_sum(template, &packet, &places, flags, payload_at);
    let (ip_sum, ip_id) = if v6 { (0, 0) } else { ip_sum(template, &places) };

    let mut words = [0; LEN];
    words[..8].copy_from_slice(&[
        flags,
        places.l3 as u32,
        l4 as u32,
        sum_at.map_or(NO_SUM, |at| at as u32),
        payload_at as u32,
        ip_sum,
        l4_sum,
        u32::from(template[places.l3 + if v6 { 6 } else { 9 }]),
    ]);
    words[8..12].copy_from_slice(&src);
    words[12..16].copy_from_slice(&src_mask);
    words[16..20].copy_from_slice(&dst);
    words[20..28].copy_from_slice(&[dst_mask, src_port, src_ports, dst_port, dst_ports, ttl, ttls, ip_id]);
    if let Some(list) = vary.listed {
        words[28..].copy_from_slice(&[list.count(), list.class()]);
    }
    Ok(words)
}

/// The header's sum without what the program writes, and the identification in memory order.
fn ip_sum(template: &[u8], places: &Places) -> (u32, u32) {
    let header = &template[places.ip_header.clone()];
    let mut constant = header.to_vec();
    constant[4..6].fill(0);
    constant[8..20].fill(0);
    (native_sum(&constant, 0), u32::from(u16::from_ne_bytes([header[4], header[5]])))
}

/// Pseudo header without addresses and the transport's bytes without what the program writes.
fn transport_sum(template: &[u8], packet: &Packet, places: &Places, flags: u32, payload_at: usize) -> u32 {
    let Some(sum_at) = places.transport_sum else { return 0 };
    let start = places.transport.start;
    let mut constant = template[places.transport.clone()].to_vec();
    constant[sum_at - start..sum_at - start + 2].fill(0);
    if flags & bit::SOURCE_PORT != 0 {
        constant[0..2].fill(0);
    }
    if flags & bit::DESTINATION_PORT != 0 {
        constant[2..4].fill(0);
    }
    if flags & bit::PAYLOAD != 0 {
        constant[payload_at - start..payload_at - start + 4].fill(0);
    }
    let mut pseudo = 0;
    if flags & bit::SUM_HAS_ADDRESSES != 0 {
        // Templates are frames of a few kilobytes: the length fits 16 bits.
        let len = (constant.len() as u16).to_be();
        pseudo = u32::from(len) + u32::from(u16::from(packet.protocol).to_be());
    }
    native_sum(&constant, pseudo)
}

/// The ones' complement sum of words in memory order, folded to 16 bits (RFC 1071 section 2(B): the order of bytes does
/// not matter as long as it is the same throughout).
fn native_sum(bytes: &[u8], start: u32) -> u32 {
    let mut sum = u64::from(start);
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u32
}

/// The network address as the program wants it: four words in memory order, IPv4 in the last.
fn prefix(net: IpNet, v6: bool) -> Result<[u32; 4], &'static str> {
    match (net.network(), v6) {
        (IpAddr::V4(_), true) | (IpAddr::V6(_), false) => Err("a prefix is of the other address family"),
        (address, _) => Ok(ftagent_common::packet::Ip::from(address).0),
    }
}

fn host_bits(net: IpNet) -> [u32; 4] {
    match net.hostmask() {
        IpAddr::V4(mask) => [0, 0, 0, u32::from_ne_bytes(mask.octets())],
        IpAddr::V6(mask) => ftagent_common::packet::Ip::v6(mask.octets()).0,
    }
}
