//! The least that a BPF program can do, at every hook: what the other peers are measured against.

use anyhow::Context;
use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{SchedClassifier, TcAttachType, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};

use super::batch;
use super::peer::{Holds, Peer, Standing};
use super::site::Site;
use crate::generator::Listed;
use crate::object::{self, LabProgramError};

const ADDRESSES: &str = "LAB_ADDRESSES";
const NETWORKS: &str = "LAB_NETWORKS";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hook {
    Native,
    Generic,
    Tc,
}

/// A program of the lab's own.
pub(super) struct Yardstick {
    name: &'static str,
    title: &'static str,
    program: &'static str,
    hook: Hook,
    holds: Holds,
}

/// A native XDP program that drops everything and looks at nothing.
pub(super) fn floor() -> Yardstick {
    yardstick("xdp-drop", "XDP, bare drop (the floor)", "lab_bare", Hook::Native, Holds::Everything)
}

/// Every program, the floor among them.
pub(super) fn all() -> Vec<Box<dyn Peer>> {
    let networks = Holds::Networks { at_most: Listed::MAX };
    let addresses = Holds::Addresses { at_most: Listed::MAX };
    let rows = [
        yardstick("tc-hash", "tc, BPF hash of addresses", "lab_tc_hash", Hook::Tc, addresses),
        yardstick("tc-lpm", "tc, BPF trie of networks", "lab_tc_lpm", Hook::Tc, networks),
        yardstick("xdp-generic", "generic XDP, bare drop", "lab_bare", Hook::Generic, Holds::Everything),
        yardstick("xdp-hash", "XDP, hash of addresses", "lab_hash", Hook::Native, addresses),
        yardstick("xdp-lpm", "XDP, trie of networks", "lab_lpm", Hook::Native, networks),
        yardstick("xdp-count", "XDP, count and drop", "lab_count", Hook::Native, Holds::Everything),
        floor(),
    ];
    rows.into_iter().map(|row| Box::new(row) as Box<dyn Peer>).collect()
}

fn yardstick(name: &'static str, title: &'static str, program: &'static str, hook: Hook, holds: Holds) -> Yardstick {
    Yardstick { name, title, program, hook, holds }
}

impl Peer for Yardstick {
    fn name(&self) -> &str {
        self.name
    }

    fn title(&self) -> &str {
        self.title
    }

    fn holds(&self) -> Holds {
        self.holds
    }

    fn set_up(&self, site: &Site, blocked: Listed) -> anyhow::Result<Standing> {
        if self.hook != Hook::Native {
            site.receive_without_xdp()?;
        }
        let ebpf = site.edge.run(|| self.attach(&site.device.name, blocked))??;
        Ok(Box::new(ebpf))
    }
}

impl Yardstick {
    fn attach(&self, device: &str, blocked: Listed) -> anyhow::Result<Ebpf> {
        let mut loader = EbpfLoader::new();
        match self.holds {
            Holds::Everything => {}
            Holds::Addresses { .. } => drop(loader.map_max_entries(ADDRESSES, blocked.count())),
            Holds::Networks { .. } => drop(loader.map_max_entries(NETWORKS, blocked.count())),
        }
        let mut ebpf = object::load_with(object::LADDER, &mut loader)?;
        fill(&ebpf, self.holds, blocked)?;

        let fail = |source| LabProgramError::Program { program: self.program, source };
        let program = ebpf.program_mut(self.program).ok_or(LabProgramError::Missing(self.program))?;
        if self.hook == Hook::Tc {
            let program: &mut SchedClassifier = program.try_into().map_err(fail)?;
            program.load().map_err(fail)?;
            if program.attach(device, TcAttachType::Ingress).is_err() {
                // Before kernel 6.6 the hook is part of a queueing discipline; the second try says what is wrong.
                qdisc_add_clsact(device).ok();
                program.attach(device, TcAttachType::Ingress).map_err(fail)?;
            }
        } else {
            let program: &mut Xdp = program.try_into().map_err(fail)?;
            program.load().map_err(fail)?;
            let mode = if self.hook == Hook::Generic { XdpMode::Skb } else { XdpMode::Driver };
            program.attach(device, mode).map_err(fail)?;
        }
        Ok(ebpf)
    }
}

fn fill(ebpf: &Ebpf, holds: Holds, blocked: Listed) -> anyhow::Result<()> {
    match holds {
        Holds::Everything => Ok(()),
        Holds::Addresses { .. } => {
            let keys: Vec<[u8; 4]> = blocked.networks().map(|n| n.addr().octets()).collect();
            batch::insert(ebpf.map(ADDRESSES).context("the object has no map of addresses")?, &keys)
        }
        Holds::Networks { .. } => {
            // `struct bpf_lpm_trie_key`: the length in host order, then the address.
            let key = |n: ipnet::Ipv4Net| {
                let mut key = [0; 8];
                key[..4].copy_from_slice(&u32::from(n.prefix_len()).to_ne_bytes());
                key[4..].copy_from_slice(&n.addr().octets());
                key
            };
            let keys: Vec<[u8; 8]> = blocked.networks().map(key).collect();
            batch::insert(ebpf.map(NETWORKS).context("the object has no map of networks")?, &keys)
        }
    }
}
