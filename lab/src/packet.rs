//! Frames for tests, right or wrong on purpose.
//!
//! Lengths and checksums are made right at the end of [`PacketBuilder::build`]; what has to be wrong is bent afterwards
//! or cut off with [`PacketBuilder::truncate`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ftagent_common::packet::proto;

use crate::checksum;

/// EtherType of a customer's VLAN tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of a provider's VLAN tag.
pub const QINQ: u16 = 0x88a8;

/// IPv6 extension header numbers.
pub mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION: u8 = 60;
}

/// Where a packet lies in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentPosition {
    /// Offset in units of eight bytes, below 8,192.
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
    pub id: u32,
}

/// Builds one Ethernet frame.
///
/// ```
/// use ftagent_lab::packet::PacketBuilder;
///
/// let frame = PacketBuilder::v4([192, 0, 2, 1], [198, 51, 100, 7]).vlan(0x8100, 7).udp(53, 4242).payload(b"answer").build();
/// assert_eq!(ftagent_lab::checksum::verify(&frame), ftagent_lab::checksum::Verdict::Right);
/// ```
#[derive(Clone, Debug)]
pub struct PacketBuilder {
    src_mac: [u8; 6],
    dst_mac: [u8; 6],
    tags: Vec<(u16, u16)>,
    src: IpAddr,
    dst: IpAddr,
    ttl: u8,
    options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
    fragment: Option<FragmentPosition>,
    protocol: u8,
    transport: Vec<u8>,
    payload: Vec<u8>,
    cut: Option<usize>,
}

impl PacketBuilder {
    /// An IP packet without a transport header (protocol 253, "for experimentation", RFC 3692).
    ///
    /// # Panics
    /// One address is IPv4 and the other IPv6.
    pub fn new(src: IpAddr, dst: IpAddr) -> Self {
        assert_eq!(src.is_ipv4(), dst.is_ipv4(), "both addresses are of one family");
        Self {
            src_mac: [2, 0, 0, 0, 0, 1],
            dst_mac: [2, 0, 0, 0, 0, 2],
            tags: Vec::new(),
            src,
            dst,
            ttl: 64,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            protocol: 253,
            transport: Vec::new(),
            payload: Vec::new(),
            cut: None,
        }
    }

    pub fn v4(src: impl Into<Ipv4Addr>, dst: impl Into<Ipv4Addr>) -> Self {
        Self::new(IpAddr::V4(src.into()), IpAddr::V4(dst.into()))
    }

    pub fn v6(src: impl Into<Ipv6Addr>, dst: impl Into<Ipv6Addr>) -> Self {
        Self::new(IpAddr::V6(src.into()), IpAddr::V6(dst.into()))
    }

    pub fn macs(mut self, src: [u8; 6], dst: [u8; 6]) -> Self {
        self.src_mac = src;
        self.dst_mac = dst;
        self
    }

    /// Adds a tag inside those that are there already.
    pub fn vlan(mut self, ether_type: u16, id: u16) -> Self {
        self.tags.push((ether_type, id));
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// IPv4 options; padded to a multiple of four bytes with "end of options", at most 40 bytes.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self.options.resize(options.len().next_multiple_of(4), 0);
        self
    }

    /// Adds an IPv6 extension header after those that are there already.
    ///
    /// `body` is what follows the two leading bytes; it is padded to the header's unit. A body for
    /// [`extension::FRAGMENT`] is taken as it is: use [`Self::fragment`] for right ones.
    pub fn extension(mut self, kind: u8, body: &[u8]) -> Self {
        self.extensions.push((kind, body.to_vec()));
        self
    }

    /// Makes the packet a fragment: in the IPv4 header, or by a last extension header of IPv6.
    pub fn fragment(mut self, position: FragmentPosition) -> Self {
        self.fragment = Some(position);
        self
    }

    pub fn udp(mut self, src_port: u16, dst_port: u16) -> Self {
        self.protocol = proto::UDP;
        self.transport = [src_port.to_be_bytes(), dst_port.to_be_bytes(), [0, 0], [0, 0]].concat();
        self
    }

    /// A TCP header without options; `flags` as in [`ftagent_common::packet::tcp_flag`].
    pub fn tcp(mut self, src_port: u16, dst_port: u16, flags: u8) -> Self {
        self.protocol = proto::TCP;
        self.transport = [src_port.to_be_bytes(), dst_port.to_be_bytes()].concat();
        self.transport.extend([0, 0, 0x10, 0, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        self
    }

    /// TCP options; padded to a multiple of four bytes, at most 40 bytes. Call it after [`Self::tcp`].
    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        self.transport.truncate(20);
        self.transport.extend(options);
        self.transport.resize(20 + options.len().next_multiple_of(4), 0);
        self.transport[12] = (self.transport.len() as u8 / 4) << 4;
        self
    }

    /// ICMP over IPv4, ICMPv6 over IPv6; eight bytes with the rest of the header zero.
    pub fn icmp(mut self, kind: u8, code: u8) -> Self {
        self.protocol = if self.src.is_ipv4() { proto::ICMP } else { proto::ICMPV6 };
        self.transport = vec![kind, code, 0, 0, 0, 0, 0, 0];
        self
    }

    /// Any other protocol; what it carries is the payload.
    pub fn protocol(mut self, number: u8) -> Self {
        self.protocol = number;
        self.transport.clear();
        self
    }

    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Cuts the finished frame to `len` bytes; its headers still tell the whole length.
    pub fn truncate(mut self, len: usize) -> Self {
        self.cut = Some(len);
        self
    }

    /// The frame, without padding to Ethernet's minimum and without a frame check sequence.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = [self.dst_mac, self.src_mac].concat();
        for (ether_type, id) in &self.tags {
            frame.extend(ether_type.to_be_bytes());
            frame.extend(id.to_be_bytes());
        }
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.write_v4(&mut frame, src, dst),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.write_v6(&mut frame, src, dst),
            _ => unreachable!("`new` takes two addresses of one family"),
        }
        let l4 = frame.len();
        frame.extend(&self.transport);
        frame.extend(&self.payload);
        if self.protocol == proto::UDP && !self.transport.is_empty() {
            let len = (frame.len() - l4) as u16;
            frame[l4 + 4..l4 + 6].copy_from_slice(&len.to_be_bytes());
            // Not zero: zero says that there is no checksum.
            frame[l4 + 7] = 1;
        }
        checksum::fill(&mut frame);
        if let Some(len) = self.cut {
            frame.truncate(len);
        }
        frame
    }

    fn write_v4(&self, frame: &mut Vec<u8>, src: Ipv4Addr, dst: Ipv4Addr) {
        let header_len = 20 + self.options.len();
        let total = (header_len + self.transport.len() + self.payload.len()) as u16;
        let fragment = self.fragment.unwrap_or(FragmentPosition { offset: 0, more: false, id: 0 });
        let flags = (u16::from(fragment.more) << 13) | (fragment.offset & 0x1fff);
        frame.extend([0x08, 0x00, 0x40 | (header_len / 4) as u8, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend((fragment.id as u16).to_be_bytes());
        frame.extend(flags.to_be_bytes());
        frame.extend([self.ttl, self.protocol, 0, 0]);
        frame.extend(src.octets());
        frame.extend(dst.octets());
        frame.extend(&self.options);
    }

    fn write_v6(&self, frame: &mut Vec<u8>, src: Ipv6Addr, dst: Ipv6Addr) {
        let mut headers: Vec<(u8, Vec<u8>)> =
            self.extensions.iter().map(|(kind, body)| (*kind, extension_header(*kind, body))).collect();
        if let Some(f) = self.fragment {
            let word = (f.offset << 3) | u16::from(f.more);
            let mut header = vec![0, 0];
            header.extend(word.to_be_bytes());
            header.extend(f.id.to_be_bytes());
            headers.push((extension::FRAGMENT, header));
        }
        let chain: usize = headers.iter().map(|(_, header)| header.len()).sum();
        let len = (chain + self.transport.len() + self.payload.len()) as u16;
        let following: Vec<u8> = headers.iter().map(|(kind, _)| *kind).chain([self.protocol]).collect();
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(len.to_be_bytes());
        frame.extend([following[0], self.ttl]);
        frame.extend(src.octets());
        frame.extend(dst.octets());
        for ((_, mut header), next) in headers.into_iter().zip(following.into_iter().skip(1)) {
            header[0] = next;
            frame.extend(header);
        }
    }
}

/// Next header left zero, length in the unit of its kind.
fn extension_header(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut header = vec![0, 0];
    header.extend(body);
    match kind {
        extension::FRAGMENT => header.resize(8, 0),
        extension::AUTHENTICATION => {
            header.resize(header.len().next_multiple_of(8).max(16), 0);
            header[1] = (header.len() / 4 - 2) as u8;
        }
        _ => {
            header.resize(header.len().next_multiple_of(8), 0);
            header[1] = (header.len() / 8 - 1) as u8;
        }
    }
    header
}

#[cfg(test)]
mod tests;
