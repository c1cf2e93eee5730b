//! Floods of every attack family as their packets are made: what the tests of the engine and the bench of the
//! detection feed it, without a wire.

mod frame;
mod ordinary;
mod reflected;
mod scene;
mod unseen;
mod variants;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ftagent_common::vocab::AttackFamily as F;

pub use frame::{Dice, Spec};
pub use scene::{Scene, Stream, blend};

/// Makes the nth frame of a flood towards a target.
pub type Maker = fn(&mut Dice, IpAddr) -> Spec;

/// Attacks as known tools and reflectors send them.
pub fn attacks() -> impl Iterator<Item = &'static Scene> {
    let direct = [variants::OF_TCP, variants::OF_THE_WEB, variants::OF_UDP, variants::OF_OTHERS];
    direct.into_iter().chain([reflected::OF_ONE_SERVICE, reflected::OF_SEVERAL, unseen::ATTACKS]).flatten()
}

/// Traffic of good days that is as much as an attack.
pub fn ordinary() -> impl Iterator<Item = &'static Scene> {
    [ordinary::OF_TCP, ordinary::OF_UDP, ordinary::OF_OTHERS, unseen::ORDINARY].into_iter().flatten()
}

/// Any address at all, as a flooder draws it.
pub fn forged(dice: &mut Dice, like: IpAddr) -> IpAddr {
    if like.is_ipv4() {
        Ipv4Addr::from(dice.roll() as u32).into()
    } else {
        Ipv6Addr::from(u128::from(dice.roll()) << 64 | u128::from(dice.roll())).into()
    }
}

/// One of `count` hosts in some dozens of networks.
pub fn real(dice: &mut Dice, like: IpAddr, count: u64) -> IpAddr {
    let n = dice.below(count) as u32;
    if like.is_ipv4() {
        let network = [0x5b0c, 0x5bd2, 0xb901, 0x2e69, 0x1f0d, 0x4e2f, 0xc1a4][(n % 7) as usize] as u32;
        Ipv4Addr::from(network << 16 | (n.wrapping_mul(2_654_435_761) >> 16)).into()
    } else {
        Ipv6Addr::from(0x2a02_0000u128 << 96 | u128::from(n % 7) << 80 | u128::from(n) << 64 | 1).into()
    }
}

/// The TTL of a real host: it tells where the host is and stays the same.
pub fn real_ttl(ip: IpAddr) -> u8 {
    let sum: u32 = match ip {
        IpAddr::V4(v4) => v4.octets().iter().map(|b| u32::from(*b)).sum(),
        IpAddr::V6(v6) => v6.octets().iter().map(|b| u32::from(*b)).sum(),
    };
    (if sum.is_multiple_of(3) { 110 } else { 45 }) + (sum % 14) as u8
}

fn tcp(dice: &mut Dice, target: IpAddr, flags: u8) -> Spec {
    let mut s = Spec::new(forged(dice, target), target, 6);
    (s.src_port, s.dst_port, s.tcp_flags) = (1_024 + dice.below(60_000) as u16, 80, flags);
    s
}

fn udp(dice: &mut Dice, target: IpAddr, len: usize) -> Spec {
    let mut s = Spec::new(forged(dice, target), target, 17);
    (s.src_port, s.dst_port) = (1_024 + dice.below(60_000) as u16, 9_999);
    s.payload = (0..len).map(|_| dice.roll() as u8).collect();
    s
}

fn answer(dice: &mut Dice, target: IpAddr, port: u16, head: &[u8], len: usize) -> Spec {
    let source = real(dice, target, 2_000);
    let mut s = Spec::new(source, target, 17);
    (s.ttl, s.src_port, s.dst_port) = (real_ttl(source), port, 1_024 + dice.below(60_000) as u16);
    s.payload = head.to_vec();
    let filler = len + dice.below(40) as usize;
    s.payload.resize(filler.max(head.len()), b'x');
    s
}

/// Every family, the subtype where one is expected, and how its packets are made.
pub const FLOODS: &[(F, Maker)] = &[
    (F::SynFlood, |d, t| tcp(d, t, 2)),
    (F::SynFlood, |d, t| {
        let mut s = tcp(d, t, 2);
        s.src = real(d, t, 3);
        s
    }),
    (F::AckFlood, |d, t| tcp(d, t, 16)),
    (F::RstFlood, |d, t| tcp(d, t, 4)),
    (F::SynAckFlood, |d, t| tcp(d, t, 18)),
    (F::TcpFlood, |d, t| tcp(d, t, 1)),
    (F::TcpFlood, |d, t| tcp(d, t, 41)),
    (F::TcpFlood, |d, t| tcp(d, t, 0)),
    (F::TcpFlood, |d, t| {
        let mut s = tcp(d, t, 24);
        s.payload = vec![b'A'; 64];
        s
    }),
    (F::UdpFlood, |d, t| udp(d, t, 512)),
    (F::UdpFlood, |d, t| {
        let mut s = udp(d, t, 64);
        (s.src, s.dst_port) = (real(d, t, 1), d.roll() as u16);
        s
    }),
    (F::UdpFlood, |d, t| {
        let mut s = udp(d, t, 0);
        s.src = real(d, t, 400);
        (s.ttl, s.payload) = (real_ttl(s.src), b"\xde\xad\xbe\xef flood flood".to_vec());
        s
    }),
    (F::IcmpFlood, |d, t| {
        let mut s = Spec::new(forged(d, t), t, if t.is_ipv4() { 1 } else { 58 });
        (s.icmp, s.payload) = ([if t.is_ipv4() { 8 } else { 128 }, 0], vec![0; 56]);
        s
    }),
    (F::DnsFlood, |d, t| {
        let mut s = udp(d, t, 0);
        s.dst_port = 53;
        s.payload = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x08".to_vec();
        s.payload[0] = d.roll() as u8;
        s.payload.extend((0..8).map(|_| b'a' + d.below(26) as u8));
        s.payload.extend(b"\x07example\x03com\x00\x00\x01\x00\x01");
        s
    }),
    (F::HttpFlood, |d, t| {
        let mut s = Spec::new(real(d, t, 6), t, 6);
        (s.src_port, s.dst_port) = (40_000 + d.below(30) as u16, 80);
        (s.tcp_flags, s.ttl) = (if d.below(3) == 0 { 16 } else { 24 }, real_ttl(s.src));
        if s.tcp_flags == 24 {
            s.payload = format!("GET /?{} HTTP/1.1\r\nHost: a\r\n\r\n", d.below(99_999)).into_bytes();
        }
        s
    }),
    (F::FragmentFlood, |d, t| {
        let mut s = udp(d, t, 64);
        s.fragment = Some((100 + d.below(50) as u16, true));
        s
    }),
    (F::GreFlood, |d, t| {
        let mut s = Spec::new(forged(d, t), t, 47);
        s.payload = vec![0; 200];
        s
    }),
    (F::ProtocolFlood, |d, t| {
        let mut s = Spec::new(forged(d, t), t, 99);
        s.payload = vec![0; 200];
        s
    }),
    (F::ProtocolFlood, |d, t| {
        let mut s = Spec::new(forged(d, t), t, 50);
        s.payload = vec![0; 200];
        s
    }),
    (F::MultiVector, |d, t| match d.below(3) {
        0 => tcp(d, t, 2),
        1 => udp(d, t, 300),
        _ => {
            let mut s = Spec::new(forged(d, t), t, if t.is_ipv4() { 1 } else { 58 });
            s.icmp = [if t.is_ipv4() { 8 } else { 128 }, 0];
            s
        }
    }),
    (F::DnsAmplification, |d, t| {
        let head = [d.roll() as u8, 7, 0x81, 0x80, 0, 1, 0, 30, 0, 0, 0, 1, 3, b'x'];
        answer(d, t, 53, &head, 1_200)
    }),
    (F::NtpAmplification, |d, t| answer(d, t, 123, &[0xd7, 9, 3, 42, 0, 6, 0, 72], 440)),
    (F::MemcachedAmplification, |d, t| answer(d, t, 11_211, b"\0\0\0\x03\0\x20\0\0VALUE a 0 9", 1_300)),
    (F::SsdpAmplification, |d, t| answer(d, t, 1_900, b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max", 280)),
    (F::CldapAmplification, |d, t| answer(d, t, 389, b"\x30\x84\0\0\x0b\x7b\x02\x01\x07\x64\x84\0\0\x0b\x72", 1_200)),
    (F::ChargenAmplification, |d, t| answer(d, t, 19, b" !\"#$%&'()*+,-./0123456789:;<=>?", 1_000)),
    (F::SnmpAmplification, |d, t| answer(d, t, 161, b"\x30\x82\x05\x10\x02\x01\x01\x04\x06public\xa2\x82\x05", 1_200)),
    (F::RpcbindAmplification, |d, t| answer(d, t, 111, b"abcd\0\0\0\x01\0\0\0\0\0\0\0\0", 480)),
    (F::WsdAmplification, |d, t| answer(d, t, 3_702, b"<?xml version=\"1.0\" encoding=", 700)),
    (F::MdnsAmplification, |d, t| answer(d, t, 5_353, b"\0\0\x84\0\0\0\0\x05\0\0\0\0", 300)),
    (F::TftpAmplification, |d, t| answer(d, t, 69, b"\0\x03\0\x01data", 500)),
    (F::NetbiosAmplification, |d, t| answer(d, t, 137, b"ab\x84\0\0\0\0\x01\0\0\0\0\x20CK", 180)),
    (F::QotdAmplification, |d, t| answer(d, t, 17, b"\"The quieter you become the more", 140)),
    (F::Ripv1Amplification, |d, t| answer(d, t, 520, b"\x02\x01\0\0\0\x02\0\0\x0a\0\0\0", 500)),
    (F::OpenvpnAmplification, |d, t| answer(d, t, 1_194, b"\x40abcdefgh\0\0\0\0\0", 60)),
    (F::ArdAmplification, |d, t| answer(d, t, 3_283, b"\0\x01\x03\xea\0\x31\0\x01", 1_000)),
    (F::IsakmpAmplification, |d, t| answer(d, t, 500, b"abcdefgh\0\0\0\0\0\0\0\0\x01\x10\x02\0\0\0\0\0", 200)),
    (F::UbntAmplification, |d, t| answer(d, t, 10_001, b"\x01\0\0\x9a\x02\0\x0a\x00", 150)),
    (F::DvrAmplification, |d, t| answer(d, t, 37_810, b"\x20\0\0\0DHIP\0\0\0\0", 700)),
    (F::CoapAmplification, |d, t| answer(d, t, 5_683, b"\x60\x45\x12\x34\xff</>;ct", 400)),
    (F::UdpAmplification, |d, t| answer(d, t, 47_808, b"\x81\x0a\x00\xf0", 240)),
    (F::UdpAmplification, |d, t| answer(d, t, 27_015, b"\xff\xff\xff\xffI\x11a server's name", 200)),
];
