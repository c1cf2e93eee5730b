//! The program that learns from what leaves an interface: attached by TCX, pinned, and adopted like the datapath.
//!
//! Without it nothing that needs the tables of flows may drop, so that a failure here is told and is no reason not to
//! start.

use aya::Ebpf;
use aya::programs::SchedClassifier;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachType};

use super::pins::{self, Pins};
use super::program::{InterfacePlan, chain, interface_index};
use super::undisturbed::load_program;

const PROGRAM: &str = "ftagent_egress";

/// Whether what leaves an interface is learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Learning {
    Active {
        /// The link was there before and only got a new program.
        adopted: bool,
    },
    /// Why not.
    Off(String),
}

impl Learning {
    pub fn is_active(&self) -> bool {
        matches!(self, Self::Active { .. })
    }
}

/// Attaches the egress program of `ebpf` to the interface of `plan`.
pub(super) fn attach(plan: &InterfacePlan, ebpf: &mut Ebpf, pins: &Pins) -> Learning {
    match try_attach(plan, ebpf, pins) {
        Ok(adopted) => Learning::Active { adopted },
        Err(why) => {
            tracing::warn!(interface = %plan.name, %why, "flows are not learnt: answers and TCP segments that nobody asked for cannot be told");
            Learning::Off(why)
        }
    }
}

fn try_attach(plan: &InterfacePlan, ebpf: &mut Ebpf, pins: &Pins) -> Result<bool, String> {
    let program = ebpf.program_mut(PROGRAM).ok_or_else(|| format!("the datapath has no program {PROGRAM}"))?;
    let program: &mut SchedClassifier = program.try_into().map_err(|e| chain(&e))?;
    load_program(|| program.load())?;
    let path = pins.egress(&plan.name);
    let is_ours = super::info::link(&path).is_ok_and(|link| link.interface == interface_index(&plan.name));
    if is_ours {
        let old: FdLink = PinnedLink::from_pin(&path).map_err(|e| chain(&e))?.into();
        let old: SchedClassifierLink = old.try_into().map_err(|e| chain(&e))?;
        let id = program.attach_to_link(old).map_err(|e| chain(&e))?;
        program.take_link(id).map(drop).map_err(|e| chain(&e))?;
        return Ok(true);
    }
    pins::remove(&path).map_err(|e| chain(&e))?;
    let id = program.attach(&plan.name, TcAttachType::Egress).map_err(|e| chain(&e))?;
    let link = program.take_link(id).map_err(|e| chain(&e))?;
    let link: FdLink = link.try_into().map_err(|_| "tc links that can be pinned (TCX) need kernel 6.6".to_owned())?;
    link.pin(&path).map_err(|e| chain(&e))?;
    Ok(false)
}
