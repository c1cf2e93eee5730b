//! The classic format (draft-ietf-opsawg-pcap): micro- and nanoseconds, both byte orders.

use std::io::{self, Read};

use super::Budget;
use super::frames::{Fixed, Flaws, MAX_FRAME, take_head};
use super::input::{Input, Order};

/// The file's header, as far as frames depend on it.
pub(super) struct Header {
    order: Order,
    nanos_per_tick: u64,
    link: u32,
}

impl Header {
    /// Reads what follows the magic; nothing if it is none of this format, or the header is cut.
    pub(super) fn open<R: Read>(magic: [u8; 4], input: &mut Input<R>) -> io::Result<Option<Self>> {
        let (order, nanos_per_tick) = match magic {
            [0xa1, 0xb2, 0xc3, 0xd4] => (Order::Big, 1_000),
            [0xd4, 0xc3, 0xb2, 0xa1] => (Order::Little, 1_000),
            [0xa1, 0xb2, 0x3c, 0x4d] => (Order::Big, 1),
            [0x4d, 0x3c, 0xb2, 0xa1] => (Order::Little, 1),
            _ => return Ok(None),
        };
        let mut rest = [0; 20];
        if input.fill(&mut rest)? < rest.len() {
            return Ok(None);
        }
        // The upper bits say how long the frame check sequence is.
        let link = order.u32(&rest, 16) & 0x03ff_ffff;
        Ok(Some(Self { order, nanos_per_tick, link }))
    }

    /// The next frame.
    pub(super) fn next<R: Read>(
        &mut self,
        input: &mut Input<R>,
        head: &mut Vec<u8>,
        flaws: &mut Flaws,
        budget: &mut Budget<'_>,
    ) -> io::Result<Option<Fixed>> {
        if !budget.spend(flaws) {
            return Ok(None);
        }
        let at = input.at();
        let mut record = [0; 16];
        let read = input.fill(&mut record)?;
        if read == 0 {
            return Ok(None);
        }
        let captured = self.order.u32(&record, 8);
        if read < record.len() {
            flaws.end(|| format!("the file ends within the record at byte {at}"));
            return Ok(None);
        }
        if captured > MAX_FRAME {
            flaws.end(|| format!("the record at byte {at} claims {captured} bytes: what follows cannot be found"));
            return Ok(None);
        }
        if !take_head(input, head, captured)? {
            flaws.end(|| format!("the file ends within the record at byte {at}"));
            return Ok(None);
        }
        let secs = u64::from(self.order.u32(&record, 0));
        let ticks = u64::from(self.order.u32(&record, 4));
        Ok(Some(Fixed {
            time_ns: Some(secs * 1_000_000_000 + ticks * self.nanos_per_tick),
            interface: 0,
            link: self.link,
            captured,
            wire_len: self.order.u32(&record, 12),
        }))
    }
}
