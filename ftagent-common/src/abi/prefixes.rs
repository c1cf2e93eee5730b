//! Large sets of IPv4 prefixes in one array: the layout, and the look-up that kernel and user space share.
//!
//! The kernel's trie takes a step for every prefix length in use: with a million prefixes over a microsecond. Here a miss
//! reads one cell, a hit two or three, whatever the number of prefixes:
//!
//! ```text
//! cell 0                 level 1: for each 64 consecutive /24s (address >> 14)
//!                          word 0: bit n = the n-th /24 has a descriptor
//!                          word 1: low half = index of the first of these descriptors, counted in 32-bit words of
//!                                  the array; bits 32..48 = cover, the value of every /24 here without descriptor
//! cell LEVEL1_CELLS      descriptors: 32 bits each, four in a cell, in the order of the /24s
//! after them             leaves: what a descriptor cannot say
//! ```
//!
//! A descriptor's two highest bits say what it is:
//!
//! ```text
//! DIRECT    value << 0                                         the whole /24
//! LONE      value << 0 | octet << 16 | (length - 25) << 24     one prefix inside; the cover around it
//! QUARTERS  first cell of four, one for each 64 addresses      word 0: a bit for each address
//!                                                              word 1: bits 0..16 = value where the bit is 1,
//!                                                                      bits 16..32 = value where it is 0
//! EACH      first cell of 32, eight addresses in a cell        16 bits for each address
//! ```
//!
//! A value is [`NONE`] or a rule slot plus one. There is no header: a table is made once, checked against the prefixes it
//! was made of, and never changed while a packet can meet it. A cell beyond the end of the array reads as a miss, so an
//! array of one cell is an empty set.

use super::map_type;

/// An element of the array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cell(pub [u64; 2]);

map_type!(Cell = 16);

/// No prefix contains the address.
pub const NONE: u16 = 0;

/// Cells of level 1: one for each /18.
pub const LEVEL1_CELLS: u32 = 1 << 18;

/// Cells of a [`tag::QUARTERS`] leaf.
pub const QUARTERS_CELLS: u32 = 4;

/// Cells of a [`tag::EACH`] leaf.
pub const EACH_CELLS: u32 = 32;

/// The most cells that an array can have: a leaf's index has 30 bits.
pub const MAX_CELLS: u32 = 1 << 30;

/// What a descriptor is, in its two highest bits.
pub mod tag {
    pub const DIRECT: u32 = 0;
    pub const LONE: u32 = 1;
    pub const QUARTERS: u32 = 2;
    pub const EACH: u32 = 3;
    /// How far the tag is shifted.
    pub const SHIFT: u32 = 30;
}

/// The value of the longest prefix that contains `address` (host byte order), or [`NONE`].
///
/// `cells` reads one element of the array; beyond the end of the array it must answer `None`.
#[inline(always)]
pub fn lookup(cells: impl Fn(u32) -> Option<[u64; 2]>, address: u32) -> u16 {
    let Some([bits, word]) = cells(address >> 14) else { return NONE };
    let cover = (word >> 32) as u16;
    let bit = (address >> 8) & 63;
    if bits.wrapping_shr(bit) & 1 == 0 {
        return cover;
    }
    let below = bits & !u64::MAX.wrapping_shl(bit);
    let index = (word as u32).wrapping_add(ones(below));
    let Some(four) = cells(index >> 2) else { return NONE };
    let descriptor = (pick(four, index >> 1)).wrapping_shr((index & 1) << 5) as u32;
    let octet = address & 255;
    match descriptor >> tag::SHIFT {
        tag::DIRECT => descriptor as u16,
        tag::LONE => {
            let differ = (octet ^ (descriptor >> 16)) & 255;
            let host_bits = 7 - (descriptor.wrapping_shr(24) & 7);
            if differ.wrapping_shr(host_bits) == 0 { descriptor as u16 } else { cover }
        }
        tag::QUARTERS => {
            let Some([bits, values]) = cells((descriptor & (MAX_CELLS - 1)).wrapping_add(octet >> 6)) else {
                return NONE;
            };
            let is_rest = !bits.wrapping_shr(octet & 63) & 1;
            values.wrapping_shr((is_rest as u32) << 4) as u16
        }
        _ => {
            let Some(eight) = cells((descriptor & (MAX_CELLS - 1)).wrapping_add(octet >> 3)) else { return NONE };
            pick(eight, octet >> 2).wrapping_shr((octet & 3) << 4) as u16
        }
    }
}

/// The word of a cell that the lowest bit of `which` names, without a branch: which one it is cannot be predicted.
#[inline(always)]
fn pick(cell: [u64; 2], which: u32) -> u64 {
    let mask = 0u64.wrapping_sub(u64::from(which & 1));
    cell[0] ^ ((cell[0] ^ cell[1]) & mask)
}

/// How many bits are 1. BPF has no instruction for it, and a loop would cost more than the look-up.
#[inline(always)]
fn ones(bits: u64) -> u32 {
    const PAIRS: u64 = 0x5555_5555_5555_5555;
    const NIBBLES: u64 = 0x3333_3333_3333_3333;
    const BYTES: u64 = 0x0f0f_0f0f_0f0f_0f0f;
    const SUM: u64 = 0x0101_0101_0101_0101;
    let pairs = bits.wrapping_sub((bits >> 1) & PAIRS);
    let nibbles = (pairs & NIBBLES).wrapping_add((pairs >> 2) & NIBBLES);
    let bytes = nibbles.wrapping_add(nibbles >> 4) & BYTES;
    (bytes.wrapping_mul(SUM) >> 56) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A level-1 cell for the /18 of address 0 with these /24s described from word `base` on, and what follows it.
    fn read(bits: u64, base: u32, cover: u16, rest: &[(u32, [u64; 2])], address: u32) -> u16 {
        let cells = |index: u32| {
            if index == 0 {
                return Some([bits, u64::from(base) | u64::from(cover) << 32]);
            }
            rest.iter().find(|(at, _)| *at == index).map(|(_, cell)| *cell)
        };
        lookup(cells, address)
    }

    #[test]
    fn ones_are_counted_as_the_processor_counts_them() {
        let mut bits = 1u64;
        for _ in 0..10_000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            assert_eq!(ones(bits), bits.count_ones());
        }
        assert_eq!((ones(0), ones(u64::MAX), ones(1 << 63)), (0, 64, 1));
    }

    #[test]
    fn a_24_without_descriptor_has_the_cover() {
        assert_eq!(read(0, 0, 7, &[], 0x0000_0105), 7);
        assert_eq!(read(0, 0, NONE, &[], 0x0000_0105), NONE);
    }

    #[test]
    fn descriptors_are_found_by_rank() {
        // /24s 1, 5 and 63 have descriptors at words 40, 41 and 42: cell 10.
        let four = [u64::from(0x11u32) | 0x12 << 32, 0x13];
        let bits = 1 << 1 | 1 << 5 | 1 << 63;
        for (third, value) in [(0, 9), (1, 0x11), (5, 0x12), (63, 0x13), (62, 9)] {
            assert_eq!(read(bits, 40, 9, &[(10, four)], third << 8 | 77), value, "the /24 {third}");
        }
    }

    #[test]
    fn a_lone_prefix_matches_its_own_addresses_alone() {
        for length in 25..=32u32 {
            let descriptor = tag::LONE << tag::SHIFT | (length - 25) << 24 | 0xc0 << 16 | 5;
            let size = 1 << (32 - length);
            let first = 0xc0 & !(size - 1);
            for octet in 0..256 {
                let expected = if octet >= first && octet < first + size { 5 } else { 9 };
                let four = [u64::from(descriptor), 0];
                assert_eq!(read(1, 400, 9, &[(100, four)], octet), expected, "/{length}, octet {octet}");
            }
        }
    }

    #[test]
    fn leaves_tell_addresses_apart() {
        let quarters = [u64::from(tag::QUARTERS << tag::SHIFT | 200), 0];
        let cell = [1 << 3, 6 | 8 << 16];
        assert_eq!(read(1, 400, 9, &[(100, quarters), (202, cell)], 128 + 3), 6);
        assert_eq!(read(1, 400, 9, &[(100, quarters), (202, cell)], 128 + 4), 8);
        let each = [u64::from(tag::EACH << tag::SHIFT | 200), 0];
        let cell = [0x0004_0003_0002_0001, 0x0008_0007_0006_0005];
        for (octet, value) in (16..24).zip(1..=8) {
            assert_eq!(read(1, 400, 9, &[(100, each), (202, cell)], octet), value);
        }
    }

    #[test]
    fn what_lies_beyond_the_array_is_a_miss() {
        assert_eq!(lookup(|_| None, 1), NONE);
        assert_eq!(read(1, 400, 9, &[], 0), NONE);
        let leaf = [u64::from(tag::QUARTERS << tag::SHIFT | 200), 0];
        assert_eq!(read(1, 400, 9, &[(100, leaf)], 0), NONE);
    }
}
