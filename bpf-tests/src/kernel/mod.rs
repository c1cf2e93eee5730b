//! One kernel of the matrix: what of ftagent works on the kernel that runs right now.
//!
//! `cargo xtask test --kernels` boots each kernel with the program `kernel-matrix` as its first process; run by hand
//! as root, the same program tells of the kernel at hand. Every row is one line of JSON on standard output.

mod agent;
mod datapath;
mod devices;
pub mod init;
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
    millis: u128,
}

/// Where the programs are that rows start.
#[derive(Clone, Debug)]
pub struct Tools {
    pub ftagent: PathBuf,
    pub ip: PathBuf,
    pub tc: PathBuf,
}

type Row = (&'static str, fn(&Tools) -> Result<Outcome, String>);

/// Every row, in the order of the table.
const ROWS: &[Row] = &[
    ("xdp native", datapath::native),
    ("xdp generic", datapath::generic),
    ("tc", datapath::tc),
    ("blocks", datapath::blocks),
    ("target rules", datapath::target_rules),
    ("limits", datapath::limits),
    ("samples", datapath::samples),
    ("nftables", datapath::nftables),
    ("vlan: parent", devices::vlan_parent),
    ("vlan: child", devices::vlan_child),
    ("bond", devices::bond),
    ("tc police", devices::police),
    ("tc flower", devices::flower),
    ("agent", agent::runs),
];

/// Runs every row whose name contains one of `filters`, or all, and prints them. Returns whether none failed.
pub fn run(tools: &Tools, filters: &[String]) -> bool {
    let mut all_well = true;
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    for (name, row) in ROWS.iter().filter(|(name, _)| wanted(name)) {
        let began = crate::clock::now();
        // A row that panics is a row that failed: the others still have something to tell.
        let outcome = match catch_unwind(AssertUnwindSafe(|| row(tools))) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(why)) => Outcome::Failed(why),
            Err(panic) => Outcome::Failed(words(&*panic)),
        };
        all_well &= !matches!(outcome, Outcome::Failed(_));
        print(&Line { row: name, outcome: &outcome, millis: began.elapsed().as_millis() });
    }
    for (name, outcome) in probes::rows().iter().filter(|(name, _)| wanted(name)) {
        all_well &= !matches!(outcome, Outcome::Failed(_));
        print(&Line { row: name, outcome, millis: 0 });
    }
    for line in agent::check(tools) {
        print(&serde_json::json!({ "check": line }));
    }
    all_well
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
