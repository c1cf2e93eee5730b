//! Rows about the datapath: every way to attach, with traffic, and every kind of rule.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aya::programs::{SchedClassifier, Xdp};
use aya_obj::programs::XdpAttachType;
use ftagent::enforce::nftables::Nftables;
use ftagent::engine::{Matches, Now, RuleSet, Verdict};
use ftagent::xdp::compile::{Ground, Slots, compile};
use ftagent::xdp::counters;
use ftagent::xdp::maps::Maps;
use ftagent::xdp::pins::Pins;
use ftagent::xdp::prefixes::map::PrefixMap;
use ftagent::xdp::prefixes::plan::Plan;
use ftagent::xdp::program::{AttachChoice, Attached, InterfacePlan, MapSizes, load};
use ftagent::xdp::samples::Samples;
use ftagent::xdp::writer::Writer;
use ftagent_common::abi::{Block, NO_RULE, PRESENT, Reason, Settings, Slotted, feature};
use ftagent_common::vocab::AttachMode;
use ipnet::Ipv4Net;

use super::stage::{
    BAD_V4, BAD_V6, EDGE_V4, EDGE_V6, GOOD_V4, Stage, blocked, datagram, net, rule, set, settings, text,
};
use super::{Outcome, Tools};
use crate::clock::Moment;
use crate::run::run_xdp;

const FRAMES: u64 = 40;

/// The datapath on one device of a stage, with its maps.
pub(super) struct Datapath {
    pub(super) attached: Attached,
    pins: Pins,
    maps: Maps,
    device: String,
}

impl Datapath {
    pub(super) fn new(stage: &Stage, device: &str, choice: AttachChoice) -> Result<Self, String> {
        let pins = Pins::below(&stage.dir.bpf()).map_err(text)?;
        let attached = attach(stage, &pins, device, choice)?;
        let maps = Maps::open(&pins.maps()).map_err(text)?;
        let this = Self { attached, pins, maps, device: device.to_owned() };
        this.apply(&RuleSet::default())?;
        Ok(this)
    }

    pub(super) fn apply(&self, rules: &RuleSet) -> Result<(), String> {
        let ground = Ground { protected: vec![net(EDGE_V4), net(EDGE_V6)], ..Ground::default() };
        let compiled = compile(rules, &ground, &mut Slots::default());
        if let Some((_, why)) = compiled.refused.first() {
            return Err(why.to_string());
        }
        let mut writer = Writer::adopt(&self.maps).map_err(text)?;
        let errors = writer.apply(&self.maps, &compiled.tables, &settings());
        errors.into_iter().next().map_or(Ok(()), |error| Err(text(error)))
    }

    fn count(&self, reason: Reason) -> Result<u64, String> {
        Ok(counters::interface(&self.maps, 0).map_err(text)?.reasons[reason.index()].packets)
    }

    /// How many of `count` runs on `frame` end with `reason`.
    fn judge(&self, frame: &[u8], count: u64, reason: Reason) -> Result<u64, String> {
        let before = self.count(reason)?;
        let path = self.pins.program(&self.device);
        for _ in 0..count {
            match self.attached.mode {
                AttachMode::Tc => {
                    let program = SchedClassifier::from_pin(&path).map_err(text)?;
                    run_xdp(&program, frame, None).map_err(text)?;
                }
                _ => {
                    let program = Xdp::from_pin(&path, XdpAttachType::Interface).map_err(text)?;
                    run_xdp(&program, frame, None).map_err(text)?;
                }
            }
        }
        Ok(self.count(reason)? - before)
    }

    fn expect(&self, what: &str, frame: &[u8], reason: Reason) -> Result<(), String> {
        match self.judge(frame, 1, reason)? {
            1 => Ok(()),
            other => Err(format!("{what}: counted {other} times as {reason:?}, not once")),
        }
    }
}

pub(super) fn attach(stage: &Stage, pins: &Pins, device: &str, choice: AttachChoice) -> Result<Attached, String> {
    let plans = [InterfacePlan { name: device.to_owned(), slot: 0, choice }];
    let sizes = MapSizes { samples: 1 << 20, blocks: 4_096, prefixes: 4_096, ..MapSizes::default() };
    let attached = stage.edge.run(|| load(&plans, pins, &sizes)?.attach()).map_err(text)?.map_err(text)?;
    attached.into_iter().next().ok_or_else(|| "nothing was attached".to_owned())
}

pub(super) fn native(_: &Tools) -> Result<Outcome, String> {
    attached_way(AttachChoice::Native, AttachMode::Native, 2)
}

pub(super) fn generic(_: &Tools) -> Result<Outcome, String> {
    attached_way(AttachChoice::Generic, AttachMode::Generic, 1)
}

pub(super) fn tc(_: &Tools) -> Result<Outcome, String> {
    attached_way(AttachChoice::Tc, AttachMode::Tc, 1)
}

/// Frames of both families are dropped and pass; then the program is replaced while blocked frames rush in.
fn attached_way(choice: AttachChoice, mode: AttachMode, times: u32) -> Result<Outcome, String> {
    let stage = Stage::new()?;
    let datapath = Datapath::new(&stage, "edge0", choice)?;
    if datapath.attached.mode != mode {
        return Err(format!("attached {} instead: {}", datapath.attached.mode, datapath.attached.reason));
    }
    let (ear4, ear6) = (stage.listen(EDGE_V4)?, stage.listen(EDGE_V6)?);
    let (bad4, bad6) = (datagram(BAD_V4, EDGE_V4).build(), datagram(BAD_V6, EDGE_V6).build());
    for (name, ear, frame) in [("IPv4", &ear4, &bad4), ("IPv6", &ear6, &bad6)] {
        stage.send(frame, FRAMES)?;
        let heard = ear.heard(FRAMES);
        if heard != FRAMES {
            return Err(format!("{name}: {heard} of {FRAMES} frames passed before any rule"));
        }
    }
    datapath.apply(&blocked())?;
    for (name, ear, frame) in [("IPv4", &ear4, &bad4), ("IPv6", &ear6, &bad6)] {
        let before = datapath.count(Reason::BlockedSource)?;
        stage.send(frame, FRAMES)?;
        let (heard, dropped) = (ear.heard(1), datapath.count(Reason::BlockedSource)? - before);
        if (heard, dropped) != (0, FRAMES) {
            return Err(format!("{name}: of {FRAMES} blocked frames {dropped} were counted and {heard} passed"));
        }
    }
    stage.send(&datagram(GOOD_V4, EDGE_V4).build(), FRAMES)?;
    let heard = ear4.heard(FRAMES);
    if heard != FRAMES {
        return Err(format!("{heard} of {FRAMES} clean frames passed"));
    }
    let (sent, passed) = replaced_under_traffic(&stage, &datapath, (choice, times), &bad4, &ear4)?;
    if passed > 0 {
        return Err(format!("{passed} of {sent} blocked frames passed while the program was replaced"));
    }
    let gone = stage.edge.run(|| datapath.pins.remove_all()).map_err(text)?.map_err(text)?;
    // The kernel may free a link a moment after the last pin of it went.
    let is_free = || -> Result<bool, String> {
        stage.send(&bad4, 1)?;
        Ok(ear4.heard(1) == 1)
    };
    for _ in 0..10 {
        if is_free()? {
            break;
        }
    }
    stage.send(&bad4, FRAMES)?;
    let heard = ear4.heard(FRAMES);
    if gone != ["edge0"] || heard != FRAMES {
        return Err(format!("after unpinning {gone:?} {heard} of {FRAMES} frames passed"));
    }
    let said = format!("{sent} blocked frames during {times} replacements, 0 passed");
    Ok(if datapath.attached.link_id.is_some() {
        Outcome::Ok(said)
    } else {
        Outcome::Degraded(format!("{}; {said}", datapath.attached.reason))
    })
}

/// Adopts so many times while blocked frames come in; returns how many were sent and how many passed.
fn replaced_under_traffic(
    stage: &Stage,
    datapath: &Datapath,
    (choice, times): (AttachChoice, u32),
    frame: &[u8],
    ear: &super::stage::Ear,
) -> Result<(u64, u64), String> {
    let stop = AtomicBool::new(false);
    let mut last = datapath.attached.clone();
    let sent = std::thread::scope(|scope| -> Result<u64, String> {
        let sender = scope.spawn(|| -> Result<u64, String> {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                stage.send(frame, 16)?;
                sent += 16;
                // Under emulation the flood would otherwise leave the verifier no time.
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(sent)
        });
        let adopted = (0..times).try_for_each(|_| {
            let next = attach(stage, &datapath.pins, "edge0", choice)?;
            if !next.adopted || next.link_id != last.link_id || next.program_id == last.program_id {
                return Err(format!("{next:?} did not take over from {last:?}"));
            }
            last = next;
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_| "the sender failed".to_owned())??;
        adopted.map(|()| sent)
    })?;
    Ok((sent, ear.heard(1)))
}

/// Every kind of rule, on a datapath that is loaded once: that takes seconds under emulation.
pub(super) fn rules() -> Vec<(&'static str, Result<Outcome, String>)> {
    type Row = fn(&Datapath) -> Result<Outcome, String>;
    const ROWS: [(&str, Row); 5] = [
        ("blocks", blocks),
        ("target rules", target_rules),
        ("limits", limits),
        ("samples", samples),
        ("prefix tables", prefix_tables),
    ];
    let made = Stage::new().and_then(|stage| Ok((Datapath::new(&stage, "edge0", AttachChoice::Auto)?, stage)));
    match made {
        Ok((datapath, _stage)) => ROWS.map(|(name, row)| (name, row(&datapath))).to_vec(),
        Err(why) => ROWS.map(|(name, _)| (name, Err(why.clone()))).to_vec(),
    }
}

fn blocks(datapath: &Datapath) -> Result<Outcome, String> {
    let sources = ["198.51.100.7/32", "203.0.113.0/24", "2001:db8:1::5/128", "2001:db8:2::/64", "2001:db8:3::/48"];
    let parsed = sources.iter().map(|s| s.parse().expect("a prefix"));
    datapath.apply(&set(parsed.zip(1..).map(|(s, id)| rule(id, Matches::source(s), Verdict::Drop)).collect()))?;
    let v4 = |last: [u8; 4]| datagram(Ipv4Addr::from(last), EDGE_V4).build();
    let v6 = |source: &str| datagram(source.parse::<std::net::Ipv6Addr>().expect("an address"), EDGE_V6).build();
    let rows = [
        ("address", v4([198, 51, 100, 7]), Reason::BlockedSource),
        ("its neighbour", v4([198, 51, 100, 8]), Reason::Clean),
        ("prefix", v4([203, 0, 113, 9]), Reason::BlockedPrefix),
        ("IPv6 address", v6("2001:db8:1::5"), Reason::BlockedSource),
        ("IPv6 /64", v6("2001:db8:2::9"), Reason::BlockedPrefix),
        ("IPv6 /48", v6("2001:db8:3:9::9"), Reason::BlockedPrefix),
        ("two tags", datagram(BAD_V4, EDGE_V4).vlan(0x88a8, 7).vlan(0x8100, 8).build(), Reason::Clean),
    ];
    rows.iter().try_for_each(|(name, frame, reason)| datapath.expect(name, frame, *reason))?;
    Ok(Outcome::Ok(format!("{} frames judged as expected", rows.len())))
}

fn target_rules(datapath: &Datapath) -> Result<Outcome, String> {
    let matches = Matches { protocol: Some(17), dst_port: Some([9_000, 10_000]), ..Matches::target(net(EDGE_V4)) };
    datapath.apply(&set(vec![rule(1, matches, Verdict::Drop)]))?;
    datapath.expect("the port", &datagram(GOOD_V4, EDGE_V4).build(), Reason::TargetRule)?;
    datapath.expect("another port", &datagram(GOOD_V4, EDGE_V4).udp(1, 80).build(), Reason::Clean)?;
    Ok(Outcome::Ok("by port and protocol".to_owned()))
}

fn limits(datapath: &Datapath) -> Result<Outcome, String> {
    // So slow that no token comes back while the row runs, even under emulation.
    let limit = Verdict::LimitPps { pps: 1, burst: 20 };
    let frame = datagram(GOOD_V4, EDGE_V4).build();
    datapath.apply(&set(vec![rule(1, Matches::target(net(EDGE_V4)), limit)]))?;
    let at_target = datapath.judge(&frame, 60, Reason::TargetLimit)?;
    datapath.apply(&set(vec![rule(2, Matches::source(net(GOOD_V4)), limit)]))?;
    let by_source = datapath.judge(&frame, 60, Reason::SourceLimit)?;
    let is_exact = |dropped: u64| (25..=41).contains(&dropped);
    let said = format!("burst of 20: {at_target} and {by_source} of 60 dropped");
    if is_exact(at_target) && is_exact(by_source) { Ok(Outcome::Ok(said)) } else { Err(said) }
}

fn samples(datapath: &Datapath) -> Result<Outcome, String> {
    datapath.apply(&RuleSet::default())?;
    let mut samples = Samples::open(&datapath.pins.maps()).map_err(text)?;
    // What the rows before left there.
    while !samples.take().is_empty() {}
    datapath.judge(&datagram(GOOD_V4, EDGE_V4).build(), 3, Reason::Clean)?;
    let taken = samples.take();
    let payload = taken.first().map(|sample| sample.payload.as_slice().to_vec());
    if (taken.len(), payload.as_deref()) == (3, Some(&b"matrix"[..])) {
        Ok(Outcome::Ok("3 of 3, with payload".to_owned()))
    } else {
        Err(format!("{} of 3 frames sampled, payload {payload:?}", taken.len()))
    }
}

/// A table filled through memory, inside an array of maps.
fn prefix_tables(datapath: &Datapath) -> Result<Outcome, String> {
    datapath.apply(&RuleSet::default())?;
    let prefix: Ipv4Net = "192.0.2.0/24".parse().expect("a prefix");
    let plan = Plan::new([(prefix, 1)], u64::MAX).map_err(text)?;
    let table = PrefixMap::make(&plan).map_err(text)?;
    let maps = &datapath.maps;
    let list = Block { flags: PRESENT, rule: NO_RULE, ..Block::default() };
    maps.list_rules.insert(&0, &Slotted::both(list)).map_err(text)?;
    (0..2).try_for_each(|slot| maps.lists4.put(slot, &table)).map_err(text)?;
    let settings = maps.settings.lookup(&0).map_err(text)?.unwrap_or_default();
    let features = settings.features | feature::LISTS4;
    maps.settings.insert(&0, &Settings { features, ..settings }).map_err(text)?;
    datapath.expect("listed", &datagram(Ipv4Addr::new(192, 0, 2, 9), EDGE_V4).build(), Reason::Listed)?;
    datapath.expect("not listed", &datagram(Ipv4Addr::new(192, 0, 3, 9), EDGE_V4).build(), Reason::Clean)?;
    Ok(Outcome::Ok(format!("{} cells", plan.cells())))
}

pub(super) fn nftables(_: &Tools) -> Result<Outcome, String> {
    let stage = Stage::new()?;
    let ear = stage.listen(EDGE_V4)?;
    let frame = datagram(BAD_V4, EDGE_V4).build();
    let passed = |count| -> Result<u64, String> {
        stage.send(&frame, FRAMES)?;
        Ok(ear.heard(count))
    };
    let before = passed(FRAMES)?;
    let moment = Moment::now();
    let now = Now { mono_ns: moment.mono_ns, wall: moment.wall.into() };
    let mut enforcer = Nftables::new(true);
    let results = stage.edge.run(|| enforcer.reconcile(&blocked(), now)).map_err(text)?;
    if let Some(Err(why)) = results.into_iter().map(|r| r.result).find(Result::is_err) {
        return Err(why);
    }
    let during = passed(1)?;
    stage.edge.run(|| enforcer.remove_all()).map_err(text)?.map_err(text)?;
    let after = passed(FRAMES)?;
    let said = format!("{before}, {during}, {after} of {FRAMES} frames passed before, under and after the rule");
    if (before, during, after) == (FRAMES, 0, FRAMES) { Ok(Outcome::Ok(said)) } else { Err(said) }
}
