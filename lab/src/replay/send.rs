//! Sends frames from a packet socket, many with one system call.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockType, bind, sendmmsg, setsockopt, socket, sockopt,
};

use super::{Recording, ReplayError, TimedFrame};
use crate::clock::{Moment, now};
use crate::generator::{Bounds, Clockwork, Pace, Sent};
use crate::rtnl::Rtnl;

/// Frames of one system call.
const BATCH: usize = 32;
const TICK: Duration = Duration::from_micros(500);

/// When each frame goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Timing {
    /// By the capture's time stamps, this many times faster; above 0. A loop follows the one before at once.
    Recorded {
        speed: f64,
    },
    Paced(Pace),
}

/// Sends a recording from `device` of the calling thread's network namespace, over and over, until a bound is reached.
///
/// # Errors
/// The device does not exist or the kernel refused a frame.
pub fn send(device: &str, recording: &Recording, timing: Timing, bounds: Bounds<'_>) -> Result<Sent, ReplayError> {
    let fail = |source| ReplayError::Send { device: device.to_owned(), source };
    let length = recording.frames.len() as u64;
    let Some(span) = recording.frames.last().map(|f| f.at) else { return Err(ReplayError::Empty) };
    let socket = open(device).map_err(fail)?;
    let index = nix::net::if_::if_nametoindex(device).map_err(|e| fail(e.into()))?;
    let dropped = || Rtnl::open().and_then(|rtnl| rtnl.stats(index)).map(|s| s.tx_dropped).map_err(fail);
    let dropped_before = dropped()?;
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let first = bounds.begin();
    let started = now();
    let mut clockwork = match timing {
        Timing::Paced(Pace::PerSecond(rate)) => Some(Clockwork::new(rate)),
        Timing::Paced(Pace::Full) | Timing::Recorded { .. } => None,
    };
    let mut sent: u64 = 0;
    // Frames that the device dropped and that the kernel said so of: they are sent again. A call that sends some stops
    // at such a frame without an error. Older kernels drop silently; then the frame counts as sent and lost.
    let mut refused: u64 = 0;
    while !bounds.is_over(sent, started.elapsed()) {
        let at = (sent % length) as usize;
        let room = (recording.frames.len() - at).min(BATCH).min(usize::try_from(bounds.frames - sent).unwrap_or(BATCH));
        let next = &recording.frames[at..at + room];
        let due = match (&mut clockwork, timing) {
            (Some(clockwork), _) => room.min(usize::try_from(clockwork.due(sent)).unwrap_or(room)),
            (None, Timing::Recorded { speed }) => {
                let into_loop = started.elapsed().mul_f64(speed).saturating_sub(span * (sent / length) as u32);
                next.iter().take_while(|frame| frame.at <= into_loop).count()
            }
            (None, Timing::Paced(_)) => room,
        };
        if due == 0 {
            thread::sleep(TICK);
            continue;
        }
        match send_some(&socket, &mut headers, &next[..due]) {
            Ok(count) => {
                sent += count as u64;
                refused += u64::from(count < due);
            }
            Err(Errno::ENOBUFS) => {
                refused += 1;
                thread::sleep(TICK);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => thread::sleep(TICK),
            Err(error) => return Err(fail(error.into())),
        }
    }
    let last = Moment::now();
    let ring_dropped = (dropped()? - dropped_before).saturating_sub(refused);
    Ok(Sent { frames: sent, ring_dropped, refused, first, last })
}

/// A packet socket that receives nothing, bound to the device.
fn open(device: &str) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    // Best effort: with the default size the loop in `send` waits more often.
    setsockopt(&socket, sockopt::SndBufForce, &(4 << 20)).ok();
    bind(socket.as_raw_fd(), &address(device)?)?;
    Ok(socket)
}

/// The device's own link-layer address, whose protocol number is zero: a socket bound to it receives nothing.
fn address(device: &str) -> io::Result<LinkAddr> {
    getifaddrs()?
        .filter(|entry| entry.interface_name == device)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no device {device}")))
}

fn send_some(socket: &OwnedFd, headers: &mut MultiHeaders<LinkAddr>, frames: &[TimedFrame]) -> Result<usize, Errno> {
    let slices: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|frame| [IoSlice::new(&frame.bytes)]).collect();
    let addresses = vec![None; frames.len()];
    let results = sendmmsg(socket.as_raw_fd(), headers, &slices, addresses, [], MsgFlags::empty())?;
    Ok(results.count())
}
