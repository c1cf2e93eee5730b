//! From the first attack packet to the drop: by a limit that was there before, and by an agent that has to find out.

mod attack;
mod figures;
mod frames;
mod policer;
mod site;

use std::time::Duration;

use anyhow::Context as _;

use super::{Goal, Options};
use crate::clock::now;
use figures::{Run, goals};
use site::Site;

/// Attacks of each family, as the goal has it; and in a quick run.
const RUNS: u32 = 200;
const QUICK_RUNS: u32 = 5;
/// All attacks together; what is left to do then is not done, and said.
const LONGEST: Duration = Duration::from_secs(20 * 60);
/// Between two words on how far it is.
const TELL: Duration = Duration::from_secs(20);
/// Least time between two attacks: more than a tick of the agent, so that it has seen the quiet.
const QUIET: Duration = Duration::from_millis(60);
/// The agent's tick with default settings.
const TICK: Duration = Duration::from_millis(50);

/// Measures the limits of the kernel and the whole way through the agent.
///
/// # Errors
/// When a lab cannot be built, or the agent ends. An attack that is not dropped is a figure.
pub fn run(options: &Options, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Goal>> {
    let mut measured = policer::run(options, progress)?;
    let program = std::env::current_exe().context("this program's own path")?.with_file_name("ftagent");
    if !program.exists() {
        let why = format!("there is no {}: `cargo xtask bench` builds it", program.display());
        measured.extend(figures::missing(&why));
        return Ok(measured);
    }
    let wanted = if options.quick { QUICK_RUNS } else { RUNS };
    let site = Site::build(&program)?;
    measured.extend(goals(&attacks(site, wanted, progress)?, wanted));
    Ok(measured)
}

/// Attacks each target once, the families in turn: what disturbs the machine for a while disturbs all of them.
fn attacks(mut site: Site, wanted: u32, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Run>> {
    let families = frames::FAMILIES;
    let all = wanted as usize * families.len();
    progress(&format!("latency: {all} attacks"));
    let (began, mut told) = (now(), now());
    let mut runs: Vec<Run> = Vec::with_capacity(all);
    for turn in 0..wanted {
        for family in families {
            let number = runs.len() as u32;
            let outcome = attack::play(&mut site, family, number, turn).with_context(|| format!("attack {number}"))?;
            if let Err(failure) = &outcome {
                progress(&format!("latency: attack {number}, {family}: {failure}"));
            }
            runs.push(Run { family, outcome });
            if told.elapsed() > TELL {
                told = now();
                progress(&format!("latency: {} of {all} attacks, {} s", runs.len(), began.elapsed().as_secs()));
            }
            if began.elapsed() > LONGEST {
                progress("latency: the time is over");
                return Ok(runs);
            }
            std::thread::sleep(QUIET + phase(number));
        }
    }
    site.take_down()?;
    Ok(runs)
}

/// Spreads the beginnings evenly over the agent's tick: a drop follows a tick, and attacks that follow drops by a fixed
/// time would all begin at the same moment of it.
fn phase(number: u32) -> Duration {
    // Multiples of an odd number over the powers of two are a permutation: 64 steps come once each.
    TICK * (number.wrapping_mul(37) % 64) / 64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn beginnings_are_spread_over_the_tick() {
        let phases: BTreeSet<Duration> = (0..64).map(phase).collect();
        assert_eq!(phases.len(), 64);
        assert!(phases.iter().all(|p| *p < TICK));
        // Of one family too, whose numbers are ten apart.
        let of_one: BTreeSet<Duration> = (0..64).map(|turn| phase(turn * frames::FAMILIES.len() as u32)).collect();
        assert!(of_one.len() >= 32, "{}", of_one.len());
    }
}
