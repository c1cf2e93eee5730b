//! Samples and incidents on their way to the captures.

use anyhow::{Context as _, Result};
use ftagent_common::api::IncidentReport;
use ftagent_common::vocab::{AttachMode, IncidentStatus};

use super::Daemon;
use crate::config::Config;
use crate::engine::PacketSample;
use crate::pcap::{Captures, CapturesStatus, Hook, Interfaces, Record};
use crate::sync::{CaptureUploads, Link};

/// Starts the writer, where there are to be captures.
pub(super) fn start(config: &Config) -> Result<Option<Captures>> {
    let Some(pcap) = config.pcap else { return Ok(None) };
    Captures::start(pcap, config.state_dir.join("captures")).map(Some).context("the thread that writes captures")
}

impl Daemon {
    /// Takes the samples out of the kernel's ring; the captures get a copy of each.
    pub(super) fn take_samples(&mut self) -> Vec<PacketSample> {
        let Some(captures) = &mut self.captures else { return self.samples.take() };
        let (slots, enforcing) = (&self.datapath.slots, self.datapath.is_enforcing());
        let samples = self.samples.take_with(|event, sample| {
            let rule = |slot| slots.rule(slot).map(|id| id.0);
            if let Some(record) = Record::read(event, sample, enforcing, rule) {
                captures.sample(record);
            }
        });
        captures.hand_over();
        samples
    }

    /// The captures with their uploads.
    pub(super) fn captures_status(&self) -> Option<CapturesStatus> {
        let mut status = self.captures.as_ref()?.status();
        status.uploads = self.link.as_ref().and_then(Link::uploads);
        Some(status)
    }

    /// What the link is to send, unless captures stay here.
    pub(super) fn uploads_wanted(&self) -> Option<CaptureUploads> {
        let captures = self.captures.as_ref()?.watch();
        let bytes_per_sec = self.config.pcap?.upload_bytes_per_sec?;
        Some(CaptureUploads { captures, bytes_per_sec })
    }

    /// Begins, follows or ends the capture of an incident.
    pub(super) fn capture(&mut self, report: &IncidentReport) {
        let Some(captures) = &mut self.captures else { return };
        let named = self.attached.iter().filter_map(|attached| {
            let hook = if attached.mode == AttachMode::Tc { Hook::Tc } else { Hook::Xdp };
            Some((u16::try_from(attached.slot).ok()?, (attached.interface.clone(), hook)))
        });
        let interfaces: Interfaces = named.collect();
        captures.incident(report.uuid, report.target, report.status == IncidentStatus::Active, interfaces);
    }
}
