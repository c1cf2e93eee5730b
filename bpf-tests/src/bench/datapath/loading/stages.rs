//! P6: what a stage that is off has left in the translated program.

use std::collections::HashMap;

use anyhow::Context as _;
use aya::programs::Xdp;
use aya_obj::Object;
use ftagent::object;
use ftagent_common::abi::stage;

use super::super::translated::{Left, Translated};
use super::{XDP, object_with};
use crate::bench::Goal;

const CONSTANT: &str = "STAGES";

/// A stage and the maps that nobody else reads in the XDP program.
struct Stage {
    name: &'static str,
    bit: u32,
    maps: &'static [&'static str],
}

const STAGES: [Stage; 9] = [
    Stage { name: "sanity", bit: stage::SANITY, maps: &[] },
    Stage { name: "tunnels", bit: stage::TUNNELS, maps: &[] },
    Stage { name: "lists", bit: stage::LISTS, maps: &["LISTS4", "LIST_RULES"] },
    Stage { name: "signatures", bit: stage::SIGNATURES, maps: &["SIGNATURES"] },
    Stage { name: "sources", bit: stage::SOURCES, maps: &["SKETCHES", "SOURCES", "SOURCE_STATES"] },
    Stage { name: "distinct", bit: stage::DISTINCT, maps: &[] },
    Stage { name: "samples", bit: stage::SAMPLES, maps: &["SAMPLES"] },
    Stage { name: "reflectors", bit: stage::REFLECTORS, maps: &["QUERIES"] },
    Stage { name: "gate", bit: stage::GATE, maps: &["GATED", "DESK", "FLOWS", "HALF_OPEN", "FIRST_SYNS"] },
];

/// The XDP program with the stages of `stages`.
fn translated(stages: u32) -> anyhow::Result<Translated> {
    let mut ebpf = object_with(stages)?;
    let program: &mut Xdp = ebpf.program_mut(XDP).context("no XDP program")?.try_into()?;
    program.load()?;
    Translated::read(&program.info()?)
}

/// The map that holds the constant, and where in it.
fn place_of_constant() -> anyhow::Result<(String, usize)> {
    let before = Object::parse(object::DATAPATH)?;
    let mut after = Object::parse(object::DATAPATH)?;
    after.patch_map_data(HashMap::from([(CONSTANT, (&0u32.to_ne_bytes()[..], true))]))?;
    for (name, map) in &before.maps {
        let other = after.maps.get(name).context("the same object has the same maps")?;
        if let Some(offset) = map.data().iter().zip(other.data()).position(|(a, b)| a != b) {
            return Ok((name.clone(), offset));
        }
    }
    anyhow::bail!("{CONSTANT} lies in no map")
}

/// Judges the program with every stage left out, and with each by itself.
pub(super) fn judge() -> anyhow::Result<Goal> {
    const WHAT: &str = "left of stages that are off, XDP program";
    const WANTED: &str = "0 instructions";
    let (map, offset) = place_of_constant()?;
    let whole = match translated(u32::MAX) {
        Ok(whole) => whole,
        Err(error) => return Ok(Goal::missing("P6", WHAT, "instructions", WANTED, &format!("{error:#}"))),
    };
    let named = |code: &Translated, stage: &Stage| stage.maps.iter().map(|name| code.mentions(name)).sum::<usize>();
    // A list that names a map which nobody reads any more would find nothing, whatever is left.
    if let Some(old) = STAGES.iter().find(|stage| stage.maps.iter().any(|name| whole.mentions(name) == 0)) {
        let why =
            format!("the stage {} does not read all of {:?} even when it is on: this list is old", old.name, old.maps);
        return Ok(Goal::missing("P6", WHAT, "instructions", WANTED, &why));
    }
    let mut said = Vec::new();
    let mut left_of_any = 0;
    for stage in &STAGES {
        let code = translated(!stage.bit)?;
        let (maps, Left { tests, .. }) = (named(&code, stage), code.left_of(&map, offset, stage.bit));
        left_of_any += maps + tests;
        let fault =
            if maps + tests == 0 { String::new() } else { format!(" (LEFT: {maps} uses of its maps, {tests} tests)") };
        said.push(format!("{} {}{fault}", stage.name, whole.len() as i64 - code.len() as i64));
    }
    let none = translated(0)?;
    let maps: usize = STAGES.iter().map(|stage| named(&none, stage)).sum();
    let Left { tests, dead } = none.left_of(&map, offset, u32::MAX);
    let left = maps + tests + dead;
    let help =
        if dead > 0 { "; would help: one read of the constant for all stages, tested by single bits" } else { "" };
    Ok(Goal {
        value: Some(left as f64),
        met: Some(left == 0 && left_of_any == 0),
        rounds: 1,
        ..Goal::missing(
            "P6",
            WHAT,
            "instructions",
            WANTED,
            &format!(
                "with all nine off: {maps} uses of their maps, {tests} jumps that depend on the constant, {dead} instructions \
                 that read it and whose result nobody uses{help}; {} instructions in all, {} with every stage on; leaving one \
                 out saves: {}",
                none.len(),
                whole.len(),
                said.join(", ")
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_is_judged_and_none_twice() {
        let bits = STAGES.iter().fold(0, |bits, stage| bits | stage.bit);
        assert_eq!(bits, stage::ALL | stage::REFLECTORS | stage::GATE);
        assert_eq!(bits.count_ones() as usize, STAGES.len());
    }
}
