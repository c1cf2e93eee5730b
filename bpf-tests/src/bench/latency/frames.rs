//! The frames of one attack of each family, as they look on the wire: no two alike, by forged or reflecting sources.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ftagent_common::packet::tcp_flag;
use ftagent_common::vocab::AttackFamily;

use crate::ladder::MAC;
use crate::meter::ATTACK_MAC;
use crate::packet::{FragmentPosition, PacketBuilder, VLAN};

/// What is attacked with, in the order of a turn.
pub(super) const FAMILIES: [AttackFamily; 10] = [
    AttackFamily::UdpFlood,
    AttackFamily::SynFlood,
    AttackFamily::AckFlood,
    AttackFamily::IcmpFlood,
    AttackFamily::DnsFlood,
    AttackFamily::FragmentFlood,
    AttackFamily::GreFlood,
    AttackFamily::DnsAmplification,
    AttackFamily::NtpAmplification,
    AttackFamily::CldapAmplification,
];

/// Different frames of one attack, sent over and over.
const FRAMES: u32 = 2_048;
const REFLECTORS: u32 = 300;

/// How the frames are wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrapping {
    V4,
    V6,
    /// IPv4 behind a VLAN tag.
    Tagged,
}

impl Wrapping {
    /// Of four turns two are plain IPv4.
    pub(super) fn of_turn(turn: u32) -> Self {
        [Self::V4, Self::V6, Self::V4, Self::Tagged][turn as usize % 4]
    }

    /// The address that is attacked in the run of this number: one that no run before attacked, and by far not in the
    /// prefix of the last ones, which together would be carpet bombing.
    pub(super) fn target(self, number: u32) -> IpAddr {
        let [_, _, high, low] = number.to_be_bytes();
        match self {
            Self::V4 | Self::Tagged => Ipv4Addr::new(10, 64, low, high + 1).into(),
            Self::V6 => Ipv6Addr::new(0xfd99, 0, 0, number as u16, 0, 0, 0, 1).into(),
        }
    }
}

/// The frames of an attack of `family` on `target`; empty for a family that is not among [`FAMILIES`].
pub(super) fn of(family: AttackFamily, wrapping: Wrapping, target: IpAddr) -> Vec<Vec<u8>> {
    let start = |source: IpAddr, ttl: u8| {
        let builder = PacketBuilder::new(source, target).macs(ATTACK_MAC, MAC).ttl(ttl);
        if wrapping == Wrapping::Tagged { builder.vlan(VLAN, 7) } else { builder }
    };
    let frame = |n: u32| {
        let forged = || start(source(n, target), 53);
        let reflector = n % REFLECTORS;
        let reflected = || start(source(reflector, target), 40 + (reflector % 20) as u8);
        Some(match family {
            AttackFamily::UdpFlood => forged().udp(port(n, 31), port(n, 17)).payload(&noise(n, 64)),
            AttackFamily::SynFlood => forged().tcp(port(n, 37), 443, tcp_flag::SYN),
            AttackFamily::AckFlood => forged().tcp(port(n, 41), port(n, 13), tcp_flag::ACK),
            AttackFamily::IcmpFlood => {
                let kind = if target.is_ipv4() { 8 } else { 128 };
                forged().icmp(kind, 0).payload(&noise(n, 56))
            }
            AttackFamily::DnsFlood => forged().udp(port(n, 43), 53).payload(&query(n)),
            AttackFamily::FragmentFlood => fragment(n, forged()),
            AttackFamily::GreFlood => forged().protocol(47).payload(&ethernet_in_gre(n)),
            AttackFamily::DnsAmplification => reflected().udp(53, port(n, 47)).payload(&answer(n)),
            AttackFamily::NtpAmplification => reflected().udp(123, port(n, 11)).payload(&monitor_list(n)),
            AttackFamily::CldapAmplification => reflected().udp(389, port(n, 29)).payload(&search_result(n)),
            _ => return None,
        })
    };
    (0..FRAMES).map_while(frame).map(|builder| builder.build()).collect()
}

/// Addresses of hosts as they are given out, no two alike: nothing leaves the lab.
fn source(n: u32, target: IpAddr) -> IpAddr {
    let scattered = n.wrapping_mul(0x9e37_79b1);
    if target.is_ipv4() {
        // 64.0.0.0/3
        Ipv4Addr::from(0x4000_0000 | (scattered >> 3)).into()
    } else {
        let [a, b, c, d] = scattered.to_be_bytes().map(u16::from);
        Ipv6Addr::new(0x2400 | (a & 0x0f), b, c, d, 0, 0, 0, 0x10 + (n % 90) as u16).into()
    }
}

fn port(n: u32, step: u32) -> u16 {
    (1_024 + n.wrapping_mul(step).wrapping_mul(97) % 60_000) as u16
}

/// Bytes without a pattern, others for every `n`.
fn noise(n: u32, len: usize) -> Vec<u8> {
    let mut state = n.wrapping_mul(0x9e37_79b1) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 11) as u8
    };
    (0..len).map(next).collect()
}

/// A question for a name below example.com that nobody asked before (RFC 1035 section 4.1).
fn query(n: u32) -> Vec<u8> {
    let mut message = (n as u16).to_be_bytes().to_vec();
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.push(8);
    message.extend(format!("{:08x}", n.wrapping_mul(0x9e37_79b1)).as_bytes());
    message.extend(b"\x07example\x03com\0\0\x01\0\x01");
    message
}

/// An answer with twelve texts to a question that nobody asked.
fn answer(n: u32) -> Vec<u8> {
    let mut message = (n as u16).to_be_bytes().to_vec();
    message.extend([0x81, 0x80, 0, 1, 0, 12, 0, 0, 0, 0]);
    message.extend(b"\x07example\x03com\0\0\xff\0\x01");
    for text in 0..12 {
        // A pointer to the name, TXT, IN, an hour, 81 bytes: one string of 80.
        message.extend([0xc0, 0x0c, 0, 16, 0, 1, 0, 0, 0x0e, 0x10, 0, 81, 80]);
        message.extend([b'a' + text; 80]);
    }
    message
}

/// Six entries of a time server's list of clients (mode 7, implementation 3, request 42).
fn monitor_list(n: u32) -> Vec<u8> {
    let mut message = vec![0xd7, (n % 128) as u8, 3, 42, 0, 6, 0, 72];
    message.extend(noise(n % REFLECTORS, 6 * 72));
    message
}

/// A searchResEntry of a directory (RFC 4511 section 4.5.2), of the length that BER says.
fn search_result(n: u32) -> Vec<u8> {
    const ENTRY: u16 = 1_300;
    let long = |tag: u8, len: u16| {
        let [high, low] = len.to_be_bytes();
        [tag, 0x82, high, low]
    };
    let mut message = long(0x30, ENTRY + 7).to_vec();
    message.extend([0x02, 0x01, 0x07]);
    message.extend(long(0x64, ENTRY));
    message.extend(noise(n % REFLECTORS, usize::from(ENTRY)));
    message
}

/// Middle pieces of datagrams whose beginnings never come.
fn fragment(n: u32, builder: PacketBuilder) -> PacketBuilder {
    let offset = 60 + (n % 8) as u16 * 60;
    builder.protocol(17).payload(&noise(n, 480)).fragment(FragmentPosition { offset, more: true, id: n })
}

/// GRE without options around an Ethernet frame: it is not opened, since no IP comes next.
fn ethernet_in_gre(n: u32) -> Vec<u8> {
    let mut carried = vec![0, 0, 0x65, 0x58];
    carried.extend(noise(n, 512));
    carried
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::checksum::{Verdict, verify};

    #[test]
    fn every_family_has_frames_that_a_host_would_take() {
        for family in FAMILIES {
            for wrapping in [Wrapping::V4, Wrapping::V6, Wrapping::Tagged] {
                let frames = of(family, wrapping, wrapping.target(300));
                assert_eq!(frames.len(), FRAMES as usize, "{family} {wrapping:?}");
                let different: HashSet<&Vec<u8>> = frames.iter().collect();
                assert_eq!(different.len(), frames.len(), "{family} {wrapping:?}");
                let wrong =
                    frames.iter().find(|frame| matches!(verify(frame), Verdict::WrongIp | Verdict::WrongTransport));
                assert!(wrong.is_none(), "{family} {wrapping:?}");
                assert!(frames.iter().all(|frame| frame.len() <= crate::replay::MAX_FRAME), "{family} {wrapping:?}");
            }
        }
        assert!(of(AttackFamily::Unknown, Wrapping::V4, Wrapping::V4.target(0)).is_empty());
    }

    #[test]
    fn no_target_comes_twice_and_neighbours_come_late() {
        let targets: Vec<IpAddr> = (0..2_000).map(|n| Wrapping::of_turn(n / 10).target(n)).collect();
        assert_eq!(targets.iter().collect::<HashSet<_>>().len(), targets.len());
        let networks = |range: &[IpAddr]| {
            let of = |t: &IpAddr| if let IpAddr::V4(v4) = t { v4.octets()[..3].to_vec() } else { t.to_string().into() };
            range.iter().map(of).collect::<HashSet<Vec<u8>>>().len()
        };
        assert!(targets.windows(200).step_by(100).all(|near| networks(near) == near.len()));
    }
}
