//! Generated samples for tests.

use std::net::Ipv4Addr;

use ftagent_common::packet::{Fragment, Ip, Tunnel, proto, tcp_flag};
use ftagent_common::vocab::TrafficClass;

use super::payload::Shape;
use crate::engine::window::{Label, Seen};

/// A flood of one kind, varied as its fields say.
#[derive(Clone)]
pub(crate) struct Flood {
    pub(crate) class: TrafficClass,
    pub(crate) protocol: u8,
    pub(crate) flags: u8,
    pub(crate) fragment: Fragment,
    pub(crate) icmp_type: u8,
    pub(crate) ip_len: u16,
    pub(crate) lengths: Option<(u16, u16)>,
    /// `None`: drawn from the whole space.
    pub(crate) sources: Option<u32>,
    pub(crate) src_port: Option<u16>,
    pub(crate) dst_port: Option<u16>,
    pub(crate) ttls: (u8, u8),
    pub(crate) payload: u16,
    pub(crate) prefix: Option<u32>,
    pub(crate) shape: Shape,
}

impl Flood {
    pub(crate) fn syn() -> Self {
        Self {
            class: TrafficClass::TcpSyn,
            protocol: proto::TCP,
            flags: tcp_flag::SYN,
            fragment: Fragment::Whole,
            icmp_type: 0,
            ip_len: 40,
            lengths: None,
            sources: None,
            src_port: None,
            dst_port: Some(80),
            ttls: (64, 64),
            payload: 0,
            prefix: Some(0),
            shape: Shape::Empty,
        }
    }

    pub(crate) fn udp() -> Self {
        Self {
            class: TrafficClass::Udp,
            protocol: proto::UDP,
            flags: 0,
            ip_len: 540,
            dst_port: Some(9_999),
            payload: 512,
            prefix: None,
            shape: Shape::Other,
            ..Self::syn()
        }
    }

    pub(crate) fn samples(&self, n: usize) -> Vec<Seen> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        (0..n)
            .map(|i| {
                let source = match self.sources {
                    // Real hosts crowd in some networks.
                    Some(count) => 0x5b00_0000 | ((random() as u32 % count) * 7_919),
                    None => random() as u32,
                };
                let ttl = self.ttls.0 + (source as u8) % (self.ttls.1 - self.ttls.0 + 1);
                let ip_len = self.lengths.map_or(self.ip_len, |(low, high)| low + random() as u16 % (high - low + 1));
                Seen {
                    time_ns: i as u64 * 10_000,
                    src: Ip::v4(Ipv4Addr::from(source).octets()),
                    dst: Ip::v4([203, 0, 113, 5]),
                    weight: 1,
                    src_port: self.src_port.unwrap_or_else(|| 1_024 + random() as u16 % 60_000),
                    dst_port: self.dst_port.unwrap_or_else(|| 1 + random() as u16 % 60_000),
                    ip_len,
                    payload_len: self.payload.min(ip_len),
                    prefix: self.prefix.unwrap_or_else(|| random() as u32),
                    class: self.class,
                    shape: self.shape,
                    fragment: self.fragment,
                    version: 4,
                    protocol: self.protocol,
                    ttl,
                    tcp_flags: self.flags,
                    icmp_type: self.icmp_type,
                    label: Label::default(),
                    tunnel: Tunnel::None,
                    outer_src: Ip([0; 4]),
                }
            })
            .collect()
    }
}

/// Requests of ordinary web clients: SYN with options, acknowledgements, requests, ends.
pub(crate) fn clean_web(n: usize) -> Vec<Seen> {
    let base = Flood { sources: Some(5), ttls: (50, 60), ..Flood::syn() };
    let mut all = base.samples(n);
    for (i, seen) in all.iter_mut().enumerate() {
        let client = (i / 6) as u16;
        seen.src_port = 40_000 + client;
        let (class, flags, len, payload, shape) = match i % 6 {
            0 => (TrafficClass::TcpSyn, tcp_flag::SYN, 60, 0, Shape::Empty),
            2 => (TrafficClass::TcpAck, tcp_flag::ACK | tcp_flag::PSH, 300, 248, Shape::HttpRequest),
            5 => (TrafficClass::TcpFin, tcp_flag::ACK | tcp_flag::FIN, 52, 0, Shape::Empty),
            _ => (TrafficClass::TcpAck, tcp_flag::ACK, 52, 0, Shape::Empty),
        };
        (seen.class, seen.tcp_flags, seen.ip_len, seen.payload_len, seen.shape) = (class, flags, len, payload, shape);
    }
    all
}
