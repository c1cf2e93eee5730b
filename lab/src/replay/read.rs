//! Reads pcap (micro- and nanoseconds, both byte orders) and pcapng files, and turns what other link layers carried
//! into Ethernet frames.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError, TsResolution};

use super::ReplayError;

const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// Interfaces of a section; a file that names more is not one of a capturing program.
const MAX_INTERFACES: usize = 4_096;

/// One packet as the file has it, already an Ethernet frame.
pub struct Captured {
    /// Time since the epoch, as the capturing machine saw it.
    pub at: Duration,
    pub frame: Vec<u8>,
    /// The frame's length on the wire in bytes, where the file says it; at least the frame's.
    pub wire_len: usize,
}

/// What there is to say of a file when its packets are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// Packets of a link layer or protocol that cannot be made Ethernet.
    pub unknown: u64,
    /// The file breaks off in the middle of a packet.
    pub cut: bool,
}

/// All packets of a file in its order, and how many were of a link layer or protocol that cannot be made Ethernet.
///
/// A file that breaks off in the middle of a packet gives the packets before.
pub(super) fn read(path: &Path) -> Result<(Vec<Captured>, u64), ReplayError> {
    let mut packets = Vec::new();
    let ending = each(path, &mut |packet| {
        packets.push(packet);
        ControlFlow::Continue(())
    })?;
    Ok((packets, ending.unknown))
}

/// Hands over the packets of a file in its order, one at a time: no more than a few megabytes are held, whatever the
/// file's size. Ends early when told to.
///
/// # Errors
/// The file cannot be read, or is no capture. One that is damaged further on gives the packets before, then the error;
/// one that breaks off in the middle of a packet is no error.
pub fn each(path: &Path, take: &mut dyn FnMut(Captured) -> ControlFlow<()>) -> Result<Ending, ReplayError> {
    let fail = |source| ReplayError::Open { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(fail)?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(fail)?;
    // A pipe cannot be wound back.
    let reader = magic.as_slice().chain(BufReader::new(file));
    let mut sink = Sink { take, ending: Ending::default(), any: false, enough: false };
    let result = if magic == PCAPNG_MAGIC { read_pcapng(reader, &mut sink) } else { read_pcap(reader, &mut sink) };
    match result {
        Ok(()) => Ok(sink.ending),
        // Also what the crate says of a packet that is larger than its buffer.
        Err(PcapError::IncompleteBuffer) if sink.any => Ok(Ending { cut: true, ..sink.ending }),
        Err(PcapError::IoError(source)) if source.kind() == ErrorKind::UnexpectedEof && sink.any => {
            Ok(Ending { cut: true, ..sink.ending })
        }
        Err(source) => Err(ReplayError::Parse { path: path.to_owned(), source }),
    }
}

struct Sink<'a> {
    take: &'a mut dyn FnMut(Captured) -> ControlFlow<()>,
    ending: Ending,
    /// A packet was read.
    any: bool,
    enough: bool,
}

impl Sink<'_> {
    fn push(&mut self, link: DataLink, at: Duration, data: &[u8], wire_len: u32) {
        self.any = true;
        match ethernet(link, data) {
            Some(frame) => {
                // The link header may have changed its length; what was cut off is the same.
                let cut = (wire_len as usize).saturating_sub(data.len());
                let wire_len = frame.len() + cut;
                self.enough = (self.take)(Captured { at, frame, wire_len }).is_break();
            }
            None => self.ending.unknown += 1,
        }
    }
}

fn read_pcap(reader: impl Read, sink: &mut Sink<'_>) -> Result<(), PcapError> {
    let mut reader = PcapReader::new(reader)?;
    let header = reader.header();
    let nanos_per_tick = if header.ts_resolution == TsResolution::NanoSecond { 1 } else { 1_000 };
    // Raw packets: the checked ones refuse a wire length above the snap length, which every cut packet has.
    while let Some(packet) = reader.next_raw_packet() {
        let packet = packet?;
        let nanos = u64::from(packet.ts_frac) * nanos_per_tick;
        let at = Duration::from_secs(packet.ts_sec.into()) + Duration::from_nanos(nanos);
        sink.push(header.datalink, at, &packet.data, packet.orig_len);
        if sink.enough {
            break;
        }
    }
    Ok(())
}

fn read_pcapng(reader: impl Read, sink: &mut Sink<'_>) -> Result<(), PcapError> {
    let mut reader = PcapNgReader::new(reader)?;
    let mut interfaces: Vec<(DataLink, u8)> = Vec::new();
    let mut last = Duration::ZERO;
    while let Some(block) = reader.next_block() {
        match block? {
            Block::SectionHeader(_) => interfaces.clear(),
            Block::InterfaceDescription(_) if interfaces.len() >= MAX_INTERFACES => {
                return Err(PcapError::InvalidField("a section with too many interfaces"));
            }
            Block::InterfaceDescription(description) => {
                interfaces.push((description.linktype, resolution(&description)))
            }
            Block::EnhancedPacket(packet) => {
                if let Some(&(link, resolution)) = interfaces.get(packet.interface_id as usize) {
                    // The crate takes every tick for a nanosecond.
                    last = ticks(packet.timestamp.as_nanos() as u64, resolution);
                    sink.push(link, last, &packet.data, packet.original_len);
                }
            }
            Block::Packet(packet) => {
                if let Some(&(link, resolution)) = interfaces.get(usize::from(packet.interface_id)) {
                    last = ticks(packet.timestamp, resolution);
                    sink.push(link, last, &packet.data, packet.original_len);
                }
            }
            // Has no time of its own.
            Block::SimplePacket(packet) => {
                if let Some(&(link, _)) = interfaces.first() {
                    sink.push(link, last, &packet.data, packet.original_len);
                }
            }
            _ => {}
        }
        if sink.enough {
            break;
        }
    }
    Ok(())
}

/// `if_tsresol`; microseconds where it is absent.
fn resolution(description: &InterfaceDescriptionBlock<'_>) -> u8 {
    description
        .options
        .iter()
        .find_map(|o| if let InterfaceDescriptionOption::IfTsResol(r) = o { Some(*r) } else { None })
        .unwrap_or(6)
}

/// A count of ticks as time: the high bit of the resolution chooses powers of two, else they are of ten.
fn ticks(count: u64, resolution: u8) -> Duration {
    let exponent = u32::from(resolution & 0x7f);
    let per_second = if resolution & 0x80 == 0 { 10_u128.checked_pow(exponent) } else { 1_u128.checked_shl(exponent) };
    let Some(per_second) = per_second.filter(|&n| n > 0) else { return Duration::ZERO };
    let nanos = u128::from(count).saturating_mul(1_000_000_000) / per_second;
    Duration::from_nanos(nanos.min(u128::from(u64::MAX)) as u64)
}

/// The packet as an Ethernet frame with zero addresses; nothing for a link layer or protocol that is not known here.
fn ethernet(link: DataLink, data: &[u8]) -> Option<Vec<u8>> {
    let be16 = |at: usize| Some(u16::from_be_bytes([*data.get(at)?, *data.get(at + 1)?]));
    let (ether_type, at) = match link {
        DataLink::ETHERNET => return Some(data.to_vec()),
        DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 | DataLink::Unknown(12 | 14) => (by_version(data)?, 0),
        DataLink::LINUX_SLL => (be16(14)?, 16),
        DataLink::LINUX_SLL2 => (be16(0)?, 20),
        DataLink::NULL | DataLink::LOOP => {
            // The address family, in the byte order of whichever machine captured; all in use fit the low byte.
            let family = *data.get(..4)?.iter().find(|&&byte| byte != 0)?;
            (if family == 2 { 0x0800 } else { 0x86dd }, 4)
        }
        DataLink::PPP => {
            let at = if data.starts_with(&[0xff, 0x03]) { 2 } else { 0 };
            match be16(at)? {
                0x0021 => (0x0800, at + 2),
                0x0057 => (0x86dd, at + 2),
                _ => return None,
            }
        }
        _ => return None,
    };
    let mut frame = vec![0; 12];
    frame.extend(u16::to_be_bytes(ether_type));
    frame.extend(data.get(at..)?);
    Some(frame)
}

fn by_version(data: &[u8]) -> Option<u16> {
    match data.first()? >> 4 {
        4 => Some(0x0800),
        6 => Some(0x86dd),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_powers_of_ten_or_of_two() {
        for (count, resolution, nanos) in
            [(1_500_000, 6, 1_500_000_000), (7, 9, 7), (3, 0x80 | 1, 1_500_000_000), (1, 0x7f, 0)]
        {
            assert_eq!(ticks(count, resolution), Duration::from_nanos(nanos), "{count} {resolution:#x}");
        }
    }

    #[test]
    fn every_link_layer_becomes_ethernet() {
        let ip = [0x45, 1, 2, 3];
        let with = |header: &[u8]| [header, &ip].concat();
        let mut sll = [0; 16];
        sll[14] = 8;
        let mut sll2 = [0; 20];
        sll2[0] = 8;
        for (name, link, data) in [
            ("raw", DataLink::RAW, with(&[])),
            ("ipv4", DataLink::IPV4, with(&[])),
            ("null, little endian", DataLink::NULL, with(&[2, 0, 0, 0])),
            ("null, big endian", DataLink::NULL, with(&[0, 0, 0, 2])),
            ("ppp", DataLink::PPP, with(&[0x00, 0x21])),
            ("ppp in hdlc framing", DataLink::PPP, with(&[0xff, 0x03, 0x00, 0x21])),
            ("sll", DataLink::LINUX_SLL, with(&sll)),
            ("sll2", DataLink::LINUX_SLL2, with(&sll2)),
        ] {
            let frame = ethernet(link, &data).expect(name);
            assert_eq!(frame[12..], [0x08, 0x00, 0x45, 1, 2, 3], "{name}");
        }
        assert_eq!(ethernet(DataLink::PPP, &with(&[0xc0, 0x21])), None, "LCP is no IP");
        assert_eq!(ethernet(DataLink::LINUX_SLL, &[0; 15]), None);
    }
}
