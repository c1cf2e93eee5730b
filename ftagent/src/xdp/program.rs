//! Loads the datapath and attaches it: natively, else generic, else tc; else nftables alone is left.
//!
//! The order is load, fill the maps, attach: a program never runs with fewer rules than there should be. What an
//! earlier daemon left pinned is adopted: its maps are used again and its link gets the new program in one step.

use std::fs;
use std::path::PathBuf;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachType};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use ftagent_common::vocab::AttachMode;

use super::egress::{self, Learning};
use super::kernel::{Feature, Support};
use super::pins::{self, Pins, PinsError};
use super::relief::Before;
use super::undisturbed::{Undisturbed, load_program};
use super::{adapt, tc, variant};
use crate::object;

/// What the operator wants for one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachChoice {
    /// The best that works.
    Auto,
    Native,
    Generic,
    Tc,
    /// No program on this interface.
    Nftables,
}

/// One interface and the slot of its counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfacePlan {
    pub name: String,
    pub slot: u32,
    pub choice: AttachChoice,
}

/// Sizes of the maps that the configuration may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    pub targets: u32,
    pub sources: u32,
    /// Of each kind of exact block.
    pub blocks: u32,
    /// Of each trie of prefixes.
    pub prefixes: u32,
    /// Bytes; a power of two.
    pub samples: u32,
    /// What the programs have of `ftagent_common::abi::stage`; the rest is left out of them.
    pub stages: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self { targets: 4_096, sources: 8_192, blocks: 262_144, prefixes: 65_536, samples: 2 << 20, stages: u32::MAX }
    }
}

/// How frames of one interface reach the datapath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub interface: String,
    pub slot: u32,
    pub mode: AttachMode,
    /// Why a better mode was not possible; empty for native.
    pub reason: String,
    /// The program in the path, see [`super::variant`]; empty where there is none.
    pub program: &'static str,
    pub link_id: Option<u32>,
    pub program_id: Option<u32>,
    /// Whether the link was there before and only got a new program.
    pub adopted: bool,
    /// Whether what leaves the interface is learnt.
    pub egress: Learning,
}

/// Why the datapath cannot be loaded or attached.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("this program was built without the datapath: run `cargo xtask setup` and build again")]
    NotBuilt,
    #[error("{0}")]
    OldKernel(String),
    #[error("loading programs needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; missing: {missing}")]
    NotPermitted { missing: String },
    #[error("interface {name} does not exist; interfaces here: {there}")]
    NoInterface { name: String, there: String },
    #[error("interface {interface}: {choice} was asked for and does not work: {reason}")]
    Refused { interface: String, choice: &'static str, reason: String },
    #[error(
        "interface {interface}: the program that is attached cannot be replaced and goes on with the rules that it has: \
         {reason}; `ftagent detach` removes it"
    )]
    Kept { interface: String, reason: String },
    #[error(transparent)]
    Pins(#[from] PinsError),
    #[error("cannot load the datapath: {0}")]
    Load(String),
}

/// A program for every interface, loaded and not yet attached.
pub struct Loaded {
    pins: Pins,
    programs: Vec<(InterfacePlan, Option<Ebpf>)>,
    has_tcx: bool,
    /// Maps that were made anew although pins of other sizes were there.
    pub resized: Vec<String>,
}

/// Loads one copy of the datapath for each interface of `plans`, all on the same pinned maps.
///
/// # Errors
/// See [`LoadError`]; nothing is attached yet, and what was pinned before goes on.
pub fn load(plans: &[InterfacePlan], pins: &Pins, sizes: &MapSizes) -> Result<Loaded, LoadError> {
    if !object::is_built() {
        return Err(LoadError::NotBuilt);
    }
    let support = Support::here();
    if let Some(why) = support.refusal() {
        return Err(LoadError::OldKernel(why));
    }
    let missing = missing_capabilities();
    if !missing.is_empty() {
        return Err(LoadError::NotPermitted { missing: missing.join(", ") });
    }
    for plan in plans {
        check_interface(&plan.name)?;
    }
    // aya asks the kernel by small programs what it has.
    let _calm = Undisturbed::begin();
    pins.create()?;
    let resized = drop_resized(pins, sizes)?;
    let mut programs = Vec::new();
    for plan in plans {
        let ebpf =
            if plan.choice == AttachChoice::Nftables { None } else { Some(load_one(plan, pins, sizes, &support)?) };
        programs.push((plan.clone(), ebpf));
    }
    if programs.iter().all(|(_, ebpf)| ebpf.is_none()) {
        // The maps are wanted even where no program is: rules and status go through them.
        let plan = InterfacePlan { name: String::new(), slot: 0, choice: AttachChoice::Auto };
        load_one(&plan, pins, sizes, &support)?;
    }
    Ok(Loaded { pins: pins.clone(), programs, has_tcx: support.has(Feature::TcxLinks), resized })
}

/// Maps whose size the configuration decides, with that size.
fn configured(sizes: &MapSizes) -> [(&'static str, u32); 12] {
    let cpus = u32::try_from(aya::util::nr_cpus().unwrap_or(1)).unwrap_or(1);
    [
        ("TARGETS", places(sizes.targets) * cpus),
        ("SOURCES", places(sizes.sources) * cpus),
        ("SOURCE_STATES", 2 * places(sizes.sources)),
        ("BLOCK4", sizes.blocks),
        ("BLOCK6", sizes.blocks),
        ("BLOCK6_NET", sizes.blocks),
        ("BLOCK4_PREFIX", sizes.prefixes),
        ("BLOCK6_PREFIX", sizes.prefixes),
        ("SOURCE_LIMITS", sizes.prefixes),
        ("PROTECTED", sizes.prefixes),
        ("SAMPLES", sizes.samples),
        ("SKETCHES", cpus),
    ]
}

/// Places that each CPU has for so many entries: a power of two, so that a hash is cut by a mask.
fn places(entries: u32) -> u32 {
    entries.clamp(1, 1 << 20).next_power_of_two()
}

/// Every map of the datapath with its type's sizes: (name, key bytes, value bytes, entries).
fn declared(sizes: &MapSizes) -> Result<Vec<(String, u32, u32, u32)>, LoadError> {
    let parsed = aya_obj::Object::parse(object::DATAPATH).map_err(|e| LoadError::Load(e.to_string()))?;
    let configured = configured(sizes);
    let maps = parsed.maps.iter().filter(|(name, _)| !name.starts_with('.'));
    Ok(maps
        .map(|(name, map)| {
            let entries = configured.iter().find(|(n, _)| n == name).map_or(map.max_entries(), |(_, size)| *size);
            (name.clone(), map.key_size(), map.value_size(), entries)
        })
        .collect())
}

/// Bytes that the maps take in the kernel at most: every entry with its key, value and the kernel's own part, per-CPU
/// values once for every CPU. Maps that are not preallocated take it only when they are full.
///
/// # Errors
/// When the embedded object cannot be read.
pub fn memory(sizes: &MapSizes) -> Result<u64, LoadError> {
    /// `struct htab_elem` and `struct lpm_trie_node` with allocator rounding.
    const OVERHEAD: u64 = 64;
    if !object::is_built() {
        return Err(LoadError::NotBuilt);
    }
    let parsed = aya_obj::Object::parse(object::DATAPATH).map_err(|e| LoadError::Load(e.to_string()))?;
    let cpus = aya::util::nr_cpus().map_or(1, |n| n as u64);
    let mut total = 0;
    for (name, key, value, entries) in declared(sizes)? {
        let per_cpu = parsed.maps.get(&name).is_some_and(|m| matches!(m.map_type(), PERCPU_HASH | PERCPU_ARRAY));
        let values = u64::from(value) * if per_cpu { cpus } else { 1 };
        let entry = u64::from(key) + values + OVERHEAD;
        // A ring has no entries: its size is in bytes.
        total += if (key, value) == (0, 0) { u64::from(entries) } else { u64::from(entries) * entry };
    }
    Ok(total)
}

/// `enum bpf_map_type`.
const PERCPU_HASH: u32 = 5;
const PERCPU_ARRAY: u32 = 6;

/// Unpins maps whose layout or size is not the one wanted: aya would use them without looking.
fn drop_resized(pins: &Pins, sizes: &MapSizes) -> Result<Vec<String>, LoadError> {
    let mut dropped = Vec::new();
    for (name, key, value, entries) in declared(sizes)? {
        let path = pins.maps().join(&name);
        if !path.exists() {
            continue;
        }
        let info =
            aya::maps::MapInfo::from_pin(&path).map_err(|e| LoadError::Load(format!("{}: {e}", path.display())))?;
        let is_same = (info.key_size(), info.value_size(), info.max_entries()) == (key, value, entries);
        // A ring buffer has neither keys nor values, only its bytes.
        let is_ring = (key, value) == (0, 0) && info.max_entries() == entries;
        if !is_same && !is_ring {
            if name == "BLOCK4" {
                // The program that is attached still reads its own hash and this copy of it: what is written for another
                // hash must not be in that copy. It goes first, so that a start that ends here is repeated whole.
                pins::remove(&pins.maps().join("NEAR4"))?;
            }
            pins::remove(&path)?;
            dropped.push(name);
        }
    }
    Ok(dropped)
}

fn load_one(plan: &InterfacePlan, pins: &Pins, sizes: &MapSizes, support: &Support) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    loader.override_global("INTERFACE", &plan.slot, true);
    let (targets, sources) = (places(sizes.targets), places(sizes.sources));
    loader.override_global("STAGES", &sizes.stages, true);
    loader.override_global("TARGETS_PER_CPU", &targets, true);
    loader.override_global("SOURCES_PER_CPU", &sources, true);
    let states = 2 * sources;
    loader.override_global("SOURCE_STATE_PLACES", &states, true);
    for (name, entries) in configured(sizes) {
        loader.map_max_entries(name, entries);
    }
    let declared = declared(sizes)?;
    for (name, ..) in &declared {
        loader.map_pin_path(name, pins.maps().join(name));
    }
    for (switch, value) in support.switches() {
        // Of the branches that the table knows, a build has those that it needs.
        loader.override_global(switch, value, false);
    }
    loader.load(&adapt::for_kernel(object::DATAPATH, support)).map_err(|e| load_error(&chain(&e)))
}

/// A load error in words: the common ones by cause, the rest in the kernel's.
fn load_error(text: &str) -> LoadError {
    if text.contains("Operation not permitted") || text.contains("EPERM") {
        return LoadError::NotPermitted { missing: "what the kernel says: Operation not permitted".to_owned() };
    }
    LoadError::Load(text.chars().take(4_000).collect())
}

/// An error with all its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

impl Loaded {
    /// Attaches every program and pins what holds it; a link that is pinned already gets the new program.
    ///
    /// # Errors
    /// [`LoadError::Refused`] when the operator asked for one mode by name and it does not work. What was attached
    /// before the error stays: it enforces.
    pub fn attach(self) -> Result<Vec<Attached>, LoadError> {
        for interface in self.pins.inherit()? {
            tracing::info!(%interface, "the link of another version is taken over");
        }
        let wanted = |name: &str| self.programs.iter().any(|(plan, ebpf)| plan.name == name && ebpf.is_some());
        for interface in self.pins.remove_others(wanted)? {
            tracing::info!(%interface, "detached: the configuration does not name it any more");
        }
        let mut attached = Vec::new();
        for (plan, ebpf) in self.programs {
            let Some(mut ebpf) = ebpf else {
                attached.push(nftables_alone(&plan, "asked for by the configuration".to_owned()));
                continue;
            };
            let mut one = attach_one(&plan, &mut ebpf, &self.pins, self.has_tcx)?;
            one.egress = egress::attach(&plan, &mut ebpf, &self.pins);
            attached.push(one);
        }
        self.pins.remove_other_versions()?;
        Ok(attached)
    }
}

fn nftables_alone(plan: &InterfacePlan, reason: String) -> Attached {
    Attached {
        interface: plan.name.clone(),
        slot: plan.slot,
        mode: AttachMode::Nftables,
        reason,
        program: "",
        link_id: None,
        program_id: None,
        adopted: false,
        egress: Learning::Off("no program is on the interface".to_owned()),
    }
}

fn attach_one(plan: &InterfacePlan, ebpf: &mut Ebpf, pins: &Pins, has_tcx: bool) -> Result<Attached, LoadError> {
    let modes: &[AttachMode] = match plan.choice {
        AttachChoice::Auto => &[AttachMode::Native, AttachMode::Generic, AttachMode::Tc],
        AttachChoice::Native => &[AttachMode::Native],
        AttachChoice::Generic => &[AttachMode::Generic],
        AttachChoice::Tc => &[AttachMode::Tc],
        AttachChoice::Nftables => &[],
    };
    let mut reasons: Vec<String> = Vec::new();
    let mut before = Before::observe(plan, pins);
    if let Some(mode) = before.adoptable(modes, has_tcx) {
        match attach_mode(plan, ebpf, pins, mode, (true, has_tcx)) {
            Ok(mut found) => {
                found.reason = best_reason(&found, &["the mode of the link that was adopted".to_owned()]);
                before.remove_for(&found, plan, pins);
                return Ok(found);
            }
            Err(reason) => {
                tracing::warn!(interface = %plan.name, %reason, "pinned link cannot be adopted: it stays until another stands");
                reasons.push(format!("the link that was there: {reason}"));
            }
        }
    }
    let mut relief = before.relieve(plan, ebpf, pins, modes, (has_tcx, &reasons))?;
    for mode in modes {
        let relieving = if *mode == AttachMode::Tc { relief.take() } else { None };
        match relieving.map_or_else(|| attach_mode(plan, ebpf, pins, *mode, (false, has_tcx)), Ok) {
            Ok(mut found) => {
                found.reason = best_reason(&found, &reasons);
                before.remove_for(&found, plan, pins);
                return Ok(found);
            }
            Err(reason) if plan.choice != AttachChoice::Auto => {
                return Err(LoadError::Refused { interface: plan.name.clone(), choice: mode.as_str(), reason });
            }
            Err(reason) => reasons.push(format!("{mode}: {reason}")),
        }
    }
    Ok(nftables_alone(plan, reasons.join("; ")))
}

fn best_reason(found: &Attached, reasons: &[String]) -> String {
    if found.mode == AttachMode::Native {
        return String::new();
    }
    let own = Some(&found.reason).filter(|reason| !reason.is_empty());
    reasons.iter().chain(own).map(String::as_str).collect::<Vec<_>>().join("; ")
}

/// Attaches in one mode, or says in the kernel's words why not.
pub(super) fn attach_mode(
    plan: &InterfacePlan,
    ebpf: &mut Ebpf,
    pins: &Pins,
    mode: AttachMode,
    (adopt, has_tcx): (bool, bool),
) -> Result<Attached, String> {
    if mode == AttachMode::Tc && !has_tcx {
        return attach_filter(plan, ebpf, pins, adopt);
    }
    let link_path = pins.link(mode, &plan.name);
    let program_path = pins.program(&plan.name);
    let old = || match adopt {
        true => PinnedLink::from_pin(&link_path).map(|link| Some(link.into())).map_err(|e| chain(&e)),
        false => Ok(None),
    };
    let (program_id, program) = match mode {
        AttachMode::Tc => (attach_tc(plan, ebpf, old()?, &link_path, &program_path)?, variant::TC),
        _ => {
            let mut refusals: Vec<String> = Vec::new();
            let mut candidates = variant::candidates(mode, &plan.name).iter();
            loop {
                let Some(name) = candidates.next() else { return Err(refusals.join("; ")) };
                match attach_xdp(plan, ebpf, (mode, name), old()?, &link_path, &program_path) {
                    Ok(id) => break (id, *name),
                    // Most refusals have nothing to do with buffers.
                    Err(why) if refusals.contains(&why) => {}
                    Err(why) => refusals.push(why),
                }
            }
        }
    };
    let link = super::info::link(&link_path).map_err(|e| e.to_string())?;
    Ok(Attached {
        interface: plan.name.clone(),
        slot: plan.slot,
        mode,
        reason: String::new(),
        program,
        link_id: Some(link.id),
        program_id: Some(program_id),
        adopted: adopt,
        egress: Learning::Off("not attached yet".to_owned()),
    })
}

fn attach_xdp(
    plan: &InterfacePlan,
    ebpf: &mut Ebpf,
    (mode, name): (AttachMode, &str),
    old: Option<FdLink>,
    link_path: &PathBuf,
    program_path: &PathBuf,
) -> Result<u32, String> {
    let program: &mut Xdp = program(ebpf, name)?;
    load_program(|| program.load())?;
    let id = match old {
        // The pin stays: it holds the same link, which now runs the new program.
        Some(old) => {
            let old: XdpLink = old.try_into().map_err(|e| chain(&e))?;
            let id = program.attach_to_link(old).map_err(|e| attach_error(&e))?;
            program.take_link(id).map(drop).map_err(|e| chain(&e))?;
            None
        }
        None => {
            let mode = if mode == AttachMode::Native { XdpMode::Driver } else { XdpMode::Skb };
            Some(program.attach(&plan.name, mode).map_err(|e| attach_error(&e))?)
        }
    };
    if let Some(id) = id {
        let link = program.take_link(id).map_err(|e| chain(&e))?;
        pin_link(link.try_into().map_err(|_| "the kernel gave no link that can be pinned".to_owned())?, link_path)?;
    }
    let info = program.info().map_err(|e| chain(&e))?;
    replace_pin(program_path, |path| program.pin(path).map_err(|e| chain(&e)))?;
    Ok(info.id())
}

fn attach_tc(
    plan: &InterfacePlan,
    ebpf: &mut Ebpf,
    old: Option<FdLink>,
    link_path: &PathBuf,
    program_path: &PathBuf,
) -> Result<u32, String> {
    let program: &mut SchedClassifier = program(ebpf, variant::TC)?;
    load_program(|| program.load())?;
    match old {
        Some(old) => {
            let old: SchedClassifierLink = old.try_into().map_err(|e| chain(&e))?;
            let id = program.attach_to_link(old).map_err(|e| attach_error(&e))?;
            program.take_link(id).map(drop).map_err(|e| chain(&e))?;
        }
        None => {
            let id = program.attach(&plan.name, TcAttachType::Ingress).map_err(|e| attach_error(&e))?;
            let link = program.take_link(id).map_err(|e| chain(&e))?;
            let link: FdLink = link.try_into().map_err(|_| "the kernel gave no link that can be pinned".to_owned())?;
            pin_link(link, link_path)?;
        }
    }
    let info = program.info().map_err(|e| chain(&e))?;
    replace_pin(program_path, |path| program.pin(path).map_err(|e| chain(&e)))?;
    Ok(info.id())
}

/// The tc variant where the kernel has no links for it.
fn attach_filter(plan: &InterfacePlan, ebpf: &mut Ebpf, pins: &Pins, adopt: bool) -> Result<Attached, String> {
    let program: &mut SchedClassifier = program(ebpf, variant::TC)?;
    load_program(|| program.load())?;
    tc::attach(program, &plan.name, adopt).map_err(|e| attach_error(&e))?;
    let info = program.info().map_err(|e| chain(&e))?;
    replace_pin(&pins.program(&plan.name), |path| program.pin(path).map_err(|e| chain(&e)))?;
    Ok(Attached {
        interface: plan.name.clone(),
        slot: plan.slot,
        mode: AttachMode::Tc,
        reason: "a classic filter, since this kernel has no tc links".to_owned(),
        program: variant::TC,
        link_id: None,
        program_id: Some(info.id()),
        adopted: adopt,
        egress: Learning::Off("not attached yet".to_owned()),
    })
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, String>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| format!("the datapath has no program {name}"))?;
    program.try_into().map_err(|e: ProgramError| chain(&e))
}

fn pin_link(link: FdLink, path: &PathBuf) -> Result<(), String> {
    // `PinnedLink` leaves the pin where it is when dropped.
    replace_pin(path, |path| link.pin(path).map(drop).map_err(|e| chain(&e)))
}

/// Pins beside `path` and moves the pin there: whenever we are killed, the old one is there or the new one.
fn replace_pin(path: &PathBuf, pin: impl FnOnce(&PathBuf) -> Result<(), String>) -> Result<(), String> {
    let beside = pins::beside(path);
    pins::remove(&beside).map_err(|e| chain(&e))?;
    pin(&beside)?;
    fs::rename(&beside, path).map_err(|e| format!("cannot move the pin {}: {e}", beside.display()))
}

fn attach_error(error: &ProgramError) -> String {
    let text = chain(error);
    if text.contains("os error 16") || text.contains("os error 17") {
        return format!(
            "another XDP program is attached, and is left alone (`ip link show` names it, `ip link set dev NAME xdp off` removes it): {text}"
        );
    }
    text
}

/// The capabilities that the datapath needs and this process does not have. Without one of them the verifier or the
/// attachment fails in words that do not name it.
pub fn missing_capabilities() -> Vec<&'static str> {
    /// Bits of `linux/capability.h`.
    const NEEDED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:")).map_or("0", str::trim);
    let mask = u64::from_str_radix(effective, 16).unwrap_or(0);
    NEEDED.iter().filter(|(bit, _)| mask & (1 << bit) == 0).map(|(_, name)| *name).collect()
}

/// The kernel's index of an interface, if it exists.
pub fn interface_index(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

fn check_interface(name: &str) -> Result<(), LoadError> {
    if interface_index(name).is_some() {
        return Ok(());
    }
    let all = nix::net::if_::if_nameindex().map_err(|e| LoadError::Load(e.to_string()))?;
    let there: Vec<String> = all.iter().map(|i| i.name().to_string_lossy().into_owned()).collect();
    Err(LoadError::NoInterface { name: name.to_owned(), there: there.join(", ") })
}
