//! The row about the action `tc_police_interface`: by the keeper and the journal that the agent has, with real packets.

use std::net::Ipv4Addr;

use ftagent::actions::journal::Journal;
use ftagent::actions::keeper::Keeper;
use ftagent::actions::runner::System;
use ftagent::engine::Wanted;
use ftagent_common::api::{Action, PreviewContext, preview};
use uuid::Uuid;

use super::stage::{BAD_V4, EDGE_V4, Ear, GOOD_V4, Stage, datagram, text};
use super::{Outcome, Tools};

const FRAMES: u64 = 40;
/// A hundredth of a second holds a frame at this rate, and the burst four: of 40 a few pass.
const ACTION: &str = r#"{"type":"tc_police_interface","interface":"edge0","bps":80000,"burst_bytes":4096}"#;

pub(super) fn action(tools: &Tools) -> Result<Outcome, String> {
    let stage = Stage::new()?;
    let probe =
        ["qdisc add dev edge0 clsact", "filter add dev edge0 ingress matchall action police rate 1mbit burst 10k drop"];
    let able = probe.iter().try_for_each(|words| stage.run(&tools.tc, words).map(drop));
    stage.run(&tools.tc, "qdisc del dev edge0 clsact").ok();
    if let Err(why) = able {
        return Ok(Outcome::Missing(why.lines().next().unwrap_or_default().to_owned()));
    }
    let ear = stage.listen(EDGE_V4)?;
    let alone = lives(&stage, tools, &ear, "alone")?;
    // Somebody else's qdisc and filters stay as they are.
    stage.run(&tools.tc, "qdisc add dev edge0 clsact")?;
    stage.run(&tools.tc, "filter add dev edge0 ingress pref 7 protocol ip matchall action continue")?;
    stage.run(&tools.tc, "filter add dev edge0 egress pref 8 protocol ip matchall action continue")?;
    let beside = lives(&stage, tools, &ear, "beside others")?;
    Ok(Outcome::Ok(format!("of {FRAMES} frames {alone} and {beside} passed; undone byte for byte, twice is once")))
}

/// Does, does again, undoes and undoes again; returns how many frames passed.
fn lives(stage: &Stage, tools: &Tools, ear: &Ear, name: &str) -> Result<u64, String> {
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
    let do_ = || keep(vec![Wanted { task, tool: "tc", steps: steps(), cloud: None }], None);
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
    stage.run(&tools.tc, "filter del dev edge0 ingress pref 49187")?;
    undo()?;
    same("undone what was half gone", &before)?;
    Ok(limited)
}

fn steps() -> Vec<ftagent_common::api::ToolStep> {
    let action: Action = serde_json::from_str(ACTION).expect("an action");
    let spared = vec![super::stage::net(GOOD_V4), super::stage::net(Ipv4Addr::LOCALHOST)];
    let context = PreviewContext {
        target: super::stage::net(EDGE_V4),
        sources: Vec::new(),
        spoofed: false,
        spared,
        lacks_busctl: false,
    };
    preview(&action, &context).steps()
}

fn passed(stage: &Stage, ear: &Ear, source: Ipv4Addr) -> Result<u64, String> {
    stage.send(&datagram(source, EDGE_V4).payload(&[b'p'; 1_000]).build(), FRAMES)?;
    Ok(ear.heard(FRAMES))
}

fn dump(stage: &Stage, tools: &Tools) -> Result<String, String> {
    let all = [
        "qdisc show dev edge0",
        "filter show dev edge0 ingress",
        "filter show dev edge0 egress",
        "action ls action police",
    ];
    all.iter().map(|words| stage.run(&tools.tc, words)).collect()
}
