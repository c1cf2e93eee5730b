//! The simulated kernel of `ftagent replay`, with everything that the engine says written down.

use std::ops::{Deref, DerefMut};

use ftagent::engine::{Command, Engine, EngineState, Now, Settings};
use ftagent::replay::{Limits, START_NS, Watch};
use ftagent_common::api::IncidentReport;
use ftagent_common::vocab::Severity;
use std::collections::BTreeMap;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SEC: u64 = 1_000_000_000;
pub(crate) const TICK: u64 = 50 * MS;

/// Both clocks; the wall's begins at some day.
pub(crate) fn at(mono_ns: u64) -> Now {
    let wall = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000) + Duration::nanoseconds(mono_ns as i64);
    Now { mono_ns, wall }
}

/// What was said, in order.
#[derive(Default)]
pub(crate) struct Notes {
    /// Every command as words.
    pub(crate) log: Vec<String>,
    pub(crate) persisted: Option<EngineState>,
    reported: BTreeMap<Uuid, (u32, Severity)>,
}

impl Notes {
    fn check(&mut self, report: &IncidentReport) {
        if let Some((revision, severity)) = self.reported.insert(report.uuid, (report.revision, report.severity)) {
            assert!(report.revision > revision, "revisions grow");
            assert!(report.severity >= severity, "severity never falls");
        }
    }
}

impl Watch for Notes {
    fn saw(&mut self, command: &Command, engine: &Engine, _now_ns: u64) {
        match command {
            Command::Enforce(set) => self.log.push(format!("enforce {}", set.rules.len())),
            Command::Report(report) => {
                self.log.push(format!("report {} {}", report.status, report.revision));
                self.check(report);
            }
            Command::Act(set) => self.log.push(format!("act {}", set.wanted.len())),
            Command::Persist => {
                self.log.push("persist".to_owned());
                self.persisted = Some(engine.state());
            }
            Command::Ack(ack) => self.log.push(format!("ack {:?} {}{}", ack.status, ack.output, ack.error)),
            Command::Answer(outcome) => self.log.push(format!("{outcome:?}")),
        }
    }
}

/// A node that protects every destination.
pub(crate) struct Kernel(ftagent::replay::Kernel<Notes>);

impl Kernel {
    pub(crate) fn new(settings: Settings) -> Self {
        Self::protecting(settings, Vec::new())
    }

    /// A node that protects these alone.
    pub(crate) fn protecting(settings: Settings, protect: Vec<ipnet::IpNet>) -> Self {
        let (began, limits) = (at(START_NS).wall, Limits { protect, ..Limits::default() });
        let mut kernel = ftagent::replay::Kernel::new(settings, limits, TICK / MS, began, Notes::default());
        kernel.datapath.sampling = ftagent::replay::Sampling::OneIn(1);
        Self(kernel)
    }
}

impl Deref for Kernel {
    type Target = ftagent::replay::Kernel<Notes>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Kernel {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}
