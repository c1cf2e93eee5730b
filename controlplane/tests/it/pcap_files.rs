//! Captures that tests make: always there, small, and of every kind that the reader knows.

/// A frame of UDP over IPv4 with an Ethernet header.
pub(crate) fn udp(src: [u8; 4], src_port: u16, dst: [u8; 4], dst_port: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len() + 8).unwrap();
    let ports = [src_port.to_be_bytes(), dst_port.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
    ipv4(src, dst, 17, &[&ports, payload].concat())
}

/// A frame of TCP over IPv4.
pub(crate) fn tcp(src: [u8; 4], src_port: u16, dst: [u8; 4], dst_port: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = [src_port.to_be_bytes(), dst_port.to_be_bytes()].concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    ipv4(src, dst, 6, &[&header, payload].concat())
}

/// A frame of IPv4 with an Ethernet header.
pub(crate) fn ipv4(src: [u8; 4], dst: [u8; 4], protocol: u8, rest: &[u8]) -> Vec<u8> {
    let len = u16::try_from(rest.len() + 20).unwrap().to_be_bytes();
    let mut frame =
        vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, len[0], len[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    frame.extend(src);
    frame.extend(dst);
    frame.extend(rest);
    frame
}

/// How numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Big,
    Little,
}

impl Order {
    fn u16(self, n: u16) -> [u8; 2] {
        if self == Self::Big { n.to_be_bytes() } else { n.to_le_bytes() }
    }

    fn u32(self, n: u32) -> [u8; 4] {
        if self == Self::Big { n.to_be_bytes() } else { n.to_le_bytes() }
    }
}

/// A classic file; times are ticks since 1970, in nanoseconds or microseconds.
pub(crate) fn pcap(order: Order, nanos: bool, link: u32, frames: &[(u64, &[u8])]) -> Vec<u8> {
    let per_second = if nanos { 1_000_000_000 } else { 1_000_000 };
    let mut file = order.u32(if nanos { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }).to_vec();
    file.extend([order.u16(2), order.u16(4)].concat());
    file.extend([0; 8]);
    file.extend([order.u32(65_535), order.u32(link)].concat());
    for (ticks, frame) in frames {
        let len = order.u32(u32::try_from(frame.len()).unwrap());
        let secs = order.u32(u32::try_from(ticks / per_second).unwrap());
        let rest = order.u32(u32::try_from(ticks % per_second).unwrap());
        file.extend([secs, rest, len, len].concat());
        file.extend(*frame);
    }
    file
}

/// A pcapng file under construction.
pub(crate) struct Blocks {
    pub(crate) bytes: Vec<u8>,
    order: Order,
}

impl Blocks {
    pub(crate) fn new(order: Order) -> Self {
        let mut blocks = Self { bytes: Vec::new(), order };
        blocks.section(order);
        blocks
    }

    /// Any block.
    pub(crate) fn block(&mut self, kind: u32, body: &[u8]) {
        let padded = body.len().next_multiple_of(4);
        let len = self.order.u32(u32::try_from(padded + 12).unwrap());
        self.bytes.extend(self.order.u32(kind));
        self.bytes.extend(len);
        self.bytes.extend(body);
        self.bytes.resize(self.bytes.len() + padded - body.len(), 0);
        self.bytes.extend(len);
    }

    pub(crate) fn section(&mut self, order: Order) {
        self.order = order;
        let body = [&order.u32(0x1a2b_3c4d)[..], &order.u16(1), &order.u16(0), &[0xff; 8]].concat();
        self.block(0x0a0d_0d0a, &body);
    }

    /// An interface with its `if_tsresol`.
    pub(crate) fn interface(&mut self, link: u16, resolution: u8) {
        let options = [&self.order.u16(9)[..], &self.order.u16(1), &[resolution, 0, 0, 0], &[0; 4]].concat();
        let body = [&self.order.u16(link)[..], &[0, 0], &self.order.u32(0), &options].concat();
        self.block(1, &body);
    }

    /// A packet with options of a code and a value.
    pub(crate) fn packet(
        &mut self,
        interface: u32,
        ticks: u64,
        wire_len: usize,
        frame: &[u8],
        options: &[(u16, &[u8])],
    ) {
        let order = self.order;
        let mut body = Vec::new();
        for word in [interface, (ticks >> 32) as u32, ticks as u32, frame.len() as u32, wire_len as u32] {
            body.extend(order.u32(word));
        }
        body.extend(frame);
        body.resize(body.len().next_multiple_of(4), 0);
        for (code, value) in options {
            body.extend([order.u16(*code), order.u16(u16::try_from(value.len()).unwrap())].concat());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        if !options.is_empty() {
            body.extend([0; 4]);
        }
        self.block(6, &body);
    }
}

/// Reflected DNS answers as the agent writes them: `dropped` of `packets` samples were, each 1 in 4.
pub(crate) fn as_the_agent_writes(packets: u32, dropped: u32) -> Vec<u8> {
    let mut blocks = Blocks::new(Order::Little);
    blocks.interface(1, 9);
    let answer = [&b"\x12\x34\x81\x80\0\x01\0\x20\0\0\0\x01"[..], &[7; 88]].concat();
    for n in 0..packets {
        let [_, _, c, d] = n.to_be_bytes();
        let frame = udp([198, 51, c, d], 53, [203, 0, 113, 5], 40_000 + (n % 1_000) as u16, &answer);
        let words: &[u8] = if n < dropped { b"drop: target_rule rule 7, 1 in 4" } else { b"pass: clean, 1 in 4" };
        let verdict = [&[2, if n < dropped { 1 } else { 2 }][..], &[0; 7]].concat();
        let time = 1_700_000_000_000_000_000 + u64::from(n) * 1_000_000;
        blocks.packet(0, time, 1_400, &frame, &[(1, words), (2, &[1, 0, 0, 0]), (7, &verdict)]);
    }
    blocks.bytes
}
