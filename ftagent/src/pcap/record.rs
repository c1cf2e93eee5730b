//! A sampled frame as captures keep it: what the kernel copied, what it decided, and for whom the frame was.

use std::net::IpAddr;

use ftagent_common::abi::{NO_RULE, Reason, SAMPLE_BYTES, SampleEvent};
use ftagent_common::packet::Ip;

use crate::engine::PacketSample;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Passed,
    Dropped,
    /// The mode is not `enforce`, or the rule is being evaluated: it passed, and would not have.
    WouldDrop,
    /// Dropped, and answered out of the same interface where that can be done.
    Answered,
}

/// One sampled frame. Everything of it is of a fixed size, so that its memory can be counted.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Length of the frame in bytes.
    pub wire_len: u32,
    /// How many frames it stands for.
    pub one_in: u32,
    /// Counter slot of the rule that judged it, or `NO_RULE`; see `rule`.
    slot: u32,
    /// Slot of the interface.
    pub interface: u16,
    captured: u16,
    pub reason: Reason,
    pub fate: Fate,
    /// The rule's id, where there is one.
    pub rule: Option<u64>,
    /// Where it went, if that can be read: the address inside, of a tunnel that the agent looks into.
    pub destination: Option<Ip>,
    frame: [u8; SAMPLE_BYTES],
}

impl Record {
    /// Reads one record of the kernel's ring; `sample` is what the engine made of it. `enforcing` is the mode, `rule`
    /// the rule in a slot.
    pub fn read(
        event: &[u8],
        sample: Option<&PacketSample>,
        enforcing: bool,
        rule: impl Fn(u32) -> Option<u64>,
    ) -> Option<Self> {
        let head = size_of::<SampleEvent>() - SAMPLE_BYTES;
        if event.len() < size_of::<SampleEvent>() {
            return None;
        }
        let u32_at = |at: usize| Some(u32::from_ne_bytes(event.get(at..at + 4)?.try_into().ok()?));
        let u16_at = |at: usize| Some(u16::from_ne_bytes(event.get(at..at + 2)?.try_into().ok()?));
        let time_ns = u64::from_ne_bytes(event.get(0..8)?.try_into().ok()?);
        let captured = usize::from(u16_at(22)?).min(SAMPLE_BYTES);
        let reason = *Reason::ALL.get(usize::from(*event.get(24)?))?;
        let evaluated = *event.get(25)? != 0;
        let mut frame = [0; SAMPLE_BYTES];
        frame[..captured].copy_from_slice(event.get(head..head + captured)?);
        let fate = match (reason.is_drop(), enforcing) {
            (true, true) if reason == Reason::SynCookie => Fate::Answered,
            (true, true) => Fate::Dropped,
            (true, false) => Fate::WouldDrop,
            (false, _) if evaluated => Fate::WouldDrop,
            (false, _) => Fate::Passed,
        };
        let slot = u32_at(16)?;
        Some(Self {
            time_ns,
            wire_len: u32_at(8)?,
            one_in: u32_at(12)?.max(1),
            slot,
            interface: u16_at(20)?,
            captured: u16::try_from(captured).unwrap_or(0),
            reason,
            fate,
            rule: if slot == NO_RULE { None } else { rule(slot) },
            destination: sample.map(|s| s.packet.dst).or_else(|| destination_of(&frame[..captured])),
            frame,
        })
    }

    /// The frame's first bytes, as many as the kernel copied.
    pub fn frame(&self) -> &[u8] {
        &self.frame[..usize::from(self.captured).min(SAMPLE_BYTES)]
    }

    /// Whether a rule judged it that is known no more.
    pub const fn has_forgotten_rule(&self) -> bool {
        self.slot != NO_RULE && self.rule.is_none()
    }

    /// The destination as people write it.
    pub fn destination(&self) -> Option<IpAddr> {
        self.destination.map(IpAddr::from)
    }
}

/// The destination of a packet that the parser refused, read where it would be: a malformed flood has a victim, too.
fn destination_of(frame: &[u8]) -> Option<Ip> {
    let mut at = 12;
    let ether_type = loop {
        let ether_type = u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?);
        at += 2;
        match ether_type {
            0x8100 | 0x88a8 if at <= 20 => at += 2,
            other => break other,
        }
    };
    match ether_type {
        0x0800 => Some(Ip::v4(frame.get(at + 16..at + 20)?.try_into().ok()?)),
        0x86dd => Some(Ip::v6(frame.get(at + 24..at + 40)?.try_into().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record of the kernel's ring.
    pub(crate) fn event(time_ns: u64, frame: &[u8], reason: Reason, rule: u32, would_drop: u8) -> Vec<u8> {
        let mut event = vec![0; size_of::<SampleEvent>()];
        event[0..8].copy_from_slice(&time_ns.to_ne_bytes());
        event[8..12].copy_from_slice(&1_400_u32.to_ne_bytes());
        event[12..16].copy_from_slice(&4_u32.to_ne_bytes());
        event[16..20].copy_from_slice(&rule.to_ne_bytes());
        event[22..24].copy_from_slice(&u16::try_from(frame.len()).unwrap().to_ne_bytes());
        event[24] = reason as u8;
        event[25] = would_drop;
        event[32..32 + frame.len()].copy_from_slice(frame);
        event
    }

    /// A UDP packet to `10.99.0.<host>`.
    pub(crate) fn to(host: u8, time_ns: u64, reason: Reason) -> Record {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 198, 51, 100, 7, 10, 99, 0, host]);
        frame.extend([0, 53, 0, 80, 0, 8, 0, 0]);
        Record::read(&event(time_ns, &frame, reason, NO_RULE, 0), None, true, |_| None).unwrap()
    }

    #[test]
    fn a_fate_follows_from_reason_mode_and_evaluation() {
        let table = [
            (Reason::Clean, true, 0, Fate::Passed),
            (Reason::BlockedSource, true, 0, Fate::Dropped),
            (Reason::BlockedSource, false, 0, Fate::WouldDrop),
            (Reason::Clean, true, 1, Fate::WouldDrop),
            (Reason::SynCookie, true, 0, Fate::Answered),
        ];
        for (reason, enforcing, would_drop, fate) in table {
            let record = Record::read(&event(1, &[0; 20], reason, 7, would_drop), None, enforcing, |s| Some(s.into()));
            let record = record.unwrap();
            assert_eq!((record.fate, record.rule), (fate, Some(7)), "{reason:?} {enforcing} {would_drop}");
        }
    }

    #[test]
    fn the_destination_is_found_behind_tags_and_in_what_the_parser_refuses() {
        assert_eq!(to(9, 1, Reason::Malformed).destination(), Some("10.99.0.9".parse().unwrap()));
        let mut tagged = vec![0; 12];
        tagged.extend([0x81, 0, 0, 5, 0x86, 0xdd]);
        tagged.extend([0; 24]);
        tagged.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(destination_of(&tagged).map(IpAddr::from), Some("2001:db8::1".parse().unwrap()));
        for len in 0..tagged.len() {
            assert_eq!(destination_of(&tagged[..len]), None, "{len}");
        }
    }

    #[test]
    fn what_is_no_record_gives_nothing() {
        assert!(Record::read(&[0; 159], None, true, |_| None).is_none());
        let mut wrong = event(1, &[], Reason::Clean, NO_RULE, 0);
        wrong[24] = 255;
        assert!(Record::read(&wrong, None, true, |_| None).is_none());
    }
}
