//! Every map, its size and why. User space overrides the sizes that the configuration names.

use aya_ebpf::Global;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use ftagent_common::abi::{
    Bitmaps, Block, Counter, CpuState, Health, InterfaceCounters, MAX_INTERFACES, MAX_POLICIES, MAX_RULES, Policy,
    RULES_PER_TARGET, RuleHits, Settings, Sketch, SourceCounters, SourceLimit, TargetCounters, Trust,
};
use ftagent_common::packet::{Ip, Kind, Packet};

/// Counter slot of the interface that this copy of the program is attached to; a constant to the verifier.
#[unsafe(no_mangle)]
pub(crate) static INTERFACE: Global<u32> = Global::new(0);

/// The sketch's secret, drawn at load: without it nobody can aim collisions at a victim.
#[unsafe(no_mangle)]
pub(crate) static SEED: Global<u64> = Global::new(0);

/// Mode, features, policers: the one word that every frame reads first.
#[map]
pub(crate) static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// In front of the tries below: most sources miss here.
#[map]
pub(crate) static BITMAPS: Array<Bitmaps> = Array::with_max_entries(1, 0);

/// Allowlist and fail-safe prefixes of both families.
#[map]
pub(crate) static TRUST: LpmTrie<Ip, Trust> = LpmTrie::with_max_entries(16_384, 0);

/// Blocked IPv4 addresses; not preallocated, since a full one takes 100 bytes an entry and most nodes block few.
#[map]
pub(crate) static BLOCK4: HashMap<u32, Block> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static BLOCK4_PREFIX: LpmTrie<u32, Block> = LpmTrie::with_max_entries(262_144, 0);

#[map]
pub(crate) static BLOCK6: HashMap<Ip, Block> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

/// IPv6 /64 networks: single addresses are free for an attacker.
#[map]
pub(crate) static BLOCK6_NET: HashMap<[u32; 2], Block> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static BLOCK6_PREFIX: LpmTrie<Ip, Block> = LpmTrie::with_max_entries(65_536, 0);

/// Limited sources; the state of the limit lies in the entry.
#[map]
pub(crate) static SOURCE_LIMITS: LpmTrie<Ip, SourceLimit> = LpmTrie::with_max_entries(16_384, 0);

/// Protected destinations, and which rule list is theirs; 0 is the empty one.
#[map]
pub(crate) static PROTECTED: LpmTrie<Ip, u32> = LpmTrie::with_max_entries(16_384, 0);

/// Rule lists. A list is never changed in place: a new one is written and `PROTECTED` pointed at it.
#[map]
pub(crate) static POLICIES: Array<Policy> = Array::with_max_entries(MAX_POLICIES, 0);

/// States of the limits in `POLICIES`, one word each.
#[map]
pub(crate) static POLICY_STATES: Array<u64> = Array::with_max_entries(MAX_POLICIES * RULES_PER_TARGET as u32, 0);

/// What each rule did.
#[map]
pub(crate) static RULE_HITS: PerCpuArray<RuleHits> = PerCpuArray::with_max_entries(MAX_RULES, 0);

/// Every frame once by reason and once by class, per interface: the exact sums.
#[map]
pub(crate) static VERDICTS: PerCpuArray<InterfaceCounters> = PerCpuArray::with_max_entries(MAX_INTERFACES, 0);

/// Traffic by protected address. An address that finds the map full is counted in `HEALTH` and in `VERDICTS` alone.
#[map]
pub(crate) static TARGETS: PerCpuHashMap<Ip, TargetCounters> = PerCpuHashMap::with_max_entries(8_192, 0);

/// All zero, to insert into `TARGETS` from: the value is as large as the whole BPF stack.
#[map]
pub(crate) static ZERO_TARGET: Array<TargetCounters> = Array::with_max_entries(1, 0);

/// One sketch per CPU; entries beyond the machine's CPUs are cut off at load.
#[map]
pub(crate) static SKETCHES: Array<Sketch> = Array::with_max_entries(512, 0);

/// Heavy sources, promoted by the sketch. Never evicts: user space sweeps what went silent.
#[map]
pub(crate) static SOURCES: PerCpuHashMap<Ip, SourceCounters> = PerCpuHashMap::with_max_entries(16_384, 0);

/// Policer states of heavy sources.
#[map]
pub(crate) static SOURCE_STATES: HashMap<Ip, u64> = HashMap::with_max_entries(16_384, 0);

/// The frame that is being judged.
pub(crate) struct Scratch {
    pub(crate) packet: Packet,
    pub(crate) kind: Kind,
    pub(crate) wire_len: usize,
}

/// The stack has 512 bytes in all.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub(crate) static CPU_STATES: PerCpuArray<CpuState> = PerCpuArray::with_max_entries(1, 0);

/// What went wrong inside the datapath itself.
#[map]
pub(crate) static HEALTH: PerCpuArray<Counter> = PerCpuArray::with_max_entries(Health::SLOTS, 0);

/// Sampled frames.
#[map]
pub(crate) static SAMPLES: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

const BPF_F_NO_PREALLOC: u32 = 1;
