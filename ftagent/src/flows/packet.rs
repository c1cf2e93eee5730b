//! Packets out of what exporters tell: sampled headers are parsed as the datapath parses frames, and of a flow record a
//! header is written that says what the record says, so that both have the same classes and fields.

use std::net::IpAddr;

use ftagent_common::abi::SAMPLE_BYTES;
use ftagent_common::frame::Frame;
use ftagent_common::packet::{Checks, Kind, Packet, parse_into, proto, tcp_flag};

use crate::engine::Payload;

/// Bytes of an Ethernet header: exporters of flows count without it, the datapath counts it.
pub(super) const ETHERNET: u32 = 14;

/// What a flow record says of each of its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) protocol: u8,
    pub(super) src_port: u16,
    pub(super) dst_port: u16,
    pub(super) tcp_flags: u8,
    /// Type and code.
    pub(super) icmp: [u8; 2],
    /// 0: the record does not say.
    pub(super) ttl: u8,
    pub(super) is_fragment: bool,
    /// Mean length of the IP packets.
    pub(super) ip_len: u32,
}

/// Parses the beginning of an Ethernet frame of `wire_len` bytes; `None` for what is not IP or cannot be read.
pub(super) fn parse_frame(bytes: &[u8], wire_len: u32) -> Option<(Packet, Payload)> {
    let bytes = &bytes[..bytes.len().min(SAMPLE_BYTES)];
    let mut packet = Packet::EMPTY;
    // As samples of the datapath are read: tunnels are opened, and what no host can have sent is classified too.
    let checks = Checks(Checks::TUNNELS);
    let Kind::Ip = parse_into(&Frame::new(bytes), wire_len as usize, checks, &mut packet) else { return None };
    let payload = Payload::of(bytes.get(usize::from(packet.payload_offset)..).unwrap_or(&[]));
    Some((packet, payload))
}

/// Parses the beginning of an IP packet of `ip_len` bytes that came without a link header.
pub(super) fn parse_ip(bytes: &[u8], ip_len: u32) -> Option<(Packet, Payload)> {
    let ether_type = match bytes.first()? >> 4 {
        4 => [0x08, 0x00],
        6 => [0x86, 0xdd],
        _ => return None,
    };
    let mut frame = ethernet(ether_type);
    frame.extend(&bytes[..bytes.len().min(SAMPLE_BYTES)]);
    parse_frame(&frame, ip_len.saturating_add(ETHERNET))
}

fn ethernet(ether_type: [u8; 2]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(SAMPLE_BYTES);
    frame.extend([0; 12]);
    frame.extend(ether_type);
    frame
}

/// The packet that `header` describes; `None` where addresses of both families are mixed.
pub(super) fn of_record(header: &Header) -> Option<Packet> {
    let l4 = transport(header);
    let ip_header = if header.src.is_ipv4() { 20 } else { 40 };
    let extension = if header.is_fragment && header.src.is_ipv6() { 8 } else { 0 };
    let least = ip_header + extension + u32::try_from(l4.len()).unwrap_or(0);
    let ip_len = u16::try_from(header.ip_len.max(least)).unwrap_or(u16::MAX);
    let mut frame;
    match (header.src, header.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            frame = ethernet([0x08, 0x00]);
            frame.extend([0x45, 0]);
            frame.extend(ip_len.to_be_bytes());
            // A later fragment: whatever its offset is, it has no ports.
            frame.extend([0, 0, 0, u8::from(header.is_fragment) * 185]);
            frame.extend([header.ttl, header.protocol, 0, 0]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            frame = ethernet([0x86, 0xdd]);
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(ip_len.saturating_sub(40).to_be_bytes());
            frame.extend([if header.is_fragment { 44 } else { header.protocol }, header.ttl]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
            if header.is_fragment {
                frame.extend([header.protocol, 0, 0x05, 0xc8, 0, 0, 0, 1]);
            }
        }
        _ => return None,
    }
    frame.extend(l4);
    // The tunnel's packet inside is not in the record.
    let mut packet = Packet::EMPTY;
    let wire_len = u32::from(ip_len) + ETHERNET;
    let kind = parse_into(&Frame::new(&frame), wire_len as usize, Checks::NONE, &mut packet);
    matches!(kind, Kind::Ip).then_some(packet)
}

fn transport(header: &Header) -> Vec<u8> {
    let mut l4 = Vec::with_capacity(60);
    if header.is_fragment {
        return l4;
    }
    let ports = |l4: &mut Vec<u8>| {
        l4.extend(header.src_port.to_be_bytes());
        l4.extend(header.dst_port.to_be_bytes());
    };
    let room = header.ip_len.saturating_sub(if header.src.is_ipv4() { 20 } else { 40 });
    match header.protocol {
        proto::TCP => {
            // What is more than a header in a SYN are options.
            let is_syn = header.tcp_flags & tcp_flag::SYN != 0;
            let words = if is_syn { (room / 4).clamp(5, 15) } else { 5 };
            ports(&mut l4);
            l4.extend([0; 8]);
            l4.extend([(words as u8) << 4, header.tcp_flags, 0, 0, 0, 0, 0, 0]);
            l4.resize(words as usize * 4, 1);
        }
        proto::UDP => {
            ports(&mut l4);
            l4.extend(u16::try_from(room.max(8)).unwrap_or(u16::MAX).to_be_bytes());
            l4.extend([0, 0]);
        }
        proto::ICMP | proto::ICMPV6 => l4.extend([header.icmp[0], header.icmp[1], 0, 0, 0, 0, 0, 0]),
        _ => {}
    }
    l4
}

#[cfg(test)]
pub(super) mod tests {
    use ftagent_common::packet::Fragment;
    use ftagent_common::vocab::TrafficClass as Class;

    use super::*;

    pub(in crate::flows) fn header(src: &str, dst: &str, protocol: u8) -> Header {
        Header {
            src: src.parse().expect("an address"),
            dst: dst.parse().expect("an address"),
            protocol,
            src_port: 4_000,
            dst_port: 443,
            tcp_flags: 0,
            icmp: [8, 0],
            ttl: 0,
            is_fragment: false,
            ip_len: 100,
        }
    }

    #[test]
    fn a_record_says_the_same_as_the_frames_that_it_counts() {
        let v4 = |protocol| header("198.51.100.1", "203.0.113.5", protocol);
        let v6 = |protocol| header("2001:db8::1", "2001:db8:1::5", protocol);
        // (header, class, length of the datagram)
        let table = [
            (Header { tcp_flags: 2, ip_len: 44, ..v4(6) }, Class::TcpSyn, 44),
            (Header { tcp_flags: 18, ip_len: 10, ..v4(6) }, Class::TcpSynAck, 40),
            (Header { tcp_flags: 16, ip_len: 1_500, ..v6(6) }, Class::TcpAck, 1_500),
            (Header { src_port: 53, ..v4(17) }, Class::Reflector, 100),
            (Header { dst_port: 53, ..v6(17) }, Class::DnsQuery, 100),
            (v4(17), Class::Udp, 100),
            (Header { ip_len: u32::MAX, ..v4(17) }, Class::Udp, u16::MAX),
            (v4(1), Class::Icmp, 100),
            (v6(58), Class::Icmpv6, 100),
            (v4(47), Class::Gre, 100),
            (v4(4), Class::OtherIp, 100),
            (v6(99), Class::OtherIp, 100),
            (Header { is_fragment: true, ..v4(17) }, Class::Fragment, 100),
            (Header { is_fragment: true, ..v6(17) }, Class::Fragment, 100),
        ];
        for (header, class, ip_len) in table {
            let packet = of_record(&header).unwrap_or_else(|| panic!("{header:?}"));
            assert_eq!((packet.class, packet.ip_len), (class, ip_len), "{header:?}");
            assert_eq!((IpAddr::from(packet.src), IpAddr::from(packet.dst)), (header.src, header.dst));
            if packet.fragment == Fragment::Whole && matches!(header.protocol, 6 | 17) {
                assert_eq!((packet.src_port, packet.dst_port), (header.src_port, header.dst_port), "{header:?}");
            }
        }
        let mixed = Header { dst: "2001:db8::1".parse().expect("an address"), ..v4(6) };
        assert_eq!(of_record(&mixed), None);
    }

    #[test]
    fn a_syn_without_options_stays_one() {
        let bare = Header { tcp_flags: 2, ip_len: 40, ..header("198.51.100.1", "203.0.113.5", 6) };
        let packet = of_record(&bare).expect("a packet");
        assert_eq!(packet.payload_offset, 54);
        let usual = of_record(&Header { ip_len: 60, ..bare }).expect("a packet");
        assert_eq!(usual.payload_offset, 74, "all of it is header");
    }

    #[test]
    fn what_is_not_ip_is_no_packet() {
        assert!(parse_frame(&[0; 60], 60).is_none());
        assert!(parse_ip(&[], 0).is_none());
        assert!(parse_ip(&[0x45; 4], 20).is_none(), "cut off");
        assert!(parse_ip(&[0xf5; 40], 40).is_none());
    }
}
