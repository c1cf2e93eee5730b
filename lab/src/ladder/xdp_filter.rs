//! `xdp-filter` of xdp-tools, as Debian packages it.

use std::path::Path;

use anyhow::Context;
use aya::maps::{Map, MapData, PerCpuHashMap};

use super::peer::{Holds, Peer, Standing};
use super::site::Site;
use super::tool;
use crate::generator::Listed;
use crate::inside;

/// One less than its map was made for is what it takes.
const MOST: u32 = 9_999;

/// One of its builds: it loads the program that has the features asked for.
struct XdpFilter {
    name: &'static str,
    title: &'static str,
    features: &'static str,
}

/// The build that knows IPv4 addresses alone, and the one that it loads unless it is told.
pub(super) fn all() -> [Box<dyn Peer>; 2] {
    let lean = XdpFilter { name: "xdp-filter", title: "xdp-filter, addresses", features: "ipv4" };
    let whole = XdpFilter { name: "xdp-filter-all", title: "xdp-filter, every feature", features: "all" };
    [Box::new(lean), Box::new(whole)]
}

impl Peer for XdpFilter {
    fn name(&self) -> &str {
        self.name
    }

    fn title(&self) -> &str {
        self.title
    }

    fn holds(&self) -> Holds {
        Holds::Addresses { at_most: MOST }
    }

    fn set_up(&self, site: &Site, blocked: Listed) -> anyhow::Result<Standing> {
        let program = tool::find("xdp-filter", "xdp-tools")?;
        let (folder, bpf) = (site.path().to_owned(), site.bpf());
        let (device, features) = (site.device.name.clone(), self.features);
        site.edge.run(move || set_up(&program, &folder, &bpf, (&device, features), blocked))??;
        // Program and maps go with the device and the BPF file system.
        Ok(Box::new(()))
    }
}

fn set_up(
    program: &Path,
    folder: &Path,
    bpf: &Path,
    (device, features): (&str, &str),
    blocked: Listed,
) -> anyhow::Result<()> {
    // It pins in /sys/fs/bpf whatever it is told: here that is the site's own file system.
    inside::show_bpf(bpf).context("cannot mount for this thread alone")?;
    let run = |args: &[&str]| tool::run_here(folder, program, args, "");
    run(&["load", "--mode", "native", "--policy", "allow", "--features", features, device])?;
    let first = blocked.first();
    run(&["ip", "--mode", "src", &first.to_string()])?;

    // One process for each address takes a millisecond and more: the other entries are copies of the first.
    let data = MapData::from_pin(bpf.join("xdp-filter/filter_ipv4")).context("its map of addresses")?;
    let mut map: PerCpuHashMap<MapData, u32, u64> = Map::PerCpuHashMap(data).try_into()?;
    let value = map.get(&u32::from_ne_bytes(first.octets()), 0)?;
    for network in blocked.networks() {
        let value = aya::maps::PerCpuValues::try_from(value.to_vec())?;
        map.insert(u32::from_ne_bytes(network.addr().octets()), value, 0)?;
    }
    Ok(())
}
