//! `cargo xtask bench controlplane`: a fleet of simulated agents that speak the agent protocol over real sockets, against
//! the real server in a process of its own, on each database.
//!
//! ```text
//! deploy -> connect -> steady: every node at its own pace, operators read, change and order
//!                   -> saturated: as many reports as are taken, beside all that
//!                   -> hostile: strangers beside the steady fleet
//! ```
//! Server, database and simulator share the machine's CPUs: what the simulator uses, the server does not have.

mod agent;
mod fleet;
mod hostile;
mod links;
mod messages;
mod model;
mod operators;
mod postgres;
mod saturate;
mod scene;
mod server;
mod tally;
mod wire;

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

pub use self::fleet::Size;
use self::postgres::Cluster;
use self::scene::{Lengths, Measured};
use self::server::Database;
use super::{Goal, Options};

/// Nodes of the goal: 1,000 that stream and 10,000 that poll.
const NODES: u32 = 11_000;
/// Fleets of the capacity model.
pub const SIZES: [u32; 3] = [500, 2_000, NODES];
/// Files of the server and of the simulator: connections of each node, strangers, callers and some room.
const fn files(size: Size, frugal: bool) -> u64 {
    let each = if frugal { 1 } else { 3 };
    size.nodes() as u64 * each + size.streaming as u64 + 3_000
}

/// The goals, on each database that there is and that `wanted` has a goal of.
pub fn run(
    options: &Options,
    wanted: impl Fn(&str) -> bool,
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<Goal>> {
    let nodes = options.nodes.unwrap_or(NODES);
    let mut goals = Vec::new();
    for database in Database::ALL.into_iter().filter(|database| scene::goals_of(*database).any(&wanted)) {
        let figures = match measure(database, Size::of(nodes), Size::of(nodes), Lengths::of(options), progress)? {
            Ok(measured) => measured.goals(),
            Err(why) => scene::missing(database, &why),
        };
        goals.extend(figures);
    }
    Ok(goals)
}

/// The capacity model: fleets of three sizes on each database, and what follows for larger ones.
pub fn scale(options: &Options, progress: &mut dyn FnMut(&str)) -> anyhow::Result<String> {
    let mut text = String::new();
    for database in Database::ALL {
        let mut points = Vec::new();
        for nodes in SIZES {
            // All in the manner of the largest: what is not alike lies on no line.
            match measure(database, Size::of(nodes), Size::of(NODES), Lengths::of(options), progress)? {
                Ok(measured) => {
                    progress(&format!("{nodes} nodes\n{}", super::report::table(&measured.goals())));
                    points.push(measured.point());
                }
                Err(why) => {
                    text += &format!("{}: not measured: {why}\n", database.name());
                    break;
                }
            }
        }
        if points.len() == SIZES.len() {
            text += &model::table(database.name(), &points);
        }
    }
    Ok(text)
}

/// One fleet on one database, with as many connections each as a fleet `like` that could have; why not, where this
/// machine cannot have it.
fn measure(
    database: Database,
    size: Size,
    like: Size,
    lengths: Lengths,
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<Result<Measured, String>> {
    if database == Database::Postgres && !Cluster::is_there() {
        return Ok(Err("PostgreSQL is not installed (cargo xtask setup --databases installs it)".to_owned()));
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // The server is a child of this process and takes what it is left.
    let has = |files: u64| soft >= files || setrlimit(Resource::RLIMIT_NOFILE, files, files.max(hard)).is_ok();
    let frugal = !has(files(like, false));
    let least = files(size, true);
    if frugal && !has(least) {
        return Ok(Err(format!("{least} open files are needed, this user may have {hard}")));
    }
    // As in the server: where a change wakes a thousand streams, none must wait until nobody else has work.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).global_queue_interval(2).enable_all().build()?;
    let measured = runtime.block_on(scene::play(database, size, frugal, lengths, progress));
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    measured.map(Ok).with_context(|| format!("{} nodes on {}", size.nodes(), database.name()))
}
