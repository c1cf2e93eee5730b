//! PURE: blocks of pcapng (draft-ietf-opsawg-pcapng), little-endian, with nanoseconds.
//!
//! Append-only on purpose: a file that ends after any block is a whole capture, whatever killed its writer.

use super::record::{Fate, Record};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// LINKTYPE_ETHERNET: samples begin with the Ethernet header.
const ETHERNET: u16 = 1;

/// Options of every block.
const COMMENT: u16 = 1;
/// Of a section.
const OS: u16 = 3;
const APPLICATION: u16 = 4;
/// Of an interface.
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
/// Of a packet.
const FLAGS: u16 = 2;
const DROP_COUNT: u16 = 4;
const VERDICT: u16 = 7;
/// Of statistics.
const ISB_START: u16 = 2;
const ISB_END: u16 = 3;
const ISB_RECEIVED: u16 = 4;
const ISB_DROPPED: u16 = 5;

/// The longest comment that is written.
const COMMENT_BYTES: usize = 1_024;

/// Which hook gave the verdict, and with it the meaning of the verdict's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Tc,
}

impl Hook {
    /// The verdict option: its type, and the hook's own action (`enum xdp_action`, `TC_ACT_…`).
    const fn verdict(self, fate: Fate) -> (u8, u64) {
        match (self, fate) {
            (Self::Xdp, Fate::Dropped) => (2, 1),
            (Self::Xdp, Fate::Passed | Fate::WouldDrop) => (2, 2),
            (Self::Xdp, Fate::Answered) => (2, 3),
            (Self::Tc, Fate::Dropped | Fate::Answered) => (1, 2),
            // TC_ACT_UNSPEC, −1: whatever the next filter says.
            (Self::Tc, Fate::Passed | Fate::WouldDrop) => (1, u64::MAX),
        }
    }
}

/// A block under construction at the end of `out`.
struct Block<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Block<'a> {
    fn begin(out: &'a mut Vec<u8>, kind: u32) -> Self {
        let start = out.len();
        out.extend(kind.to_le_bytes());
        // The length, known at the end.
        out.extend([0; 4]);
        Self { out, start }
    }

    fn u32(&mut self, value: u32) {
        self.out.extend(value.to_le_bytes());
    }

    /// Bytes, padded to a multiple of four.
    fn padded(&mut self, bytes: &[u8]) {
        self.out.extend(bytes);
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        let value = &value[..value.len().min(COMMENT_BYTES)];
        self.out.extend(code.to_le_bytes());
        self.out.extend(u16::try_from(value.len()).unwrap_or(0).to_le_bytes());
        self.padded(value);
    }

    fn text(&mut self, code: u16, text: &str) {
        let mut end = text.len().min(COMMENT_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.option(code, &text.as_bytes()[..end]);
    }

    /// Ends options and block, and writes its length at both ends.
    fn end(mut self) {
        self.option(0, &[]);
        let len = u32::try_from(self.out.len() + 4 - self.start).expect("blocks are a few KiB");
        self.u32(len);
        self.out[self.start + 4..self.start + 8].copy_from_slice(&len.to_le_bytes());
    }
}

/// The section, with which a file begins.
pub fn section(out: &mut Vec<u8>, comment: &str, os: &str) {
    let mut block = Block::begin(out, SECTION);
    block.u32(BYTE_ORDER);
    // Version 1.0, and a length that nobody knows yet.
    block.u32(1);
    block.u32(u32::MAX);
    block.u32(u32::MAX);
    block.text(COMMENT, comment);
    block.text(OS, os);
    block.text(APPLICATION, concat!("ftagent ", env!("CARGO_PKG_VERSION")));
    block.end();
}

/// An interface; packets name it by its place among the interfaces of the section.
pub fn interface(out: &mut Vec<u8>, name: &str, description: &str, snap_bytes: u32) {
    let mut block = Block::begin(out, INTERFACE);
    block.u32(u32::from(ETHERNET));
    block.u32(snap_bytes);
    block.text(IF_NAME, name);
    block.text(IF_DESCRIPTION, description);
    block.option(IF_TSRESOL, &[9]);
    block.end();
}

/// A packet of the section's interface number `interface`, at `wall_ns` since 1970. `missed` samples between it and
/// the packet before it were not written.
pub fn packet(
    out: &mut Vec<u8>,
    interface: u32,
    wall_ns: u64,
    record: &Record,
    snap_bytes: u32,
    hook: Hook,
    missed: u64,
) {
    let frame = record.frame();
    let frame = &frame[..frame.len().min(snap_bytes as usize)];
    let mut block = Block::begin(out, PACKET);
    block.u32(interface);
    time(&mut block, wall_ns);
    block.u32(u32::try_from(frame.len()).expect("samples are short"));
    block.u32(record.wire_len);
    block.padded(frame);
    block.text(COMMENT, &words(record));
    // Inbound.
    block.option(FLAGS, &1_u32.to_le_bytes());
    if missed > 0 {
        block.option(DROP_COUNT, &missed.to_le_bytes());
    }
    let (kind, action) = hook.verdict(record.fate);
    let mut verdict = [kind; 9];
    verdict[1..].copy_from_slice(&action.to_le_bytes());
    block.option(VERDICT, &verdict);
    block.end();
}

/// How many samples of the interface there were for the capture, and how many of them are not in it.
pub fn statistics(out: &mut Vec<u8>, interface: u32, span: (u64, u64), samples: u64, missed: u64, comment: &str) {
    let mut block = Block::begin(out, STATISTICS);
    block.u32(interface);
    time(&mut block, span.1);
    block.text(COMMENT, comment);
    for (code, at) in [(ISB_START, span.0), (ISB_END, span.1)] {
        let mut value = [0; 8];
        value[..4].copy_from_slice(&high(at).to_le_bytes());
        value[4..].copy_from_slice(&low(at).to_le_bytes());
        block.option(code, &value);
    }
    block.option(ISB_RECEIVED, &samples.to_le_bytes());
    block.option(ISB_DROPPED, &missed.to_le_bytes());
    block.end();
}

/// The verdict in words, such as `drop: blocked_source rule 7, 1 in 32`.
pub fn words(record: &Record) -> String {
    let verdict = match record.fate {
        Fate::Passed => "pass",
        Fate::Dropped => "drop",
        Fate::WouldDrop => "pass, would drop",
        Fate::Answered => "drop, answered",
    };
    let rule = match record.rule {
        Some(rule) => format!(" rule {rule}"),
        None if record.has_forgotten_rule() => " rule no longer known".to_owned(),
        None => String::new(),
    };
    format!("{verdict}: {}{rule}, 1 in {}", record.reason.as_str(), record.one_in)
}

fn time(block: &mut Block<'_>, ns: u64) {
    block.u32(high(ns));
    block.u32(low(ns));
}

const fn high(ns: u64) -> u32 {
    (ns >> 32) as u32
}

const fn low(ns: u64) -> u32 {
    ns as u32
}

/// Length of the block that `bytes` begins with, if it is one; its header alone has to be there.
pub fn block_len(header: [u8; 8]) -> Option<u32> {
    let len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    (len >= 12 && len.is_multiple_of(4) && len <= 1 << 20).then_some(len)
}

/// Time of the packet in a whole block, if it is one.
pub fn packet_time(block: &[u8]) -> Option<u64> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(block.get(at..at + 4)?.try_into().ok()?));
    (u32_at(0)? == PACKET).then_some(())?;
    Some((u64::from(u32_at(12)?) << 32) | u64::from(u32_at(16)?))
}

#[cfg(test)]
mod tests {
    use ftagent_common::abi::Reason;

    use super::super::record::tests::to;
    use super::*;

    #[test]
    fn verdicts_are_words_and_numbers_of_their_hook() {
        let mut record = to(1, 1, Reason::BlockedSource);
        record.rule = Some(7);
        record.one_in = 32;
        assert_eq!(words(&record), "drop: blocked_source rule 7, 1 in 32");
        assert_eq!(words(&to(1, 1, Reason::Clean)), "pass: clean, 1 in 4");
        assert_eq!(Hook::Xdp.verdict(Fate::Dropped), (2, 1));
        assert_eq!(Hook::Xdp.verdict(Fate::Answered), (2, 3));
        assert_eq!(Hook::Tc.verdict(Fate::Dropped), (1, 2));
        assert_eq!(Hook::Tc.verdict(Fate::Passed), (1, u64::MAX));
    }

    #[test]
    fn lengths_stand_at_both_ends_and_everything_is_aligned() {
        let mut out = Vec::new();
        section(&mut out, "a", "Linux");
        interface(&mut out, "eth0", "sampled", 96);
        packet(&mut out, 0, 0x1234_5678_9abc_def0, &to(1, 1, Reason::Clean), 96, Hook::Xdp, 3);
        statistics(&mut out, 0, (1, 2), 4, 3, "resolved");
        let mut rest = out.as_slice();
        let mut times = Vec::new();
        while !rest.is_empty() {
            let len = block_len(rest[..8].try_into().unwrap()).unwrap() as usize;
            assert_eq!(rest[len - 4..len], rest[4..8]);
            times.push(packet_time(&rest[..len]));
            rest = &rest[len..];
        }
        assert_eq!(times, [None, None, Some(0x1234_5678_9abc_def0), None]);
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let mut out = Vec::new();
        section(&mut out, &"ü".repeat(4_000), "");
        assert!(out.len() < 1_200);
        let long = format!("x{}", "ü".repeat(4_000));
        section(&mut out, &long, "");
        assert!(String::from_utf8_lossy(&out).chars().filter(|c| *c == 'ü').count() > 1_000);
    }
}
