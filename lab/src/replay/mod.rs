//! Recorded traffic, given addresses of the lab and sent again, paced and counted to the frame.

mod read;
mod rewrite;
mod send;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ftagent_common::frame::Frame;
use ftagent_common::packet::{Checks, Kind, Packet, parse_into};

pub use read::{Captured, Ending, each};
pub use rewrite::Rewrite;
pub use send::{Timing, send};

/// The largest frame that a device with the usual MTU of 1,500 bytes takes, with two VLAN tags.
pub const MAX_FRAME: usize = 1522;

/// Why a capture could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("cannot read capture {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("capture {} is damaged", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: pcap_file::PcapError,
    },
    #[error("nothing to send: no packet of the capture was chosen")]
    Empty,
    #[error("cannot send from device {device}")]
    Send {
        device: String,
        #[source]
        source: io::Error,
    },
}

/// Which packets of a capture are sent.
#[derive(Clone, Debug)]
pub enum Selection {
    /// Those to one of these addresses.
    To(Vec<IpAddr>),
    /// Those to the address that receives the most packets.
    Busiest,
    All,
}

/// One frame and its time since the first one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimedFrame {
    pub at: Duration,
    pub bytes: Vec<u8>,
}

/// What was left out, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Not IP, not parsable, or of an unknown link layer.
    pub not_ip: u64,
    /// To other addresses.
    pub not_chosen: u64,
    /// Longer than [`MAX_FRAME`], as captures behind receive offload have them.
    pub too_long: u64,
}

/// Frames ready to be sent.
#[derive(Clone, Debug)]
pub struct Recording {
    pub frames: Vec<TimedFrame>,
    pub left_out: LeftOut,
    /// Frames that were cut by the capture and padded here.
    pub padded: u64,
}

impl Recording {
    /// Reads a capture, chooses packets and rewrites them.
    ///
    /// # Errors
    /// The file cannot be read, or no packet was chosen.
    pub fn load(path: &Path, selection: &Selection, new: &Rewrite) -> Result<Self, ReplayError> {
        let (captured, unknown) = read::read(path)?;
        let targets = match selection {
            Selection::To(targets) => Some(targets.clone()),
            Selection::Busiest => Some(busiest(&captured).into_iter().collect()),
            Selection::All => None,
        };
        let mut recording =
            Self { frames: Vec::new(), left_out: LeftOut { not_ip: unknown, ..LeftOut::default() }, padded: 0 };
        let mut first = None;
        for packet in captured {
            let Some(dst) = destination(&packet) else {
                recording.left_out.not_ip += 1;
                continue;
            };
            if targets.as_ref().is_some_and(|targets| !targets.contains(&dst)) {
                recording.left_out.not_chosen += 1;
                continue;
            }
            if packet.wire_len > MAX_FRAME {
                recording.left_out.too_long += 1;
                continue;
            }
            let cut = packet.frame.len() < packet.wire_len;
            let mut bytes = packet.frame;
            if !rewrite::rewrite(&mut bytes, packet.wire_len, new) {
                recording.left_out.not_ip += 1;
                continue;
            }
            recording.padded += u64::from(cut);
            // Time stamps may run backwards; such a frame follows at once.
            let start = *first.get_or_insert(packet.at);
            recording.frames.push(TimedFrame { at: packet.at.saturating_sub(start), bytes });
        }
        if recording.frames.is_empty() { Err(ReplayError::Empty) } else { Ok(recording) }
    }

    /// Frames as they are, one after the other at once.
    pub fn from_frames(frames: Vec<Vec<u8>>) -> Self {
        let frames = frames.into_iter().map(|bytes| TimedFrame { at: Duration::ZERO, bytes }).collect();
        Self { frames, left_out: LeftOut::default(), padded: 0 }
    }
}

/// Where the packet goes, judged by its whole length on the wire.
fn destination(packet: &Captured) -> Option<IpAddr> {
    let mut padded;
    let bytes = if packet.frame.len() < packet.wire_len && packet.wire_len <= MAX_FRAME {
        padded = packet.frame.clone();
        padded.resize(packet.wire_len, 0);
        &padded
    } else {
        &packet.frame
    };
    // Unchecked: floods have ports and flags that no host sends, and are replayed for that very reason.
    let mut parsed = Packet::EMPTY;
    let kind = parse_into(&Frame::new(bytes), packet.wire_len.max(bytes.len()), Checks::NONE, &mut parsed);
    (kind == Kind::Ip).then(|| parsed.dst.into())
}

fn busiest(packets: &[Captured]) -> Option<IpAddr> {
    let mut counts: HashMap<IpAddr, u64> = HashMap::new();
    for dst in packets.iter().filter_map(destination) {
        *counts.entry(dst).or_default() += 1;
    }
    // Ties go to the lower address, so that a run can be repeated.
    counts.into_iter().max_by_key(|&(address, count)| (count, std::cmp::Reverse(address))).map(|(address, _)| address)
}
