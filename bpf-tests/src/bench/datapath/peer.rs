//! xdp-filter, as its own loader put it up, as a program that can be run on a frame.

use std::any::Any;
use std::collections::HashSet;

use anyhow::Context as _;
use aya::programs::{Xdp, loaded_programs};
use aya_obj::programs::XdpAttachType;

use crate::generator::{Entries, Listed};
use crate::ladder::{self, Site};
use crate::netns::Netns;

/// It stands as long as this lives.
pub(super) struct XdpFilter {
    pub(super) program: Xdp,
    _standing: Box<dyn Any>,
    _site: Site,
    _wan: Netns,
}

impl XdpFilter {
    /// Sets the build that the ladder calls `name` up with so many blocked addresses, of which the first is `Listed::first`.
    pub(super) fn new(name: &str, addresses: u32) -> anyhow::Result<Self> {
        let own = ladder::peers();
        let peer = own.iter().find(|peer| peer.name() == name).with_context(|| format!("the ladder has no {name}"))?;
        let wan = Netns::create("wan")?;
        let site = Site::build(&wan, 0)?;
        let before: HashSet<u32> = loaded_programs().flatten().map(|info| info.id()).collect();
        let standing = peer.set_up(&site, Listed::new(Entries::Addresses, addresses))?;
        // Its loader puts a dispatcher in front where the kernel can; that one is what frames meet.
        let mut new: Vec<_> = loaded_programs().flatten().filter(|info| !before.contains(&info.id())).collect();
        let is_dispatcher = |name: Option<&str>| name.is_some_and(|name| name.starts_with("xdp_dispatch"));
        new.sort_by_key(|info| (is_dispatcher(info.name_as_str()), info.id()));
        let programs = new.into_iter().rev();
        let found = programs
            .filter_map(|info| Xdp::from_program_info(info, "xdp-filter".into(), XdpAttachType::Interface).ok())
            .next();
        let program = found.context("its program is not among the loaded ones")?;
        Ok(Self { program, _standing: standing, _site: site, _wan: wan })
    }
}
