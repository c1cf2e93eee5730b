//! The programs on their devices: attached at the start, and again when other devices lie below the interfaces.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use tracing::{error, info, warn};

use super::Daemon;
use crate::below::{self, Device};
use crate::config::Config;
use crate::enforce::carriers::Devices;
use crate::host::Interface;
use crate::xdp::pins::Pins;
use crate::xdp::program::{self, Attached, InterfacePlan, LoadError, Loaded};

/// Which devices have programs, or shall have.
pub(super) struct Attachment {
    pins: Pins,
    devices: Vec<Device>,
    /// Bonds that take no program natively.
    by_ports: BTreeSet<String>,
    /// The devices of an attempt that failed: it is not made again before something else changes.
    failed: Vec<(String, Option<u32>)>,
    /// What an operator should know of that attempt, or of devices that are gone.
    trouble: Option<String>,
}

impl Attachment {
    /// Plans for the interfaces as they are now; none are known where they could not be listed, and then each gets its
    /// program itself.
    pub(super) fn plan(config: &Config, links: &[Interface], pins: Pins) -> Result<Self> {
        let by_ports = below::by_ports_already(links, &pins.pinned_links());
        let devices = below::devices(&config.wanted(), links, &by_ports, &[])?;
        Ok(Self { pins, devices, by_ports, failed: Vec::new(), trouble: None })
    }

    pub(super) fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// What an operator should know.
    pub(super) fn warning(&self) -> Option<String> {
        self.trouble.clone()
    }

    /// Loads a copy of the datapath for each device.
    pub(super) fn load(&self, config: &Config) -> Result<Loaded, LoadError> {
        let plans: Vec<InterfacePlan> = self.devices.iter().map(|device| device.plan.clone()).collect();
        program::load(&plans, &self.pins, &config.datapath.sizes)
    }

    /// Attaches what is loaded. A bond that refuses gives way to its ports.
    pub(super) fn attach(&mut self, mut loaded: Loaded, config: &Config, links: &[Interface]) -> Result<Vec<Attached>> {
        loop {
            let (bond, why) = match loaded.attach() {
                Err(LoadError::Refused { interface, reason, .. }) if self.is_asked(&interface) => (interface, reason),
                other => return Ok(other?),
            };
            info!(%bond, %why, "takes no program natively: its ports get it");
            self.by_ports.insert(bond);
            self.devices = below::devices(&config.wanted(), links, &self.by_ports, &self.devices)?;
            loaded = self.load(config)?;
        }
    }

    fn is_asked(&self, name: &str) -> bool {
        self.devices.iter().any(|device| device.is_asked && device.plan.name == name)
    }

    /// Whether other devices than those with programs should have them; `None` while one of them does not exist.
    fn next(&mut self, config: &Config, links: &[Interface]) -> Result<Option<Vec<Device>>> {
        let next = below::devices(&config.wanted(), links, &self.by_ports, &self.devices)?;
        let gone: Vec<&str> = next.iter().filter(|d| d.index.is_none()).map(|d| d.plan.name.as_str()).collect();
        if !gone.is_empty() {
            self.trouble = Some(format!("{}: no such interface now; its program comes back with it", gone.join(", ")));
            return Ok(None);
        }
        let wanted = below::attached_to(&next);
        if wanted == below::attached_to(&self.devices) {
            // Who is served, and what lies above, may have changed all the same.
            self.devices = next;
            self.trouble = None;
            return Ok(None);
        }
        let is_new = self.failed.iter().map(|(name, index)| (name.as_str(), *index)).ne(wanted);
        Ok(is_new.then_some(next))
    }

    fn note_failure(&mut self, error: &anyhow::Error) {
        self.failed = below::attached_to(&self.devices).into_iter().map(|(n, i)| (n.to_owned(), i)).collect();
        self.trouble = Some(format!("other interfaces than before cannot be attached: {error:#}"));
    }
}

impl Daemon {
    /// Attaches anew if other devices lie below the interfaces than before: a port that joined a bond, a VLAN that moved,
    /// an interface that was made anew. What is attached already is adopted, and drops without a gap.
    pub(super) fn follow_devices(&mut self) {
        let Some(links) = self.host.facts().map(|facts| facts.interfaces.clone()) else { return };
        let next = match self.attachment.next(&self.config, &links) {
            Ok(Some(next)) => next,
            Ok(None) => return,
            Err(error) => {
                warn!(%error, "the interfaces cannot be attached as they are now");
                self.attachment.trouble = Some(error.to_string());
                return;
            }
        };
        let before = std::mem::replace(&mut self.attachment.devices, next);
        info!(before = ?below::attached_to(&before), now = ?below::attached_to(&self.attachment.devices), "other devices");
        match self.attach_again(&links) {
            Ok(attached) => {
                self.take_attached(attached);
                self.attachment.failed.clear();
                self.attachment.trouble = None;
            }
            Err(error) => {
                error!(error = format!("{error:#}"), "not attached anew: what was attached stays");
                self.attachment.note_failure(&error);
                self.attachment.devices = before;
            }
        }
    }

    fn attach_again(&mut self, links: &[Interface]) -> Result<Vec<Attached>> {
        let loaded = self.attachment.load(&self.config).context("the datapath")?;
        self.attachment.attach(loaded, &self.config, links)
    }

    /// Takes note of what is attached, and tells those who have to know.
    pub(super) fn take_attached(&mut self, attached: Vec<Attached>) {
        self.attached = attached;
        self.tell_gate();
        for interface in &self.attached {
            info!(
                interface = %interface.interface, mode = %interface.mode, program = interface.program,
                adopted = interface.adopted, reason = %interface.reason, "attached"
            );
        }
        let without = self.attached.iter().filter(|a| a.mode == ftagent_common::vocab::AttachMode::Nftables);
        let bare = without.map(|a| a.interface.clone()).collect();
        self.worker.set_devices(Devices { all: self.attached.iter().map(|a| a.interface.clone()).collect(), bare });
    }

    /// Tells the worker which rules have no room in the maps, if others have than before.
    pub(super) fn tell_overflow(&mut self) {
        if *self.datapath.overflow() != self.overflow {
            self.overflow.clone_from(self.datapath.overflow());
            self.worker.set_overflow(self.overflow.clone());
        }
    }
}
