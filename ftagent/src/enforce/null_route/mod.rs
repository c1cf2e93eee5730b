//! Blocks of sources as blackhole routes, over netlink: the last rung, where neither nf_tables nor traffic control can
//! carry them.
//!
//! ```text
//! rule 247            every packet looks into table 63401, before main: to a blocked source there is no way
//!                     with rp_filter the kernel drops what it could not answer: what comes from there is dropped
//! rules 246, IPv6     from a blocked source: nowhere, for what is forwarded; IPv6 checks no way back
//! ```
//! Routes and rules of ours carry the protocol number 247; nothing else is changed. The kernel knows no end of them: as
//! with [`super::tc`] the agent ends them, and takes them away when it stops and when it starts.

mod plan;
mod way_back;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use self::plan::Plan;
use self::way_back::WayBack;
use super::nftables::OfDatapath;
use super::rtnetlink::{CREATE, EXCLUSIVE, Fault, Rtnetlink};
use super::told::{Outcome, Told};
use crate::engine::{EnforceResult, Now, RuleId, RuleSet};

const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_RULE: u16 = 32;
const DEL_RULE: u16 = 33;
const GET_RULE: u16 = 34;

/// Nobody's in iproute2's lists.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(247);
const TABLE: u32 = 63_401;
const BY_SOURCE: u32 = 246;
const INTO_TABLE: u32 = 247;

const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// The rung, which carries nothing until it is given rules.
#[derive(Debug)]
pub struct NullRoute {
    way_back: WayBack,
    takes: OfDatapath,
    devices: Vec<String>,
    told: Told,
    /// Something of ours may be there: of this process, or of an earlier one.
    may_be_there: bool,
}

/// A rule of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    /// Our table is looked into by this family.
    IntoTable { is_v6: bool },
    /// What comes from there goes nowhere.
    BySource(IpNet),
}

impl NullRoute {
    /// A rung that keeps what it has to set back in `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        let (devices, told) = (Vec::new(), Told::default());
        Self { way_back: WayBack::new(state_dir), takes: OfDatapath::None, devices, told, may_be_there: true }
    }

    /// Finds out whether the kernel has several tables; what is less precise than it could be.
    ///
    /// # Errors
    /// Why it cannot carry rules.
    pub(super) fn prepare(&mut self, devices: &[String]) -> Result<Vec<String>, String> {
        let mut netlink = Rtnetlink::open().map_err(|error| error.to_string())?;
        rules(&mut netlink, AddressFamily::Inet).map_err(|error| format!("no rules of routing: {error}"))?;
        // An address for documentation, into a table that nobody looks into yet.
        let probe: IpNet = IpNet::from(IpAddr::from([192, 0, 2, 187]));
        let there = routes(&mut netlink, &probe).map_err(|error| format!("no table of our own: {error}"))?;
        if !there.contains(&probe) {
            let body = |scope| bytes(&route(&probe, scope));
            netlink
                .change(NEW_ROUTE, CREATE | EXCLUSIVE, &body(RouteScope::Universe))
                .and_then(|()| netlink.change(DEL_ROUTE, 0, &body(RouteScope::NoWhere)))
                .map_err(|error| format!("no blackhole routes: {error}"))?;
        }
        let obstacle = self.way_back.obstacle(devices);
        Ok(obstacle
            .map(|why| format!("IPv4 packets to the node itself pass, and only the answers are dropped: {why}"))
            .into_iter()
            .collect())
    }

    /// Takes these rules of the datapath's, for what comes by these interfaces, from the next call on.
    pub(super) fn set(&mut self, takes: OfDatapath, devices: &[String]) {
        self.takes = takes;
        self.devices = devices.to_vec();
    }

    /// The rules that are not in force although they should be, and why.
    pub(super) fn failing(&self) -> &BTreeMap<RuleId, String> {
        self.told.failing()
    }

    /// Makes routes and rules what `desired` says and tells what came into force, what ended and what failed.
    pub(super) fn reconcile(&mut self, desired: &RuleSet, now: Now) -> Vec<EnforceResult> {
        let is_checked = self.way_back.obstacle(&self.devices).is_none();
        let plan = Plan::of(&self.takes, is_checked, desired, now);
        let mut failed: BTreeMap<RuleId, String> = plan.refused.clone();
        let mut removal = Ok(());
        if self.may_be_there || !plan.routes.is_empty() {
            removal = self.apply(&plan, is_checked, &mut failed);
        }
        if let Err(why) = &removal {
            plan.wanted.keys().for_each(|id| _ = failed.entry(*id).or_insert_with(|| why.clone()));
        }
        self.may_be_there = removal.is_err() || !plan.routes.is_empty();
        let outcome: Outcome =
            plan.wanted.into_iter().map(|(id, rule)| (id, (rule, failed.remove(&id).map_or(Ok(()), Err)))).collect();
        self.told.take(outcome, removal, now.mono_ns)
    }

    /// Takes everything of ours away.
    ///
    /// # Errors
    /// When the kernel refuses, or the setting cannot be written back.
    pub fn remove_all(&mut self) -> Result<(), String> {
        self.takes = OfDatapath::None;
        self.apply(&Plan::default(), true, &mut BTreeMap::new())?;
        self.may_be_there = false;
        Ok(())
    }

    fn apply(&self, plan: &Plan, is_checked: bool, failed: &mut BTreeMap<RuleId, String>) -> Result<(), String> {
        let words = |error: Fault| format!("null route: {error}");
        let mut netlink = Rtnetlink::open().map_err(words)?;
        let mut there = BTreeSet::new();
        let mut asked = BTreeSet::new();
        for (family, any) in FAMILIES.into_iter().zip(["0.0.0.0/0", "::/0"]) {
            let any: IpNet = any.parse().expect("a prefix");
            match (routes(&mut netlink, &any), rules(&mut netlink, family)) {
                (Ok(routes), Ok(rules)) => {
                    there.extend(routes);
                    asked.extend(rules);
                }
                // A kernel without IPv6, or without tables of routing, has none of ours.
                (Err(error), _) | (_, Err(error)) if error.is(libc::EAFNOSUPPORT) || error.is(libc::EOPNOTSUPP) => {}
                (Err(error), _) | (_, Err(error)) => return Err(words(error)),
            }
        }
        let wanted = asked_for(plan);
        // What an allowlisted address is cut out of goes last: a moment longer blocked, and nobody else free meanwhile.
        for (net, ids) in plan.routes.iter().filter(|(net, _)| !there.contains(net)) {
            let made = netlink.change(NEW_ROUTE, CREATE | EXCLUSIVE, &bytes(&route(net, RouteScope::Universe)));
            if let Err(error) = made {
                ids.iter().for_each(|id| _ = failed.insert(*id, format!("null route: {net}: {error}")));
            }
        }
        let needs_way_back = plan.routes.keys().any(|net| matches!(net, IpNet::V4(_)));
        if needs_way_back && is_checked {
            self.way_back.hold(&self.devices).map_err(|error| format!("null route: rp_filter: {error}"))?;
        }
        for rule in wanted.difference(&asked) {
            if let Err(error) = netlink.change(NEW_RULE, CREATE | EXCLUSIVE, &bytes(&rule_message(rule))) {
                let why = format!("null route: {error}");
                let ids = plan.routes.iter().filter(|(net, _)| match rule {
                    Asked::IntoTable { is_v6 } => matches!(net, IpNet::V6(_)) == *is_v6,
                    Asked::BySource(source) => *net == source,
                });
                ids.flat_map(|(_, ids)| ids).for_each(|id| _ = failed.insert(*id, why.clone()));
            }
        }
        let mut gone = |kind, body: &[u8]| match netlink.change(kind, 0, body) {
            // Somebody else was faster: ESRCH of a route, ENOENT of a rule.
            Err(error) if error.is(libc::ESRCH) || error.is(libc::ENOENT) => Ok(()),
            other => other.map_err(words),
        };
        for rule in asked.difference(&wanted) {
            gone(DEL_RULE, &bytes(&rule_message(rule)))?;
        }
        for net in there.iter().filter(|net| !plan.routes.contains_key(net)) {
            gone(DEL_ROUTE, &bytes(&route(net, RouteScope::NoWhere)))?;
        }
        if !needs_way_back {
            self.way_back.release().map_err(|error| format!("null route: rp_filter is not set back: {error}"))?;
        }
        Ok(())
    }
}

/// The rules that lead to the routes.
fn asked_for(plan: &Plan) -> BTreeSet<Asked> {
    let tables = plan.routes.keys().map(|net| Asked::IntoTable { is_v6: matches!(net, IpNet::V6(_)) });
    tables.chain(plan.by_source.iter().map(|net| Asked::BySource(*net))).collect()
}

fn bytes(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn family_of(net: &IpNet) -> AddressFamily {
    if matches!(net, IpNet::V4(_)) { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// The route that leads from our table to nowhere. `scope` is what tells IPv4 routes apart when one is removed.
fn route(net: &IpNet, scope: RouteScope) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family_of(net),
        destination_prefix_length: net.prefix_len(),
        protocol: PROTOCOL,
        scope,
        kind: RouteType::BlackHole,
        ..RouteHeader::default()
    };
    message.attributes =
        vec![RouteAttribute::Table(TABLE), RouteAttribute::Destination(RouteAddress::from(net.network()))];
    message
}

fn rule_message(rule: &Asked) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.attributes = vec![RuleAttribute::Protocol(PROTOCOL)];
    match rule {
        Asked::IntoTable { is_v6 } => {
            message.header.family = if *is_v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
            message.header.action = RuleAction::ToTable;
            message.attributes.extend([RuleAttribute::Priority(INTO_TABLE), RuleAttribute::Table(TABLE)]);
        }
        Asked::BySource(net) => {
            message.header.family = family_of(net);
            message.header.action = RuleAction::Blackhole;
            message.header.src_len = net.prefix_len();
            message.attributes.extend([RuleAttribute::Priority(BY_SOURCE), RuleAttribute::Source(net.network())]);
        }
    }
    message
}

/// The destinations of our routes of the family of `of`.
fn routes(netlink: &mut Rtnetlink, of: &IpNet) -> Result<BTreeSet<IpNet>, Fault> {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(of);
    message.attributes = vec![RouteAttribute::Table(TABLE)];
    let all = match netlink.dump(GET_ROUTE, &bytes(&message)) {
        // There is no such table yet.
        Err(error) if error.is(libc::ENOENT) => return Ok(BTreeSet::new()),
        other => other?,
    };
    Ok(all.iter().filter_map(|body| our_route(&RouteMessage::parse(body).ok()?)).collect())
}

fn our_route(message: &RouteMessage) -> Option<IpNet> {
    let is_in_table = message.attributes.contains(&RouteAttribute::Table(TABLE));
    if !is_in_table || message.header.protocol != PROTOCOL || message.header.kind != RouteType::BlackHole {
        return None;
    }
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    IpNet::new(address, message.header.destination_prefix_length).ok()
}

fn rules(netlink: &mut Rtnetlink, family: AddressFamily) -> Result<BTreeSet<Asked>, Fault> {
    let mut message = RuleMessage::default();
    message.header.family = family;
    let all = netlink.dump(GET_RULE, &bytes(&message))?;
    Ok(all.iter().filter_map(|body| our_rule(&RuleMessage::parse(body).ok()?)).collect())
}

fn our_rule(message: &RuleMessage) -> Option<Asked> {
    let has = |wanted: &RuleAttribute| message.attributes.contains(wanted);
    if !has(&RuleAttribute::Protocol(PROTOCOL)) {
        return None;
    }
    if has(&RuleAttribute::Priority(INTO_TABLE)) && has(&RuleAttribute::Table(TABLE)) {
        return Some(Asked::IntoTable { is_v6: message.header.family == AddressFamily::Inet6 });
    }
    let source = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Source(address) => IpNet::new(*address, message.header.src_len).ok(),
        _ => None,
    })?;
    let is_ours = has(&RuleAttribute::Priority(BY_SOURCE)) && message.header.action == RuleAction::Blackhole;
    is_ours.then_some(Asked::BySource(source))
}

#[cfg(test)]
mod tests;
