//! What is attached to an interface before we attach, and how it goes without a moment in which nothing enforces.
//!
//! ```text
//! before        wanted        order
//! link          same mode     the link gets the new program in one step
//! XDP           tc            tc beside it, then the XDP link goes
//! tc            XDP           XDP before it, then the tc link goes
//! XDP           XDP, new link tc beside it, the old link goes, the new one comes, tc goes
//! ```
//!
//! An interface has room for one XDP program only, hence the relief. While both are there a frame that passes is
//! counted by both: for milliseconds, and only when links cannot be adopted.

use std::path::Path;

use aya::Ebpf;
use ftagent_common::vocab::AttachMode;

use super::pins::{self, Pins};
use super::program::{Attached, InterfacePlan, LoadError, attach_mode, interface_index};
use super::{info, tc};

/// What of ours is attached to an interface.
pub(super) struct Before {
    /// Modes with a pinned link that is on this very interface.
    links: Vec<AttachMode>,
    /// Whether there is a classic tc filter, which has no pin.
    has_filter: bool,
}

impl Before {
    /// Looks, and unpins links of an interface that was made anew under the same name: those do nothing any more.
    pub(super) fn observe(plan: &InterfacePlan, pins: &Pins) -> Self {
        let Some(index) = interface_index(&plan.name) else { return Self { links: Vec::new(), has_filter: false } };
        let mut links = Vec::new();
        for mode in [AttachMode::Native, AttachMode::Generic, AttachMode::Tc] {
            let path = pins.link(mode, &plan.name);
            if !path.exists() {
                continue;
            }
            match info::link(&path) {
                Ok(link) if link.interface == Some(index) => links.push(mode),
                _ => unpin(&path),
            }
        }
        Self { links, has_filter: tc::attached(index).is_ok_and(|program| program.is_some()) }
    }

    /// The mode in which what is there can get the new program, of those that are wanted.
    pub(super) fn adoptable(&self, modes: &[AttachMode], has_tcx: bool) -> Option<AttachMode> {
        let is_there = |mode: &AttachMode| match mode {
            // A filter gives its place to a filter; to a link it gives way once that stands.
            AttachMode::Tc if !has_tcx => self.has_filter,
            mode => self.links.contains(mode),
        };
        modes.iter().copied().find(is_there)
    }

    /// Makes room for another XDP program: one in tc enforces meanwhile, and is returned.
    ///
    /// # Errors
    /// [`LoadError::Kept`] when there can be none: what is attached stays.
    pub(super) fn relieve(
        &mut self,
        plan: &InterfacePlan,
        ebpf: &mut Ebpf,
        pins: &Pins,
        modes: &[AttachMode],
        (has_tcx, reasons): (bool, &[String]),
    ) -> Result<Option<Attached>, LoadError> {
        let is_xdp = |mode: &AttachMode| *mode != AttachMode::Tc;
        if !self.links.iter().any(is_xdp) || !modes.iter().any(is_xdp) {
            return Ok(None);
        }
        let relief = attach_mode(plan, ebpf, pins, AttachMode::Tc, (false, has_tcx)).map_err(|reason| {
            let reasons: Vec<&str> = reasons.iter().map(String::as_str).chain([reason.as_str()]).collect();
            LoadError::Kept { interface: plan.name.clone(), reason: reasons.join("; ") }
        })?;
        // The new link took the pin of an old one in tc, if there was one.
        for mode in std::mem::replace(&mut self.links, vec![AttachMode::Tc]) {
            if is_xdp(&mode) {
                let path = pins.link(mode, &plan.name);
                // Without its pin it would keep the place for a grace period of the kernel, and the new one be refused.
                if let Err(error) = info::detach(&path) {
                    tracing::warn!(%error, interface = %plan.name, %mode, "the old link goes by itself");
                }
                unpin(&path);
            }
        }
        self.has_filter |= !has_tcx;
        Ok(Some(relief))
    }

    /// Removes what `new` replaces, now that it stands.
    pub(super) fn remove_for(self, new: &Attached, plan: &InterfacePlan, pins: &Pins) {
        for mode in self.links.into_iter().filter(|mode| *mode != new.mode) {
            unpin(&pins.link(mode, &plan.name));
        }
        let is_filter = new.mode == AttachMode::Tc && new.link_id.is_none();
        if self.has_filter
            && !is_filter
            && let Err(error) = tc::detach(&plan.name)
        {
            tracing::warn!(%error, interface = %plan.name, "stale tc filter stays");
        }
    }
}

fn unpin(path: &Path) {
    if let Err(error) = pins::remove(path) {
        tracing::warn!(%error, "stale link stays pinned");
    }
}
