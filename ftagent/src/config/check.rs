//! Bounds of what the file says, and what must go together.

use std::path::Path;

use ftagent_common::abi::{SKETCH_MAX, stage};

use super::raw::{Raw, RawControlPlane, RawDatapath, RawDetection, RawInterface, RawThresholdMode};
use super::{ConfigError, ControlPlaneConfig};
use crate::actions::cloud::{Clouds, check_clouds};
use crate::sync::{ClientFiles, Secret};

/// Says what is wrong and where.
pub(super) struct Check<'a> {
    pub(super) path: &'a Path,
}

impl Check<'_> {
    pub(super) fn error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        ConfigError::Value { path: self.path.display().to_string(), key: key.to_owned(), message: message.into() }
    }

    pub(super) fn within<T: PartialOrd + std::fmt::Display>(
        &self,
        key: &str,
        value: T,
        low: T,
        high: T,
    ) -> Result<(), ConfigError> {
        if value < low || value > high {
            return Err(self.error(key, format!("must be {low} to {high}, got {value}")));
        }
        Ok(())
    }

    pub(super) fn all(&self, raw: &Raw) -> Result<(), ConfigError> {
        self.within("agent.tick_ms", raw.agent.tick_ms, 10, 100)?;
        self.within("agent.dead_man_secs", raw.agent.dead_man_secs, 0, 86_400)?;
        if let Some(name) = &raw.agent.name
            && (name.is_empty() || name.chars().count() > 128)
        {
            return Err(self.error("agent.name", "must have 1 to 128 characters"));
        }
        self.interfaces(&raw.interface)?;
        if !raw.management.sources.is_empty() && raw.management.ports.is_empty() {
            return Err(
                self.error("management.ports", "name the ports that management.sources may always reach, such as [22]")
            );
        }
        if raw.management.sources.iter().any(|s| s.prefix_len() == 0) {
            return Err(self.error("management.sources", "a prefix of length 0 would trust everybody"));
        }
        if raw.management.ports.contains(&0) {
            return Err(self.error("management.ports", "must be 1 to 65535, got 0"));
        }
        self.detection(&raw.detection)?;
        self.within("response.min_confidence", raw.response.min_confidence, 0.0, 1.0)?;
        self.within("response.ttl_secs", raw.response.ttl_secs, 10, 86_400)?;
        self.within("response.max_sources", raw.response.max_sources, 1, 100_000)?;
        self.within("response.max_rules", raw.response.max_rules, 1, 8_000)?;
        self.datapath(&raw.datapath)?;
        if raw.crowdsec.is_some() && raw.datapath.without.iter().any(|left_out| left_out.bit() & stage::LISTS != 0) {
            return Err(
                self.error("datapath.without", "crowdsec needs the stage lists: decisions lie in the same tables")
            );
        }
        for (i, rule) in raw.rule.iter().enumerate() {
            if rule.name.is_empty() || rule.name.chars().count() > 128 {
                return Err(self.error(&format!("rule[{i}].name"), "must have 1 to 128 characters"));
            }
            self.within(&format!("rule[{i}].cooldown_minutes"), rule.cooldown_minutes, 1, 1_440)?;
            rule.action.validate().map_err(|e| self.error(&format!("rule[{i}].action.{}", e.field), e.message))?;
        }
        for (i, threshold) in raw.threshold.iter().enumerate() {
            if threshold.pps.is_none() && threshold.bps.is_none() {
                return Err(self.error(&format!("threshold[{i}]"), "give pps, bps or both"));
            }
        }
        Ok(())
    }

    /// The clouds, with the keys that rules of this file need.
    pub(super) fn clouds(&self, raw: &Raw) -> Result<Clouds, ConfigError> {
        let clouds = check_clouds(&raw.cloud).map_err(|(key, message)| self.error(&key, message))?;
        for (i, rule) in raw.rule.iter().enumerate() {
            let (tool, kind) = (rule.action.tool(), rule.action.kind());
            if rule.action.is_cloud() && clouds.of(tool).is_none() {
                let why = format!("{kind} needs a key: give cloud.{tool}.token_file");
                return Err(self.error(&format!("rule[{i}].action.type"), why));
            }
        }
        Ok(clouds)
    }

    pub(super) fn interfaces(&self, interfaces: &[RawInterface]) -> Result<(), ConfigError> {
        if interfaces.is_empty() {
            return Err(self.error("interface", "name at least one: [[interface]] with name = \"eth0\""));
        }
        self.within("interface", interfaces.len(), 1, ftagent_common::abi::MAX_INTERFACES as usize)?;
        for (i, interface) in interfaces.iter().enumerate() {
            let is_name = !interface.name.is_empty()
                && interface.name.len() < 16
                && !interface.name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
            if !is_name {
                return Err(
                    self.error(&format!("interface[{i}].name"), format!("{:?} is no interface name", interface.name))
                );
            }
            if interfaces.iter().take(i).any(|other| other.name == interface.name) {
                return Err(self.error(&format!("interface[{i}].name"), format!("{} is named twice", interface.name)));
            }
        }
        Ok(())
    }

    pub(super) fn detection(&self, d: &RawDetection) -> Result<(), ConfigError> {
        self.within("detection.floor_pps", d.floor_pps, 10, 1_000_000_000)?;
        self.within("detection.floor_bps", d.floor_bps, 10_000, 1_000_000_000_000)?;
        self.within("detection.multiplier", d.multiplier, 1.1, 100.0)?;
        self.within("detection.window_secs", d.window_secs, 10, 3_600)?;
        self.within("detection.learning_secs", d.learning_secs, 1, 86_400)?;
        self.within("detection.confirm_ms", d.confirm_ms, 0, 30_000)?;
        self.within("detection.hold_down_ms", d.hold_down_ms, 500, 3_600_000)?;
        self.within("detection.carpet_targets", d.carpet_targets, 2, 256)?;
        if d.silent_secs != 0 {
            self.within("detection.silent_secs", d.silent_secs, 5, 86_400)?;
        }
        let has_static = d.static_pps.is_some() || d.static_bps.is_some();
        if has_static != (d.mode == RawThresholdMode::Static) {
            return Err(self.error(
                "detection.mode",
                "static_pps and static_bps belong to mode = \"static\", which needs one of them",
            ));
        }
        Ok(())
    }

    pub(super) fn datapath(&self, d: &RawDatapath) -> Result<(), ConfigError> {
        self.within("datapath.max_targets", d.max_targets, 16, 1 << 20)?;
        self.within("datapath.max_sources", d.max_sources, 16, 1 << 20)?;
        self.within("datapath.max_blocks", d.max_blocks, 16, 1 << 24)?;
        self.within("datapath.max_prefixes", d.max_prefixes, 16, 1 << 24)?;
        if !d.sample_buffer_bytes.is_power_of_two() || !(65_536..=1 << 28).contains(&d.sample_buffer_bytes) {
            return Err(self.error("datapath.sample_buffer_bytes", "must be a power of two from 65536 to 268435456"));
        }
        self.within("datapath.samples_per_sec", d.samples_per_sec, 100, 100_000)?;
        self.within("datapath.promote_pps", d.promote_pps, 10, SKETCH_MAX)?;
        if d.fallback.is_empty() || d.fallback.iter().enumerate().any(|(n, rung)| d.fallback[..n].contains(rung)) {
            let words = "name nftables_ingress, nftables, tc and null_route, or some of them, each once";
            return Err(self.error("datapath.fallback", words));
        }
        self.within("datapath.not_ip_pps", d.not_ip_pps, 10, 10_000_000)?;
        self.within("datapath.gate.warmup_secs", d.gate.warmup_secs, 0, 86_400)?;
        let ports = d.gate.reflector_ports.iter().chain(&d.gate.served_ports);
        if ports.clone().any(|port| *port == 0) || ports.count() > 1_024 {
            return Err(self.error("datapath.gate.reflector_ports, served_ports", "must be at most 1024 ports from 1"));
        }
        if d.source_limit_pps != 0 && d.source_limit_pps < u64::from(d.promote_pps) {
            return Err(self.error(
                "datapath.source_limit_pps",
                format!(
                    "must be 0 or at least datapath.promote_pps ({}): only heavy sources are limited",
                    d.promote_pps
                ),
            ));
        }
        Ok(())
    }

    pub(super) fn control_plane(
        &self,
        raw: Option<&RawControlPlane>,
    ) -> Result<Option<ControlPlaneConfig>, ConfigError> {
        let Some(raw) = raw else { return Ok(None) };
        let urls = match (&raw.url, raw.urls.as_slice()) {
            (Some(url), []) => vec![url.clone()],
            (None, urls) if (1..=8).contains(&urls.len()) => urls.to_vec(),
            (None, _) => {
                return Err(self.error("control_plane.urls", "must be 1 to 8, the one to use first; or give url"));
            }
            (Some(_), _) => return Err(self.error("control_plane.url", "give url or urls, not both")),
        };
        let urls: Vec<_> = urls.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        let key = if raw.url.is_some() { "control_plane.url" } else { "control_plane.urls" };
        if urls.iter().any(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
            return Err(self.error(key, "must begin with http:// or https://"));
        }
        if urls.iter().enumerate().any(|(n, url)| urls[..n].contains(url)) {
            return Err(self.error(key, "names one twice"));
        }
        let client = match (&raw.client_certificate, &raw.client_key) {
            (Some(certificate), Some(key)) => Some(ClientFiles { certificate: certificate.clone(), key: key.clone() }),
            (None, None) => None,
            _ => return Err(self.error("control_plane.client_certificate", "give client_key too, or neither")),
        };
        let token = match (&raw.deploy_token, &raw.deploy_token_file) {
            (Some(_), Some(_)) => {
                return Err(
                    self.error("control_plane.deploy_token", "give deploy_token or deploy_token_file, not both")
                );
            }
            (Some(token), None) => Some(token.clone()),
            (None, Some(file)) => match std::fs::read_to_string(file) {
                Ok(text) => Some(text.trim().to_owned()),
                // Used once: afterwards the node has a key of its own and the file may be gone.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                Err(e) => {
                    return Err(self.error("control_plane.deploy_token_file", format!("{}: {e}", file.display())));
                }
            },
            (None, None) => None,
        };
        if let Some(token) = &token
            && (token.len() != 64 || !token.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return Err(self.error("control_plane.deploy_token", "must be 64 hex characters"));
        }
        Ok(Some(ControlPlaneConfig {
            urls,
            deploy_token: token.as_deref().map(Secret::new),
            ca_certificate: raw.ca_certificate.clone(),
            client,
        }))
    }
}
