//! One kernel of the matrix: what of ftagent works on the kernel that runs right now.
//!
//! `cargo xtask test --kernels` boots each kernel with the program `kernel-matrix` as its first process; run by hand
//! as root, the same program tells of the kernel at hand. Every row is one line of JSON on standard output.

mod agent;
mod below;
mod datapath;
mod devices;
mod fallback;
pub mod init;
mod police;
mod probes;
mod stage;

use std::any::Any;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use serde::Serialize;

/// What lines of ours begin with among those of the kernel on the same console.
pub const MARK: &str = "@matrix ";

/// How one row came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "detail", rename_all = "lowercase")]
pub enum Outcome {
    /// Works as on every kernel.
    Ok(String),
    /// Works in another way, or less well.
    Degraded(String),
    /// Is not there, and was left out as it should be.
    Missing(String),
    /// Should work here and does not.
    Failed(String),
}

#[derive(Serialize)]
struct Line<'a> {
    row: &'a str,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

/// Where the programs are that rows start.
#[derive(Clone, Debug)]
pub struct Tools {
    pub ftagent: PathBuf,
    pub ip: PathBuf,
    pub tc: PathBuf,
}

type Row = (&'static str, fn(&Tools) -> Result<Outcome, String>);

/// Rows with a stage of their own each.
const ROWS: &[Row] = &[
    ("every program", probes::programs),
    ("xdp native", datapath::native),
    ("xdp generic", datapath::generic),
    ("tc", datapath::tc),
    ("nftables", datapath::nftables),
    ("vlan: parent", devices::vlan_parent),
    ("vlan: child", devices::vlan_child),
    ("bond", devices::bond),
    ("tc police", devices::police),
    ("tc flower", devices::flower),
    ("action: tc police", police::action),
    ("fall-back: tc", fallback::tc),
    ("fall-back: null route", fallback::null_route),
    ("agent", agent::runs),
    ("agent: vlan", below::vlan),
    ("agent: bond", below::bond),
];

/// Runs every row and prints them, then what `ftagent check` says; or those alone whose names contain `part`. Returns
/// whether no row failed.
pub fn run(tools: &Tools, part: Option<&str>) -> bool {
    let mut all_well = true;
    let mut tell = |row: &str, outcome: Outcome| {
        all_well &= !matches!(outcome, Outcome::Failed(_));
        print(&Line { row, outcome: &outcome });
    };
    for (name, row) in ROWS.iter().filter(|(name, _)| part.is_none_or(|part| name.contains(part))) {
        tell(name, caught(|| row(tools)));
    }
    if part.is_some() {
        return all_well;
    }
    match catch_unwind(datapath::rules) {
        Ok(rows) => rows.into_iter().for_each(|(name, result)| tell(name, result.unwrap_or_else(Outcome::Failed))),
        Err(panic) => tell("rules", Outcome::Failed(words(&*panic))),
    }
    probes::rows().into_iter().for_each(|(name, outcome)| tell(name, outcome));
    for line in agent::check(tools) {
        print(&serde_json::json!({ "check": line }));
    }
    all_well
}

/// A row that panics is a row that failed: the others still have something to tell.
fn caught(row: impl FnOnce() -> Result<Outcome, String>) -> Outcome {
    match catch_unwind(AssertUnwindSafe(row)) {
        Ok(result) => result.unwrap_or_else(Outcome::Failed),
        Err(panic) => Outcome::Failed(words(&*panic)),
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_else(|| "a panic".to_owned())
}

fn print(line: &impl Serialize) {
    let text = serde_json::to_string(line).expect("a line of plain words");
    // On its own line, whatever stands there already; a console that is gone has nobody to be told of it.
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "\n{MARK}{text}"));
    drop(out.flush());
}
