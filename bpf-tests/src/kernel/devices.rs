//! Rows about devices and traffic control that a kernel built without modules may lack: VLAN, bond, police, flower.

use ftagent::xdp::program::AttachChoice;
use ftagent_common::vocab::AttachMode;

use super::datapath::Datapath;
use super::stage::{BAD_UPPER_V4, GOOD_UPPER_V4, Stage, UPPER_V4, blocked, datagram};
use super::{Outcome, Tools};

const FRAMES: u64 = 40;
pub(super) const VLAN: u16 = 7;

pub(super) fn vlan_parent(tools: &Tools) -> Result<Outcome, String> {
    let stage = Stage::new()?;
    if let Err(why) = vlan(&stage, tools) {
        return Ok(Outcome::Missing(why));
    }
    filtered(&stage, "edge0", Some(VLAN))
}

pub(super) fn vlan_child(tools: &Tools) -> Result<Outcome, String> {
    let stage = Stage::new()?;
    if let Err(why) = vlan(&stage, tools) {
        return Ok(Outcome::Missing(why));
    }
    filtered(&stage, "edge0.7", Some(VLAN))
}

pub(super) fn vlan(stage: &Stage, tools: &Tools) -> Result<(), String> {
    stage.run(&tools.ip, "link add link edge0 name edge0.7 type vlan id 7")?;
    stage.run(&tools.ip, &format!("addr add {UPPER_V4}/24 dev edge0.7"))?;
    stage.run(&tools.ip, "link set edge0.7 up").map(drop)
}

pub(super) fn bond(tools: &Tools) -> Result<Outcome, String> {
    let stage = Stage::new()?;
    match bond_above(&stage, tools)? {
        Ok(()) => filtered(&stage, "bond0", None),
        Err(why) => Ok(Outcome::Missing(why)),
    }
}

/// A bond with the stage's device as its port; the inner error says that this kernel has none.
pub(super) fn bond_above(stage: &Stage, tools: &Tools) -> Result<Result<(), String>, String> {
    let steps = [
        "link set edge0 down",
        "link set edge0 master bond0",
        "link set bond0 address 02:00:00:00:00:01",
        "link set bond0 up",
    ];
    if let Err(why) = stage.run(&tools.ip, "link add bond0 type bond mode active-backup miimon 100") {
        return Ok(Err(why));
    }
    steps.iter().try_for_each(|step| stage.run(&tools.ip, step).map(drop))?;
    stage.run(&tools.ip, &format!("addr add {UPPER_V4}/24 dev bond0"))?;
    Ok(Ok(()))
}

/// The datapath on `device` drops what is blocked and lets the rest pass, tagged or not.
fn filtered(stage: &Stage, device: &str, tag: Option<u16>) -> Result<Outcome, String> {
    let datapath = Datapath::new(stage, device, AttachChoice::Auto)?;
    datapath.apply(&blocked())?;
    let ear = stage.listen(UPPER_V4)?;
    let frame = |source| {
        let frame = datagram(source, UPPER_V4);
        tag.map_or(frame.clone(), |id| frame.vlan(0x8100, id)).build()
    };
    // A bond takes frames once it has chosen its active device.
    let good = frame(GOOD_UPPER_V4);
    for _ in 0..30 {
        stage.send(&good, 1)?;
        if ear.heard(1) == 1 {
            break;
        }
    }
    stage.send(&good, FRAMES)?;
    let clean = ear.heard(FRAMES);
    stage.send(&frame(BAD_UPPER_V4), FRAMES)?;
    let passed = ear.heard(1);
    let said = format!(
        "{} on {device}: {clean} of {FRAMES} clean and {passed} of {FRAMES} blocked frames passed",
        datapath.attached.mode
    );
    if (clean, passed) != (FRAMES, 0) {
        return Err(said);
    }
    Ok(match datapath.attached.mode {
        AttachMode::Native => Outcome::Ok(said),
        _ => Outcome::Degraded(format!("{said}; {}", datapath.attached.reason)),
    })
}

pub(super) fn police(tools: &Tools) -> Result<Outcome, String> {
    filter(tools, "matchall action police rate 10mbit burst 64k conform-exceed drop")
}

pub(super) fn flower(tools: &Tools) -> Result<Outcome, String> {
    filter(tools, "protocol ip flower src_ip 192.0.2.0/24 ip_proto udp dst_port 53 action drop")
}

/// Whether this kernel takes a filter: recorded, since nothing of ours needs it yet.
fn filter(tools: &Tools, words: &str) -> Result<Outcome, String> {
    let stage = Stage::new()?;
    if let Err(why) = stage.run(&tools.tc, "qdisc add dev edge0 clsact") {
        return Ok(Outcome::Missing(why));
    }
    match stage.run(&tools.tc, &format!("filter add dev edge0 ingress {words}")) {
        Ok(_) => Ok(Outcome::Ok("the kernel takes the filter".to_owned())),
        Err(why) => Ok(Outcome::Missing(why.lines().next().unwrap_or_default().to_owned())),
    }
}
