//! Frames built byte by byte, without checksums.

use std::net::IpAddr;

/// What a frame should look like.
#[derive(Clone, Debug)]
pub struct Spec {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    pub ttl: u8,
    pub src_port: u16,
    pub dst_port: u16,
    pub tcp_flags: u8,
    /// Bytes of TCP options, a multiple of four.
    pub tcp_options: usize,
    /// Type and code.
    pub icmp: [u8; 2],
    pub payload: Vec<u8>,
    /// Fragment offset in units of eight bytes, and whether more follow.
    pub fragment: Option<(u16, bool)>,
    pub vlan: Option<u16>,
}

impl Spec {
    /// A datagram without ports, flags and payload, TTL 64.
    pub fn new(src: IpAddr, dst: IpAddr, protocol: u8) -> Self {
        Self {
            src,
            dst,
            protocol,
            ttl: 64,
            src_port: 0,
            dst_port: 0,
            tcp_flags: 0,
            tcp_options: 0,
            icmp: [8, 0],
            payload: Vec::new(),
            fragment: None,
            vlan: None,
        }
    }

    /// The frame, without checksums: what counts and classifies does not verify them.
    ///
    /// # Panics
    /// When addresses of both families are mixed, or the payload is longer than a datagram.
    pub fn frame(&self) -> Vec<u8> {
        let mut l4 = Vec::new();
        if self.fragment.is_none_or(|(offset, _)| offset == 0) {
            match self.protocol {
                6 => {
                    l4.extend(self.src_port.to_be_bytes());
                    l4.extend(self.dst_port.to_be_bytes());
                    l4.extend([0; 8]);
                    l4.push(u8::try_from((20 + self.tcp_options) / 4).expect("short options") << 4);
                    l4.push(self.tcp_flags);
                    l4.extend([0xff, 0xff, 0, 0, 0, 0]);
                    l4.extend(vec![1; self.tcp_options]);
                }
                17 => {
                    l4.extend(self.src_port.to_be_bytes());
                    l4.extend(self.dst_port.to_be_bytes());
                    l4.extend(u16::try_from(8 + self.payload.len()).expect("short payload").to_be_bytes());
                    l4.extend([0, 0]);
                }
                1 | 58 => l4.extend([self.icmp[0], self.icmp[1], 0, 0]),
                _ => {}
            }
        }
        l4.extend(&self.payload);
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        if let Some(vlan) = self.vlan {
            frame.extend([0x81, 0]);
            frame.extend(vlan.to_be_bytes());
        }
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend([8, 0, 0x45, 0]);
                frame.extend(u16::try_from(20 + l4.len()).expect("short").to_be_bytes());
                let (offset, more) = self.fragment.unwrap_or((0, false));
                frame.extend([0, 1]);
                frame.extend((offset | if more { 0x2000 } else { 0 }).to_be_bytes());
                frame.extend([self.ttl, self.protocol, 0, 0]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let extension = self.fragment.map_or(0, |_| 8);
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(u16::try_from(extension + l4.len()).expect("short").to_be_bytes());
                frame.extend([if self.fragment.is_some() { 44 } else { self.protocol }, self.ttl]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
                if let Some((offset, more)) = self.fragment {
                    frame.extend([self.protocol, 0]);
                    frame.extend((offset << 3 | u16::from(more)).to_be_bytes());
                    frame.extend([0, 0, 0, 1]);
                }
            }
            _ => panic!("mixed address families"),
        }
        frame.extend(l4);
        frame
    }
}

/// xorshift: the same numbers on every run.
#[derive(Clone)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
}
