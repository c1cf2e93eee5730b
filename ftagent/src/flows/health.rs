//! How one exporter does: what came, what is missing, what could not be read.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::record::Counts;
use crate::engine::sample::SEC;

/// Numbered streams of one exporter.
const MAX_STREAMS: usize = 64;
/// A jump further than this is a new beginning, and one back by less is a datagram that was overtaken.
const MAX_GAP: u32 = 1 << 20;
const MAX_LATE: u32 = 4_096;

/// Counters of one exporter; they only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExporterCounts {
    pub datagrams: u64,
    pub bytes: u64,
    /// Sampled packets and flow records that were read.
    pub records: u64,
    /// Of these, those that counted: towards protected addresses, by the right interface.
    pub counted: u64,
    /// Missing by the gaps in sequence numbers: sFlow and NetFlow v9 number datagrams, NetFlow v5 and IPFIX records.
    pub lost_datagrams: u64,
    pub lost_records: u64,
    /// Sets of records that came before their template, or without it.
    pub unknown_templates: u64,
    /// Datagrams of another version or structure.
    pub malformed: u64,
    /// Records that were taken where packets leave, or by an interface that does not count.
    pub other_interfaces: u64,
    /// Records beyond what one datagram may have, and samples of something else than IP.
    pub skipped: u64,
    /// Records for more targets or moments than there is room for.
    pub unplaced: u64,
    /// Sequence numbers that began anew.
    pub restarts: u64,
}

/// One exporter as `status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExporterStatus {
    pub address: IpAddr,
    /// Such as `sflow5`, `netflow9`, `ipfix`; empty before the first datagram.
    pub protocol: String,
    /// Absent: it never sent anything.
    pub last_seen_secs: Option<u64>,
    pub silent: bool,
    #[serde(flatten)]
    pub counts: ExporterCounts,
    /// One packet in so many, of the newest record.
    pub sampling_rate: Option<u32>,
    /// Rates that it told by itself, coarsest first.
    #[serde(default)]
    pub told_sampling_rates: Vec<u32>,
    /// Templates that are known.
    pub templates: u64,
    /// Its clock minus ours; sFlow does not tell its own.
    pub clock_skew_secs: Option<i64>,
    /// The longest time that one flow record spoke of.
    pub longest_flow_secs: u64,
    /// Towards protected addresses, corrected by the sampling rate.
    pub pps: u64,
    pub bps: u64,
    pub active_incidents: u32,
}

/// One socket as `status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListenerStatus {
    pub listen: SocketAddr,
    pub protocol: String,
    /// Datagrams of addresses that are not allowed, and of exporters beyond the bound; none is read.
    pub refused: u64,
    pub exporters: Vec<ExporterStatus>,
}

/// Which numbers a sequence belongs to: version, domain or agent, sub-agent.
pub(super) type Stream = (u16, u32);

#[derive(Clone, Debug, Default)]
pub(super) struct Health {
    pub(super) counts: ExporterCounts,
    pub(super) seen_ns: Option<u64>,
    pub(super) protocol: &'static str,
    pub(super) sampling_rate: Option<u32>,
    pub(super) skew_secs: Option<i64>,
    pub(super) longest_ns: u64,
    /// The number that is next.
    streams: BTreeMap<Stream, u32>,
}

impl Health {
    /// Compares a sequence number with the one that was to come.
    pub(super) fn on_sequence(&mut self, stream: Stream, sequence: u32, counts: Counts, grows_by: Option<u32>) {
        let lost = match counts {
            Counts::Datagrams => &mut self.counts.lost_datagrams,
            Counts::Records => &mut self.counts.lost_records,
        };
        if let Some(expected) = self.streams.get(&stream) {
            let (ahead, behind) = (sequence.wrapping_sub(*expected), expected.wrapping_sub(sequence));
            if ahead != 0 && behind <= MAX_LATE {
                // It was counted as lost when a later one came.
                *lost = lost.saturating_sub(grows_by.unwrap_or(0).into());
                return;
            }
            if ahead < MAX_GAP {
                *lost = lost.saturating_add(ahead.into());
            } else {
                self.counts.restarts += 1;
            }
        } else if self.streams.len() >= MAX_STREAMS {
            return;
        }
        match grows_by {
            Some(more) => _ = self.streams.insert(stream, sequence.wrapping_add(more)),
            // What comes next cannot be known.
            None => _ = self.streams.remove(&stream),
        }
    }

    /// Whether nothing came for `silent_secs`, counted from `start_ns` if nothing ever came.
    pub(super) fn is_silent(&self, silent_secs: u32, start_ns: u64, now_ns: u64) -> bool {
        let since = self.seen_ns.unwrap_or(start_ns);
        now_ns.saturating_sub(since) > u64::from(silent_secs) * SEC
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Stream = (9, 1);

    fn lost(numbers: &[u32]) -> (u64, u64) {
        let mut health = Health::default();
        for number in numbers {
            health.on_sequence(STREAM, *number, Counts::Datagrams, Some(1));
        }
        (health.counts.lost_datagrams, health.counts.restarts)
    }

    #[test]
    fn gaps_are_losses_and_jumps_are_not() {
        let table: [(&str, &[u32], (u64, u64)); 8] = [
            ("none", &[1, 2, 3], (0, 0)),
            ("first number", &[900], (0, 0)),
            ("two missing", &[1, 4, 5], (2, 0)),
            ("overtaken", &[1, 3, 2, 4], (0, 0)),
            ("wrapped", &[u32::MAX, 0, 1], (0, 0)),
            ("missing at the wrap", &[u32::MAX, 2], (2, 0)),
            ("began anew", &[5_000_000, 0, 1, 2], (0, 1)),
            ("far ahead", &[1, 2_000_000_000, 2_000_000_001], (0, 1)),
        ];
        for (name, numbers, expected) in table {
            assert_eq!(lost(numbers), expected, "{name}");
        }
    }

    #[test]
    fn numbers_of_records_grow_by_them() {
        let mut health = Health::default();
        for (number, records) in [(0, Some(30)), (30, Some(10)), (45, None), (999, Some(1)), (1_000, Some(1))] {
            health.on_sequence(STREAM, number, Counts::Records, records);
        }
        assert_eq!(health.counts.lost_records, 5, "after an unknown number nothing is expected");
    }

    #[test]
    fn streams_are_bounded() {
        let mut health = Health::default();
        for domain in 0..10_000 {
            health.on_sequence((9, domain), 5, Counts::Datagrams, Some(1));
        }
        assert_eq!(health.streams.len(), MAX_STREAMS);
    }

    #[test]
    fn who_never_spoke_is_silent_since_the_start() {
        let health = Health::default();
        assert!(!health.is_silent(60, 100 * SEC, 150 * SEC));
        assert!(health.is_silent(60, 100 * SEC, 161 * SEC));
        let health = Health { seen_ns: Some(150 * SEC), ..health };
        assert!(!health.is_silent(60, 100 * SEC, 161 * SEC));
    }
}
