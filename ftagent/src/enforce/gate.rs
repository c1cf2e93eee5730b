//! Reflectors and the TCP gate: what the kernel is told of them, and the one setting of the host that cookies need.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ftagent_common::abi::{AUTOMATIC, GatedTarget, NO_RULE, feature, gate};
use ftagent_common::packet::Ip;
use ftagent_common::vocab::{AttachMode, Mode};
use serde::{Deserialize, Serialize};

use crate::config::{GateConfig, SynChoice};
use crate::engine::{Point, Rule, RuleSet};
use crate::xdp::compile::{Slots, key, prefix};
use crate::xdp::egress::Learning;
use crate::xdp::gate::{GateMaps, Learnt, bound_udp_ports, settings};
use crate::xdp::kernel::{Feature, Support};
use crate::xdp::program::Attached;
use crate::xdp::table::{TableError, TrieKey};
use crate::xdp::writer::secret;

/// The gate's part of the datapath.
pub struct Gate {
    maps: GateMaps,
    config: GateConfig,
    syncookies: Syncookies,
    /// Why flows are not learnt everywhere.
    unlearnt: Option<String>,
    /// Why answers cannot be told from reflections although flows are learnt.
    blind: Option<String>,
    /// Why SYNs are not answered with cookies.
    no_cookies: Option<String>,
    /// What of the host's setting could not be changed.
    fault: Option<String>,
    learnt: Learnt,
    flows_from_ns: u64,
    wanted: BTreeMap<TrieKey<Ip>, bool>,
    gated: BTreeMap<TrieKey<Ip>, GatedTarget>,
    /// The kernel gives cookies in mode `enforce` alone: in the others the host's setting stays as it is.
    is_enforced: bool,
}

/// What the host is like around the watched interfaces.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// An interface that is not watched and that a default route leaves by: questions that leave there are not learnt.
    pub exit_elsewhere: Option<String>,
    /// Devices with a program that are one end of a virtual pair.
    pub veths: Vec<String>,
    /// Devices with a program that carry VLANs.
    pub vlans: Vec<String>,
}

/// What `ftagent status` shows of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateReport {
    /// Absent: flows are learnt from what leaves every watched interface.
    pub unlearnt: Option<String>,
    /// At the last count, at most ten seconds ago.
    pub learnt: Learnt,
    /// Until TCP flows that are not known count as none of ours.
    pub warm_in_secs: u64,
    /// Absent: answers that nobody asked for are dropped.
    pub reflectors_off: Option<String>,
    /// Absent: SYNs towards gated targets are answered with cookies where a socket listens.
    pub no_cookies: Option<String>,
    /// What of the host's settings stands in the way.
    pub fault: Option<String>,
    /// Targets behind the TCP gate.
    pub targets: Vec<String>,
}

impl Gate {
    /// Opens the maps in `maps`; the host's own setting is remembered in `state_dir`.
    ///
    /// # Errors
    /// When a map is missing or has another layout.
    pub fn open(maps: &Path, config: GateConfig, state_dir: &Path) -> Result<Self, TableError> {
        let maps = GateMaps::open(maps)?;
        let there = maps.settings.lookup(&0)?.unwrap_or_default();
        // What an earlier agent found out holds until the interfaces are looked at.
        let unlearnt = (there.queries_from_ns == 0).then(|| "not attached yet".to_owned());
        let are_wanted = matches!(config.syn, SynChoice::Auto | SynChoice::Cookies);
        let is_given = |(_, targets): &(_, Vec<GatedTarget>)| targets.iter().any(|t| t.how & gate::COOKIES != 0);
        let are_given = are_wanted && maps.gated.read_all()?.iter().any(is_given);
        Ok(Self {
            maps,
            config,
            syncookies: Syncookies::new(state_dir),
            unlearnt,
            blind: None,
            no_cookies: (!are_given).then(|| "not attached yet".to_owned()),
            fault: None,
            learnt: Learnt::default(),
            flows_from_ns: there.flows_from_ns,
            wanted: BTreeMap::new(),
            gated: BTreeMap::new(),
            is_enforced: true,
        })
    }

    /// The stages that must be in the path.
    pub fn features(&self) -> u32 {
        let reflectors = if self.reflectors_off().is_none() { feature::REFLECTORS } else { 0 };
        reflectors | if self.gated.is_empty() { 0 } else { feature::GATE }
    }

    fn reflectors_off(&self) -> Option<String> {
        if !self.config.reflectors {
            return Some("off by the configuration".to_owned());
        }
        self.unlearnt.clone().or_else(|| self.blind.clone())
    }

    /// Takes note of how the interfaces are attached and what is around them.
    pub fn set_attached(&mut self, attached: &[Attached], around: Around, now_mono_ns: u64) {
        let off = |a: &Attached| match &a.egress {
            Learning::Off(why) => Some(format!("{}: {why}", a.interface)),
            Learning::Active { .. } => None,
        };
        self.unlearnt = attached.iter().find_map(off);
        self.blind = around.exit_elsewhere.map(|name| format!("answers may belong to questions that left by {name}"));
        self.no_cookies = self.without_cookies(attached, &around.veths, &around.vlans);
        self.refresh(false, now_mono_ns);
        for error in self.write_gated() {
            tracing::error!(%error, "the TCP gate is not as it should be");
        }
    }

    fn without_cookies(&self, attached: &[Attached], veths: &[String], vlans: &[String]) -> Option<String> {
        match self.config.syn {
            SynChoice::Off | SynChoice::DropFirst => return Some("off by the configuration".to_owned()),
            SynChoice::Auto | SynChoice::Cookies => {}
        }
        if !Support::here().has(Feature::SynCookies) {
            return Some("the kernel has no helpers for them (6.0, CONFIG_SYN_COOKIES)".to_owned());
        }
        if self.syncookies.original().as_deref() == Some("0") {
            return Some("net.ipv4.tcp_syncookies is 0: the host wants none".to_owned());
        }
        let sends_nothing = |a: &&Attached| match a.mode {
            // The driver of veth takes what XDP sends back only while the other end polls, and does not say so.
            // Network cards may take the tags off before the program sees the frame: what it sent back would have none.
            AttachMode::Native => {
                self.config.syn == SynChoice::Auto && (veths.contains(&a.interface) || vlans.contains(&a.interface))
            }
            AttachMode::Generic => false,
            AttachMode::Tc | AttachMode::Nftables => true,
        };
        attached.iter().find(sends_nothing).map(|a| match a.mode {
            AttachMode::Native if vlans.contains(&a.interface) => format!(
                "{} carries VLANs: what is sent back may lack its tag (datapath.gate.syn = \"cookies\" where it does \
                 not)",
                a.interface
            ),
            AttachMode::Native => format!(
                "{} is a veth: what it sends back may be lost (datapath.gate.syn = \"cookies\" where it is not)",
                a.interface
            ),
            mode => format!("{}: frames cannot be sent back in mode {mode}", a.interface),
        })
    }

    /// Looks again which ports are served, and counts what was learnt: where nothing was and no frame came since the last
    /// look (`is_quiet`) there is nothing to count, and 3 MiB need not be read.
    pub fn refresh(&mut self, is_quiet: bool, now_mono_ns: u64) {
        if let Err(error) = self.write_settings(now_mono_ns) {
            tracing::error!(%error, "reflectors and the TCP gate are not told what they need");
        }
        if is_quiet && self.learnt == Learnt::default() {
            return;
        }
        match self.maps.learnt(now_mono_ns) {
            Ok(learnt) => self.learnt = learnt,
            Err(error) => tracing::error!(%error, "flows cannot be counted"),
        }
    }

    fn write_settings(&mut self, now_mono_ns: u64) -> Result<(), TableError> {
        let there = self.maps.settings.lookup(&0)?.unwrap_or_default();
        let key = if there.secret[0] != 0 { there.secret } else { [secret()?, secret()?] };
        let is_learning = self.unlearnt.is_none();
        let next = settings(&there, &self.config.wanted, &bound_udp_ports(), is_learning, now_mono_ns, || key);
        self.flows_from_ns = next.flows_from_ns;
        if next == there { Ok(()) } else { self.maps.settings.insert(&0, &next) }
    }

    /// Brings the gated targets to `desired`. What the gate drops counts as hits of the first rule of its incident, so
    /// that the response's account is whole.
    pub fn apply(&mut self, desired: &RuleSet, slots: &Slots) -> Vec<TableError> {
        self.is_enforced = desired.mode.unwrap_or(Mode::Enforce) == Mode::Enforce;
        self.wanted.clear();
        let mut gated = BTreeMap::new();
        for (target, wish) in &desired.gated {
            let of_incident =
                |rule: &&Rule| rule.origin.incident() == Some(wish.incident) && rule.point == Point::Datapath;
            let first = desired.rules.values().find(of_incident);
            let rule = first.and_then(|rule| slots.of(rule.id)).unwrap_or(NO_RULE);
            let entry = GatedTarget { expires_at_ns: wish.ends_ns, rule, flags: AUTOMATIC, how: 0, padding: [0; 2] };
            gated.insert(key(*target), entry);
            self.wanted.insert(key(*target), wish.local);
        }
        self.gated = gated;
        self.write_gated()
    }

    fn write_gated(&mut self) -> Vec<TableError> {
        let mut errors = Vec::new();
        let cookies = self.no_cookies.is_none() && self.is_enforced;
        for (target, entry) in &mut self.gated {
            entry.how = match (self.wanted.get(target), cookies) {
                (Some(true), true) => gate::LOCAL | gate::COOKIES,
                (Some(true), false) => gate::LOCAL,
                _ => 0,
            };
        }
        self.hold_or_release();
        let there = self.maps.gated.read_all().unwrap_or_else(|error| {
            errors.push(error);
            Vec::new()
        });
        let there: BTreeMap<_, _> = there.into_iter().map(|(key, values)| (key, values[0])).collect();
        for (target, entry) in self.gated.iter().filter(|(target, entry)| there.get(target) != Some(entry)) {
            self.maps.gated.insert(target, entry).unwrap_or_else(|e| errors.push(e));
        }
        for target in there.keys().filter(|target| !self.gated.contains_key(target)) {
            self.maps.gated.remove(target).unwrap_or_else(|e| errors.push(e));
        }
        errors
    }

    /// While cookies are given, every listener of the host gives them, not only one whose queue is full.
    fn hold_or_release(&mut self) {
        let needed = self.gated.values().any(|entry| entry.how & gate::COOKIES != 0);
        let done = if needed { self.syncookies.hold() } else { self.syncookies.release() };
        let fault = done.err().map(|error| {
            let what =
                if needed { "not set to 2: cookies are given only while a queue is full" } else { "not set back" };
            format!("net.ipv4.tcp_syncookies is {what}: {error}")
        });
        if let Some(fault) = fault.as_ref().filter(|fault| self.fault.as_ref() != Some(fault)) {
            tracing::warn!("{fault}");
        }
        self.fault = fault;
    }

    /// The state as people are told it.
    pub fn report(&self, now_mono_ns: u64) -> GateReport {
        let warm_in_ns = if self.unlearnt.is_some() { 0 } else { self.flows_from_ns.saturating_sub(now_mono_ns) };
        GateReport {
            unlearnt: self.unlearnt.clone(),
            learnt: self.learnt,
            warm_in_secs: warm_in_ns.div_ceil(1_000_000_000),
            reflectors_off: self.reflectors_off(),
            no_cookies: self.no_cookies.clone(),
            fault: self.fault.clone(),
            targets: self.gated.keys().filter_map(prefix).map(|prefix| prefix.to_string()).collect(),
        }
    }

    /// What needs an operator's look.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let unlearnt = self.unlearnt.iter().map(|why| format!("flows are not learnt: {why}"));
        unlearnt.chain(self.fault.clone())
    }
}

/// `net.ipv4.tcp_syncookies` of this network namespace, which rules IPv6 as well.
pub struct Syncookies {
    setting: PathBuf,
    /// What it was before we changed it; there only while it is changed, also for an heir of this process.
    saved: PathBuf,
}

const ALWAYS: &str = "2";

impl Syncookies {
    /// The setting, whose former value is kept in `state_dir` while it is changed.
    pub fn new(state_dir: &Path) -> Self {
        Self { setting: "/proc/sys/net/ipv4/tcp_syncookies".into(), saved: state_dir.join("tcp_syncookies") }
    }

    /// The value that the host has without us.
    fn original(&self) -> Option<String> {
        let read = |path: &Path| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        read(&self.saved).or_else(|| read(&self.setting))
    }

    /// What can be made of it, in words.
    pub fn prospect(&self) -> String {
        let name = "net.ipv4.tcp_syncookies";
        let is_fixed = nix::unistd::access(&self.setting, nix::unistd::AccessFlags::W_OK).is_err();
        match self.original().as_deref() {
            None => "the kernel has none: drop-first is used".to_owned(),
            Some("0") => format!("{name} is 0: drop-first is used"),
            Some(ALWAYS) => format!("{name} is 2"),
            Some(other) if is_fixed => {
                format!("{name} is {other} and cannot be written: cookies are given only while a queue is full")
            }
            Some(other) => format!("{name} is {other}, set to 2 while a target is behind the TCP gate"),
        }
    }

    /// Has cookies given always.
    fn hold(&self) -> io::Result<()> {
        let now = fs::read_to_string(&self.setting)?;
        if now.trim() == ALWAYS {
            return Ok(());
        }
        // First what to go back to: a crash in between leaves nothing that is not undone.
        fs::write(&self.saved, now.trim())?;
        fs::write(&self.setting, ALWAYS)
    }

    /// Sets back what was changed, unless somebody else changed it since.
    ///
    /// # Errors
    /// When the setting cannot be read or written; it is tried again with the next change.
    pub fn release(&self) -> io::Result<()> {
        let before = match fs::read_to_string(&self.saved) {
            Ok(before) => before,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        if fs::read_to_string(&self.setting)?.trim() == ALWAYS {
            fs::write(&self.setting, before.trim())?;
        }
        fs::remove_file(&self.saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(value: &str) -> (tempfile::TempDir, Syncookies) {
        let dir = tempfile::tempdir().expect("a directory");
        let setting = dir.path().join("setting");
        fs::write(&setting, value).expect("written");
        let saved = dir.path().join("tcp_syncookies");
        (dir, Syncookies { setting, saved })
    }

    #[test]
    fn the_setting_of_the_host_comes_back_even_after_a_crash() {
        let (_dir, cookies) = setting("1\n");
        cookies.hold().expect("held");
        let heir = Syncookies { setting: cookies.setting.clone(), saved: cookies.saved.clone() };
        heir.hold().expect("held already");
        assert_eq!(
            (fs::read_to_string(&heir.setting).expect("there").as_str(), heir.original().as_deref()),
            ("2", Some("1"))
        );
        heir.release().expect("released");
        assert_eq!(fs::read_to_string(&heir.setting).expect("there"), "1");
        heir.release().expect("nothing to do");
    }

    #[test]
    fn what_somebody_else_set_stays() {
        let (_dir, cookies) = setting("2\n");
        cookies.hold().expect("it is so");
        cookies.release().expect("not ours");
        assert_eq!(fs::read_to_string(&cookies.setting).expect("there"), "2\n");
        let (_dir, cookies) = setting("1");
        cookies.hold().expect("held");
        fs::write(&cookies.setting, "0").expect("an operator");
        cookies.release().expect("released");
        assert_eq!(fs::read_to_string(&cookies.setting).expect("there"), "0");
    }
}
