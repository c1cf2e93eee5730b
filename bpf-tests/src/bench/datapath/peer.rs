//! xdp-filter, as its own loader put it up, as a program that can be run on a frame.

use std::any::Any;
use std::collections::HashSet;

use anyhow::Context as _;
use aya::programs::{ProgramInfo, Xdp, loaded_programs};
use aya_obj::programs::XdpAttachType;

use crate::generator::{Entries, Listed};
use crate::ladder::{self, Site};
use crate::netns::Netns;
use crate::run::run_xdp;

/// It stands as long as this lives.
pub(super) struct XdpFilter {
    pub(super) program: Xdp,
    _standing: Box<dyn Any>,
    _site: Site,
    _wan: Netns,
}

impl XdpFilter {
    /// Sets the build that the ladder calls `name` up with so many blocked addresses, of which the first is `Listed::first`;
    /// `frames` tells how it has to judge.
    pub(super) fn new(name: &str, addresses: u32, frames: &[(&[u8], u32)]) -> anyhow::Result<Self> {
        let own = ladder::peers();
        let peer = own.iter().find(|peer| peer.name() == name).with_context(|| format!("the ladder has no {name}"))?;
        let wan = Netns::create("wan")?;
        let site = Site::build(&wan, 0)?;
        let before: HashSet<u32> = loaded_programs().flatten().map(|info| info.id()).collect();
        let standing = peer.set_up(&site, Listed::new(Entries::Addresses, addresses))?;
        // Its loader puts a dispatcher in front where the kernel can; that one is what frames meet. Others on this
        // machine load programs too, perhaps of the same name: it is the one that judges as it was told.
        let is_dispatcher = |info: &ProgramInfo| info.name_as_str().is_some_and(|name| name.starts_with("xdp_disp"));
        let is_filter = |info: &ProgramInfo| info.name_as_str().is_some_and(|name| name.starts_with("xdpfilt"));
        let new = loaded_programs().flatten().filter(|info| !before.contains(&info.id()));
        let mut new: Vec<ProgramInfo> = new.filter(|info| is_dispatcher(info) || is_filter(info)).collect();
        new.sort_by_key(|info| !is_dispatcher(info));
        let judges = |program: &Xdp| {
            frames.iter().all(|(frame, verdict)| run_xdp(program, frame, None).is_ok_and(|o| o.verdict == *verdict))
        };
        let found = new
            .into_iter()
            .filter_map(|info| Xdp::from_program_info(info, "xdp-filter".into(), XdpAttachType::Interface).ok())
            .find(judges);
        let program = found.context("none of the loaded programs judges as it should")?;
        Ok(Self { program, _standing: standing, _site: site, _wan: wan })
    }
}
