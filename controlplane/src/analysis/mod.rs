//! What captures hold: their packets as a list, and an analysis of them all.
//!
//! `app/pcaps.rs` calls this on a thread where waiting holds nobody up. Everything here is a function of the bytes that
//! a reader gives: no clock, no database, no path. Files come from nodes and may claim anything: memory is bounded by
//! the constants here and in the modules, work by a [`Budget`].
//!
//! ```text
//! bytes ─ frames (pcap, pcapng, mark) ─ decode (link, the datapath's parser) ─┬─ packets: rows of a page
//!                                                                             └─ tally ─ report, vector, advice, words
//! ```

mod advice;
mod decode;
mod frames;
mod heavy;
mod input;
mod link;
mod mark;
mod names;
mod packets;
mod payload;
mod pcap;
mod pcapng;
mod report;
mod summary;
mod tally;
mod vector;

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};

pub use advice::Advice;
pub use mark::PacketVerdict;
pub use packets::{FragmentPart, PacketPage, PacketRow, packets};
pub use report::{
    AddressShare, Analysis, FlagsShare, LinkShare, PortShare, ProtocolShare, ReasonCount, SizeShare, TtlShare,
    VectorShare, VerdictCounts,
};

/// Records and blocks of a file that are counted for a list: a second or two of a core.
pub const MAX_LISTED: u64 = 20_000_000;
/// Records and blocks of a file that are analysed: a few seconds of a core. More than a file of 64 MiB has packets.
pub const MAX_ANALYSED: u64 = 5_000_000;
/// After so many of them it is asked whether anybody still waits.
const PER_LOOK: u64 = 1_024;

/// Reads a capture once through and says what its packets are.
///
/// # Errors
/// The disk fails.
pub fn analyse(reader: impl Read, budget: Budget<'_>) -> io::Result<Analysis> {
    Ok(report::report(&tally::Tally::of(reader, budget)?))
}

/// How much work one request may be.
#[derive(Debug)]
pub struct Budget<'a> {
    max: u64,
    spent: u64,
    stop: Option<&'a AtomicBool>,
}

impl<'a> Budget<'a> {
    /// Records and blocks, at most `max`.
    pub const fn of(max: u64) -> Self {
        Self { max, spent: 0, stop: None }
    }

    /// At most `max`, or until `stop` turns true.
    pub const fn until(max: u64, stop: &'a AtomicBool) -> Self {
        Self { max, spent: 0, stop: Some(stop) }
    }

    /// Takes one record or block; false if there are no more to be had.
    fn spend(&mut self, flaws: &mut frames::Flaws) -> bool {
        if self.spent >= self.max {
            let max = self.max;
            flaws.end(|| format!("only the first {max} records and blocks are read"));
            return false;
        }
        self.spent += 1;
        if self.spent.is_multiple_of(PER_LOOK) && self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            flaws.end(|| "nobody waits for the answer any more".to_owned());
            return false;
        }
        true
    }
}
