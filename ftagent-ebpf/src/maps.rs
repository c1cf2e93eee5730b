//! Every map, its size and why. User space overrides the sizes that the configuration names.

use aya_ebpf::Global;
use aya_ebpf::btf_maps;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use ftagent_common::abi::{
    Bitmaps, Block, Counter, CpuState, Health, InterfaceCounters, MAX_INTERFACES, MAX_LISTS, MAX_RULES, NEAR_BLOCKS,
    NearBlock, PAYLOAD_BYTES, RuleHits, Settings, Signatures, Sketch, Slotted, SourceCounters, SourceLimit,
    SourceState, Target, TargetCounters, Trust,
};
use ftagent_common::packet::{Ip, Kind, Packet};

use crate::sample::Draw;
use crate::stages::Verdict;

/// Counter slot of the interface that this copy of the program is attached to; a constant to the verifier.
#[unsafe(no_mangle)]
pub(crate) static INTERFACE: Global<u32> = Global::new(0);

/// Stages that this copy of the programs has, see `ftagent_common::abi::stage`: a constant to the verifier, which
/// deletes the others, so that a stage that is off costs nothing.
#[unsafe(no_mangle)]
pub(crate) static STAGES: Global<u32> = Global::new(u32::MAX);

/// Mode, features, policers: the one word that every frame reads first.
#[map]
pub(crate) static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// In front of the tries below: most sources miss here.
#[map]
pub(crate) static BITMAPS: Array<Bitmaps> = Array::with_max_entries(1, 0);

/// Allowlist and fail-safe prefixes of both families.
#[map]
pub(crate) static TRUST: LpmTrie<Ip, Slotted<Trust>> = LpmTrie::with_max_entries(16_384, 0);

/// Blocked IPv4 addresses; not preallocated, since a full one takes 100 bytes an entry and most nodes block few.
#[map]
pub(crate) static BLOCK4: HashMap<u32, Slotted<Block>> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);

/// Copies of entries of `BLOCK4`, in an array of our own: the kernel's hash costs five times as much. What found no
/// place here is there alone.
#[map]
pub(crate) static NEAR4: Array<NearBlock> = Array::with_max_entries(NEAR_BLOCKS, BPF_F_MMAPABLE);

#[map]
pub(crate) static BLOCK4_PREFIX: LpmTrie<u32, Slotted<Block>> = LpmTrie::with_max_entries(262_144, 0);

#[map]
pub(crate) static BLOCK6: HashMap<Ip, Slotted<Block>> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

/// IPv6 networks of 64, 56 and 48 bits, by their first words and their length: single addresses are free for an
/// attacker.
#[map]
pub(crate) static BLOCK6_NET: HashMap<[u32; 3], Slotted<Block>> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static BLOCK6_PREFIX: LpmTrie<Ip, Slotted<Block>> = LpmTrie::with_max_entries(65_536, 0);

/// Lists of IPv4 prefixes, one table for each rule set: see `ftagent_common::abi::Cell`.
///
/// Cells are plain words here: kernels before 6.2 take only tables whose type has a structure if this one's has.
#[btf_map]
pub(crate) static LISTS4: btf_maps::ArrayOfMaps<btf_maps::Array<[u64; 2], 1, LIST_FLAGS>, 2> =
    btf_maps::ArrayOfMaps::new();

/// What each list does, by the values in `LISTS4` less one.
#[map]
pub(crate) static LIST_RULES: Array<Slotted<Block>> = Array::with_max_entries(MAX_LISTS, 0);

/// Limited sources.
#[map]
pub(crate) static SOURCE_LIMITS: LpmTrie<Ip, Slotted<SourceLimit>> = LpmTrie::with_max_entries(16_384, 0);

/// Protected destinations, and which signature rules are theirs.
#[map]
pub(crate) static PROTECTED: LpmTrie<Ip, Slotted<Target>> = LpmTrie::with_max_entries(16_384, 0);

/// Signature rules, one element for each rule set. The active one is never written.
#[map]
pub(crate) static SIGNATURES: Array<Signatures> = Array::with_max_entries(2, 0);

/// States of all limits by the rule's slot, one word each: they outlive what is swapped.
#[map]
pub(crate) static RULE_STATES: Array<u64> = Array::with_max_entries(MAX_RULES, 0);

/// What each rule did.
#[map]
pub(crate) static RULE_HITS: PerCpuArray<RuleHits> = PerCpuArray::with_max_entries(MAX_RULES, 0);

/// Every frame once by reason and once by class, per interface: the exact sums.
#[map]
pub(crate) static VERDICTS: PerCpuArray<InterfaceCounters> = PerCpuArray::with_max_entries(MAX_INTERFACES, 0);

/// Traffic by protected address: a table of `TARGETS_PER_CPU` places for each CPU, which only that CPU writes. An
/// address that finds its places taken is counted in `HEALTH` and in `VERDICTS` alone. The kernel's own hash costs four
/// times as much, and user space reads this one without a system call.
#[map]
pub(crate) static TARGETS: Array<TargetCounters> = Array::with_max_entries(8_192, BPF_F_MMAPABLE);

/// Places of each CPU in `TARGETS`, a power of two.
#[unsafe(no_mangle)]
pub(crate) static TARGETS_PER_CPU: Global<u32> = Global::new(4_096);

/// One sketch per CPU; entries beyond the machine's CPUs are cut off at load.
#[map]
pub(crate) static SKETCHES: Array<Sketch> = Array::with_max_entries(512, 0);

/// Heavy sources, promoted by the sketch: `SOURCES_PER_CPU` places for each CPU, as in `TARGETS`. Never evicts who is
/// still sending: only the place of a source that went silent is taken again.
#[map]
pub(crate) static SOURCES: Array<SourceCounters> = Array::with_max_entries(16_384, BPF_F_MMAPABLE);

/// Places of each CPU in `SOURCES`, a power of two.
#[unsafe(no_mangle)]
pub(crate) static SOURCES_PER_CPU: Global<u32> = Global::new(8_192);

/// Policers of heavy sources: a table that all CPUs write. A place is claimed by compare-and-swap, and free again when its
/// source sent nothing for a minute.
#[map]
pub(crate) static SOURCE_STATES: Array<SourceState> = Array::with_max_entries(16_384, 0);

/// Places in `SOURCE_STATES`, a power of two.
#[unsafe(no_mangle)]
pub(crate) static SOURCE_STATE_PLACES: Global<u32> = Global::new(16_384);

/// The frame that is being judged.
pub(crate) struct Scratch {
    pub(crate) packet: Packet,
    pub(crate) kind: Kind,
    pub(crate) wire_len: usize,
    pub(crate) cpu: CpuState,

    /// A key of a trie: on the stack the compiler would write parts of it across its words' bounds.
    pub(crate) key: Key<Ip>,
    pub(crate) key4: Key<u32>,
    /// Keys of hashes, here for the same reason.
    pub(crate) key6: Ip,
    pub(crate) net6: [u32; 3],
    /// The first bytes of the payload, and how many; read only while rules compare payloads.
    pub(crate) payload: [u8; PAYLOAD_BYTES],
    pub(crate) payload_len: usize,
    pub(crate) verdict: Verdict,
    /// Neither a block nor a list has the source, nor is it trusted: the stages need not ask again.
    pub(crate) is_cleared: bool,
    /// A tunnel, before what is inside was read.
    pub(crate) around: Packet,
    pub(crate) draw: Draw,
}

/// The stack has 512 bytes in all.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// What went wrong inside the datapath itself.
#[map]
pub(crate) static HEALTH: PerCpuArray<Counter> = PerCpuArray::with_max_entries(Health::SLOTS, 0);

/// Sampled frames.
#[map]
pub(crate) static SAMPLES: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_F_MMAPABLE: u32 = 1 << 10;
/// `BPF_F_MMAPABLE | BPF_F_INNER_MAP`: filled through memory, and of any size.
const LIST_FLAGS: usize = 1 << 10 | 1 << 12;
