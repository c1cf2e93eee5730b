//! Reads sampled frames out of the ring buffer as the engine's input.

use std::path::Path;

use aya::maps::{Map, MapData, RingBuf};
use ftagent_common::abi::{Reason, SAMPLE_BYTES, SampleEvent};
use ftagent_common::frame::Frame;
use ftagent_common::packet::{Checks, Kind, Packet, Tunnel, parse_into};

use crate::engine::{PacketSample, Payload};

/// Samples taken out in one go; what is beyond stays in the ring for the next tick.
const MAX_AT_ONCE: usize = 8_192;

/// The ring buffer of samples.
pub struct Samples {
    ring: RingBuf<MapData>,
}

impl Samples {
    /// Opens the pinned ring.
    ///
    /// # Errors
    /// When it is not there or is no ring buffer.
    pub fn open(maps: &Path) -> Result<Self, aya::maps::MapError> {
        let data = MapData::from_pin(maps.join("SAMPLES"))?;
        Ok(Self { ring: RingBuf::try_from(Map::from_map_data(data)?)? })
    }

    /// Takes what is there, up to a bound; frames that are not IP are left out.
    pub fn take(&mut self) -> Vec<PacketSample> {
        self.take_with(|_, _| {})
    }

    /// The same; `each` sees every record as it lies in the ring, with what became of it.
    pub fn take_with(&mut self, mut each: impl FnMut(&[u8], Option<&PacketSample>)) -> Vec<PacketSample> {
        let mut samples = Vec::new();
        for _ in 0..MAX_AT_ONCE {
            let Some(item) = self.ring.next() else { break };
            let sample = parse_event(&item);
            each(&item, sample.as_ref());
            samples.extend(sample);
        }
        samples
    }
}

/// Parses one record of the ring.
pub fn parse_event(record: &[u8]) -> Option<PacketSample> {
    let head = size_of::<SampleEvent>() - SAMPLE_BYTES;
    if record.len() < size_of::<SampleEvent>() {
        return None;
    }
    let u32_at = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let time_ns = u64::from_ne_bytes(record.get(0..8)?.try_into().ok()?);
    let (wire_len, one_in) = (u32_at(8)?, u32_at(12)?);
    let captured = usize::from(u16::from_ne_bytes(record.get(22..24)?.try_into().ok()?)).min(SAMPLE_BYTES);
    let reason = *Reason::ALL.get(usize::from(*record.get(24)?))?;
    let bytes = record.get(head..head + captured)?;

    let is_closed = *record.get(26)? != 0;
    let packet = read_sampled(bytes, wire_len as usize, is_closed)?;
    let payload = Payload::of(bytes.get(usize::from(packet.payload_offset)..).unwrap_or(&[]));
    Some(PacketSample { time_ns, packet, wire_len, one_in: one_in.max(1), reason, payload })
}

/// Reads a sampled frame as the kernel did, but for its checks: what these dropped is to be classified like the rest.
/// `is_closed`: the kernel judged a tunnel from outside.
pub fn read_sampled(bytes: &[u8], wire_len: usize, is_closed: bool) -> Option<Packet> {
    let mut packet = Packet::EMPTY;
    let checks = Checks(if is_closed { 0 } else { Checks::TUNNELS });
    let Kind::Ip = parse_into(&Frame::new(bytes), wire_len, checks, &mut packet) else { return None };
    if is_closed {
        packet.tunnel = Tunnel::Closed;
    }
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offsets_read_are_those_of_the_record() {
        assert_eq!(std::mem::offset_of!(SampleEvent, time_ns), 0);
        assert_eq!(std::mem::offset_of!(SampleEvent, wire_len), 8);
        assert_eq!(std::mem::offset_of!(SampleEvent, one_in), 12);
        assert_eq!(std::mem::offset_of!(SampleEvent, rule), 16);
        assert_eq!(std::mem::offset_of!(SampleEvent, interface), 20);
        assert_eq!(std::mem::offset_of!(SampleEvent, captured), 22);
        assert_eq!(std::mem::offset_of!(SampleEvent, reason), 24);
        assert_eq!(std::mem::offset_of!(SampleEvent, would_drop), 25);
        assert_eq!(std::mem::offset_of!(SampleEvent, closed), 26);
        assert_eq!(std::mem::offset_of!(SampleEvent, frame), size_of::<SampleEvent>() - SAMPLE_BYTES);
    }

    #[test]
    fn a_short_record_gives_nothing() {
        assert!(parse_event(&[0; 20]).is_none());
    }
}
