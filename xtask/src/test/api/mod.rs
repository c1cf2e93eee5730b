//! `cargo xtask test --api`: the OpenAPI document before a validator, and every operation before a fuzzer that reads it.
//!
//! The real program on SQLite and on PostgreSQL, called by an owner, by nodes, with a feed token and by nobody.
//! Required are no server error and no answer (status, headers, media type, schema) that the document does not have.

mod http;
mod passes;
mod postgres;
mod python;
mod server;
mod world;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use self::passes::{Depth, Pass};
use self::python::Python;
pub(crate) use self::server::Database;
use self::server::Server;
use self::world::World;
use crate::repo::Build;
use crate::{process, repo};

/// Answers without end: they are opened by us, because the fuzzer waits for the end.
const STREAMS: [(&str, &str); 2] =
    [("/api/v1/events", "text/event-stream"), ("/api/v1/agent/stream", "application/x-ndjson")];

/// A share of the fuzzing for CI: one database, few examples, and not every bound of every schema in turn.
pub(crate) const SHARE: Extent =
    Extent { databases: &[Database::Sqlite], depth: Depth { examples: 6, seed: 1, phases: "examples,fuzzing" } };

/// How much is tried.
pub(crate) struct Extent {
    databases: &'static [Database],
    depth: Depth,
}

impl Extent {
    /// On one database, or on both.
    pub(crate) fn new(database: Option<Database>, examples: u32, seed: u64) -> Self {
        let databases: &[Database] = match database {
            None => &Database::ALL,
            Some(Database::Sqlite) => &[Database::Sqlite],
            Some(Database::Postgres) => &[Database::Postgres],
        };
        let depth = Depth { examples, seed, phases: "examples,coverage,fuzzing" };
        Self { databases, depth }
    }
}

/// Runs it and prints a line of figures for each caller and database.
///
/// # Errors
/// Tools that cannot be had, a server that does not start or ends.
pub(crate) fn run(extent: &Extent, build: Build) -> Result<ExitCode> {
    let python = Python::ensure()?;
    let program = repo::controlplane(build)?;
    let mut failed = false;
    println!(
        "{:<11} {:<12} {:>10} {:>8} {:>8} {:>8} {:>9} {:>6}",
        "database", "caller", "operations", "cases", "done", "errors", "failures", "s"
    );
    for database in extent.databases {
        failed |= fuzz(&python, &program, *database, extent)?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Whether anything failed on one database.
fn fuzz(python: &Python, program: &Path, database: Database, extent: &Extent) -> Result<bool> {
    let mut server = Server::start(program, database)?;
    let url = format!("http://{}", server.client.address);
    let served = server.client.send("GET", "/api/openapi.json", &[], b"")?;
    ensure!(served.status == 200, "the document was not served: {}", served.status);
    let path = server.folder.join("openapi.json");
    fs::write(&path, &served.body)?;
    process::capture(python.program("openapi-spec-validator").args(["--schema", "3.1"]).arg(&path))
        .context("the OpenAPI document is not valid")?;
    let document: Value = serde_json::from_slice(&served.body)?;
    let world = World::make(&server, &document)?;
    streams(&server, &world)?;

    let mut failed = false;
    for pass in passes(&server, &world) {
        let began = Instant::now();
        let file = world.write(&server, pass.as_nodes)?;
        let figures = pass.run(python, &url, &file, &extent.depth)?;
        server.check()?;
        println!(
            "{:<11} {:<12} {:>10} {:>8} {:>8} {:>8} {:>9} {:>6}",
            database.as_str(),
            pass.name,
            figures.operations,
            figures.cases,
            figures.accepted,
            figures.server_errors,
            figures.failures.len(),
            began.elapsed().as_secs()
        );
        for failure in &figures.failures {
            println!("  {failure}");
        }
        for operation in &figures.never {
            println!("  never done: {operation}");
        }
        failed |= !figures.failures.is_empty();
    }
    // The credentials lived through it: what was refused was not all refused for want of them.
    let bearer = format!("Bearer {}", server.client.token);
    let answer = server.client.send("GET", "/api/v1/audit/verify", &[("Authorization", &bearer)], b"")?;
    ensure!(answer.status == 200, "the owner's token does not work any more: {}", answer.status);
    let verdict: Value = serde_json::from_slice(&answer.body)?;
    ensure!(verdict["intact"] == true, "the audit chain is broken: {verdict}");
    println!("{:<11} audit chain intact, {} records", database.as_str(), verdict["records"]);
    let log = fs::read_to_string(server.log())?;
    let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR") || line.contains("panicked")).collect();
    ensure!(errors.is_empty(), "the server logged errors: {}", errors.join("\n"));
    Ok(failed)
}

fn passes(server: &Server, world: &World) -> [Pass; 4] {
    let bearer = |token: &str| vec![format!("Authorization: Bearer {token}")];
    [
        Pass { name: "nobody", operations: &[], headers: Vec::new(), as_nodes: false, serves: false },
        Pass {
            name: "feed token",
            operations: &["--include-tag", "feeds"],
            headers: bearer(&world.feed_token),
            as_nodes: false,
            serves: true,
        },
        Pass {
            name: "node key",
            operations: &["--include-tag", "agent", "--exclude-path", STREAMS[1].0],
            headers: Vec::new(),
            as_nodes: true,
            serves: true,
        },
        Pass {
            name: "owner",
            operations: &["--exclude-tag", "agent", "--exclude-tag", "feeds", "--exclude-path", STREAMS[0].0],
            headers: bearer(&server.client.token),
            as_nodes: false,
            serves: true,
        },
    ]
}

/// Opens what has no end, reads its beginning and leaves.
fn streams(server: &Server, world: &World) -> Result<()> {
    let owner = format!("Bearer {}", server.client.token);
    let node = world.node();
    for (path, content_type) in STREAMS {
        let headers = if path.contains("/agent/") {
            vec![(node[0].0, node[0].1.as_str()), (node[1].0, node[1].1.as_str())]
        } else {
            vec![("Authorization", owner.as_str())]
        };
        let answer = server.client.open(path, &headers)?;
        ensure!((answer.status, answer.content_type.as_str()) == (200, content_type), "{path}: {}", answer.status);
    }
    Ok(())
}
