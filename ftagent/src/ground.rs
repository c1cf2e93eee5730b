//! What the node stands on: its own addresses, gateways, resolvers, control plane and management sources. None of it
//! is ever blocked by anything automated, and all of it may change while the agent runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ftagent_common::api::{AllowEntry, Kept, NodeMeans, PoliceMeans};
use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tokio::time::Interval;
use tracing::warn;

use crate::actions::trial;
use crate::below::Device;
use crate::clock;
use crate::config::Config;
use crate::enforce::gate::Around;
use crate::engine::{MANAGEMENT, RuleSet, Session, Settings};
use crate::host::{HostFacts, host_facts};
use crate::netlink::Changes;
use crate::profile::Friends;
use crate::program::is_installed;
use crate::sessions::{Sessions, SessionsError};
use crate::xdp::compile::{FailSafe, Ground as Compiled};

/// BGP, and BFD's single-hop and echo ports (RFC 4271, RFC 5881): what a router itself says to us. What it forwards
/// carries the senders' own addresses and needs no trust.
const ROUTER_PORTS: [u16; 3] = [179, 3784, 3785];
/// Between two looks where changes are not told.
const LOOK: Duration = Duration::from_secs(10);
/// For the name of the control plane, which is looked up again after so long.
const RESOLVE: Duration = Duration::from_secs(2);
const RESOLVE_AGAIN: Duration = Duration::from_secs(60);
const RESOLVE_SOON: Duration = Duration::from_secs(5);
/// An address that a name had counts for so long.
const RESOLVED_NS: u64 = 600_000_000_000;
/// Of a name.
const MAX_ADDRESSES: usize = 16;

/// The node's facts and how to learn that they changed.
pub struct Host {
    facts: Option<HostFacts>,
    /// Why the newest look failed: until one succeeds nothing automated acts.
    unreadable: Option<String>,
    /// One word for each change that settled; absent where changes are not told.
    changes: Option<mpsc::Receiver<()>>,
    look: Interval,
    /// Names or addresses of the control planes, with their ports.
    control_planes: Vec<(String, u16)>,
    /// What each of them was found at, looked up beside the loop.
    resolved: watch::Receiver<Vec<Vec<IpAddr>>>,
    management: Vec<FailSafe>,
    /// Who is connected, as the newest look that succeeded found it.
    sessions: Sessions,
    /// Why the newest look failed.
    sessions_unreadable: Option<String>,
    /// How the kernel limits an interface, once that was tried.
    police: watch::Receiver<Option<PoliceMeans>>,
}

/// Facts as the datapath takes them.
pub struct Ground(Compiled);

impl Ground {
    /// The compiled form.
    pub fn datapath(self) -> Compiled {
        self.0
    }
}

impl Host {
    /// Looks once, and listens for changes from before that on.
    ///
    /// # Errors
    /// When the control plane's URL has no host. Facts that cannot be read are no error: the guard then refuses.
    pub async fn watch(config: &Config, boot: &str) -> Result<Self> {
        let urls = config.control_plane.iter().flat_map(|control_plane| &control_plane.urls);
        let control_planes = urls
            .map(|url| host_and_port(url).with_context(|| format!("control_plane: {url} has no host")))
            .collect::<Result<Vec<_>>>()?;
        let changes = match Changes::subscribe() {
            Ok(changes) => Some(told(changes)),
            Err(error) => {
                warn!(%error, "changes of addresses and routes are not told");
                None
            }
        };
        let mut host = Self {
            facts: None,
            unreadable: None,
            changes,
            look: tokio::time::interval(LOOK),
            resolved: resolved(control_planes.clone()).await,
            control_planes,
            management: config.management.clone(),
            sessions: Sessions::default(),
            sessions_unreadable: None,
            police: watch::Sender::new(trial::remembered(&config.state_dir, boot)).subscribe(),
        };
        host.look().await;
        Ok(host)
    }

    /// Waits until something changed, or is worth another look. False: changes are not told any more.
    ///
    /// Nothing is lost when the wait is given up and begun again, as the daemon does at every tick.
    pub async fn changed(&mut self) -> bool {
        let look_anyway = self.unreadable.is_some() || self.changes.is_none();
        let told = async {
            match &mut self.changes {
                Some(changes) => changes.recv().await.is_some(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            lives = told => {
                if !lives {
                    self.changes = None;
                }
                lives
            }
            _ = self.look.tick(), if look_anyway => true,
            // Without control planes there is nobody who could say anything.
            Ok(()) = self.resolved.changed() => true,
            Ok(()) = self.police.changed() => true,
        }
    }

    /// Has it tried beside the loop how the kernel limits an interface.
    pub fn try_police(&mut self, state_dir: &Path, boot: &str) {
        let (told, heard) = watch::channel(self.police.borrow().clone());
        self.police = heard;
        trial::start(state_dir, boot, told);
    }

    /// Waits until it is known how the kernel limits an interface, or nobody tries any more.
    pub async fn police_tried(&mut self) {
        while self.police.borrow().is_none() && self.police.changed().await.is_ok() {}
    }

    /// On what it depends how actions are done here.
    pub fn means(&self) -> NodeMeans {
        NodeMeans { lacks_busctl: !is_installed("busctl"), police: self.police.borrow().clone() }
    }

    /// Reads the facts again.
    pub async fn look(&mut self) {
        match host_facts().await {
            Ok(facts) => {
                self.facts = Some(facts);
                self.unreadable = None;
            }
            Err(error) => {
                warn!(%error, "the node's own addresses are not known: nothing automated acts");
                self.unreadable = Some(error.to_string());
            }
        }
    }

    /// What was found at the last look that succeeded.
    pub fn facts(&self) -> Option<&HostFacts> {
        self.facts.as_ref()
    }

    /// The ports of the control planes.
    pub fn control_ports(&self) -> impl Iterator<Item = u16> {
        self.control_planes.iter().map(|(_, port)| *port)
    }

    /// Takes what was seen of the sessions in use; whether it is anything new.
    pub fn set_sessions(&mut self, seen: Result<Sessions, SessionsError>) -> bool {
        let (before, why_before) = (self.sessions.clone(), self.sessions_unreadable.clone());
        match seen {
            Ok(sessions) => {
                self.sessions = sessions;
                self.sessions_unreadable = None;
            }
            Err(error) => {
                if self.sessions_unreadable.is_none() {
                    warn!(%error, "the sessions in use are not known: nothing automated acts");
                }
                self.sessions_unreadable = Some(error.to_string());
            }
        }
        (before, why_before) != (self.sessions.clone(), self.sessions_unreadable.clone())
    }

    /// Where control planes are, with their ports: what their names resolve to, and where connections to them lead.
    fn control(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        let addresses = self.resolved.borrow();
        let resolved = self.control_planes.iter().zip(addresses.iter());
        let resolved = resolved.flat_map(|((_, port), addresses)| addresses.iter().map(|ip| (*ip, *port)));
        let all: BTreeSet<_> = resolved.chain(self.sessions.control.iter().copied()).collect();
        all.into_iter()
    }

    /// Takes the management sources of a configuration that was read again.
    pub fn set_management(&mut self, management: Vec<FailSafe>) {
        self.management = management;
    }

    /// The rules for nftables and the rungs of the ladder, which know no ports of friends: management sources, the
    /// control plane and gateways are allowed there as a whole, so that no rule locks anybody out.
    pub fn with_friends(&self, mut rules: RuleSet) -> RuleSet {
        let friends = self.management.iter().map(|m| (m.prefix, MANAGEMENT));
        let control = self.control().map(|(ip, _)| (IpNet::from(ip), "control plane"));
        let sessions = self.sessions.in_use.iter().map(|session| (IpNet::from(session.peer), "session in use"));
        let gateways = self.facts.iter().flat_map(|facts| &facts.gateways);
        let gateways = gateways.map(|(ip, _)| (IpNet::from(*ip), "default gateway"));
        let entries = friends
            .chain(control)
            .chain(sessions)
            .chain(gateways)
            .map(|(prefix, label)| AllowEntry { prefix, label: label.to_owned() });
        rules.allow.extend(entries);
        rules
    }

    /// What no attack profile cuts off: control planes, management sources with their ports, the allowlist; and operators
    /// who are connected, with the ports of their sessions.
    pub fn friends(&self, allow: &[AllowEntry]) -> Friends {
        let control = self.control().map(|(ip, _)| IpNet::from(ip));
        let management = self.management.iter().map(|m| m.prefix);
        let ports = self.management.iter().flat_map(|m| &m.ports).copied();
        let kept = Kept { ports: ports.collect(), sources: control.chain(management).collect() };
        let allow = allow.iter().map(|entry| entry.prefix).collect();
        let peers = self.sessions.in_use.iter().map(|session| IpNet::from(session.peer));
        let in_use = Kept { ports: self.sessions.ports.clone(), sources: peers.collect() };
        Friends { kept, allow, in_use }
    }

    /// The file's settings with the guard's lists filled in.
    pub fn settings(&self, file: &Settings) -> Settings {
        let mut settings = file.clone();
        settings.guard.unreadable = self.unreadable.clone().or_else(|| self.sessions_unreadable.clone());
        settings.guard.sessions.clone_from(&self.sessions.in_use);
        let mut infrastructure = Vec::new();
        if let Some(facts) = &self.facts {
            settings.guard.own = facts.own_addresses();
            infrastructure
                .extend(facts.gateways.iter().map(|(ip, _)| (IpNet::from(*ip), "default gateway".to_owned())));
            infrastructure.extend(facts.resolvers.iter().map(|ip| (IpNet::from(*ip), "resolver".to_owned())));
        }
        let control: BTreeSet<IpAddr> = self.control().map(|(ip, _)| ip).collect();
        infrastructure.extend(control.into_iter().map(|ip| (IpNet::from(ip), "control plane".to_owned())));
        infrastructure.extend(self.management.iter().map(|m| (m.prefix, MANAGEMENT.to_owned())));
        let ports = self.management.iter().flat_map(|m| &m.ports).chain(&self.sessions.ports);
        let ports: BTreeSet<u16> = ports.copied().collect();
        settings.guard.management_ports = ports.into_iter().collect();
        settings.guard.infrastructure = infrastructure;
        settings.node = self.means();
        settings
    }

    /// What the datapath protects and never drops.
    pub fn ground(&self, config: &Config) -> Ground {
        let mut fail_safe = self.management.clone();
        fail_safe.extend(self.control().map(|(ip, port)| FailSafe { prefix: IpNet::from(ip), ports: vec![port] }));
        let sessions = self.sessions.in_use.iter();
        fail_safe.extend(sessions.map(|s| FailSafe { prefix: IpNet::from(s.peer), ports: s.ports.clone() }));
        if let Some(facts) = &self.facts {
            let routers = facts.gateways.iter();
            fail_safe
                .extend(routers.map(|(ip, _)| FailSafe { prefix: IpNet::from(*ip), ports: ROUTER_PORTS.to_vec() }));
        }
        Ground(Compiled { protected: self.protected(config), fail_safe, lists: None })
    }

    fn protected(&self, config: &Config) -> Vec<IpNet> {
        if !config.protect.is_empty() {
            return config.protect.clone();
        }
        let Some(facts) = &self.facts else { return Vec::new() };
        let watched = config.interfaces.iter().filter_map(|(name, _)| facts.interface(name));
        watched.flat_map(|i| &i.addresses).map(|net| IpNet::from(net.addr())).collect()
    }

    /// The first address of the first interface, as the control plane shows the node.
    pub fn first_address(&self, config: &Config) -> Option<String> {
        let facts = self.facts.as_ref()?;
        let addresses =
            config.interfaces.iter().filter_map(|(name, _)| facts.interface(name)).flat_map(|i| &i.addresses);
        addresses.map(|net| net.addr()).find(|ip| ip.is_ipv4()).map(|ip| ip.to_string())
    }

    /// What the gate must know of the links. Where nothing is known, the most careful answer.
    pub fn around(&self, config: &Config, devices: &[Device]) -> Around {
        let devices_named = |is: &dyn Fn(&Device) -> bool| {
            devices.iter().filter(|device| is(device)).map(|device| device.plan.name.clone()).collect()
        };
        let vlans = devices_named(&|device| device.has_vlans);
        let Some(facts) = &self.facts else {
            let exit_elsewhere = Some("an unknown link".to_owned());
            return Around { exit_elsewhere, veths: devices_named(&|_| true), vlans };
        };
        let named = config.interfaces.iter().map(|(name, _)| name);
        let names = named.chain(devices.iter().map(|device| &device.plan.name));
        let watched: Vec<_> = names.filter_map(|name| facts.interface(name)).collect();
        let link = |index: u32| facts.interfaces.iter().find(|i| i.index == index);
        // A bridge or bond above a watched interface, and a VLAN on it, leave by it.
        let is_watched = |index: u32| {
            let below = link(index).and_then(|i| i.parent);
            watched.iter().any(|w| w.index == index || w.parent == Some(index) || below == Some(w.index))
        };
        let exit = facts.gateways.iter().find(|(_, index)| !is_watched(*index));
        Around {
            exit_elsewhere: exit.map(|(_, index)| link(*index).map_or_else(|| index.to_string(), |i| i.name.clone())),
            veths: devices_named(&|device| facts.interface(&device.plan.name).is_some_and(|i| i.is_veth)),
            vlans,
        }
    }

    /// What an operator should know.
    pub fn warnings(&self) -> Vec<String> {
        let unreadable = self.unreadable.iter().chain(&self.sessions_unreadable);
        let unreadable = unreadable.map(|why| format!("nothing automated acts: {why}"));
        unreadable.chain(self.sessions.warnings.iter().cloned()).collect()
    }

    /// Operators who are connected.
    pub fn sessions(&self) -> &[Session] {
        &self.sessions.in_use
    }
}

/// Looks names up now, and again every minute in a task of its own: a resolver that is slow must not hold up the loop.
async fn resolved(names: Vec<(String, u16)>) -> watch::Receiver<Vec<Vec<IpAddr>>> {
    let mut known = vec![Known::default(); names.len()];
    look_up(&names, &mut known).await;
    let (sender, receiver) = watch::channel(known.iter().map(Known::addresses).collect());
    if !names.is_empty() {
        tokio::spawn(async move {
            loop {
                // At the start of a machine its network may come later.
                let is_missing = known.iter().any(|known| known.0.is_empty());
                let pause = if is_missing { RESOLVE_SOON } else { RESOLVE_AGAIN };
                tokio::select! {
                    () = sender.closed() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                look_up(&names, &mut known).await;
                let found: Vec<_> = known.iter().map(Known::addresses).collect();
                sender.send_if_modified(|before| {
                    let is_new = *before != found;
                    *before = found;
                    is_new
                });
            }
        });
    }
    receiver
}

async fn look_up(names: &[(String, u16)], known: &mut [Known]) {
    for ((name, port), known) in names.iter().zip(known) {
        match tokio::time::timeout(RESOLVE, tokio::net::lookup_host((name.as_str(), *port))).await {
            Ok(Ok(found)) => known.take(found.map(|a| a.ip()), clock::mono_ns()),
            Ok(Err(error)) => {
                warn!(%error, %name, "the control plane's name has no address; the last one stays trusted")
            }
            Err(_) => warn!(%name, "the control plane's name is not resolved in time; the last address stays trusted"),
        }
    }
}

/// What a name was found at, and when last: the link may still lead to an address that the name does not have any more.
#[derive(Clone, Debug, Default)]
struct Known(BTreeMap<IpAddr, u64>);

impl Known {
    fn take(&mut self, found: impl Iterator<Item = IpAddr>, now_ns: u64) {
        let found: BTreeMap<_, _> = found.take(MAX_ADDRESSES).map(|ip| (ip, now_ns)).collect();
        self.0.retain(|_, seen_ns| now_ns.saturating_sub(*seen_ns) < RESOLVED_NS);
        if self.0.len() + found.len() > 4 * MAX_ADDRESSES {
            self.0.clear();
        }
        self.0.extend(found);
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.0.keys().copied().collect()
    }
}

/// Waits for changes in a task of its own: one settles over several ticks of the daemon.
fn told(mut changes: Changes) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        // One word that waits is enough: the look that follows it sees everything.
        while changes.changed().await && !sender.is_closed() {
            sender.try_send(()).ok();
        }
    });
    receiver
}

/// Host and port of a URL that begins with `http://` or `https://`.
fn host_and_port(url: &str) -> Option<(String, u16)> {
    let (rest, default) = match url.strip_prefix("https://") {
        Some(rest) => (rest, 443),
        None => (url.strip_prefix("http://")?, 80),
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (authority, default),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_friends() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _inside = runtime.enter();
        let gateways = vec![("192.0.2.1".parse().expect("an address"), 2)];
        let host = Host {
            facts: Some(HostFacts { gateways, interfaces: Vec::new(), resolvers: Vec::new() }),
            unreadable: None,
            changes: None,
            look: tokio::time::interval(LOOK),
            control_planes: Vec::new(),
            resolved: watch::channel(Vec::new()).1,
            management: Vec::new(),
            sessions: Sessions::default(),
            sessions_unreadable: None,
            police: watch::channel(None).1,
        };
        let allowed: Vec<String> =
            host.with_friends(RuleSet::default()).allow.iter().map(|entry| entry.prefix.to_string()).collect();
        assert_eq!(allowed, ["192.0.2.1/32"]);
    }

    #[test]
    fn the_host_and_port_of_a_url() {
        let table = [
            ("http://127.0.0.1:8080", Some(("127.0.0.1", 8080))),
            ("https://cp.example/x", Some(("cp.example", 443))),
            ("https://[2001:db8::1]:8443/", Some(("2001:db8::1", 8443))),
            ("http://[::1]", Some(("::1", 80))),
            ("http://user@cp.example:99999", None),
            ("http://", None),
        ];
        for (url, expected) in table {
            assert_eq!(host_and_port(url), expected.map(|(h, p)| (h.to_owned(), p)), "{url}");
        }
    }

    #[test]
    fn an_address_of_a_name_counts_for_ten_minutes_after_it_was_there() {
        const MINUTE: u64 = 60_000_000_000;
        let ip = |n: u8| IpAddr::from([192, 0, 2, n]);
        let mut known = Known::default();
        known.take([ip(1)].into_iter(), 0);
        known.take([ip(2)].into_iter(), MINUTE);
        assert_eq!(known.addresses(), [ip(1), ip(2)]);
        known.take([ip(2)].into_iter(), 10 * MINUTE);
        assert_eq!(known.addresses(), [ip(2)]);
        for minute in 11..200 {
            known.take((0..40).map(|n| ip(n + (minute % 100) as u8)), minute * MINUTE);
            assert!(known.addresses().len() <= 4 * MAX_ADDRESSES, "bounded");
        }
    }

    #[tokio::test]
    async fn profiles_keep_the_sessions_in_use_and_their_ports() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("ftagent.toml");
        std::fs::write(&path, "[[interface]]\nname = \"lo\"\n").expect("written");
        let mut host = Host::watch(&Config::load(&path).expect("a configuration"), "boot").await.expect("facts");
        let peer: IpAddr = "198.51.100.7".parse().expect("an address");
        let session = Session { peer, ports: vec![9_090], user: "alice".to_owned(), since: 0 };
        host.set_sessions(Ok(Sessions { in_use: vec![session], ports: vec![22, 9_090], ..Sessions::default() }));
        let friends = host.friends(&[]);
        assert_eq!(friends.in_use, Kept { ports: vec![22, 9_090], sources: vec![IpNet::from(peer)] });
        assert_eq!(friends.kept, Kept { ports: vec![], sources: vec![] });
    }
}
