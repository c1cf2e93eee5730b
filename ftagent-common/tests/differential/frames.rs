//! Frames with a structure: tags, both network headers with options and chains, fragments, transports and tunnels,
//! right most of the time. [`super::mutate`] bends them.

use super::random::Random;

/// A frame, and the places in it that decide how the rest is read.
#[derive(Default)]
pub(crate) struct Built {
    pub(crate) bytes: Vec<u8>,
    /// Offset and width (1 or 2 bytes) of types, lengths, offsets and flags.
    pub(crate) knobs: Vec<(usize, usize)>,
}

impl Built {
    /// Builds another frame in the same memory.
    pub(crate) fn again(&mut self, random: &mut Random) {
        self.bytes.clear();
        self.knobs.clear();
        self.bytes.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        let tags = random.pick(&[0, 0, 0, 0, 1, 1, 2, 2, 3]);
        for _ in 0..tags {
            let kind = random.pick(&[0x8100u16, 0x88a8, 0x9100]);
            self.knob(kind);
            self.bytes.extend([random.byte(), random.byte()]);
        }
        if random.one_in(40) {
            self.knob(random.pick(&[0x0806, 0x8847, 0x8863, 0x88cc, 0x05dc, 0x0026, 0x0801, 0x86dc]));
            self.junk(random, 60);
        } else if random.one_in(2) {
            self.knob(0x0800);
            self.ipv4(random, 0);
        } else {
            self.knob(0x86dd);
            self.ipv6(random, 0);
        }
        if random.one_in(4) {
            self.junk(random, 46);
        }
    }

    /// Writes a number that decides something.
    fn knob(&mut self, value: u16) {
        self.knobs.push((self.bytes.len(), 2));
        self.bytes.extend(value.to_be_bytes());
    }

    fn knob8(&mut self, value: u8) {
        self.knobs.push((self.bytes.len(), 1));
        self.bytes.push(value);
    }

    fn junk(&mut self, random: &mut Random, most: usize) {
        for _ in 0..random.below(most + 1) {
            self.bytes.push(random.byte());
        }
    }

    fn put16(&mut self, at: usize, value: usize) {
        self.bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
    }

    /// A length that is right, or near, or at an edge.
    fn length(&mut self, random: &mut Random, at: usize, right: usize) {
        let value = match random.below(24) {
            0 => right.wrapping_sub(1 + random.below(8)),
            1 => right + 1 + random.below(8),
            2 => random.pick(&[0, 1, 4, 7, 8, 19, 20, 40, 1_500, 0x7fff, 0x8000, 0xfffe, 0xffff]),
            _ => right,
        };
        self.put16(at, value);
    }

    fn ipv4(&mut self, random: &mut Random, depth: u32) {
        let begins = self.bytes.len();
        let words = if random.one_in(4) { random.below(11) } else { 0 };
        self.knob8(0x45 + words as u8);
        self.bytes.push(random.byte());
        self.knob(0);
        self.bytes.extend([0, 7]);
        let offset = random.pick(&[0, 0, 0, 0, 1, 2, 3, 185, 0x1fff]);
        self.knob(random.pick(&[0x0000, 0x4000, 0x4000, 0x2000]) | if random.one_in(4) { offset } else { 0 });
        self.bytes.push(random.byte());
        let protocol = protocol(random);
        self.knob8(protocol);
        self.bytes.extend([0, 0]);
        let addresses = self.bytes.len();
        for _ in 0..2 {
            let among = if random.one_in(8) { &ADDRESSES4[..] } else { &ADDRESSES4[..10] };
            self.bytes.extend(random.pick(among));
        }
        if random.one_in(32) {
            self.bytes.copy_within(addresses..addresses + 4, addresses + 4);
        }
        for _ in 0..words * 4 {
            self.bytes.push(random.byte());
        }
        self.content(random, protocol, depth);
        let total = self.bytes.len() - begins;
        self.length(random, begins + 2, total);
    }

    fn ipv6(&mut self, random: &mut Random, depth: u32) {
        let begins = self.bytes.len();
        self.knob8(0x60 | random.byte() & 0x0f);
        self.bytes.extend([random.byte(), 0, 0]);
        self.knob(0);
        let protocol = protocol(random);
        let headers = random.pick(&[0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 5, 7, 8, 8, 9, 10]);
        let kinds: [u8; 10] = std::array::from_fn(|_| random.pick(&CHAIN));
        let kinds = &kinds[..headers];
        self.knob8(kinds.first().copied().unwrap_or(protocol));
        self.bytes.push(random.byte());
        let addresses = self.bytes.len();
        for _ in 0..2 {
            let mut address = if random.one_in(8) { random.pick(&ADDRESSES6) } else { DOCUMENTATION };
            if address[0] == 0x20 {
                address[15] = random.byte();
            }
            self.bytes.extend(address);
        }
        if random.one_in(32) {
            self.bytes.copy_within(addresses..addresses + 16, addresses + 16);
        }
        for (place, kind) in kinds.iter().enumerate() {
            self.knob8(kinds.get(place + 1).copied().unwrap_or(protocol));
            self.extension(random, *kind);
        }
        self.content(random, protocol, depth);
        let payload = self.bytes.len() - begins - 40;
        self.length(random, begins + 4, payload);
    }

    /// All of an extension header but its first byte.
    fn extension(&mut self, random: &mut Random, kind: u8) {
        if kind == 44 {
            self.bytes.push(random.byte());
            let offset = random.pick(&[0, 0, 0, 1, 2, 185, 0x1fff]) << 3;
            let flags = random.pick(&[0, 0, 1, 6]);
            self.knob(offset | flags);
            self.bytes.extend([0, 0, 0, 9]);
            return;
        }
        let units = if random.one_in(64) { random.below(256) } else { random.pick(&[0, 0, 0, 1, 2, 4]) };
        self.knob8(units as u8);
        let own = if kind == 51 { 8 + units * 4 } else { 8 + units * 8 };
        self.bytes.resize(self.bytes.len() + own - 2, random.byte());
    }

    fn content(&mut self, random: &mut Random, protocol: u8, depth: u32) {
        match protocol {
            6 => self.tcp(random),
            17 => self.udp(random),
            1 | 58 => {
                self.bytes.extend([random.pick(&[0, 3, 8, 128, 133, 135, 136]), random.byte(), 0, 0]);
                self.junk(random, 12);
            }
            4 if depth < 3 => self.ipv4(random, depth + 1),
            41 if depth < 3 => self.ipv6(random, depth + 1),
            47 => self.gre(random, depth),
            _ => self.junk(random, 40),
        }
    }

    fn ports(&mut self, random: &mut Random) {
        for _ in 0..2 {
            self.knob(random.pick(&[0, 53, 80, 123, 138, 443, 1_900, 4_444, 11_211, 37_810, 65_535]));
        }
    }

    fn tcp(&mut self, random: &mut Random) {
        self.ports(random);
        self.bytes.extend([0, 0, 0, 1, 0, 0, 0, 2]);
        let words = random.pick(&[5, 5, 5, 5, 6, 8, 15]);
        self.knob8(words << 4 | random.byte() & 0x0f);
        self.knob8(random.pick(&[0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, 0x01, 0x29, 0x00, 0x03, 0x06, 0xc2, 0x3f]));
        self.bytes.extend([0xff, 0xff, 0, 0, 0, 0]);
        for _ in 0..(words - 5) * 4 {
            self.bytes.push(1);
        }
        self.junk(random, 24);
    }

    fn udp(&mut self, random: &mut Random) {
        let begins = self.bytes.len();
        self.ports(random);
        self.knob(0);
        self.bytes.extend([0, 0]);
        self.junk(random, 24);
        let right = self.bytes.len() - begins;
        self.length(random, begins + 4, right);
    }

    fn gre(&mut self, random: &mut Random, depth: u32) {
        let flags = random.byte() & 0b1011_0000 | if random.one_in(8) { random.byte() } else { 0 };
        self.knob8(flags);
        self.knob8(if random.one_in(8) { random.byte() } else { 0 });
        let inside = if depth < 3 { random.pick(&[0x0800u16, 0x0800, 0x86dd, 0x86dd, 0x6558, 0x880b]) } else { 0x6558 };
        self.knob(inside);
        for _ in 0..(flags & 0b1011_0000).count_ones() {
            self.bytes.extend([random.byte(), 0, 0, random.byte()]);
        }
        match inside {
            0x0800 => self.ipv4(random, depth + 1),
            0x86dd => self.ipv6(random, depth + 1),
            _ => self.junk(random, 40),
        }
    }
}

fn protocol(random: &mut Random) -> u8 {
    if random.one_in(32) { random.byte() } else { random.pick(&[6, 6, 6, 17, 17, 17, 1, 58, 47, 47, 4, 41, 50, 59]) }
}

/// Extension headers and what looks like one.
const CHAIN: [u8; 11] = [0, 43, 44, 44, 51, 60, 60, 135, 139, 140, 0];

const ADDRESSES4: [[u8; 4]; 16] = [
    [192, 0, 2, 1],
    [198, 51, 100, 7],
    [203, 0, 113, 9],
    [10, 0, 0, 1],
    [100, 64, 1, 1],
    [169, 254, 3, 4],
    [172, 16, 0, 9],
    [8, 8, 8, 8],
    [223, 255, 255, 255],
    [1, 0, 0, 0],
    [0, 0, 0, 0],
    [0, 1, 2, 3],
    [127, 0, 0, 1],
    [224, 0, 0, 1],
    [240, 0, 0, 1],
    [255, 255, 255, 255],
];

const DOCUMENTATION: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1];
const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0xff, 0xfe, 0, 0, 1];
const UNSPECIFIED: [u8; 16] = [0; 16];
const LOOPBACK: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const GROUP: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 1];
const MAPPED: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1];
/// An IPv4-compatible address (RFC 4291 section 2.5.5.1, withdrawn).
const COMPATIBLE: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1];

const ADDRESSES6: [[u8; 16]; 6] = [LINK_LOCAL, UNSPECIFIED, LOOPBACK, GROUP, MAPPED, COMPATIBLE];
