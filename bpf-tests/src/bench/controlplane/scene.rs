//! One fleet on one database, from its deployment to the strangers beside it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::agent::World;
use super::fleet::{self, Size};
use super::model::Point;
use super::saturate::Taken;
use super::server::{Database, Server};
use super::tally::Times;
use super::wire::Place;
use super::{hostile, links, operators, saturate};
use crate::bench::{Goal, Options};
use crate::clock::now;

/// How long each part takes.
#[derive(Clone, Copy)]
pub(super) struct Lengths {
    settle: Duration,
    steady: Duration,
    saturated: Duration,
    hostile: Duration,
}

impl Lengths {
    pub(super) fn of(options: &Options) -> Self {
        let [settle, steady, saturated, hostile] = if options.quick { [8, 20, 8, 10] } else { [32, 60, 20, 40] };
        let secs = Duration::from_secs;
        Self { settle: secs(settle), steady: secs(steady), saturated: secs(saturated), hostile: secs(hostile) }
    }
}

/// Median and 99th percentile in milliseconds, and of how many.
#[derive(Clone, Copy, Debug, Default)]
struct Latency {
    median: Option<f64>,
    p99: Option<f64>,
    count: u64,
}

impl Latency {
    fn of(times: &Times) -> Self {
        Self { median: times.quantile(0.5), p99: times.quantile(0.99), count: times.count() }
    }

    fn words(&self) -> String {
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        format!("p50 {} ms, p99 {} ms of {}", ms(self.median), ms(self.p99), self.count)
    }
}

/// What a fleet and its server did.
pub(super) struct Measured {
    database: Database,
    size: Size,
    frugal: bool,
    orders: Latency,
    changes: Latency,
    links: Latency,
    agents: Latency,
    operators: Latency,
    requests_per_sec: f64,
    samples_per_sec: f64,
    cores: f64,
    database_cores: f64,
    memory_mib: f64,
    peak_mib: f64,
    files: u64,
    bytes_per_sec: f64,
    taken: Taken,
    saturated: Latency,
    saturated_cores: f64,
    hostile: Latency,
    deployed_per_sec: f64,
    /// What went wrong: bad answers, requests and changes that were lost, by part, and what the bad ones were.
    faults: [([u64; 2], String); 3],
    complaints: String,
}

pub(super) async fn play(
    database: Database,
    size: Size,
    frugal: bool,
    lengths: Lengths,
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<Measured> {
    let name = database.name();
    let server = Server::start(database)?;
    let world = Arc::new(World::new(Place::new(server.address), frugal));
    let tally = &world.tally;
    let token = fleet::token(&world, &server.token).await?;
    fleet::furnish(&world, &token).await?;
    progress(&format!("{name}: deploying {} nodes", size.nodes()));
    let began = now();
    let nodes = fleet::deploy(&world, &token, size.nodes()).await?;
    let deployed_per_sec = nodes.len() as f64 / began.elapsed().as_secs_f64();

    progress(&format!("{name}: {} nodes stream, {} poll", size.streaming, size.polling));
    let folder = tempfile::Builder::new().prefix("ftagent-links-").tempdir()?;
    let mut real = links::start(&world, &token, folder.path()).await?;
    let mut fleet = fleet::start(&world, &nodes, size);
    fleet::connected(&world, size, Duration::from_secs(60)).await?;
    sleep(lengths.settle).await;

    let mut people = JoinSet::new();
    let (streaming, _) = nodes.split_at(size.streaming as usize);
    spawn_operators(&mut people, &world, &token, &nodes, streaming);
    tally.clear();
    let before = (server.usage()?, server.database_bytes()?, now());
    sleep(lengths.steady).await;
    let after = (server.usage()?, server.database_bytes()?);
    let secs = before.2.elapsed().as_secs_f64();
    let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let faults = || ([count(&tally.bad), count(&tally.lost)], tally.statuses());
    let steady_faults = faults();
    let (((used, database_used), bytes), ((was, database_was), bytes_were)) = (after, (before.0, before.1));
    let mut measured = Measured {
        database,
        size,
        frugal,
        orders: Latency::of(&tally.orders),
        changes: Latency::of(&tally.changes),
        links: Latency::of(&tally.links),
        agents: Latency::of(&tally.agents),
        operators: Latency::of(&tally.operators),
        requests_per_sec: count(&tally.good) as f64 / secs,
        samples_per_sec: count(&tally.samples) as f64 / secs,
        cores: (used.cpu_secs - was.cpu_secs) / secs,
        database_cores: (database_used - database_was) / secs,
        memory_mib: used.memory_mib,
        peak_mib: used.peak_mib,
        files: used.files,
        bytes_per_sec: bytes.saturating_sub(bytes_were) as f64 / secs,
        taken: Taken::default(),
        saturated: Latency::default(),
        saturated_cores: 0.0,
        hostile: Latency::default(),
        deployed_per_sec,
        faults: [steady_faults, Default::default(), Default::default()],
        complaints: String::new(),
    };

    progress(&format!("{name}: as many reports as are taken"));
    tally.clear();
    let (before, began) = (server.usage()?.0, now());
    measured.taken = saturate::run(&world, &nodes, lengths.saturated).await;
    measured.saturated_cores = (server.usage()?.0.cpu_secs - before.cpu_secs) / began.elapsed().as_secs_f64();
    measured.saturated = Latency::of(&tally.agents);
    measured.faults[1] = faults();

    progress(&format!("{name}: strangers beside the fleet"));
    let mut strangers = hostile::start(&world, &token);
    // What the phase before left behind is gone, and every stranger there.
    sleep(Duration::from_secs(2)).await;
    tally.clear();
    sleep(lengths.hostile).await;
    measured.hostile = Latency::of(&tally.agents);
    measured.faults[2] = faults();
    measured.peak_mib = server.usage()?.0.peak_mib;
    measured.complaints = server.complaints();
    for tasks in [&mut strangers, &mut people, &mut fleet, &mut real] {
        tasks.shutdown().await;
    }
    Ok(measured)
}

fn spawn_operators(
    tasks: &mut JoinSet<()>,
    world: &Arc<World>,
    token: &str,
    nodes: &[super::messages::Identity],
    streaming: &[super::messages::Identity],
) {
    let (reads, reader, all) = (world.clone(), token.to_owned(), nodes.to_vec());
    tasks.spawn(async move { operators::read(&reads, &reader, &all).await });
    let (changes, writer, streaming) = (world.clone(), token.to_owned(), streaming.to_vec());
    tasks.spawn(async move { operators::change(&changes, &writer, &streaming).await });
}

/// Id on SQLite and on PostgreSQL, what it is, its unit, and what is wanted.
type Figure = ([&'static str; 2], &'static str, &'static str, &'static str);

const FIGURES: [Figure; 10] = [
    (["C1s", "C1p"], "reports that are acknowledged a second, saturated", "/s", ">= 8000 /s"),
    (["C2s", "C2p"], "an order: sent off to at its node, p99", "ms", "<= 50 ms"),
    (["C3s", "C3p"], "a change for all: sent off to at each stream, p99", "ms", "<= 50 ms"),
    (["C4s", "C4p"], "requests of agents, p99", "ms", ""),
    (["C5s", "C5p"], "requests of operators, p99", "ms", ""),
    (["C6s", "C6p"], "CPUs that the server uses", "CPUs", ""),
    (["C7s", "C7p"], "memory that the server used at most", "MiB", ""),
    (["C8s", "C8p"], "growth of the database before anything is deleted", "KiB/s", ""),
    (["C9s", "C9p"], "requests of agents beside strangers, p99", "ms", "<= 250 ms"),
    (["C10s", "C10p"], "answers of the steady fleet that are bad or missing", "", "<= 0"),
];

/// The ids of what is measured on a database.
pub(super) fn goals_of(database: Database) -> impl Iterator<Item = &'static str> {
    FIGURES.iter().map(move |(ids, ..)| ids[usize::from(database == Database::Postgres)])
}

fn what(database: Database, what: &str) -> String {
    format!("{}: {what}", database.name())
}

fn goal(database: Database, figure: &Figure, value: Option<f64>, detail: String) -> Goal {
    let (ids, title, unit, wanted) = figure;
    let id = ids[usize::from(database == Database::Postgres)];
    let bound = wanted.split(' ').nth(1).and_then(|bound| bound.parse::<f64>().ok());
    let met =
        value.zip(bound).map(|(value, bound)| if wanted.starts_with(">=") { value >= bound } else { value <= bound });
    Goal { value, met, detail, rounds: 1, ..Goal::missing(id, &what(database, title), unit, wanted, "") }
}

/// The goals without figures, and why.
pub(super) fn missing(database: Database, why: &str) -> Vec<Goal> {
    FIGURES.iter().map(|figure| goal(database, figure, None, why.to_owned())).collect()
}

impl Measured {
    pub(super) fn goals(&self) -> Vec<Goal> {
        let Size { streaming, polling } = self.size;
        let faults = |part: usize| {
            let ([bad, lost], statuses) = &self.faults[part];
            format!("{bad} bad answers{statuses}, {lost} lost")
        };
        let values: [(Option<f64>, String); 10] = [
            (
                Some(self.taken.events),
                format!(
                    "{:.0} of them by callers who send the next at once, the rest by {streaming} streaming and {polling} polling nodes; {:.0} seconds of traffic and {:.0} incidents a second; {}; the server used {:.2} CPUs; {}",
                    self.taken.callers,
                    self.taken.samples,
                    self.taken.incidents,
                    self.saturated.words(),
                    self.saturated_cores,
                    faults(1)
                ),
            ),
            (self.orders.p99, self.orders.words()),
            (
                self.changes.p99,
                format!("{}; at {} real links of the agent {}", self.changes.words(), links::LINKS, self.links.words()),
            ),
            (
                self.agents.p99,
                format!(
                    "{}; {:.0} requests and {:.0} seconds of traffic a second",
                    self.agents.words(),
                    self.requests_per_sec,
                    self.samples_per_sec
                ),
            ),
            (self.operators.p99, self.operators.words()),
            (
                Some(self.cores),
                format!(
                    "{:.2} more in the database; {:.0} nodes were deployed a second",
                    self.database_cores, self.deployed_per_sec
                ),
            ),
            (
                Some(self.peak_mib),
                format!(
                    "{:.0} MiB in the steady part, {} open files, nodes with {}",
                    self.memory_mib,
                    self.files,
                    if self.frugal { "one connection beside the stream" } else { "all their connections" }
                ),
            ),
            (Some(self.bytes_per_sec / 1_024.0), "log of writes included on SQLite".to_owned()),
            (self.hostile.p99, format!("{}; {}", self.hostile.words(), faults(2))),
            (Some(self.faults[0].0.iter().sum::<u64>() as f64), format!("{}; {}", faults(0), self.complaints)),
        ];
        FIGURES.iter().zip(values).map(|(figure, (value, detail))| goal(self.database, figure, value, detail)).collect()
    }

    pub(super) fn point(&self) -> Point {
        Point {
            nodes: self.size.nodes().into(),
            connections: self.files as f64,
            requests: self.requests_per_sec,
            samples: self.samples_per_sec,
            cores: self.cores,
            database_cores: self.database_cores,
            memory_mib: self.memory_mib,
            bytes_per_sec: self.bytes_per_sec,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_judged_by_what_is_wanted() {
        let judged = |n: usize, value| goal(Database::Postgres, &FIGURES[n], value, String::new());
        assert_eq!((judged(0, Some(7_999.0)).met, judged(0, Some(8_000.0)).met), (Some(false), Some(true)));
        assert_eq!((judged(1, Some(50.1)).met, judged(1, Some(50.0)).met), (Some(false), Some(true)));
        assert_eq!((judged(3, Some(1.0)).met, judged(0, None).met), (None, None));
        assert_eq!((judged(9, Some(1.0)).met, judged(9, Some(0.0)).id), (Some(false), "C10p"));
        assert_eq!(missing(Database::Sqlite, "why").len(), FIGURES.len());
    }
}
