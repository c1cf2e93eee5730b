//! P6 and P10: what the kernel makes of the programs, and how long it takes.

use anyhow::Context as _;
use aya::EbpfLoader;
use aya::programs::{ProgramInfo, SchedClassifier, Xdp};
use ftagent::object;
use ftagent::xdp::adapt;
use ftagent::xdp::kernel::Support;
use ftagent::xdp::pins::Pins;
use ftagent::xdp::program::{AttachChoice, InterfacePlan, MapSizes, load};
use ftagent_common::abi::stage;

use super::Goal;
use crate::bench::under_test::Wires;
use crate::bench::{Options, stats};
use crate::bpffs::LabDir;
use crate::clock::now;

/// Goal of the verifier's work.
const MOST_VERIFIED: f64 = 200_000.0;

pub(super) fn run(options: &Options) -> anyhow::Result<Vec<Goal>> {
    Ok(vec![stages()?, loads(options)?, verified()?])
}

/// The programs of the datapath as the verifier left them, with the stages of `stages`.
fn loaded(stages: u32) -> anyhow::Result<Vec<(&'static str, ProgramInfo)>> {
    let support = Support::here();
    let mut loader = EbpfLoader::new();
    loader.override_global("STAGES", &stages, true);
    for (switch, value) in support.switches() {
        loader.override_global(switch, value, false);
    }
    let mut ebpf = loader.load(&adapt::for_kernel(object::DATAPATH, &support))?;
    let mut infos = Vec::new();
    for name in ["ftagent_xdp", "ftagent_xdp_frags"] {
        let program: &mut Xdp = ebpf.program_mut(name).with_context(|| format!("no {name}"))?.try_into()?;
        program.load()?;
        infos.push((name, program.info()?));
    }
    let name = "ftagent_tc";
    let program: &mut SchedClassifier = ebpf.program_mut(name).context("no ftagent_tc")?.try_into()?;
    program.load()?;
    infos.push((name, program.info()?));
    Ok(infos)
}

/// Translated instructions of the XDP program, 8 bytes each.
fn translated(stages: u32) -> anyhow::Result<f64> {
    let programs = loaded(stages)?;
    let bytes = programs.first().and_then(|(_, info)| info.size_translated());
    Ok(f64::from(bytes.context("the kernel does not tell the size of a program")?) / 8.0)
}

fn stages() -> anyhow::Result<Goal> {
    let rows = [
        ("sanity", stage::SANITY),
        ("tunnels", stage::TUNNELS),
        ("lists", stage::LISTS),
        ("signatures", stage::SIGNATURES),
        ("sources", stage::SOURCES),
        ("samples", stage::SAMPLES),
    ];
    let (on, off) = (translated(u32::MAX)?, translated(0)?);
    let mut said = Vec::new();
    let mut every_one_shrinks = off < on;
    for (name, bit) in rows {
        let saved = on - translated(!bit)?;
        every_one_shrinks &= saved > 0.0;
        said.push(format!("{name} {saved:.0}"));
    }
    Ok(Goal {
        value: Some(off),
        // Sizes alone cannot show that nothing is left of a stage; they can show that one is still there.
        met: (!every_one_shrinks).then_some(false),
        rounds: 1,
        ..Goal::missing(
            "P6",
            "translated XDP program with every stage off",
            "instructions",
            "0 of a stage that is off",
            &format!("{on:.0} with every stage on; leaving one out saves: {}", said.join(", ")),
        )
    })
}

fn loads(options: &Options) -> anyhow::Result<Goal> {
    let mut ms = Vec::new();
    for _ in 0..if options.quick { 3 } else { 5 } {
        let wires = Wires::new(1)?;
        let dir = LabDir::create("bench")?;
        let pins = Pins::below(&dir.bpf())?;
        let plan = InterfacePlan { name: "edge0".to_owned(), slot: 0, choice: AttachChoice::Native };
        let began = now();
        wires.edge.run(|| load(&[plan], &pins, &MapSizes::default())?.attach())??;
        ms.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let median = stats::median(&ms);
    Ok(Goal {
        value: median,
        met: median.map(|ms| ms <= 250.0),
        minimum: stats::minimum(&ms),
        median,
        rounds: ms.len() as u32,
        ..Goal::missing("P10a", "load and attach with default maps", "ms", "<= 250 ms", "")
    })
}

fn verified() -> anyhow::Result<Goal> {
    let mut most: f64 = 0.0;
    let mut said = Vec::new();
    for (name, info) in loaded(u32::MAX)? {
        let count = f64::from(info.verified_instruction_count().context("the kernel does not count (5.16)")?);
        most = most.max(count);
        said.push(format!("{name} {count:.0}"));
    }
    Ok(Goal {
        value: Some(most),
        met: Some(most <= MOST_VERIFIED),
        rounds: 1,
        ..Goal::missing("P10b", "verified instructions, the most of all programs", "", "<= 200,000", &said.join(", "))
    })
}
