//! The tables of what this node took part in, and how to find a flow in them.
//!
//! The egress program fills them. The datapath reads them, and adds a flow only where a handshake was proved: what
//! strangers send never takes a place.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use ftagent_common::abi::{
    FIRST_SYN_WORDS, FLOW_SETS, FlowSet, GateSettings, HALF_OPEN_SETS, Life, QUERY_SETS, Seen, flow_hash,
};
use ftagent_common::packet::Ip;

/// The secret, the ports of reflectors, and since when the tables are whole.
#[map]
pub(crate) static GATE: Array<GateSettings> = Array::with_max_entries(1, 0);

/// TCP connections.
#[map]
pub(crate) static FLOWS: Array<FlowSet> = Array::with_max_entries(FLOW_SETS, 0);

/// UDP queries and ICMP echo requests: a busy resolver must not push connections out.
#[map]
pub(crate) static QUERIES: Array<FlowSet> = Array::with_max_entries(QUERY_SETS, 0);

/// SYN-ACKs that we sent, by the acknowledgement number that answers them. Strangers cause them, so they have a table of
/// their own.
#[map]
pub(crate) static HALF_OPEN: Array<FlowSet> = Array::with_max_entries(HALF_OPEN_SETS, 0);

/// SYNs that drop-first remembers, four to a word.
#[map]
pub(crate) static FIRST_SYNS: Array<u64> = Array::with_max_entries(FIRST_SYN_WORDS, 0);

/// Memory that the verifier does not follow, see [`FlowSet::learn`].
#[map]
static PICK: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Learns a flow in the set that its hash leads to.
#[inline(always)]
pub(crate) fn learn(table: &'static Array<FlowSet>, sets: u32, hash: u64, now_ns: u64, life: Life, seen: Seen) {
    let (Some(set), Some(pick)) = (set(table, sets, hash), PICK.get_ptr_mut(0)) else { return };
    // SAFETY: the map's own memory of this CPU; a program is not interrupted by itself on its CPU.
    set.learn(unsafe { &mut *pick }, hash, now_ns, life, seen);
}

/// Both ends of a flow as this node sees them.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    pub(crate) remote: &'a Ip,
    pub(crate) local: &'a Ip,
    /// Remote, local.
    pub(crate) ports: [u16; 2],
    pub(crate) protocol: u8,
}

impl Ends<'_> {
    /// The flow's hash, or that of the flow with a sequence number.
    #[inline(always)]
    pub(crate) fn hash(&self, gate: &GateSettings, number: u32) -> u64 {
        flow_hash(&gate.secret, self.remote, self.local, self.ports, self.protocol, number)
    }
}

/// The set that a hash leads to.
#[expect(clippy::mut_from_ref, reason = "a map is the kernel's memory, which no reference to it guards")]
#[inline(always)]
pub(crate) fn set(table: &'static Array<FlowSet>, sets: u32, hash: u64) -> Option<&'static mut FlowSet> {
    let set = table.get_ptr_mut(hash as u32 & (sets - 1))?;
    // SAFETY: the map's own memory. CPUs may write one set at once: a slot is one aligned word, so that whoever writes
    // last has learnt his flow, and the other learns his again with its next packet.
    Some(unsafe { &mut *set })
}
