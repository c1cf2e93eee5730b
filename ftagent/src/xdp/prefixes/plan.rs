//! From prefixes to the array that the kernel looks them up in.
//!
//! The prefixes become disjoint ranges first, each with the value of its longest match. Two walks over the ranges make the
//! array: one counts its cells, so that the kernel's map has the right size, the other writes them.

use std::ops::RangeInclusive;

use ftagent_common::abi::prefixes::{Cell, EACH_CELLS, LEVEL1_CELLS, MAX_CELLS, NONE, QUARTERS_CELLS, lookup, tag};
use ipnet::Ipv4Net;

/// A set of prefixes, ready to be written.
#[derive(Clone, Debug)]
pub struct Plan {
    ranges: Vec<Range>,
    /// Words that descriptors take.
    descriptors: u32,
    cells: u32,
}

/// From `start` up to the next range every address has `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u32,
    value: u16,
}

/// What a value hides, the weightiest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// It does something, and has no end.
    Lasting,
    /// It does something until the kernel finds that its time is over.
    Ending,
    /// It does nothing.
    Idle,
}

/// Why a set cannot become an array.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("{prefixes} prefixes need a table of {bytes} bytes, and the limit is {limit}")]
    TooLarge { prefixes: usize, bytes: u64, limit: u64 },
}

/// The array says something else than the prefixes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the table has {found} for {address} where the prefixes have {expected}")]
pub struct Mismatch {
    pub address: std::net::Ipv4Addr,
    pub expected: u16,
    pub found: u16,
}

impl Plan {
    /// Plans the array of `prefixes`, each with its value: a rule slot plus one, or [`NONE`] for a hole in the prefixes
    /// around it. The longest prefix holds; of equal prefixes the one with the smallest value. Host bits are ignored.
    ///
    /// # Errors
    /// When the array would take more than `max_bytes`.
    pub fn new(prefixes: impl IntoIterator<Item = (Ipv4Net, u16)>, max_bytes: u64) -> Result<Self, PlanError> {
        Self::with_idle(prefixes, |_| false, max_bytes)
    }

    /// As [`Self::new`], where values that `is_idle` says do nothing: they hide no other value that holds for an address.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_idle(
        prefixes: impl IntoIterator<Item = (Ipv4Net, u16)>,
        is_idle: impl Fn(u16) -> bool,
        max_bytes: u64,
    ) -> Result<Self, PlanError> {
        let weight = |value| if is_idle(value) { Weight::Idle } else { Weight::Lasting };
        Self::with_weights(prefixes, weight, max_bytes)
    }

    /// As [`Self::new`], where a value hides no weightier one that holds for an address, whatever their lengths.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_weights(
        prefixes: impl IntoIterator<Item = (Ipv4Net, u16)>,
        weight: impl Fn(u16) -> Weight,
        max_bytes: u64,
    ) -> Result<Self, PlanError> {
        let mut sorted: Vec<u64> =
            prefixes.into_iter().map(|(prefix, value)| pack(prefix, weight(value), value)).collect();
        sorted.sort_unstable();
        let ranges = ranges(&sorted);
        let mut size = Size::default();
        walk(&ranges, &mut size);
        let cells = if ranges.iter().all(|r| r.value == NONE) {
            1
        } else {
            u64::from(leaves_at(size.descriptors)) + size.leaf_cells
        };
        let bytes = cells * size_of::<Cell>() as u64;
        let limit = max_bytes.min(u64::from(MAX_CELLS) * size_of::<Cell>() as u64);
        match u32::try_from(cells) {
            Ok(cells) if bytes <= limit => Ok(Self { ranges, descriptors: size.descriptors, cells }),
            _ => Err(PlanError::TooLarge { prefixes: sorted.len(), bytes, limit }),
        }
    }

    /// Elements of the array; 1 for an empty set.
    pub fn cells(&self) -> u32 {
        self.cells
    }

    /// Bytes of the array.
    pub fn bytes(&self) -> u64 {
        u64::from(self.cells) * size_of::<Cell>() as u64
    }

    /// No address has a value.
    pub fn is_empty(&self) -> bool {
        self.cells == 1
    }

    /// Writes the array into `cells`, which must be zero.
    ///
    /// # Panics
    /// When `cells` has not [`Self::cells`] elements.
    pub fn write(&self, cells: &mut [Cell]) {
        assert_eq!(cells.len(), self.cells as usize, "an array of the planned size");
        if self.is_empty() {
            return;
        }
        let first_word = LEVEL1_CELLS * 4;
        walk(&self.ranges, &mut Writer { cells, word: first_word, leaf: leaves_at(self.descriptors) });
    }

    /// Looks the first and the last address of every range up in the array: together with the order of the ranges that
    /// is every place where the answer changes.
    ///
    /// # Errors
    /// The first address with another value than the prefixes have for it.
    pub fn check(&self, cells: &[Cell]) -> Result<(), Mismatch> {
        let read = |index: u32| cells.get(index as usize).map(|cell| cell.0);
        for index in 0..self.ranges.len() {
            let expected = self.ranges[index].value;
            for address in [self.ranges[index].start, last_of(&self.ranges, index)] {
                let found = lookup(read, address);
                if found != expected {
                    return Err(Mismatch { address: address.into(), expected, found });
                }
            }
        }
        Ok(())
    }
}

/// The cell where leaves begin: at a multiple of four cells, so that a leaf of quarters is one cache line.
fn leaves_at(descriptors: u32) -> u32 {
    LEVEL1_CELLS + descriptors.div_ceil(16) * 4
}

/// Where the length of a prefix lies in its word.
const LEN_SHIFT: u32 = 18;
/// Where its weight does, in two bits.
const WEIGHT_SHIFT: u32 = 16;

/// A prefix and its value as one word that sorts by network, then length, then weight, then value.
fn pack(prefix: Ipv4Net, weight: Weight, value: u16) -> u64 {
    let weight = (weight as u64) << WEIGHT_SHIFT;
    let length = u64::from(prefix.prefix_len()) << LEN_SHIFT;
    u64::from(u32::from(prefix.network())) << 32 | length | weight | u64::from(value)
}

/// The disjoint ranges of sorted prefixes; the first starts at address 0, neighbours differ in value.
fn ranges(sorted: &[u64]) -> Vec<Range> {
    let mut ranges = Vec::with_capacity(sorted.len() * 2 + 1);
    ranges.push(Range { start: 0, value: NONE });
    // The prefixes around the current place, outermost first.
    let mut around: Vec<Around> = Vec::with_capacity(33);
    let mut before = None;
    for word in sorted {
        if before == Some(word >> LEN_SHIFT) {
            continue;
        }
        before = Some(word >> LEN_SHIFT);
        let start = word >> 32;
        let end = start + (1 << (32 - (word >> LEN_SHIFT & 63)));
        close(&mut ranges, &mut around, start);
        let weight = (*word >> WEIGHT_SHIFT & 3) as u8;
        let own = Around { end, value: *word as u16, weight };
        let inside = match around.last() {
            Some(wide) if weight > wide.weight && wide.value != NONE => Around { end, ..*wide },
            _ => own,
        };
        begin(&mut ranges, start, inside.value);
        around.push(inside);
    }
    close(&mut ranges, &mut around, 1 << 32);
    ranges
}

/// A prefix around the current place.
#[derive(Clone, Copy)]
struct Around {
    /// The address after it; that may be the one after the last of all.
    end: u64,
    value: u16,
    /// Of [`Weight`]; more weighs less.
    weight: u8,
}

/// Ends the prefixes that do not reach `place`.
fn close(ranges: &mut Vec<Range>, around: &mut Vec<Around>, place: u64) {
    while let Some(Around { end, .. }) = around.last().copied().filter(|around| around.end <= place) {
        around.pop();
        begin(ranges, end, around.last().map_or(NONE, |around| around.value));
    }
}

/// From `start` on addresses have `value`, whatever was said before about `start`.
fn begin(ranges: &mut Vec<Range>, start: u64, value: u16) {
    let Ok(start) = u32::try_from(start) else { return };
    if ranges.last().is_some_and(|last| last.start == start) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|last| last.value != value) {
        ranges.push(Range { start, value });
    }
}

/// The last address of the range at `index`.
fn last_of(ranges: &[Range], index: usize) -> u32 {
    ranges.get(index + 1).map_or(u32::MAX, |next| next.start - 1)
}

/// Takes the parts of the array in order: the descriptors of a block, then the block.
trait Sink {
    fn direct(&mut self, value: u16);
    fn lone(&mut self, octet: u8, length: u8, value: u16);
    fn quarters(&mut self, leaf: &[Cell; QUARTERS_CELLS as usize]);
    fn each(&mut self, values: &[u16; 256]);
    /// A cell of level 1; its descriptors were the last ones, one for each bit.
    fn block(&mut self, block: u32, bits: u64, cover: u16);
}

/// Goes through the level-1 cells that are not zero.
fn walk(ranges: &[Range], sink: &mut impl Sink) {
    let mut tally = Tally::new();
    let (mut index, mut block) = (0, 0);
    while block < LEVEL1_CELLS {
        let (first, last) = (block << 14, block << 14 | 0x3fff);
        while last_of(ranges, index) < first {
            index += 1;
        }
        let end = last_of(ranges, index);
        if end >= last {
            let next = ((u64::from(end) + 1) >> 14) as u32;
            let value = ranges[index].value;
            if value != NONE {
                (block..next).for_each(|block| sink.block(block, 0, value));
            }
            block = next;
            continue;
        }
        let from = index;
        while last_of(ranges, index) < last {
            index += 1;
        }
        let pieces = Pieces { ranges, index: from, first, last };
        let cover = tally.most(pieces.clone());
        let bits = describe(pieces, cover, sink);
        if bits != 0 || cover != NONE {
            sink.block(block, bits, cover);
        }
        block += 1;
    }
}

/// The ranges within some addresses, cut to them.
#[derive(Clone)]
struct Pieces<'a> {
    ranges: &'a [Range],
    index: usize,
    first: u32,
    last: u32,
}

impl Iterator for Pieces<'_> {
    type Item = (RangeInclusive<u32>, u16);

    fn next(&mut self) -> Option<Self::Item> {
        let range = self.ranges.get(self.index).filter(|range| range.start <= self.last)?;
        let piece = range.start.max(self.first)..=last_of(self.ranges, self.index).min(self.last);
        self.index += 1;
        Some((piece, range.value))
    }
}

/// Which value most addresses have.
struct Tally {
    counts: Vec<u32>,
    seen: Vec<u16>,
}

impl Tally {
    fn new() -> Self {
        Self { counts: vec![0; 1 << 16], seen: Vec::new() }
    }

    /// Of equally many the smallest value.
    fn most(&mut self, pieces: Pieces<'_>) -> u16 {
        for (piece, value) in pieces {
            let count = &mut self.counts[usize::from(value)];
            if *count == 0 {
                self.seen.push(value);
            }
            *count += piece.end() - piece.start() + 1;
        }
        let counts = &mut self.counts;
        let most = self.seen.iter().copied().max_by_key(|v| (counts[usize::from(*v)], std::cmp::Reverse(*v)));
        self.seen.drain(..).for_each(|value| counts[usize::from(value)] = 0);
        most.unwrap_or(NONE)
    }
}

/// Describes the /24s of a block that differ from its cover, and returns which.
fn describe(pieces: Pieces<'_>, cover: u16, sink: &mut impl Sink) -> u64 {
    let Pieces { ranges, mut index, first, .. } = pieces;
    let (mut third, mut bits) = (0, 0);
    while third < 64 {
        let (from, to) = (first | third << 8, first | third << 8 | 255);
        while last_of(ranges, index) < from {
            index += 1;
        }
        let end = last_of(ranges, index);
        if end >= to {
            let next = ((end.min(first | 0x3fff) - first + 1) >> 8).min(64);
            let value = ranges[index].value;
            if value != cover {
                for third in third..next {
                    bits |= 1 << third;
                    sink.direct(value);
                }
            }
            third = next;
        } else {
            bits |= 1 << third;
            divided(Pieces { ranges, index, first: from, last: to }, cover, sink);
            third += 1;
        }
    }
    bits
}

/// Describes a /24 that has more than one value.
fn divided(pieces: Pieces<'_>, cover: u16, sink: &mut impl Sink) {
    let mut apart = pieces.clone().filter(|(_, value)| *value != cover);
    if let (Some((piece, value)), None) = (apart.next(), apart.next())
        && let Some(length) = length_of(&piece)
    {
        return sink.lone(*piece.start() as u8, length, value);
    }
    let mut values = [NONE; 256];
    for (piece, value) in pieces {
        values[(piece.start() & 255) as usize..=(piece.end() & 255) as usize].fill(value);
    }
    let mut leaf = [Cell::default(); QUARTERS_CELLS as usize];
    let fits = values.chunks_exact(64).zip(&mut leaf).all(|(values, cell)| quarter(values, cell));
    if fits { sink.quarters(&leaf) } else { sink.each(&values) }
}

/// The length of the prefix that is exactly these addresses of one /24, if there is one.
fn length_of(piece: &RangeInclusive<u32>) -> Option<u8> {
    let size = piece.end() - piece.start() + 1;
    let is_prefix = size.is_power_of_two() && size <= 128 && piece.start() & (size - 1) == 0;
    is_prefix.then(|| 32 - size.trailing_zeros() as u8)
}

/// 64 addresses as a bitmap and two values, if they have no more than two.
fn quarter(values: &[u16], cell: &mut Cell) -> bool {
    let rest = values[0];
    let value = values.iter().copied().find(|v| *v != rest).unwrap_or(rest);
    let mut bits = 0u64;
    for (bit, found) in values.iter().enumerate() {
        if *found == value {
            bits |= 1 << bit;
        } else if *found != rest {
            return false;
        }
    }
    *cell = Cell([bits, u64::from(value) | u64::from(rest) << 16]);
    true
}

/// Counts what [`Writer`] would write.
#[derive(Default)]
struct Size {
    /// At most one for each /24: 2^24.
    descriptors: u32,
    leaf_cells: u64,
}

impl Sink for Size {
    fn direct(&mut self, _: u16) {
        self.descriptors += 1;
    }

    fn lone(&mut self, _: u8, _: u8, _: u16) {
        self.descriptors += 1;
    }

    fn quarters(&mut self, _: &[Cell; QUARTERS_CELLS as usize]) {
        self.descriptors += 1;
        self.leaf_cells += u64::from(QUARTERS_CELLS);
    }

    fn each(&mut self, _: &[u16; 256]) {
        self.descriptors += 1;
        self.leaf_cells += u64::from(EACH_CELLS);
    }

    fn block(&mut self, _: u32, _: u64, _: u16) {}
}

/// Writes the array.
struct Writer<'a> {
    cells: &'a mut [Cell],
    /// Where the next descriptor goes, in 32-bit words of the array.
    word: u32,
    /// The cell where the next leaf goes.
    leaf: u32,
}

impl Writer<'_> {
    fn descriptor(&mut self, tag: u32, rest: u32) {
        let descriptor = u64::from(tag << tag::SHIFT | rest);
        let half = (self.word >> 1 & 1) as usize;
        self.cells[(self.word >> 2) as usize].0[half] |= descriptor << ((self.word & 1) * 32);
        self.word += 1;
    }

    fn leaf(&mut self, tag: u32, cells: &[Cell]) {
        self.descriptor(tag, self.leaf);
        let at = self.leaf as usize;
        self.cells[at..at + cells.len()].copy_from_slice(cells);
        self.leaf += cells.len() as u32;
    }
}

impl Sink for Writer<'_> {
    fn direct(&mut self, value: u16) {
        self.descriptor(tag::DIRECT, value.into());
    }

    fn lone(&mut self, octet: u8, length: u8, value: u16) {
        self.descriptor(tag::LONE, u32::from(length - 25) << 24 | u32::from(octet) << 16 | u32::from(value));
    }

    fn quarters(&mut self, leaf: &[Cell; QUARTERS_CELLS as usize]) {
        self.leaf(tag::QUARTERS, leaf);
    }

    fn each(&mut self, values: &[u16; 256]) {
        let mut leaf = [Cell::default(); EACH_CELLS as usize];
        for (octet, value) in values.iter().enumerate() {
            leaf[octet >> 3].0[octet >> 2 & 1] |= u64::from(*value) << ((octet & 3) * 16);
        }
        self.leaf(tag::EACH, &leaf);
    }

    fn block(&mut self, block: u32, bits: u64, cover: u16) {
        let base = self.word - bits.count_ones();
        self.cells[block as usize] = Cell([bits, u64::from(base) | u64::from(cover) << 32]);
    }
}
