//! Small attacks made here, for machines without captures: the shape of the real ones, none of their bytes.

use std::net::Ipv4Addr;

use ftagent_common::packet::tcp_flag;
use ftagent_common::vocab::AttackFamily;

use crate::packet::{FragmentPosition, PacketBuilder};

/// Frames of one attack; every source lies in 198.18.0.0/15 (RFC 2544).
#[derive(Clone, Debug)]
pub struct Attack {
    pub family: AttackFamily,
    pub frames: Vec<Vec<u8>>,
}

const FRAMES: u32 = 512;

/// One small attack of each kind on `target`.
pub fn all(target: Ipv4Addr, src_mac: [u8; 6], dst_mac: [u8; 6]) -> Vec<Attack> {
    let make = |family, frame: fn(u32, PacketBuilder) -> PacketBuilder| {
        let frames = (0..FRAMES).map(|n| {
            frame(n, PacketBuilder::v4(source(n), target).macs(src_mac, dst_mac).ttl(40 + (n % 24) as u8)).build()
        });
        Attack { family, frames: frames.collect() }
    };
    vec![
        make(AttackFamily::SynFlood, syn),
        make(AttackFamily::UdpFlood, udp),
        make(AttackFamily::DnsAmplification, dns_answer),
        make(AttackFamily::NtpAmplification, ntp_monlist),
        make(AttackFamily::IcmpFlood, echo_request),
        make(AttackFamily::FragmentFlood, fragment),
    ]
}

/// Spreads consecutive numbers over the prefix (the multiplier is odd: no number comes twice).
fn source(n: u32) -> Ipv4Addr {
    let host = n.wrapping_mul(0x9e37_79b1) >> 15;
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) | host)
}

fn syn(n: u32, to: PacketBuilder) -> PacketBuilder {
    // Maximum segment size 1,460, as any honest client says.
    to.tcp(1024 + (n * 37 % 60_000) as u16, 80, tcp_flag::SYN).tcp_options(&[2, 4, 0x05, 0xb4])
}

fn udp(n: u32, to: PacketBuilder) -> PacketBuilder {
    let payload: Vec<u8> =
        (0..64).map(|i: u32| (n.wrapping_mul(2_654_435_761).wrapping_add(i * 97) >> 13) as u8).collect();
    to.udp(1024 + (n * 91 % 60_000) as u16, 1024 + (n * 57 % 60_000) as u16).payload(&payload)
}

/// An answer of 1,200 bytes to an ANY query nobody sent (RFC 1035 section 4.1).
fn dns_answer(n: u32, to: PacketBuilder) -> PacketBuilder {
    const ANSWERS: u16 = 16;
    let mut message = (n as u16).to_be_bytes().to_vec();
    // A response with recursion; one question, the answers.
    message.extend([0x81, 0x80, 0, 1]);
    message.extend(ANSWERS.to_be_bytes());
    message.extend([0, 0, 0, 0]);
    message.extend(b"\x07example\x03com\0");
    message.extend([0, 255, 0, 1]);
    for answer in 0..ANSWERS as u8 {
        // A pointer to the name, type TXT, class IN, an hour, 59 bytes: one string of 58.
        message.extend([0xc0, 0x0c, 0, 16, 0, 1, 0, 0, 0x0e, 0x10, 0, 59, 58]);
        message.extend([b'a' + answer; 58]);
    }
    to.udp(53, 1024 + (n * 31 % 60_000) as u16).payload(&message)
}

/// A monitor list answer with six entries of 72 bytes (mode 7, implementation 3, request 42).
fn ntp_monlist(n: u32, to: PacketBuilder) -> PacketBuilder {
    let mut message = vec![0xd7, (n % 100) as u8 & 0x7f, 3, 42, 0, 6, 0, 72];
    message.resize(8 + 6 * 72, (n % 251) as u8);
    to.udp(123, 80).payload(&message)
}

fn echo_request(n: u32, to: PacketBuilder) -> PacketBuilder {
    to.icmp(8, 0).payload(&[n as u8; 56])
}

/// First and later fragments of datagrams that never become whole.
fn fragment(n: u32, to: PacketBuilder) -> PacketBuilder {
    match n % 4 {
        0 => {
            let first = FragmentPosition { offset: 0, more: true, id: n };
            to.udp(1024 + (n % 60_000) as u16, 4500).payload(&[n as u8; 472]).fragment(first)
        }
        later => {
            let position = FragmentPosition { offset: later as u16 * 60, more: true, id: n - later };
            to.protocol(17).payload(&[n as u8; 480]).fragment(position)
        }
    }
}
