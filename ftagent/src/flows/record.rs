//! What the parsers of flow records make of them.

use ftagent_common::packet::Packet;

/// Packets of one flow, or a part of them that has the same flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    /// One of them, as far as the record describes it.
    pub(super) packet: Packet,
    /// Corrected by the sampling rate; bytes with their link headers.
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// From the first packet to the last, and from the last to the export, in nanoseconds.
    pub(super) over_ns: u64,
    pub(super) age_ns: u64,
    /// One packet in so many was looked at.
    pub(super) one_in: u32,
    pub(super) input: u32,
    pub(super) is_egress: bool,
}

/// What a sequence number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counts {
    Datagrams,
    Records,
}

/// One message of NetFlow or IPFIX.
#[derive(Debug)]
pub(super) struct Message {
    /// 5, 9 or 10.
    pub(super) version: u16,
    /// Observation domain, source id or engine.
    pub(super) domain: u32,
    pub(super) sequence: u32,
    pub(super) counts: Counts,
    /// By how much the next sequence number is higher; `None` where that cannot be known.
    pub(super) grows_by: Option<u32>,
    pub(super) unix_secs: u64,
    pub(super) flows: Vec<Flow>,
    /// Records of flows that could be read.
    pub(super) records: u64,
    /// Sets of records whose template is not known.
    pub(super) unknown_templates: u64,
    /// Records beyond the bound.
    pub(super) cut: u64,
}
