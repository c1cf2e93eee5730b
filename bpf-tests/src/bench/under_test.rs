//! The datapath on wires of its own, loaded, filled and pinned as the daemon does it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use aya::EbpfLoader;
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode;
use aya_obj::programs::XdpAttachType;
use ftagent::engine::{Matches, Origin, Point, Rule, RuleId, RuleSet, Verdict};
use ftagent::xdp::compile::{Ground, Lists, Slots, compile, key};
use ftagent::xdp::counters;
use ftagent::xdp::egress::Learning;
use ftagent::xdp::gate::{self, GateMaps, Wanted};
use ftagent::xdp::maps::Maps;
use ftagent::xdp::pins::Pins;
use ftagent::xdp::prefixes::map::PrefixMap;
use ftagent::xdp::prefixes::plan::Plan;
use ftagent::xdp::program::{AttachChoice, InterfacePlan, MapSizes, load};
use ftagent::xdp::writer::Writer;
use ftagent_common::abi::{Block, GatedTarget, NO_RULE, PRESENT, Rate, Reason, Settings, feature, gate as gated, mode};
use ftagent_common::vocab::AttachMode;
use ipnet::{IpNet, Ipv4Net};

use crate::bpffs::LabDir;
use crate::clock::Moment;
use crate::ladder::{ADDRESS, MAC};
use crate::netns::Netns;
use crate::object;
use crate::run::run_xdp;
use crate::veth::{self, Device, EndSpec};

/// What the daemon chooses at some five million frames a second.
const ONE_IN: u32 = 512;
/// The target behind the TCP gate: not the one that frames go to, which is not in flood mode.
const GATED: &str = "10.99.0.77/32";
/// Of every heavy source, packets a second: more than one CPU judges, so that no frame of a bench is over it.
const SOURCE_LIMIT: u64 = 100_000_000;

/// A namespace that is flooded, and the one that floods it.
pub(crate) struct Wires {
    pub(crate) edge: Netns,
    pub(crate) wan: Netns,
    /// `edge0` and so on with their other ends.
    pub(crate) pairs: Vec<(Device, Device)>,
}

impl Wires {
    pub(crate) fn new(count: u8) -> anyhow::Result<Self> {
        let (edge, wan) = (Netns::create("edge")?, Netns::create("wan")?);
        let mut pairs = Vec::new();
        for number in 0..count {
            // Only the first network is where frames go; no frame of a bench gets past the program.
            let address = |host| IpAddr::from([10, 99, number, host]);
            let end = |name: &str, mac, host, default_route| EndSpec {
                name: format!("{name}{number}"),
                mac,
                addresses: vec![(address(host), 24)],
                queues: 1,
                default_route,
            };
            let near = end("edge", MAC, 1, number == 0);
            let far = end("wan", [2, 0, 0, 0, 0, 2], 2, false);
            pairs.push(veth::connect((&edge, &near), (&wan, &far))?);
        }
        Ok(Self { edge, wan, pairs })
    }
}

/// What is in front of the datapath's work: a program that drops or passes everything and looks at nothing.
pub(crate) struct Floor {
    pub(crate) wires: Wires,
    ebpf: aya::Ebpf,
}

impl Floor {
    pub(crate) fn new(wires: Wires) -> anyhow::Result<Self> {
        Self::apart(wires, 0)
    }

    /// The same on all but the first so many wires, on which nothing is.
    pub(crate) fn apart(wires: Wires, without: usize) -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new().load(object::LADDER).context("the lab's programs do not load")?;
        let program: &mut Xdp = ebpf.program_mut("lab_bare").context("no lab_bare")?.try_into()?;
        program.load()?;
        for (near, _) in wires.pairs.iter().skip(without) {
            wires.edge.run(|| program.attach(&near.name, XdpMode::Driver).map(drop))??;
        }
        Ok(Self { wires, ebpf })
    }

    pub(crate) fn program(&self) -> &Xdp {
        self.ebpf.program("lab_bare").and_then(|p| p.try_into().ok()).expect("it was loaded by `new`")
    }
}

/// What the datapath is to hold.
#[derive(Default)]
pub(crate) struct Load {
    pub(crate) rules: RuleSet,
    /// IPv4 prefixes of one list.
    pub(crate) list: Vec<Ipv4Net>,
    /// Exact blocks beside the rules'.
    pub(crate) blocks: Vec<[u8; 4]>,
    /// Of the maps, as the configuration may choose them.
    pub(crate) sizes: MapSizes,
}

/// The datapath on every wire of a namespace.
pub(crate) struct UnderTest {
    pub(crate) wires: Wires,
    pins: Pins,
    maps: Maps,
    _dir: LabDir,
}

impl UnderTest {
    pub(crate) fn new(wires: Wires, held: &Load) -> anyhow::Result<Self> {
        let dir = LabDir::create("bench").context("cannot make a directory with a BPF file system")?;
        let pins = Pins::below(&dir.bpf())?;
        let plans: Vec<InterfacePlan> = wires
            .pairs
            .iter()
            .zip(0..)
            .map(|((near, _), slot)| InterfacePlan { name: near.name.clone(), slot, choice: AttachChoice::Native })
            .collect();
        let attached = wires.edge.run(|| load(&plans, &pins, &held.sizes)?.attach())??;
        if let Some(other) = attached.iter().find(|a| a.mode != AttachMode::Native) {
            bail!("the datapath is attached as {other:?}");
        }
        if let Some(Learning::Off(why)) = attached.iter().map(|a| &a.egress).find(|egress| !egress.is_active()) {
            bail!("what leaves is not learnt: {why}");
        }
        let maps = Maps::open(&pins.maps())?;
        learnt_for_long(&GateMaps::open(&pins.maps())?)?;
        fill(&maps, held)?;
        Ok(Self { wires, pins, maps, _dir: dir })
    }

    /// The maps that all wires share.
    pub(crate) fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Where programs, links and maps are pinned.
    pub(crate) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The program on the first wire.
    pub(crate) fn program(&self) -> anyhow::Result<Xdp> {
        Ok(Xdp::from_pin(self.pins.program("edge0"), XdpAttachType::Interface)?)
    }

    /// Sees to it that `frame` is judged as a scenario says: a wrong frame would measure something else.
    pub(crate) fn expect(&self, frame: &[u8], reason: Reason) -> anyhow::Result<()> {
        let count =
            || -> anyhow::Result<u64> { Ok(counters::interface(&self.maps, 0)?.reasons[reason.index()].packets) };
        let before = count()?;
        let outcome = run_xdp(&self.program()?, frame, None)?;
        if count()? != before + 1 {
            bail!("the frame is not counted as {} (the program returned {})", reason.as_str(), outcome.verdict);
        }
        Ok(())
    }

    /// Frames dropped so far, by whatever stage.
    pub(crate) fn dropped(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for slot in (0..).take(self.wires.pairs.len()) {
            let counted = counters::interface(&self.maps, slot)?;
            let drops = Reason::ALL.iter().filter(|reason| reason.is_drop());
            sum += drops.map(|reason| counted.reasons[reason.index()].packets).sum::<u64>();
        }
        Ok(sum)
    }
}

/// Tells reflectors and the TCP gate what the daemon tells them, as if it had learnt for long; the gate stands before
/// an address that is not flooded.
fn learnt_for_long(maps: &GateMaps) -> anyhow::Result<()> {
    let there = maps.settings.lookup(&0)?.unwrap_or_default();
    let wanted = Wanted { reflector_ports: Vec::new(), served_ports: Vec::new(), warmup_ns: 0 };
    let mut settings = gate::settings(&there, &wanted, &[], true, 1, || [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f]);
    (settings.flows_from_ns, settings.queries_from_ns) = (1, 1);
    maps.settings.insert(&0, &settings)?;
    let target = GatedTarget { rule: NO_RULE, flags: PRESENT, how: gated::LOCAL, ..GatedTarget::default() };
    Ok(maps.gated.insert(&key(net(GATED)), &target)?)
}

/// Writes rules, list and blocks with the settings of a daemon that enforces, with every stage in the path.
fn fill(maps: &Maps, held: &Load) -> anyhow::Result<()> {
    let protected = vec![IpNet::from(IpAddr::V4(ADDRESS)), net("fd99::1/128")];
    let mut ground = Ground { protected, ..Ground::default() };
    let mut writer = Writer::adopt(maps)?;
    if !held.list.is_empty() {
        let plan = Plan::new(held.list.iter().map(|network| (*network, 1)), u64::from(u32::MAX))?;
        writer.hold(1, PrefixMap::make(&plan)?);
        let lists = Lists { table: 1, rules: vec![(RuleId(1_000_000), false)], v6: Vec::new(), ..Lists::default() };
        ground.lists = Some(Arc::new(lists));
    }
    let compiled = compile(&held.rules, &ground, &mut Slots::default());
    if let Some((_, why)) = compiled.refused.first() {
        bail!("a rule is refused: {why}");
    }
    let mut tables = compiled.tables;
    let block = Block { flags: PRESENT, ..Block::default() };
    tables.block4.extend(held.blocks.iter().map(|address| (u32::from_ne_bytes(*address), block)));
    let settings = settings();
    let errors = writer.apply(maps, &tables, &settings);
    match errors.into_iter().next() {
        Some(error) => Err(error).context("a rule is not in the kernel"),
        None => Ok(()),
    }
}

/// Those of a daemon that enforces, with every stage that needs no rule: sources are counted and limited, frames sampled,
/// answers that nobody asked for dropped, and a target is behind the TCP gate.
pub(crate) fn settings() -> Settings {
    Settings {
        mode: mode::ENFORCE,
        features: feature::SOURCES | feature::SOURCE_POLICER | feature::SAMPLE | feature::REFLECTORS | feature::GATE,
        heartbeat_ns: Moment::now().mono_ns,
        not_ip: Rate::packets(1_000, 1_000),
        source_rate: Rate::packets(SOURCE_LIMIT, SOURCE_LIMIT),
        sample_rate: Rate::packets(10_000, 1_000),
        sample_below: u32::MAX / ONE_IN,
        sample_one_in: ONE_IN,
        ..Settings::default()
    }
    .promoting_at(500)
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix written in this program")
}

/// An operator's rules, numbered from 1.
pub(crate) fn rules(rows: impl IntoIterator<Item = (Matches, Verdict)>) -> RuleSet {
    let rule = |(id, (matches, verdict))| {
        let id = RuleId(id);
        let rule = Rule {
            id,
            matches,
            verdict,
            point: Point::Datapath,
            origin: Origin::Operator,
            expires_at_ns: None,
            evaluate: false,
        };
        (id, rule)
    };
    let rules: BTreeMap<RuleId, Rule> = (1..).zip(rows).map(rule).collect();
    RuleSet { rules, ..RuleSet::default() }
}
