//! The demonstration: control plane and agent in a lab, clean traffic, attacks, and proof of what happened to each.
//!
//! Numbers come from three places that do not share code: the senders count what they sent, meters behind the XDP hook
//! count what got through, and the agent's kernel counters say what it dropped. [`judge`] compares them.

mod account;
mod agent;
mod ending;
mod faults;
mod keep;
mod report;
mod scenario;
mod stage;
mod story;
mod watch;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::bail;

pub use report::{Report, ScenarioReport, judge};
pub use story::Story;

/// What was asked for.
pub struct Options {
    /// The agent's binary.
    pub ftagent: PathBuf,
    /// The control plane's binary.
    pub controlplane: PathBuf,
    /// A binary that calls [`crate::inside::exec_if_asked`] first.
    pub helper: PathBuf,
    /// Times that every scenario is played.
    pub runs: u32,
    /// Every attack capture is played instead of one of each family.
    pub every_capture: bool,
    /// Names of the scenarios to play; all if empty.
    pub only: Vec<String>,
    /// At the end the agent, then the control plane, are killed in the middle of a flood.
    pub faults: bool,
    /// The lab stays when the demonstration ends.
    pub keep: bool,
}

/// Plays everything and says what happened; `stop` ends it early.
///
/// # Errors
/// The lab could not be built, or a program in it failed to start or died.
pub fn run(options: &Options, story: &Story, stop: &AtomicBool) -> anyhow::Result<Report> {
    keep::clear_earlier(story);
    let scenarios = scenario::all(options.every_capture, story)?;
    let chosen: Vec<_> =
        scenarios.into_iter().filter(|s| options.only.is_empty() || options.only.contains(&s.name)).collect();
    if chosen.is_empty() {
        bail!("no scenario has one of these names: {}", options.only.join(", "));
    }
    let mut stage = stage::Stage::build(options, story, stop)?;
    let mut reports = Vec::new();
    let mut played = Ok(());
    'runs: for run in 1..=options.runs {
        for (number, scenario) in chosen.iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                played = Err(anyhow::anyhow!("interrupted"));
                break 'runs;
            }
            let title = format!("{}/{}  {}", number + 1, chosen.len(), scenario.title);
            story.heading(&if options.runs > 1 { format!("run {run}, {title}") } else { title });
            match stage
                .check_alive()
                .and_then(|()| watch::play(&stage, scenario, stage::target(reports.len()), story, stop))
            {
                Ok(mut report) => {
                    report.run = run;
                    report::tell(&report, story);
                    reports.push(report);
                }
                Err(error) => {
                    played = Err(error.context(format!("scenario {}", scenario.name)));
                    break 'runs;
                }
            }
        }
    }
    let faults = if options.faults && played.is_ok() { &faults::Fault::ALL[..] } else { &[] };
    for fault in faults {
        story.heading(fault.title());
        match faults::play(&mut stage, *fault, stage::target(reports.len()), story, stop) {
            Ok(mut report) => {
                report.run = 1;
                report::tell(&report, story);
                reports.push(report);
            }
            Err(error) => {
                played = Err(error.context(fault.title()));
                break;
            }
        }
    }
    report::tell_all(&reports, story);
    if let Err(error) = &played {
        story.bad(&format!("{error:#}"));
        stage.show_logs(story);
    }
    let mut report = Report::new(reports, played.err().map(|error| format!("{error:#}")));
    if options.keep {
        stage.keep(story)?;
    } else if let Err(error) = stage.take_down(story) {
        report.fail(format!("{error:#}"));
    }
    Ok(report)
}
