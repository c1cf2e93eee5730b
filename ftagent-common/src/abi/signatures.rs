//! Signature rules as bit vectors: what a packet costs does not grow with the rules.
//!
//! Each field of a packet selects a row of bits, one for each rule that the field's value satisfies; a rule whose bit
//! is set in every row matches (Lakshman and Stiliadis, SIGCOMM 1998). Fields of 16 bits go through a table of classes
//! first: values between the same ends of all rules' ranges are one class. Rules lie in groups of 64, a machine word; a
//! destination has rules of one group, and rules without a destination are in group 0. The model is FlowSpec's
//! (RFC 8955 section 4).

use super::{Rate, map_type};
use crate::packet::{Fragment, Ip, Packet, proto};

/// Groups of 64 rules.
pub const SIGNATURE_GROUPS: usize = 16;
pub const RULES_PER_GROUP: usize = 64;
/// Rules in all.
pub const MAX_SIGNATURES: usize = SIGNATURE_GROUPS * RULES_PER_GROUP;
/// Classes of a 16-bit field: at most two ends for each of so many distinct ranges.
pub const SIGNATURE_CLASSES: usize = 1_024;
/// Matching rules that are looked at one by one for a packet. Rules that decide by themselves end the search; user space
/// sees to it that no destination has as many others: limits, samples, marks, and rules with a source or a payload.
pub const MATCHES_ASKED: usize = 16;
/// Bytes of payload that a rule can compare.
pub const PAYLOAD_BYTES: usize = 16;

/// A bit for each rule.
pub type Row = [u64; SIGNATURE_GROUPS];

/// What a [`Signature`] does to a frame that it matches.
pub mod rule_action {
    pub const DROP: u8 = 0;
    /// Drops what is over the rule's rate; the rest is judged on.
    pub const LIMIT: u8 = 1;
    /// Asks no further rule.
    pub const PASS: u8 = 2;
    /// Copies the frame to user space, whatever chance says, and judges on.
    pub const SAMPLE: u8 = 3;
    /// Sets the differentiated services field to [`Signature::dscp`](super::Signature) and judges on.
    pub const MARK: u8 = 4;
}

/// What a rule does, and the parts of its match that are compared one by one: few rules have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Signature {
    pub expires_at_ns: u64,
    pub rate: Rate,
    /// Zero in all words: any source.
    pub src_mask: Ip,
    /// Compared with the source under the mask.
    pub src: Ip,
    pub payload: [u8; PAYLOAD_BYTES],
    /// Counter slot, below [`super::MAX_RULES`].
    pub rule: u32,
    /// How many bytes of `payload` count; 0: none.
    pub payload_len: u8,
    /// See [`rule_action`].
    pub action: u8,
    /// [`super::AUTOMATIC`], [`super::EVALUATE`].
    pub flags: u8,
    /// The new value of [`rule_action::MARK`], 0 to 63.
    pub dscp: u8,
}

/// All signature rules of one rule set.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Signatures {
    pub src_port_class: [u16; 65_536],
    pub dst_port_class: [u16; 65_536],
    pub length_class: [u16; 65_536],
    pub src_port: [Row; SIGNATURE_CLASSES],
    pub dst_port: [Row; SIGNATURE_CLASSES],
    pub length: [Row; SIGNATURE_CLASSES],
    pub protocol: [Row; 256],
    pub ttl: [Row; 256],
    pub icmp_type: [Row; 256],
    pub tcp_flags: [Row; 64],
    pub dscp: [Row; 64],
    pub fragment: [Row; 4],
    pub rules: [Signature; MAX_SIGNATURES],
}

impl Signatures {
    /// The rules of `group` whose bits are set in all rows of the packet's fields.
    #[inline(always)]
    pub fn candidates(&self, packet: &Packet, group: u32) -> u64 {
        let group = group as usize & (SIGNATURE_GROUPS - 1);
        let class =
            |table: &[u16; 65_536], value: u16| usize::from(table[usize::from(value)]) & (SIGNATURE_CLASSES - 1);
        self.protocol[usize::from(packet.protocol)][group]
            & self.dst_port[class(&self.dst_port_class, packet.dst_port)][group]
            & self.src_port[class(&self.src_port_class, packet.src_port)][group]
            & self.length[class(&self.length_class, packet.ip_len)][group]
            & self.ttl[usize::from(packet.ttl)][group]
            & self.icmp_type[usize::from(packet.icmp_type)][group]
            & self.tcp_flags[usize::from(packet.tcp_flags) & 63][group]
            & self.dscp[usize::from(packet.dscp) & 63][group]
            & self.fragment[fragment_index(packet)][group]
    }
}

/// The row of [`Signatures::fragment`]: whole, first, middle, last.
#[inline(always)]
pub const fn fragment_index(packet: &Packet) -> usize {
    match packet.fragment {
        Fragment::Whole => 0,
        Fragment::First => 1,
        Fragment::Middle => 2,
        Fragment::Last => 3,
    }
}

impl Signature {
    /// Whether the source is the rule's.
    #[inline(always)]
    pub fn is_source(&self, ip: &Ip) -> bool {
        let differs = |i: usize| (ip.0[i] ^ self.src.0[i]) & self.src_mask.0[i];
        differs(0) | differs(1) | differs(2) | differs(3) == 0
    }

    /// Whether the first bytes of the payload are the rule's; `payload` holds what is there, zero beyond.
    #[inline(always)]
    pub fn is_payload(&self, payload: &[u8; PAYLOAD_BYTES], len: usize) -> bool {
        if usize::from(self.payload_len) > len {
            return false;
        }
        // Two words under masks: a loop over bytes has a way for every length, and the verifier takes them all.
        let half = |bytes: &[u8; PAYLOAD_BYTES], at: usize| {
            let b = |i: usize| bytes[at + i];
            u64::from_le_bytes([b(0), b(1), b(2), b(3), b(4), b(5), b(6), b(7)])
        };
        let mask = |bytes: u32| if bytes >= 8 { u64::MAX } else { (1u64 << (bytes * 8)) - 1 };
        let len = u32::from(self.payload_len);
        let differs = |at: usize, bytes: u32| (half(payload, at) ^ half(&self.payload, at)) & mask(bytes);
        differs(0, len) | differs(8, len.saturating_sub(8)) == 0
    }
}

/// Which of a word's bits is the lowest one that is set; the word is not zero. BPF has no instruction for it.
#[inline(always)]
pub const fn lowest_bit(word: u64) -> u32 {
    count_ones((word & word.wrapping_neg()) - 1)
}

/// Bits that are set, in steps of two, four and eight bits; the multiplication adds the bytes up.
#[inline(always)]
pub const fn count_ones(word: u64) -> u32 {
    let pairs = word - ((word >> 1) & 0x5555_5555_5555_5555);
    let fours = (pairs & 0x3333_3333_3333_3333) + ((pairs >> 2) & 0x3333_3333_3333_3333);
    let bytes = (fours + (fours >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    (bytes.wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
}

/// Whether a protocol has ports, so that a rule with ports can match it.
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, proto::TCP | proto::UDP)
}

map_type!(Signature = 88, Signatures = 991_744);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_counted_and_found_as_the_processor_does() {
        let mut word = 0x9e37_79b9_7f4a_7c15u64;
        for shift in 0..64 {
            word = word.rotate_left(7).wrapping_mul(0x2545_f491_4f6c_dd1d) | 1 << shift;
            assert_eq!(count_ones(word), word.count_ones());
            assert_eq!(lowest_bit(word), word.trailing_zeros());
        }
        assert_eq!((count_ones(0), count_ones(u64::MAX), lowest_bit(1 << 63)), (0, 64, 63));
    }

    #[test]
    fn a_payload_is_compared_up_to_its_length() {
        let rule = Signature { payload: *b"GET /wp-login.ph", payload_len: 5, ..Signature::default() };
        let mut payload = *b"GET /index.html\0";
        assert!(rule.is_payload(&payload, 15));
        assert!(!rule.is_payload(&payload, 4), "cut off before the end of what is compared");
        payload[2] = b'X';
        assert!(!rule.is_payload(&payload, 15));
    }
}
