//! pcapng (draft-ietf-opsawg-pcapng): sections of either byte order, several interfaces, packets with options.

use std::io::{self, Read};

use super::Budget;
use super::frames::{Fixed, Flaws, MAX_FRAME, take_head};
use super::input::{Input, Order};
use super::mark::Mark;

/// With what a section begins, in either byte order.
pub(super) const MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const PACKET: u32 = 6;

/// Interfaces of a section that are known; packets of others have no link type.
const MAX_INTERFACES: usize = 1_024;
/// Bytes of a block's options that are looked at.
const MAX_OPTIONS: usize = 8 << 10;

/// Options of interfaces.
const IF_TSRESOL: u16 = 9;
const IF_TSOFFSET: u16 = 14;

#[derive(Clone, Copy, Debug)]
struct Interface {
    link: u32,
    /// 0 is without bound.
    snap_len: u32,
    /// `if_tsresol`.
    resolution: u8,
    /// Seconds that are added to each time.
    offset_secs: i64,
}

/// The section that is being read.
pub(super) struct Section {
    order: Order,
    interfaces: Vec<Interface>,
    /// Including those beyond [`MAX_INTERFACES`].
    described: u64,
    options: Vec<u8>,
}

/// Why the reader goes on or does not.
enum Step {
    Frame(Fixed),
    Next,
    End,
}

/// What is left of the block that is being read, its trailing length excluded.
struct Body {
    at: u64,
    left: u32,
}

impl Section {
    /// Reads the rest of the first section header; nothing if it is none.
    pub(super) fn open<R: Read>(input: &mut Input<R>, flaws: &mut Flaws) -> io::Result<Option<Self>> {
        let mut section = Self { order: Order::Little, interfaces: Vec::new(), described: 0, options: Vec::new() };
        let mut len = [0; 4];
        if input.fill(&mut len)? < 4 {
            return Ok(None);
        }
        Ok(match section.begin(input, len, 0, flaws)? {
            Step::End => None,
            Step::Frame(_) | Step::Next => Some(section),
        })
    }

    /// The next frame.
    pub(super) fn next<R: Read>(
        &mut self,
        input: &mut Input<R>,
        head: &mut Vec<u8>,
        mark: &mut Mark,
        flaws: &mut Flaws,
        budget: &mut Budget<'_>,
    ) -> io::Result<Option<Fixed>> {
        while budget.spend(flaws) {
            match self.block(input, head, mark, flaws)? {
                Step::Frame(fixed) => return Ok(Some(fixed)),
                Step::Next => {}
                Step::End => break,
            }
        }
        Ok(None)
    }

    fn block<R: Read>(
        &mut self,
        input: &mut Input<R>,
        head: &mut Vec<u8>,
        mark: &mut Mark,
        flaws: &mut Flaws,
    ) -> io::Result<Step> {
        let at = input.at();
        let mut start = [0; 8];
        let read = input.fill(&mut start)?;
        if read == 0 {
            return Ok(Step::End);
        }
        if read < start.len() {
            flaws.end(|| format!("the file ends within the block at byte {at}"));
            return Ok(Step::End);
        }
        let kind = self.order.u32(&start, 0);
        if kind == SECTION {
            return self.begin(input, [start[4], start[5], start[6], start[7]], at, flaws);
        }
        let len = self.order.u32(&start, 4);
        if len < 12 || !len.is_multiple_of(4) {
            flaws.end(|| format!("the block at byte {at} claims {len} bytes: what follows cannot be found"));
            return Ok(Step::End);
        }
        let mut body = Body { at, left: len - 12 };
        let step = match kind {
            INTERFACE => self.interface(input, &mut body, flaws)?,
            PACKET | OBSOLETE_PACKET => self.packet(input, &mut body, kind, head, mark, flaws)?,
            SIMPLE_PACKET => self.simple(input, &mut body, head, flaws)?,
            _ => Step::Next,
        };
        if matches!(step, Step::End) {
            return Ok(step);
        }
        self.finish(input, &body, len, step, flaws)
    }

    /// Passes over what is left of a block, and compares the lengths at its ends.
    fn finish<R: Read>(
        &self,
        input: &mut Input<R>,
        body: &Body,
        len: u32,
        step: Step,
        flaws: &mut Flaws,
    ) -> io::Result<Step> {
        let at = body.at;
        let mut trailer = [0; 4];
        if !input.skip(u64::from(body.left))? || input.fill(&mut trailer)? < trailer.len() {
            flaws.end(|| format!("the file ends within the block at byte {at}"));
            return Ok(Step::End);
        }
        let repeated = self.order.u32(&trailer, 0);
        if repeated != len {
            flaws.note(|| format!("the block at byte {at} has {len} bytes at its beginning and {repeated} at its end"));
        }
        Ok(step)
    }

    /// A section header, after its type and length: a new byte order, and no interfaces yet.
    fn begin<R: Read>(&mut self, input: &mut Input<R>, len: [u8; 4], at: u64, flaws: &mut Flaws) -> io::Result<Step> {
        let mut magic = [0; 4];
        if input.fill(&mut magic)? < magic.len() {
            flaws.end(|| format!("the file ends within the section header at byte {at}"));
            return Ok(Step::End);
        }
        self.order = match magic {
            [0x1a, 0x2b, 0x3c, 0x4d] => Order::Big,
            [0x4d, 0x3c, 0x2b, 0x1a] => Order::Little,
            _ => {
                flaws.end(|| format!("the section header at byte {at} has no byte order"));
                return Ok(Step::End);
            }
        };
        let len = self.order.u32(&len, 0);
        if len < 28 || !len.is_multiple_of(4) {
            flaws.end(|| format!("the section header at byte {at} claims {len} bytes"));
            return Ok(Step::End);
        }
        self.interfaces.clear();
        self.described = 0;
        self.finish(input, &Body { at, left: len - 16 }, len, Step::Next, flaws)
    }

    fn interface<R: Read>(&mut self, input: &mut Input<R>, body: &mut Body, flaws: &mut Flaws) -> io::Result<Step> {
        let Some(fixed) = body.fixed::<R, 8>(input, flaws)? else { return Ok(Step::Next) };
        let mut interface = Interface {
            link: u32::from(self.order.u16(&fixed, 0)),
            snap_len: self.order.u32(&fixed, 4),
            resolution: 6,
            offset_secs: 0,
        };
        self.options(input, body)?;
        let (order, at) = (self.order, body.at);
        let sound = each_option(order, &self.options, |code, value| match (code, value.len()) {
            (IF_TSRESOL, 1) => interface.resolution = value[0],
            (IF_TSOFFSET, 8) => interface.offset_secs = order.u64(value, 0).cast_signed(),
            _ => {}
        });
        if !sound {
            flaws.note(|| format!("the options of the interface at byte {at} are damaged"));
        }
        self.described += 1;
        if self.interfaces.len() < MAX_INTERFACES {
            self.interfaces.push(interface);
        } else if self.described == MAX_INTERFACES as u64 + 1 {
            flaws.note(|| {
                format!("a section has more than {MAX_INTERFACES} interfaces: packets of the others are undecoded")
            });
        }
        Ok(Step::Next)
    }

    fn packet<R: Read>(
        &mut self,
        input: &mut Input<R>,
        body: &mut Body,
        kind: u32,
        head: &mut Vec<u8>,
        mark: &mut Mark,
        flaws: &mut Flaws,
    ) -> io::Result<Step> {
        let Some(fixed) = body.fixed::<R, 20>(input, flaws)? else { return Ok(Step::Next) };
        let order = self.order;
        let interface = if kind == PACKET { order.u32(&fixed, 0) } else { u32::from(order.u16(&fixed, 0)) };
        let ticks = u64::from(order.u32(&fixed, 4)) << 32 | u64::from(order.u32(&fixed, 8));
        let (captured, wire_len) = (order.u32(&fixed, 12), order.u32(&fixed, 16));
        if !body.take(input, head, captured, flaws)? {
            return Ok(Step::Next);
        }
        self.options(input, body)?;
        if !each_option(order, &self.options, |code, value| mark.option(order, code, value)) {
            let at = body.at;
            flaws.note(|| format!("the options of the packet at byte {at} are damaged"));
        }
        if kind == OBSOLETE_PACKET {
            // All ones: nobody counted.
            mark.missed = match order.u16(&fixed, 2) {
                u16::MAX => 0,
                dropped => dropped.into(),
            };
        }
        let known = self.known(interface, body.at, flaws);
        Ok(Step::Frame(Fixed {
            time_ns: known.and_then(|i| time(ticks, i.resolution, i.offset_secs)),
            interface,
            link: known.map_or(super::link::NONE, |i| i.link),
            captured,
            wire_len,
        }))
    }

    /// A packet without time or options, of the section's first interface.
    fn simple<R: Read>(
        &mut self,
        input: &mut Input<R>,
        body: &mut Body,
        head: &mut Vec<u8>,
        flaws: &mut Flaws,
    ) -> io::Result<Step> {
        let Some(fixed) = body.fixed::<R, 4>(input, flaws)? else { return Ok(Step::Next) };
        let wire_len = self.order.u32(&fixed, 0);
        let known = self.known(0, body.at, flaws);
        let snap_len = known.map_or(0, |i| i.snap_len);
        let captured = wire_len.min(body.left).min(if snap_len == 0 { u32::MAX } else { snap_len });
        if !body.take(input, head, captured, flaws)? {
            return Ok(Step::Next);
        }
        let link = known.map_or(super::link::NONE, |i| i.link);
        Ok(Step::Frame(Fixed { time_ns: None, interface: 0, link, captured, wire_len }))
    }

    fn known(&self, interface: u32, at: u64, flaws: &mut Flaws) -> Option<Interface> {
        let known = self.interfaces.get(interface as usize).copied();
        if known.is_none() && u64::from(interface) >= self.described {
            flaws.note(|| format!("the packet at byte {at} is of interface {interface}, which nothing describes"));
        }
        known
    }

    /// Reads the options of a block, as many as are looked at.
    fn options<R: Read>(&mut self, input: &mut Input<R>, body: &mut Body) -> io::Result<()> {
        let wanted = (body.left as usize).min(MAX_OPTIONS);
        self.options.resize(wanted, 0);
        let read = input.fill(&mut self.options)?;
        self.options.truncate(read);
        body.left -= u32::try_from(wanted).expect("below the bound");
        Ok(())
    }
}

impl Body {
    /// The block's fixed fields; nothing if it is too short for them.
    fn fixed<R: Read, const N: usize>(
        &mut self,
        input: &mut Input<R>,
        flaws: &mut Flaws,
    ) -> io::Result<Option<[u8; N]>> {
        let at = self.at;
        let needed = u32::try_from(N).expect("a few bytes");
        let Some(left) = self.left.checked_sub(needed) else {
            flaws.note(|| format!("the block at byte {at} is too short for its fields"));
            return Ok(None);
        };
        self.left = left;
        let mut fixed = [0; N];
        // Where the file ends here, the end of the block says so.
        input.fill(&mut fixed)?;
        Ok(Some(fixed))
    }

    /// Reads the bytes of a packet with their padding; false if the block has not as many as it claims.
    fn take<R: Read>(
        &mut self,
        input: &mut Input<R>,
        head: &mut Vec<u8>,
        captured: u32,
        flaws: &mut Flaws,
    ) -> io::Result<bool> {
        let at = self.at;
        if captured > self.left || captured > MAX_FRAME {
            flaws.note(|| format!("the packet at byte {at} claims {captured} bytes, more than its block has"));
            return Ok(false);
        }
        self.left -= captured;
        take_head(input, head, captured)?;
        let padding = captured.next_multiple_of(4) - captured;
        if padding <= self.left {
            self.left -= padding;
            input.skip(padding.into())?;
        }
        Ok(true)
    }
}

/// Hands over each option; false if one of them reaches beyond the end.
fn each_option(order: Order, mut rest: &[u8], mut take: impl FnMut(u16, &[u8])) -> bool {
    let cut = rest.len() == MAX_OPTIONS;
    while rest.len() >= 4 {
        let (code, len) = (order.u16(rest, 0), usize::from(order.u16(rest, 2)));
        if code == 0 {
            return true;
        }
        let Some(value) = rest.get(4..4 + len) else { return cut };
        take(code, value);
        rest = rest.get(4 + len.next_multiple_of(4)..).unwrap_or_default();
    }
    // Without a last option the block's end ends them.
    rest.is_empty() || cut
}

/// A count of ticks as nanoseconds since 1970: the high bit of the resolution chooses powers of two, else they are of
/// ten. Nothing where that leaves the range.
fn time(ticks: u64, resolution: u8, offset_secs: i64) -> Option<u64> {
    let exponent = u32::from(resolution & 0x7f);
    let per_second =
        if resolution & 0x80 == 0 { 10_u128.checked_pow(exponent)? } else { 1_u128.checked_shl(exponent)? };
    let nanos = u128::from(ticks) * 1_000_000_000 / per_second;
    let offset = i128::from(offset_secs) * 1_000_000_000;
    u64::try_from(i128::try_from(nanos).ok()?.checked_add(offset)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_powers_of_ten_or_of_two_and_moved_by_the_offset() {
        for (ticks, resolution, offset, expected) in [
            (1_500_000, 6, 0, Some(1_500_000_000)),
            (7, 9, 0, Some(7)),
            (3, 0x80 | 1, 0, Some(1_500_000_000)),
            (5, 0, 10, Some(15_000_000_000)),
            (5, 0, -10, None),
            (1, 38, 0, Some(0)),
            (1, 0x7f, 0, None),
            (1, 0xff, 0, Some(0)),
            (u64::MAX, 0, 0, None),
            (u64::MAX, 9, i64::MAX, None),
        ] {
            assert_eq!(time(ticks, resolution, offset), expected, "{ticks} {resolution:#x} {offset}");
        }
    }

    #[test]
    fn options_end_with_a_last_one_or_with_their_block() {
        let read = |bytes: &[u8]| {
            let mut seen = Vec::new();
            let sound = each_option(Order::Little, bytes, |code, value| seen.push((code, value.to_vec())));
            (seen, sound)
        };
        assert_eq!(read(&[]), (vec![], true));
        assert_eq!(read(&[1, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0]), (vec![(1, vec![7])], true));
        assert_eq!(read(&[1, 0, 1, 0, 7, 0, 0, 0]), (vec![(1, vec![7])], true), "no last one");
        assert_eq!(read(&[1, 0, 1, 0, 7]), (vec![(1, vec![7])], true), "no padding");
        assert_eq!(read(&[1, 0, 9, 0, 7]), (vec![], false), "too long");
        assert_eq!(read(&[0, 0, 0, 0, 1, 0, 1, 0, 7]), (vec![], true), "nothing follows the last one");
        assert_eq!(read(&[1, 0]), (vec![], false));
    }
}
