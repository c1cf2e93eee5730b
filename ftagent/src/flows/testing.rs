//! Datagrams for tests, built byte by byte.

use std::net::Ipv4Addr;

/// xorshift: the same numbers on every run.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
}

/// The first 128 bytes of a UDP frame with `payload` bytes, beginning as a DNS answer does.
pub(super) fn ethernet_udp(src: [u8; 4], dst: [u8; 4], src_port: u16, dst_port: u16, payload: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    frame.extend((28 + payload).to_be_bytes());
    frame.extend([0, 1, 0, 0, 57, 17, 0, 0]);
    frame.extend(src);
    frame.extend(dst);
    frame.extend(src_port.to_be_bytes());
    frame.extend(dst_port.to_be_bytes());
    frame.extend((8 + payload).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend([0x12, 0x34, 0x81, 0x80, 0, 1, 0, 30, 0, 0, 0, 1, 3, b'x']);
    frame.resize(128, b'y');
    frame.truncate(42 + usize::from(payload));
    frame
}

/// The first bytes of a TCP frame without payload.
pub(super) fn ethernet_tcp(src: [u8; 4], dst: [u8; 4], ports: (u16, u16), flags: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 40, 0, 1, 0, 0, 57, 6, 0, 0];
    frame.extend(src);
    frame.extend(dst);
    frame.extend(ports.0.to_be_bytes());
    frame.extend(ports.1.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_be_bytes()).collect()
}

/// A compact flow sample with a raw header, with its format and length.
pub(super) fn sflow_sample(one_in: u32, input: u32, output: u32, header: &[u8], frame_len: u32) -> Vec<u8> {
    let mut record = words(&[1, frame_len, 4, header.len() as u32]);
    record.extend(header);
    record.resize(record.len().next_multiple_of(4), 0);
    let mut body = words(&[1, input, one_in, 0, 0, input, output, 1, 1, record.len() as u32]);
    body.extend(record);
    let mut sample = words(&[1, body.len() as u32]);
    sample.extend(body);
    sample
}

/// A datagram with samples that have their formats and lengths.
pub(super) fn sflow(sequence: u32, samples: &[Vec<u8>]) -> Vec<u8> {
    let mut datagram = words(&[5, 1]);
    datagram.extend([192, 0, 2, 1]);
    datagram.extend(words(&[0, sequence, 1_000, samples.len() as u32]));
    samples.iter().for_each(|sample| datagram.extend(sample));
    datagram
}

/// One flow as tests want it exported.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exported {
    pub(super) src: Ipv4Addr,
    pub(super) dst: Ipv4Addr,
    pub(super) ports: (u16, u16),
    pub(super) protocol: u8,
    pub(super) flags: u8,
    pub(super) packets: u32,
    pub(super) bytes: u32,
    /// Milliseconds since boot.
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) input: u16,
}

impl Exported {
    pub(super) fn new(src: [u8; 4], dst: [u8; 4], protocol: u8) -> Self {
        Self {
            src: src.into(),
            dst: dst.into(),
            ports: (40_000, 443),
            protocol,
            flags: 0,
            packets: 1,
            bytes: 60,
            first: 500_000,
            last: 500_000,
            input: 7,
        }
    }
}

/// NetFlow v5; `sampling` is the header's field, mode and interval.
pub(super) fn netflow5(sequence: u32, sampling: u16, unix_secs: u32, flows: &[Exported]) -> Vec<u8> {
    let mut datagram = vec![0, 5];
    datagram.extend((flows.len() as u16).to_be_bytes());
    datagram.extend(words(&[500_000, unix_secs, 0, sequence]));
    datagram.extend([0, 0]);
    datagram.extend(sampling.to_be_bytes());
    for flow in flows {
        datagram.extend(flow.src.octets());
        datagram.extend(flow.dst.octets());
        datagram.extend([0; 4]);
        datagram.extend(flow.input.to_be_bytes());
        datagram.extend([0, 9]);
        datagram.extend(words(&[flow.packets, flow.bytes, flow.first, flow.last]));
        datagram.extend(flow.ports.0.to_be_bytes());
        datagram.extend(flow.ports.1.to_be_bytes());
        datagram.extend([0, flow.flags, flow.protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    datagram
}

/// `(number, bytes)` of the fields of [`record`].
pub(super) const TEMPLATE: &[(u16, u16)] =
    &[(8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (6, 1), (2, 4), (1, 4), (22, 4), (21, 4), (10, 2)];

/// A record of [`TEMPLATE`].
pub(super) fn record(flow: &Exported) -> Vec<u8> {
    let mut record = Vec::new();
    record.extend(flow.src.octets());
    record.extend(flow.dst.octets());
    record.extend(flow.ports.0.to_be_bytes());
    record.extend(flow.ports.1.to_be_bytes());
    record.extend([flow.protocol, flow.flags]);
    record.extend(words(&[flow.packets, flow.bytes, flow.first, flow.last]));
    record.extend(flow.input.to_be_bytes());
    record
}

/// A set: its id and what is in it, padded.
pub(super) fn set(id: u16, body: &[u8]) -> Vec<u8> {
    let len = 4 + body.len().next_multiple_of(4);
    let mut set = Vec::with_capacity(len);
    set.extend(id.to_be_bytes());
    set.extend((len as u16).to_be_bytes());
    set.extend(body);
    set.resize(len, 0);
    set
}

/// A template; the same in both versions where nobody's own elements are used.
pub(super) fn template(id: u16, fields: &[(u16, u16)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend((fields.len() as u16).to_be_bytes());
    for (number, len) in fields {
        body.extend(number.to_be_bytes());
        body.extend(len.to_be_bytes());
    }
    body
}

/// A template of options with one scope field (the whole system), in NetFlow v9's way.
pub(super) fn options9(id: u16, fields: &[(u16, u16)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend(4u16.to_be_bytes());
    body.extend((fields.len() as u16 * 4).to_be_bytes());
    for (number, len) in [(1, 4)].iter().chain(fields) {
        body.extend(u16::to_be_bytes(*number));
        body.extend(u16::to_be_bytes(*len));
    }
    body
}

/// The same in IPFIX's way, with the observation domain as its scope.
pub(super) fn options10(id: u16, fields: &[(u16, u16)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend((fields.len() as u16 + 1).to_be_bytes());
    body.extend(1u16.to_be_bytes());
    for (number, len) in [(149, 4)].iter().chain(fields) {
        body.extend(u16::to_be_bytes(*number));
        body.extend(u16::to_be_bytes(*len));
    }
    body
}

pub(super) fn netflow9(sequence: u32, unix_secs: u32, sets: &[Vec<u8>]) -> Vec<u8> {
    let mut datagram = vec![0, 9];
    datagram.extend((sets.len() as u16).to_be_bytes());
    datagram.extend(words(&[500_000, unix_secs, sequence, 3]));
    sets.iter().for_each(|set| datagram.extend(set));
    datagram
}

pub(super) fn ipfix(sequence: u32, unix_secs: u32, sets: &[Vec<u8>]) -> Vec<u8> {
    let len: usize = sets.iter().map(Vec::len).sum();
    let mut datagram = vec![0, 10];
    datagram.extend((16 + len as u16).to_be_bytes());
    datagram.extend(words(&[unix_secs, sequence, 3]));
    sets.iter().for_each(|set| datagram.extend(set));
    datagram
}
