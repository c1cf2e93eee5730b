//! The row about the action `tc_police_interface`: by the keeper and the journal that the agent has, with real packets.

use std::net::Ipv4Addr;

use ftagent::actions::journal::Journal;
use ftagent::actions::keeper::Keeper;
use ftagent::actions::runner::System;
use ftagent::engine::{Outcome as Acted, Wanted};
use ftagent_common::api::{Action, NodeMeans, PoliceMeans, PoliceWay, PreviewContext, police_trial, preview};
use uuid::Uuid;

use super::stage::{BAD_V4, EDGE_V4, Ear, GOOD_V4, Stage, datagram, text};
use super::{Outcome, Tools};

const FRAMES: u64 = 40;
/// A hundredth of a second holds a frame at this rate, and the burst four: of 40 a few pass.
const ACTION: &str = r#"{"type":"tc_police_interface","interface":"edge0","bps":80000,"burst_bytes":4096}"#;

/// Each way, alone and beside what somebody else has there.
pub(super) fn action(tools: &Tools) -> Result<Outcome, String> {
    let stage = Stage::new()?;
    let ear = stage.listen(EDGE_V4)?;
    let (mut told, mut is_best) = (Vec::new(), true);
    for way in PoliceWay::ALL {
        if let Err(why) = able(&stage, way)? {
            is_best = false;
            told.push(format!("{}: not here ({why})", way.text()));
            continue;
        }
        let name = format!("{way:?}");
        let alone = lives(&stage, tools, &ear, way, &format!("{name} alone"))?;
        // Somebody else's qdisc and filters stay as they are.
        stage.run(&tools.tc, "qdisc add dev edge0 clsact")?;
        for words in ["ingress pref 7", "egress pref 8"] {
            let matches = "protocol ip u32 match ip src 203.0.113.99 flowid 1:1";
            stage.run(&tools.tc, &format!("filter add dev edge0 {words} {matches}"))?;
        }
        let beside = lives(&stage, tools, &ear, way, &format!("{name} beside others"))?;
        stage.run(&tools.tc, "qdisc del dev edge0 clsact")?;
        told.push(format!("{}: of {FRAMES} frames {alone} and {beside} passed", way.text()));
    }
    let told = format!("{}; undone byte for byte, twice is once", told.join("; "));
    Ok(if is_best { Outcome::Ok(told) } else { Outcome::Degraded(told) })
}

/// Whether the agent's trial finds the way open, and why not.
fn able(stage: &Stage, way: PoliceWay) -> Result<Result<(), String>, String> {
    let path = stage.dir.path().join("trial.journal");
    let now_ns = ftagent::clock::mono_ns();
    let trial = move || {
        let mut keeper = Keeper::new(System, Journal::open(&path), "boot", None, now_ns);
        let task = Uuid::from_u128(1);
        keeper.set(vec![Wanted { task, tool: "tc", steps: police_trial(way), cloud: None }], None);
        let acted = keeper.work(now_ns).pop().map(|acted| acted.outcome);
        keeper.set(Vec::new(), Some(task));
        keeper.work(now_ns);
        match acted {
            Some(Acted::Failed(why)) => Err(why.chars().take(120).collect()),
            _ => Ok(()),
        }
    };
    stage.edge.run(trial).map_err(text)
}

/// Does, does again, undoes and undoes again; returns how many frames passed.
fn lives(stage: &Stage, tools: &Tools, ear: &Ear, way: PoliceWay, name: &str) -> Result<u64, String> {
    let task = Uuid::from_u128(7);
    let path = stage.dir.path().join(format!("{}.journal", name.replace(' ', "-")));
    let path = &path;
    // Each time an heir of the one before: the journal is all that it knows.
    let keep = |wanted: Vec<Wanted>, ending: Option<Uuid>| {
        let work = move || {
            let mut keeper = Keeper::new(System, Journal::open(path), "boot", None, ftagent::clock::mono_ns());
            keeper.set(wanted, ending);
            keeper.work(ftagent::clock::mono_ns())
        };
        stage.edge.run(work).map_err(text)
    };
    let do_ = || keep(vec![Wanted { task, tool: "tc", steps: steps(way), cloud: None }], None);
    let undo = || keep(Vec::new(), Some(task));
    let before = dump(stage, tools)?;
    let free = passed(stage, ear, BAD_V4)?;
    let done = do_()?;
    let during = dump(stage, tools)?;
    let (limited, spared) = (passed(stage, ear, BAD_V4)?, passed(stage, ear, GOOD_V4)?);
    if free != FRAMES || !(1..FRAMES).contains(&limited) || spared != FRAMES {
        let filters = stage.run(&tools.tc, "-s filter show dev edge0 ingress").unwrap_or_default();
        return Err(format!(
            "{name}: of {FRAMES} frames {free} passed before, {limited} while limited, {spared} of who is spared; \
             {done:?}; {filters}"
        ));
    }
    let same = |when: &str, expected: &str| -> Result<(), String> {
        let now = dump(stage, tools)?;
        if now == expected { Ok(()) } else { Err(format!("{name}: {when}: {now}\ninstead of {expected}")) }
    };
    do_()?;
    same("done twice", &during)?;
    undo()?;
    same("undone", &before)?;
    undo()?;
    same("undone twice", &before)?;
    // Done, and half of it taken away by somebody else.
    do_()?;
    let place = steps(way).pop().and_then(|step| step.undo.last().cloned()).unwrap_or_default();
    stage.run(&tools.tc, &format!("filter del dev edge0 ingress pref {place}"))?;
    undo()?;
    same("undone what was half gone", &before)?;
    Ok(limited)
}

fn steps(way: PoliceWay) -> Vec<ftagent_common::api::ToolStep> {
    let action: Action = serde_json::from_str(ACTION).expect("an action");
    let spared = vec![super::stage::net(GOOD_V4), super::stage::net(Ipv4Addr::LOCALHOST)];
    let context = PreviewContext {
        target: super::stage::net(EDGE_V4),
        sources: Vec::new(),
        spoofed: false,
        spared,
        node: NodeMeans { police: Some(PoliceMeans { ways: vec![way], lacking: Vec::new() }), ..NodeMeans::default() },
    };
    preview(&action, &context).steps()
}

fn passed(stage: &Stage, ear: &Ear, source: Ipv4Addr) -> Result<u64, String> {
    stage.send(&datagram(source, EDGE_V4).payload(&[b'p'; 1_000]).build(), FRAMES)?;
    Ok(ear.heard(FRAMES))
}

fn dump(stage: &Stage, tools: &Tools) -> Result<String, String> {
    let all = ["qdisc show dev edge0", "filter show dev edge0 ingress", "filter show dev edge0 egress"];
    let shown: String = all.iter().map(|words| stage.run(&tools.tc, words)).collect::<Result<_, _>>()?;
    Ok(shown + &stage.run(&tools.ip, "-o link show type ifb")?)
}
