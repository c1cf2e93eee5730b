//! The datapath as a peer of the drop ladder: the same object, maps and settings as the daemon's.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use ftagent_common::abi::{Block, PRESENT, Rate, Settings, feature, mode};
use ftagent_common::vocab::AttachMode;
use ftagent_lab::generator::Listed;
use ftagent_lab::ladder::{Holds, Peer, Site, Standing};
use ipnet::Ipv4Net;

use crate::clock::mono_ns;
use crate::engine::{RuleId, RuleSet};
use crate::xdp::compile::{Ground, Lists, Slots, compile};
use crate::xdp::maps::Maps;
use crate::xdp::pins::Pins;
use crate::xdp::prefixes::map::PrefixMap;
use crate::xdp::prefixes::plan::Plan;
use crate::xdp::program::{AttachChoice, InterfacePlan, MapSizes, load};
use crate::xdp::writer::Writer;

/// How many frames one sample stands for: what the daemon chooses at some five million frames a second.
const ONE_IN: u32 = 512;

/// The datapath in one of its modes, with one kind of list.
struct Datapath {
    name: &'static str,
    title: &'static str,
    choice: AttachChoice,
    mode: AttachMode,
    holds: Holds,
}

/// Every peer that is this program.
pub fn peers() -> Vec<Box<dyn Peer>> {
    let networks = Holds::Networks { at_most: Listed::MAX };
    let addresses = Holds::Addresses { at_most: Listed::MAX };
    let rows = [
        ("ftagent", "ftagent, networks", AttachChoice::Native, AttachMode::Native, networks),
        ("ftagent-ip", "ftagent, addresses", AttachChoice::Native, AttachMode::Native, addresses),
        ("ftagent-tc", "ftagent in tc, networks", AttachChoice::Tc, AttachMode::Tc, networks),
    ];
    let peer = |(name, title, choice, mode, holds)| Box::new(Datapath { name, title, choice, mode, holds }) as _;
    rows.into_iter().map(peer).collect()
}

impl Peer for Datapath {
    fn name(&self) -> &str {
        self.name
    }

    fn title(&self) -> &str {
        self.title
    }

    fn holds(&self) -> Holds {
        self.holds
    }

    fn set_up(&self, site: &Site, blocked: Listed) -> Result<Standing> {
        if self.choice == AttachChoice::Tc {
            site.receive_without_xdp()?;
        }
        let pins = Pins::below(&site.bpf())?;
        let plan = InterfacePlan { name: site.device.name.clone(), slot: 0, choice: self.choice };
        let default = MapSizes::default();
        let count = blocked.count();
        let sizes = MapSizes { blocks: default.blocks.max(count), prefixes: default.prefixes.max(count), ..default };
        let attached = site.edge.run(|| load(&[plan], &pins, &sizes)?.attach())??;
        match attached.first() {
            Some(attached) if attached.mode == self.mode => {}
            other => bail!("the datapath is attached as {other:?}"),
        }
        // Links and maps are pinned in the site's BPF file system and go with it.
        fill(&Maps::open(&pins.maps())?, blocked)?;
        Ok(Box::new(()))
    }
}

/// Writes the list and the settings of a daemon that enforces: addresses as blocks, networks as a list of prefixes.
fn fill(maps: &Maps, blocked: Listed) -> Result<()> {
    let mut ground = Ground { protected: vec!["10.99.0.0/24".parse()?], ..Ground::default() };
    let networks: Vec<Ipv4Net> = blocked.networks().filter(|network| network.prefix_len() < 32).collect();
    let mut writer = Writer::adopt(maps)?;
    if !networks.is_empty() {
        let plan = Plan::new(networks.iter().map(|network| (*network, 1)), u64::from(u32::MAX))?;
        writer.hold(1, PrefixMap::make(&plan)?);
        let lists = Lists { table: 1, rules: vec![(RuleId(1), false)], v6: Vec::new(), ..Lists::default() };
        ground.lists = Some(Arc::new(lists));
    }
    let mut tables = compile(&RuleSet::default(), &ground, &mut Slots::default()).tables;
    let block = Block { flags: PRESENT, ..Block::default() };
    for network in blocked.networks().filter(|network| network.prefix_len() == 32) {
        tables.block4.insert(u32::from_ne_bytes(network.addr().octets()), block);
    }
    let settings = Settings {
        mode: mode::ENFORCE,
        features: feature::SOURCES | feature::SAMPLE,
        heartbeat_ns: mono_ns(),
        not_ip: Rate::packets(1_000, 1_000),
        sample_rate: Rate::packets(10_000, 1_000),
        sample_below: u32::MAX / ONE_IN,
        sample_one_in: ONE_IN,
        ..Settings::default()
    }
    .promoting_at(500);
    let errors = writer.apply(maps, &tables, &settings);
    if let Some(error) = errors.into_iter().next() {
        return Err(error).context("a list is not in the kernel");
    }
    Ok(())
}
