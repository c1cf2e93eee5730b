//! Rules as filters of traffic control at the ingress of interfaces, over netlink: where nf_tables cannot carry them.
//!
//! What is ours is known by the cookie of its action; nothing else is changed. Each `Tc::reconcile` looks at what is
//! there and makes the difference: doing it twice changes nothing, and what somebody deleted comes back. The kernel
//! knows no end of a filter: the agent ends it, takes all of them away when it stops, and when it starts those that a
//! dead one left.

mod encode;
mod plan;

use std::collections::{BTreeMap, BTreeSet};

use self::encode::{Classifier, Cookie, Encoded, PROBE_PROTOCOL, Seen, message, seen, seen_qdisc};
use self::plan::{Action, Filter, Means, Place, Plan};
use super::nftables::OfDatapath;
use super::nftables::wire::Attributes;
use super::rtnetlink::{CREATE, EXCLUSIVE, Fault, Rtnetlink};
use super::told::{Outcome, Told};
use crate::engine::{EnforceResult, Now, RuleId, RuleSet};
use crate::xdp::program::interface_index;

const NEW_QDISC: u16 = 36;
const DEL_QDISC: u16 = 37;
const GET_QDISC: u16 = 38;
const NEW_FILTER: u16 = 44;
const DEL_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;

/// `TC_H_CLSACT`, and its two hooks.
const CLSACT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// Of whatever qdisc stands at ingress.
const HANDLE: u32 = 0xffff_0000;
const KIND: u16 = 1;

const PROBE_PREFERENCE: u16 = 48_999;
const FIRST_PREFERENCE: u16 = 49_000;
const FIRST_LIMIT: u16 = 49_008;
const LAST_LIMIT: u16 = 49_099;

/// The rung, which carries nothing until it is given means and rules.
#[derive(Debug)]
pub struct Tc {
    means: Option<Means>,
    takes: OfDatapath,
    devices: Vec<String>,
    told: Told,
    /// Something of ours may be there: of this process, or of an earlier one.
    may_be_there: bool,
}

impl Default for Tc {
    fn default() -> Self {
        let (devices, told) = (Vec::new(), Told::default());
        Self { means: None, takes: OfDatapath::None, devices, told, may_be_there: true }
    }
}

/// What the kernel took of each of our filters when it was asked to make it.
#[derive(Debug)]
struct Tried {
    flower: Result<(), String>,
    u32: Result<(), String>,
    police: Result<(), String>,
    /// Whether the limit was one of packets when it was read back: older kernels make none of it, and say nothing.
    police_packets: bool,
}

/// Which means follow from it: pure.
fn decide(tried: Tried) -> Result<Means, String> {
    let classifier = match (tried.flower, tried.u32) {
        (Ok(()), _) => Classifier::Flower,
        (Err(_), Ok(())) => Classifier::U32,
        (Err(flower), Err(u32)) => {
            return Err(format!("neither cls_flower nor cls_u32 with act_gact: {flower}; {u32}"));
        }
    };
    Ok(Means { classifier, police: tried.police.is_ok(), police_packets: tried.police.is_ok() && tried.police_packets })
}

impl Means {
    /// What is less precise with these than with more, in an operator's words.
    fn lost(self) -> Vec<String> {
        let mut lost = Vec::new();
        if self.classifier == Classifier::U32 {
            lost.push(
                "by u32: one block after the other is compared, IPv6 protocols behind extension headers and \
                       ports behind IPv4 options are not found"
                    .to_owned(),
            );
        }
        match (self.police, self.police_packets) {
            (false, _) => lost.push("no limits: this kernel lacks act_police".to_owned()),
            (true, false) => lost.push("no limits of packets: they need Linux 5.13".to_owned()),
            (true, true) => {}
        }
        lost
    }
}

impl Tc {
    /// Finds out what traffic control can do on these interfaces, with filters that no frame meets, which are gone
    /// afterwards; what is less precise than it could be.
    ///
    /// # Errors
    /// Why it cannot carry rules.
    pub(super) fn prepare(&mut self, devices: &[String]) -> Result<Vec<String>, String> {
        let mut netlink = Rtnetlink::open().map_err(|error| error.to_string())?;
        let mut means = None;
        for name in devices {
            let device = interface_index(name).ok_or_else(|| format!("there is no interface {name}"))?;
            let made = make_qdisc(&mut netlink, device).map_err(|error| format!("clsact on {name}: {error}"))?;
            let (tried, made) = try_filters(&mut netlink, device, made);
            let left = tidy(&mut netlink, device, made, |seen| seen.preference == PROBE_PREFERENCE);
            if let Err(error) = left {
                tracing::warn!(interface = name, %error, "a filter that was tried is not taken away");
                self.may_be_there = true;
            }
            means = Some(decide(tried).map_err(|why| format!("{name}: {why}"))?);
        }
        let means = means.ok_or("there is no interface")?;
        self.means = Some(means);
        Ok(means.lost())
    }

    /// Takes these rules of the datapath's at the ingress of these interfaces from the next call on.
    pub(super) fn set(&mut self, takes: OfDatapath, devices: &[String]) {
        self.takes = takes;
        self.devices = devices.to_vec();
    }

    /// The rules that are not in force although they should be, and why.
    pub(super) fn failing(&self) -> &BTreeMap<RuleId, String> {
        self.told.failing()
    }

    /// Makes the filters what `desired` says and tells what came into force, what ended and what failed.
    pub(super) fn reconcile(&mut self, desired: &RuleSet, now: Now) -> Vec<EnforceResult> {
        let plan = match self.means {
            Some(means) => Plan::of(&self.takes, means, desired, now),
            None => Plan::default(),
        };
        let mut failed: BTreeMap<RuleId, String> = plan.refused.clone();
        let mut removal = Ok(());
        if self.may_be_there || !plan.filters.is_empty() {
            removal = self.apply(&plan, &mut failed).map_err(|error| format!("tc: {error}"));
        }
        if let Err(why) = &removal {
            plan.wanted.keys().for_each(|id| _ = failed.entry(*id).or_insert_with(|| why.clone()));
        }
        self.may_be_there = removal.is_err() || !plan.filters.is_empty();
        let outcome: Outcome =
            plan.wanted.into_iter().map(|(id, rule)| (id, (rule, failed.remove(&id).map_or(Ok(()), Err)))).collect();
        self.told.take(outcome, removal, now.mono_ns)
    }

    /// Takes everything of ours away, on whatever interface it is.
    ///
    /// # Errors
    /// When the kernel refuses; a kernel without traffic control has nothing of ours.
    pub fn remove_all(&mut self) -> Result<(), String> {
        self.takes = OfDatapath::None;
        match self.apply(&Plan::default(), &mut BTreeMap::new()) {
            Ok(()) => self.may_be_there = false,
            Err(error) if error.is(libc::EOPNOTSUPP) => {}
            Err(error) => return Err(format!("tc: {error}")),
        }
        Ok(())
    }

    fn apply(&self, plan: &Plan, failed: &mut BTreeMap<RuleId, String>) -> Result<(), Fault> {
        let mut netlink = Rtnetlink::open()?;
        let mut wanted = BTreeSet::new();
        if !plan.filters.is_empty() {
            for name in &self.devices {
                match interface_index(name) {
                    Some(device) => _ = wanted.insert(device),
                    None => fail_all(plan, failed, &format!("tc: there is no interface {name}")),
                }
            }
        }
        let others: Vec<u32> = qdiscs(&mut netlink)?.into_keys().filter(|device| !wanted.contains(device)).collect();
        for device in wanted {
            if let Err(error) = bring(&mut netlink, device, plan, failed) {
                fail_all(plan, failed, &format!("tc: {error}"));
            }
        }
        // One that cannot be tidied holds up none of the rest.
        let tidied: Vec<_> =
            others.into_iter().map(|device| gone_is_fine(tidy(&mut netlink, device, false, |_| true))).collect();
        tidied.into_iter().collect()
    }
}

fn fail_all(plan: &Plan, failed: &mut BTreeMap<RuleId, String>, why: &str) {
    plan.wanted.keys().for_each(|id| _ = failed.entry(*id).or_insert_with(|| why.to_owned()));
}

/// An interface that went away, or a filter, took what there was with it.
fn gone_is_fine(result: Result<(), Fault>) -> Result<(), Fault> {
    match result {
        Err(error) if error.is(libc::ENOENT) || error.is(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Brings one interface to the plan: what lets pass before what drops, and removals the other way round.
fn bring(
    netlink: &mut Rtnetlink,
    device: u32,
    plan: &Plan,
    failed: &mut BTreeMap<RuleId, String>,
) -> Result<(), Fault> {
    let made = make_qdisc(netlink, device)?;
    let there = filters(netlink, device, INGRESS)?;
    let made = made || there.iter().any(|seen| seen.cookie.is_some_and(|cookie| cookie.made_qdisc));
    let (missing, surplus) = differences(plan, &there);
    // A limit stays where it is, with what it has counted; new ones go where nobody is.
    let taken: BTreeSet<u16> = there.iter().map(|seen| seen.preference).collect();
    let mut free = (FIRST_LIMIT..=LAST_LIMIT).filter(|preference| !taken.contains(preference));
    for filter in missing {
        let preference = match filter.place {
            Place::Limit => free.next(),
            place => Some(shared_preference(place, filter.family)),
        };
        let Some(preference) = preference else {
            let why = format!("tc: more than {} limits", LAST_LIMIT - FIRST_LIMIT + 1);
            filter.rules.iter().for_each(|id| _ = failed.insert(*id, why.clone()));
            continue;
        };
        let cookie = Cookie {
            made_qdisc: made,
            checksum: filter.encoded.checksum(),
            rule: filter.rules.first().copied().unwrap_or(RuleId(0)),
        };
        let Err(error) = add(netlink, device, preference, filter.family.ether_type(), &filter.encoded, &cookie) else {
            continue;
        };
        if matches!(filter.place, Place::Allow | Place::Pass) {
            // Rather nothing than a block of who must pass.
            fail_all(plan, failed, &format!("tc: who is to pass cannot be let pass: {error}"));
            return tidy(netlink, device, made, |_| true);
        }
        filter.rules.iter().for_each(|id| _ = failed.insert(*id, format!("tc: {error}")));
    }
    surplus.into_iter().try_for_each(|seen| gone_is_fine(delete(netlink, device, seen)))
}

/// Filters that are not there, and those of ours that should not be, the last first. Each that is there stands for one.
fn differences<'a>(plan: &'a Plan, there: &'a [Seen]) -> (Vec<&'a Filter>, Vec<&'a Seen>) {
    // A limit may stand at any preference of its kind.
    let place = |preference| if preference >= FIRST_LIMIT { FIRST_LIMIT } else { preference };
    let mut ours: BTreeMap<(u16, u16, u32), Vec<&Seen>> = BTreeMap::new();
    for seen in there.iter().rev() {
        if let Some(cookie) = seen.cookie {
            ours.entry((place(seen.preference), seen.protocol, cookie.checksum)).or_default().push(seen);
        }
    }
    let mut missing = Vec::new();
    for filter in &plan.filters {
        let preference = match filter.place {
            Place::Limit => FIRST_LIMIT,
            place => shared_preference(place, filter.family),
        };
        let key = (preference, filter.family.ether_type(), filter.encoded.checksum());
        if ours.get_mut(&key).and_then(Vec::pop).is_none() {
            missing.push(filter);
        }
    }
    let mut surplus: Vec<&Seen> = ours.into_values().flatten().collect();
    surplus.sort_by_key(|seen| std::cmp::Reverse((seen.preference, seen.handle)));
    (missing, surplus)
}

/// The preference of all filters of a place and a family.
fn shared_preference(place: Place, family: plan::Family) -> u16 {
    let pairs_before = match place {
        Place::Allow => 0,
        Place::Block => 1,
        Place::Pass => 2,
        Place::Drop | Place::Limit => 3,
    };
    FIRST_PREFERENCE + 2 * pairs_before + u16::from(family == plan::Family::V6)
}

fn add(
    netlink: &mut Rtnetlink,
    device: u32,
    preference: u16,
    protocol: u16,
    filter: &Encoded,
    cookie: &Cookie,
) -> Result<(), Fault> {
    let mut body = message(device, 0, INGRESS, preference, protocol);
    body.extend(&filter.attributes(cookie).bytes);
    netlink.change(NEW_FILTER, CREATE | EXCLUSIVE, &body)
}

/// Deletes this one filter, and never its preference with what others may have put there.
fn delete(netlink: &mut Rtnetlink, device: u32, seen: &Seen) -> Result<(), Fault> {
    let body = message(device, seen.handle, INGRESS, seen.preference, seen.protocol);
    netlink.change(DEL_FILTER, 0, &body)
}

/// Takes away those of our filters, and the qdisc with the last of them if it was `made` by us and nobody uses it.
fn tidy(netlink: &mut Rtnetlink, device: u32, made: bool, which: impl Fn(&Seen) -> bool) -> Result<(), Fault> {
    let there = filters(netlink, device, INGRESS)?;
    let ours = || there.iter().filter(|seen| seen.cookie.is_some());
    let made = made || ours().any(|seen| seen.cookie.is_some_and(|cookie| cookie.made_qdisc));
    let heads: BTreeSet<u16> = ours().map(|seen| seen.preference).collect();
    let is_foreign = |seen: &Seen| seen.cookie.is_none() && !(seen.is_head && heads.contains(&seen.preference));
    let stays = |seen: &Seen| is_foreign(seen) || (seen.cookie.is_some() && !which(seen));
    if made && !there.iter().any(stays) && filters(netlink, device, EGRESS)?.is_empty() {
        // With all that is in it, in one step.
        return netlink.change(DEL_QDISC, 0, &message(device, HANDLE, CLSACT, 0, 0));
    }
    let mut rest: Vec<&Seen> = ours().filter(|seen| which(seen)).collect();
    rest.sort_by_key(|seen| std::cmp::Reverse(seen.preference));
    rest.into_iter().try_for_each(|seen| gone_is_fine(delete(netlink, device, seen)))
}

/// Makes the qdisc that filters hang on; whether there was none.
fn make_qdisc(netlink: &mut Rtnetlink, device: u32) -> Result<bool, Fault> {
    // One of the kind `ingress` serves as well.
    if qdiscs(netlink)?.contains_key(&device) {
        return Ok(false);
    }
    let mut body = message(device, HANDLE, CLSACT, 0, 0);
    body.extend(&Attributes::default().text(KIND, "clsact").bytes);
    match netlink.change(NEW_QDISC, CREATE | EXCLUSIVE, &body) {
        Ok(()) => Ok(true),
        Err(error) if error.is(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The devices that have a qdisc at ingress, and of which kind.
fn qdiscs(netlink: &mut Rtnetlink) -> Result<BTreeMap<u32, String>, Fault> {
    let all = netlink.dump(GET_QDISC, &message(0, 0, 0, 0, 0))?;
    let at_ingress = all.iter().filter_map(|body| seen_qdisc(body)).filter(|(_, handle, _)| *handle == HANDLE);
    Ok(at_ingress.map(|(device, _, kind)| (device, kind)).collect())
}

fn filters(netlink: &mut Rtnetlink, device: u32, parent: u32) -> Result<Vec<Seen>, Fault> {
    let all = netlink.dump(GET_FILTER, &message(device, 0, parent, 0, 0))?;
    Ok(all.iter().filter_map(|body| seen(body)).collect())
}

/// What the kernel takes, and whether the qdisc was made by us: now, or by one who was killed while trying.
fn try_filters(netlink: &mut Rtnetlink, device: u32, made: bool) -> (Tried, bool) {
    let there = filters(netlink, device, INGRESS).unwrap_or_default();
    let (left, made) = leftover(&there, made);
    left.iter().for_each(|seen| drop(delete(netlink, device, seen)));
    let mut attempt = |classifier, action| {
        let encoded = encode::probe(classifier, action);
        let cookie = Cookie { made_qdisc: made, checksum: encoded.checksum(), rule: RuleId(0) };
        let added = add(netlink, device, PROBE_PREFERENCE, PROBE_PROTOCOL, &encoded, &cookie);
        let there = filters(netlink, device, INGRESS).unwrap_or_default();
        let (ours, _) = leftover(&there, made);
        let has_packet_rate = ours.iter().any(|seen| seen.has_packet_rate);
        ours.iter().for_each(|seen| drop(delete(netlink, device, seen)));
        added.map(|()| has_packet_rate).map_err(|error| error.to_string())
    };
    let flower = attempt(Classifier::Flower, Action::Drop).map(drop);
    let u32 = if flower.is_ok() { Ok(()) } else { attempt(Classifier::U32, Action::Drop).map(drop) };
    let classifier = if flower.is_ok() { Classifier::Flower } else { Classifier::U32 };
    let police = attempt(classifier, Action::LimitBytes { bytes_per_sec: 1_000, burst: 2_048 }).map(drop);
    let police_packets = attempt(classifier, Action::LimitPackets { pps: 100, burst: 10 }) == Ok(true);
    (Tried { flower, u32, police, police_packets }, made)
}

/// The filters that were tried among those there, and whether we made the qdisc that they hang on.
fn leftover(there: &[Seen], made: bool) -> (Vec<&Seen>, bool) {
    let tried: Vec<&Seen> =
        there.iter().filter(|seen| seen.cookie.is_some() && seen.preference == PROBE_PREFERENCE).collect();
    let made = made || tried.iter().any(|seen| seen.cookie.is_some_and(|cookie| cookie.made_qdisc));
    (tried, made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_kept_and_the_rest_differs() {
        use crate::engine::{Matches, Origin, Point, Rule, Verdict};
        const NOW: Now = Now { mono_ns: 1, wall: time::OffsetDateTime::UNIX_EPOCH };
        let means = Means { classifier: Classifier::Flower, police: true, police_packets: true };
        let rule = |id: u64, source: &str, verdict| Rule {
            id: RuleId(id),
            matches: Matches::source(source.parse().expect("a prefix")),
            verdict,
            point: Point::Datapath,
            origin: Origin::Operator,
            expires_at_ns: None,
            evaluate: false,
        };
        let limit = Verdict::LimitPps { pps: 9, burst: 9 };
        let rules = [
            rule(1, "192.0.2.1/32", Verdict::Drop),
            rule(2, "2001:db8::1/128", Verdict::Drop),
            rule(3, "192.0.2.1/32", limit),
            rule(4, "192.0.2.1/32", limit),
        ];
        let desired = RuleSet { rules: rules.map(|rule| (rule.id, rule)).into(), ..RuleSet::default() };
        let plan = Plan::of(&OfDatapath::All, means, &desired, NOW);
        let seen = |filter: &Filter, preference, handle| {
            let cookie = Cookie { made_qdisc: false, checksum: filter.encoded.checksum(), rule: RuleId(9) };
            let protocol = filter.family.ether_type();
            let (is_head, has_packet_rate) = (false, false);
            Seen { preference, protocol, handle, cookie: Some(cookie), is_head, has_packet_rate }
        };
        // Of IPv6, neighbour discovery comes first.
        let plan = Plan { filters: plan.filters[3..].to_vec(), ..plan };
        let [v4, v6, first, _second] = &plan.filters[..] else { panic!("{:?}", plan.filters) };
        let foreign = Seen { cookie: None, ..seen(v4, 49_002, 5) };
        let stray = seen(v6, 49_000, 6);
        let there = [seen(v4, 49_002, 1), seen(v4, 49_002, 2), foreign, stray, seen(first, 49_050, 1)];
        let (missing, surplus) = differences(&plan, &there);
        let missing: Vec<u64> = missing.iter().map(|filter| filter.rules[0].0).collect();
        assert_eq!(missing, [2, 4], "the one at another place does not count, and one limit is there");
        let surplus: Vec<(u16, u32)> = surplus.iter().map(|seen| (seen.preference, seen.handle)).collect();
        assert_eq!(surplus, [(49_002, 2), (49_000, 6)], "one too many, and one at the wrong place; nobody else's");
    }

    #[test]
    fn what_was_tried_by_one_who_was_killed_is_found_with_its_qdisc() {
        let seen = |preference, made_qdisc| Seen {
            preference,
            protocol: PROBE_PROTOCOL,
            handle: 1,
            cookie: Some(Cookie { made_qdisc, checksum: 1, rule: RuleId(0) }),
            is_head: false,
            has_packet_rate: false,
        };
        let foreign = Seen { cookie: None, ..seen(PROBE_PREFERENCE, true) };
        for (there, made, expected) in [
            (vec![seen(PROBE_PREFERENCE, true)], false, (1, true)),
            (vec![seen(PROBE_PREFERENCE, false)], false, (1, false)),
            (vec![seen(FIRST_PREFERENCE, true), foreign], false, (0, false)),
            (vec![], true, (0, true)),
        ] {
            let (tried, made) = leftover(&there, made);
            assert_eq!((tried.len(), made), expected, "{there:?}");
        }
    }

    #[test]
    fn means_follow_from_what_the_kernel_took() {
        let no = || Err("TC classifier not found".to_owned());
        for (name, flower, u32, police, packets, expected) in [
            ("all", Ok(()), Ok(()), Ok(()), true, Some((Classifier::Flower, true, true, 0))),
            ("before 5.13", Ok(()), Ok(()), Ok(()), false, Some((Classifier::Flower, true, false, 1))),
            ("no police", Ok(()), Ok(()), no(), true, Some((Classifier::Flower, false, false, 1))),
            ("u32 alone", no(), Ok(()), Ok(()), true, Some((Classifier::U32, true, true, 1))),
            ("nothing", no(), no(), Ok(()), true, None),
        ] {
            let means = decide(Tried { flower, u32, police, police_packets: packets });
            if expected.is_none() {
                assert!(means.as_ref().is_err_and(|why| why.contains("not found")), "{name}: {means:?}");
            }
            let got = means.ok().map(|m| (m.classifier, m.police, m.police_packets, m.lost().len()));
            assert_eq!(got, expected, "{name}");
        }
    }
}
