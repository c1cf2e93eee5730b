//! `ftagent replay`: a capture through the very engine of the daemon, off-line and on a simulated clock.
//!
//! ```text
//! file ─ pace (when) ─▶ datapath (counts, samples, rules) ─▶ engine ─▶ incidents ─▶ report
//! ```
//!
//! Nothing of this machine is asked or changed, and the same file gives the same answer. The bench of the detection and
//! the engine's tests drive the same [`Kernel`].

mod datapath;
mod kernel;
mod pace;
mod report;
mod sources;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ftagent_common::api::IncidentReport;
use ftagent_lab::replay::{ReplayError, each};
use ipnet::IpNet;
use time::OffsetDateTime;

pub use datapath::{Datapath, Limits, Sampling, meets};
pub use kernel::{Kernel, START_NS, Watch};
pub use pace::Pace;
pub use report::{json, text};

use crate::config::Config;
use crate::engine::Settings;
use crate::engine::sample::{MS, SEC};

/// The longest that the end of a capture is waited out for incidents to be resolved.
const LONGEST_END_NS: u64 = 24 * 3_600 * SEC;

/// What is replayed, and how.
#[derive(Clone, Debug)]
pub struct Options {
    pub file: PathBuf,
    pub settings: Settings,
    pub limits: Limits,
    pub tick_ms: u64,
    /// Packets per second; absent: the capture's own times.
    pub rate_pps: Option<u64>,
    /// With a rate: begin anew until so much time is over.
    pub seconds: Option<u64>,
    pub sampling: Sampling,
}

impl Options {
    /// The options of a node with this configuration, or with the defaults of one.
    pub fn new(file: &Path, config: Option<&Config>) -> Self {
        let defaults = Limits::default();
        let limits = config.map_or(defaults, |config| Limits {
            protect: config.protect.clone(),
            management: config.management.clone(),
            pass_malformed: config.datapath.pass_malformed,
            max_targets: config.datapath.sizes.targets as usize,
            max_sources: config.datapath.sizes.sources as usize,
            samples_per_sec: config.datapath.samples_per_sec,
            promote_pps: config.datapath.promote_pps,
        });
        let mut settings = config.map_or_else(Settings::default, |config| config.settings.clone());
        // As the daemon has it: what manages a node is not to be blocked.
        let management = limits.management.iter().map(|m| (m.prefix, "management".to_owned()));
        settings.guard.infrastructure.extend(management);
        Self {
            file: file.to_owned(),
            settings,
            limits,
            tick_ms: config.map_or(50, |config| config.tick_ms),
            rate_pps: None,
            seconds: None,
            sampling: Sampling::Adaptive,
        }
    }
}

/// What came of a replay.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Oldest first.
    pub incidents: Vec<IncidentReport>,
    /// Incidents beyond the most that are kept.
    pub forgotten: u64,
    /// The wall clock at the first packet: the file's.
    pub began: OffsetDateTime,
    /// From the first packet to the last, nanoseconds of the simulated clock.
    pub lasted_ns: u64,
    pub frames: u64,
    pub bytes: u64,
    /// To protected destinations, by what the datapath did.
    pub passed: u64,
    pub dropped: u64,
    /// To other destinations.
    pub elsewhere: u64,
    pub not_ip: u64,
    /// Malformed, so that not even the destination is known.
    pub unreadable: u64,
    /// Of a link layer that is not known.
    pub unknown: u64,
    /// Packets of destinations beyond the most that are counted.
    pub uncounted: u64,
    /// Times at which the file's clock went back.
    pub backwards: u64,
    /// The file breaks off in the middle of a packet.
    pub cut: bool,
    /// Automatic rules that were put into force.
    pub installed: u64,
    pub protect: Vec<IpNet>,
    /// The file is damaged from here on.
    pub damage: Option<String>,
}

/// Why there is nothing to tell.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Read(#[from] ReplayError),
    #[error("capture {} has no packet{}", file.display(), unknown_words(*unknown))]
    Empty {
        file: PathBuf,
        /// Packets of a link layer that is not known.
        unknown: u64,
    },
}

fn unknown_words(unknown: u64) -> String {
    if unknown == 0 { String::new() } else { format!(" of a known link layer, and {unknown} of others") }
}

/// Replays a capture.
///
/// # Errors
/// The file cannot be read, is no capture, or has no packet.
pub fn run(options: &Options) -> Result<Outcome, RunError> {
    let mut replay: Option<Kernel> = None;
    let mut pace = Pace::new(options.rate_pps);
    let end_ns = options.seconds.map(|secs| START_NS.saturating_add(secs.saturating_mul(SEC)));
    let mut began = OffsetDateTime::UNIX_EPOCH;
    let (mut frames, mut bytes, mut unknown, mut cut) = (0, 0, 0, false);
    let mut damage = None;
    loop {
        let before = frames;
        pace.rewind();
        let ended = each(&options.file, &mut |packet| {
            let kernel = replay.get_or_insert_with(|| {
                let since = i128::try_from(packet.at.as_nanos()).unwrap_or(0);
                began = OffsetDateTime::from_unix_timestamp_nanos(since).unwrap_or(began);
                let mut kernel =
                    Kernel::new(options.settings.clone(), options.limits.clone(), options.tick_ms, began, ());
                kernel.datapath.sampling = options.sampling;
                kernel
            });
            let ns = START_NS + pace.next(packet.at);
            if end_ns.is_some_and(|end| ns >= end) {
                return ControlFlow::Break(());
            }
            kernel.frame(&packet.frame, packet.wire_len, ns);
            frames += 1;
            bytes += packet.wire_len as u64;
            ControlFlow::Continue(())
        });
        match ended {
            Ok(ending) => {
                unknown += ending.unknown;
                cut |= ending.cut;
            }
            // What came before is worth telling.
            Err(error) if frames > 0 => damage = Some(words(&error)),
            Err(error) => return Err(error.into()),
        }
        let over = end_ns.is_none_or(|end| START_NS + pace.last_ns() >= end);
        if over || damage.is_some() || frames == before {
            break;
        }
    }
    let Some(mut kernel) = replay else { return Err(RunError::Empty { file: options.file.clone(), unknown }) };
    let lasted_ns = kernel.now_ns - START_NS;
    finish(&mut kernel, options);
    let mut incidents: Vec<IncidentReport> = std::mem::take(&mut kernel.reports).into_values().collect();
    incidents.sort_by_key(|report| (report.started_at, report.target));
    Ok(Outcome {
        incidents,
        forgotten: kernel.forgotten,
        began,
        lasted_ns,
        frames,
        bytes,
        passed: kernel.datapath.passed,
        dropped: kernel.datapath.dropped,
        elsewhere: kernel.datapath.elsewhere,
        not_ip: kernel.datapath.not_ip,
        unreadable: kernel.datapath.unreadable,
        unknown,
        uncounted: kernel.datapath.uncounted,
        backwards: pace.backwards,
        cut,
        installed: kernel.installed,
        protect: options.limits.protect.clone(),
        damage,
    })
}

/// Lets time pass after the last packet, as if nothing followed, until no incident is active.
fn finish(kernel: &mut Kernel, options: &Options) {
    let step = u64::from(options.settings.detection.hold_down_ms).max(1_000) * MS + SEC;
    let end = kernel.now_ns.saturating_add(LONGEST_END_NS);
    // Incidents open only while something comes: two ticks show the last of it.
    kernel.run_for(SEC);
    while kernel.engine.next_deadline().is_some() && kernel.now_ns < end {
        kernel.run_for(step);
    }
}

/// An error with its causes in one line.
fn words(error: &ReplayError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
