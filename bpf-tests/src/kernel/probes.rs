//! Rows about single features of the kernel: the agent's table against what the kernel does when asked.

use aya::EbpfLoader;
use aya::programs::Program;
use ftagent::object;
use ftagent::xdp::adapt::{declares, for_kernel};
use ftagent::xdp::kernel::{Feature, Support, TABLE};

use super::stage::text;
use super::{Outcome, Tools};

/// One row for each feature. On a kernel as its authors released it the answer and the version agree; where they do
/// not, the table is wrong.
pub(super) fn rows() -> Vec<(&'static str, Outcome)> {
    let support = Support::here();
    let missing = support.missing(|_| true);
    let rows = TABLE.iter().map(|entry| {
        let has = !missing.iter().any(|missing| missing.feature == entry.feature);
        let use_ = if entry.switch.is_none_or(declares) { "" } else { " (no use yet)" };
        let outcome = match (has, support.version() >= entry.since) {
            (true, true) => Outcome::Ok(format!("since {}{use_}", entry.since)),
            (false, false) => Outcome::Missing(format!("needs {}: {}{use_}", entry.since, entry.instead)),
            (has, _) => Outcome::Failed(format!("the table says since {}, the kernel says {has}", entry.since)),
        };
        (entry.name, outcome)
    });
    rows.collect()
}

/// The verifier takes every program of the datapath, those that no other row attaches too.
pub(super) fn programs(_: &Tools) -> Result<Outcome, String> {
    let support = Support::here();
    let mut loader = EbpfLoader::new();
    for (switch, value) in support.switches() {
        loader.override_global(switch, value, false);
    }
    let mut ebpf = loader.load(&for_kernel(object::DATAPATH, &support)).map_err(text)?;
    let mut names = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        if name.ends_with("_frags") && !support.has(Feature::LoadBytes) {
            continue;
        }
        let loaded = match program {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => return Err(format!("{name} is of a kind that this row does not know")),
        };
        // The reason stands at the end of what the verifier says.
        let end = |words: String| words.lines().rev().take(8).map(|line| format!("{line} < ")).collect::<String>();
        loaded.map_err(|error| format!("{name}: {}", end(text(error))))?;
        names.push(name.to_owned());
    }
    names.sort_unstable();
    Ok(Outcome::Ok(names.join(", ")))
}
