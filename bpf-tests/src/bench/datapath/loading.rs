//! P6 and P10: what the kernel makes of the programs, and how long it takes.

use anyhow::Context as _;
use aya::programs::{ProgramInfo, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use ftagent::object;
use ftagent::xdp::adapt;
use ftagent::xdp::kernel::Support;
use ftagent::xdp::pins::Pins;
use ftagent::xdp::program::{AttachChoice, InterfacePlan, MapSizes, load};

use super::Goal;
use crate::bench::under_test::Wires;
use crate::bench::{Options, stats};
use crate::bpffs::LabDir;
use crate::clock::now;

mod stages;

/// The program that the goals speak of.
const XDP: &str = "ftagent_xdp";
/// Goal of the verifier's work.
const MOST_VERIFIED: f64 = 200_000.0;

pub(super) fn run(options: &Options) -> anyhow::Result<Vec<Goal>> {
    Ok(vec![stages::judge()?, loads(options)?, verified()?])
}

/// The programs of the datapath as the verifier left them, with the stages of `stages`; they go with the first part.
fn loaded(stages: u32) -> anyhow::Result<(Ebpf, Vec<Program>)> {
    let mut ebpf = object_with(stages)?;
    let mut programs = Vec::new();
    for name in [XDP, "ftagent_xdp_frags"] {
        let program: &mut Xdp = ebpf.program_mut(name).with_context(|| format!("no {name}"))?.try_into()?;
        let began = now();
        program.load()?;
        programs.push(Program { name, ms: began.elapsed().as_secs_f64() * 1e3, info: program.info()? });
    }
    for name in ["ftagent_tc", "ftagent_egress"] {
        let program: &mut SchedClassifier = ebpf.program_mut(name).with_context(|| format!("no {name}"))?.try_into()?;
        let began = now();
        program.load()?;
        programs.push(Program { name, ms: began.elapsed().as_secs_f64() * 1e3, info: program.info()? });
    }
    Ok((ebpf, programs))
}

/// A loaded program, and how long the kernel took to verify and translate it.
struct Program {
    name: &'static str,
    ms: f64,
    info: ProgramInfo,
}

/// The maps of the datapath, and its programs not yet loaded.
fn object_with(stages: u32) -> anyhow::Result<Ebpf> {
    let support = Support::here();
    let mut loader = EbpfLoader::new();
    loader.override_global("STAGES", &stages, true);
    for (switch, value) in support.switches() {
        loader.override_global(switch, value, false);
    }
    Ok(loader.load(&adapt::for_kernel(object::DATAPATH, &support))?)
}

fn loads(options: &Options) -> anyhow::Result<Goal> {
    let (mut ms, mut loading) = (Vec::new(), Vec::new());
    for _ in 0..if options.quick { 3 } else { 5 } {
        let wires = Wires::new(1)?;
        let dir = LabDir::create("bench")?;
        let pins = Pins::below(&dir.bpf())?;
        let plan = InterfacePlan { name: "edge0".to_owned(), slot: 0, choice: AttachChoice::Native };
        let began = now();
        wires.edge.run(|| -> anyhow::Result<()> {
            let loaded = load(&[plan], &pins, &MapSizes::default())?;
            loading.push(began.elapsed().as_secs_f64() * 1e3);
            loaded.attach()?;
            Ok(())
        })??;
        ms.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let median = stats::median(&ms);
    Ok(Goal {
        value: median,
        met: median.map(|ms| ms <= 250.0),
        minimum: stats::minimum(&ms),
        median,
        rounds: ms.len() as u32,
        ..Goal::missing(
            "P10a",
            "load and attach with default maps",
            "ms",
            "<= 250 ms",
            &format!(
                "of it {:.0} ms until the maps stand and the rest verifying, translating and attaching the programs of both \
                 directions (P10b tells how long each takes); would help: fewer verified instructions",
                stats::median(&loading).unwrap_or(0.0)
            ),
        )
    })
}

fn verified() -> anyhow::Result<Goal> {
    let mut most: f64 = 0.0;
    let mut said = Vec::new();
    let (_held, programs) = loaded(u32::MAX)?;
    for Program { name, ms, info } in programs {
        let count = f64::from(info.verified_instruction_count().context("the kernel does not count (5.16)")?);
        most = most.max(count);
        said.push(format!("{name} {count:.0} in {ms:.0} ms"));
    }
    Ok(Goal {
        value: Some(most),
        met: Some(most <= MOST_VERIFIED),
        rounds: 1,
        ..Goal::missing("P10b", "verified instructions, the most of all programs", "", "<= 200,000", &said.join(", "))
    })
}
