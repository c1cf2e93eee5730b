//! Several control planes: agents go to the next when theirs is gone, lose nothing, and come back.
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use ftagent::sync::{Incoming, Link, Outgoing, Secret};
use serde_json::{Value, json};

use super::controlplane::{ControlPlane, program};
use super::secure::{AUTHORITY, settings, start_on};
use super::server::Server;
use super::{PATIENCE, arrived, config, deployed, is_stream, ok, quiet_stream, refusal, report, until};

/// Agents of each control plane.
const AGENTS: usize = 10;

/// A PostgreSQL of the test's own, in a folder of its own on the loopback device.
struct Postgres {
    programs: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
}

impl Postgres {
    /// None, with a message, where it is not installed.
    fn start() -> Option<Self> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let folders = versions.map(|version| version.path().join("bin")).chain(["/usr/bin".into()]);
        let Some(programs) = folders.filter(|folder| folder.join("initdb").exists()).max() else {
            println!("skipped: PostgreSQL is not installed (cargo xtask setup --databases installs it)");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let postgres = Self { programs, folder: tempfile::tempdir().unwrap(), port };
        let folder = postgres.folder.path();
        let user = postgres.user();
        std::os::unix::fs::chown(folder, user.map(|u| u.0), user.map(|u| u.1)).unwrap();
        let data = postgres.data();
        postgres
            .run("initdb", &["-D", &data, "-U", "ftagent", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]);
        let options = format!(
            "-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={} -c fsync=off",
            folder.display()
        );
        postgres.run("pg_ctl", &["-D", &data, "-o", &options, "-l", "/dev/null", "-w", "start"]);
        Some(postgres)
    }

    fn data(&self) -> String {
        self.folder.path().join("data").to_str().unwrap().to_owned()
    }

    /// Whom it runs as: it refuses root.
    fn user(&self) -> Option<(u32, u32)> {
        let root = nix::unistd::Uid::effective().is_root();
        let named = |name: &str| nix::unistd::User::from_name(name).ok().flatten();
        let user = root.then(|| named("postgres").or_else(|| named("nobody"))).flatten()?;
        Some((user.uid.as_raw(), user.gid.as_raw()))
    }

    fn run(&self, name: &str, args: &[&str]) {
        let mut command = Command::new(self.programs.join(name));
        if let Some((uid, gid)) = self.user() {
            command.uid(uid).gid(gid);
        }
        command.args(args).current_dir("/").env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.unwrap().success(), "{name} {args:?}");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.run("pg_ctl", &["-D", &self.data(), "-m", "immediate", "-w", "stop"]);
    }
}

struct Agent {
    link: Link,
    _state: tempfile::TempDir,
}

impl Agent {
    async fn start(name: &str, first: &ControlPlane, second: &ControlPlane) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut settings = settings(first, state.path());
        settings.urls.push(format!("https://{}", second.address));
        settings.deploy.name = name.into();
        // As in the field, but for the way back.
        settings.timing.backoff = (Duration::from_millis(500), Duration::from_secs(30));
        settings.timing.back = Duration::from_millis(500);
        let mut link = Link::start(settings).await.unwrap();
        // The daemon reads everything.
        let (_, gone) = tokio::sync::mpsc::channel(1);
        let mut incoming = std::mem::replace(&mut link.incoming, gone);
        tokio::spawn(async move { while incoming.recv().await.is_some() {} });
        Self { link, _state: state }
    }

    fn is_at(&self, plane: &ControlPlane) -> bool {
        let status = self.link.status();
        let status = status.borrow();
        status.connected && status.server == plane.address.to_string()
    }

    fn version(&self) -> Option<u64> {
        self.link.status().borrow().config_version
    }

    fn waits(&self) -> u64 {
        self.link.status().borrow().spool.queued
    }
}

fn uuid(agent: usize) -> u128 {
    7_000 + agent as u128
}

async fn everything(plane: &ControlPlane) -> Vec<Value> {
    plane.ask("GET", "/api/v1/incidents?limit=500", None).await["incidents"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_control_planes_is_killed_during_an_attack_and_its_agents_go_over_and_return() {
    let Some(program) = program() else { return };
    let Some(postgres) = Postgres::start() else { return };
    let url = format!("postgres://ftagent@127.0.0.1:{}/postgres", postgres.port);
    let settings = [AUTHORITY[0], AUTHORITY[1], ("DATABASE", url.as_str())];
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    std::fs::create_dir_all(&one).unwrap();
    std::fs::create_dir_all(&two).unwrap();
    let mut a = start_on(&program, &one, &settings);
    for file in ["secrets.key", "ca.pem", "token"] {
        std::fs::copy(one.join(file), two.join(file)).unwrap();
    }
    let b = ControlPlane::start_with(&program, &two, &settings);
    let mut agents = Vec::new();
    for n in 0..2 * AGENTS {
        let (first, second) = if n % 2 == 0 { (&a, &b) } else { (&b, &a) };
        agents.push(Agent::start(&format!("edge-{n}"), first, second).await);
    }
    until("all are connected where they belong", || {
        agents.iter().enumerate().all(|(n, agent)| agent.is_at(if n % 2 == 0 { &a } else { &b }))
    })
    .await;

    // The attack: each node's incident is open, and its reports go on.
    let say = async |agent: usize, revision: u32, status: &str| {
        let mut said = report(uuid(agent), revision, status);
        said.target = format!("10.0.0.{agent}/32").parse().unwrap();
        agents[agent].link.outgoing.send(Outgoing::Incident(said)).await.unwrap();
    };
    for n in 0..agents.len() {
        say(n, 1, "active").await;
    }
    until("every incident is open", || agents.iter().all(|agent| agent.waits() == 0)).await;
    let mut revision = 2;
    for n in 0..agents.len() {
        say(n, revision, "active").await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    a.kill();
    let killed = tokio::time::Instant::now();
    // Of each agent of the killed one: when it is connected to the other, and when nothing is left to say.
    let (mut connected, mut over) = (vec![None; agents.len()], vec![None; agents.len()]);
    let mut round = 0;
    while over.iter().any(Option::is_none) {
        assert!(killed.elapsed() < 2 * PATIENCE, "agents that did not go over: {over:?}");
        if round % 10 == 0 {
            revision += 1;
        }
        for n in 0..agents.len() {
            // Every agent says something each second, one after the other.
            if round % 10 == n % 10 {
                say(n, revision, "active").await;
            }
            if agents[n].is_at(&b) {
                connected[n].get_or_insert_with(|| killed.elapsed());
                if agents[n].waits() == 0 {
                    over[n].get_or_insert_with(|| killed.elapsed());
                }
            }
        }
        round += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (what, times) in [("are connected to the other", connected), ("have nothing left to say", over)] {
        let mut times: Vec<_> = times.into_iter().flatten().step_by(2).collect();
        times.sort();
        println!(
            "{} agents {what} {:?} (first), {:?} (median), {:?} (last) after the kill",
            times.len(),
            times[0],
            times[times.len() / 2],
            times[times.len() - 1]
        );
        assert!(times[times.len() - 1] < PATIENCE);
    }

    // What an operator changes reaches all of them through the one that is left.
    let before: Vec<_> = agents.iter().map(Agent::version).collect();
    let entry = json!({"ip_address": "198.51.100.10", "label": "x", "scope": "workspace"});
    let asked = tokio::time::Instant::now();
    b.ask("POST", "/api/v1/allowlist", Some(entry)).await;
    until("all hear of the change", || agents.iter().zip(&before).all(|(agent, before)| agent.version() > *before))
        .await;
    println!("a change reached {} agents through the one that is left after {:?}", agents.len(), asked.elapsed());
    revision += 1;
    for n in 0..agents.len() {
        say(n, revision, "resolved").await;
    }
    let begun = tokio::time::Instant::now();
    let incidents = loop {
        let incidents = everything(&b).await;
        if incidents.iter().all(|incident| incident["status"] == "resolved") {
            break incidents;
        }
        assert!(begun.elapsed() < PATIENCE, "the last reports do not arrive: {incidents:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(incidents.len(), agents.len(), "each once");
    assert!(incidents.iter().all(|incident| incident["revision"] == revision), "{incidents:?}");
    assert!(agents.iter().all(|agent| agent.link.status().borrow().spool.lost.messages() == 0));
    let verdict = b.ask("GET", "/api/v1/audit/verify", None).await;
    assert_eq!(verdict["intact"], true);

    a.start_again(&program, &settings);
    let back = tokio::time::Instant::now();
    until("those that belong to the first come back to it", || agents.iter().step_by(2).all(|agent| agent.is_at(&a)))
        .await;
    println!("they are back {:?} after it is", back.elapsed());
    assert!(agents.iter().skip(1).step_by(2).all(|agent| agent.is_at(&b)), "the others stay");
    for agent in agents {
        agent.link.shutdown(Duration::ZERO).await;
    }
}

#[tokio::test]
async fn an_agent_asks_the_next_server_and_comes_back_to_the_first() {
    let dir = deployed();
    let script = |seen: &super::Seen| if is_stream(seen) { quiet_stream() } else { ok() };
    let first = Server::start(script).await;
    let address = first.address;
    let second = Server::start(script).await;
    let mut both = config(first.url(), dir.path());
    both.urls.push(second.url());
    let link = Link::start(both).await.unwrap();
    let status = link.status();
    let at = |server: &Server| status.borrow().connected && status.borrow().server == server.address.to_string();
    until("it is at the first", || at(&first)).await;
    first.stop().await;
    link.outgoing.send(Outgoing::Incident(report(1, 1, "active"))).await.unwrap();
    until("the report is at the second", || arrived(&second).len() == 1 && at(&second)).await;
    let first = Server::start_on(address, None, script).await;
    until("it is back", || at(&first)).await;
    link.outgoing.send(Outgoing::Incident(report(1, 2, "active"))).await.unwrap();
    until("and reports there", || arrived(&first).len() == 1).await;
    link.shutdown(Duration::ZERO).await;

    // One that answers, but not well, is left too; one that refuses a message is right.
    let ill = Server::start(|_| refusal(503)).await;
    let mut both = config(ill.url(), dir.path());
    both.urls.push(second.url());
    both.deploy_token = Some(Secret::new("t0ken"));
    let mut link = Link::start(both).await.unwrap();
    let status = link.status();
    until("it is at the second", || {
        let status = status.borrow();
        status.connected && status.server == second.address.to_string()
    })
    .await;
    while let Ok(Incoming::Config(_) | Incoming::Command(_)) = link.incoming.try_recv() {}
    link.shutdown(Duration::ZERO).await;
    ill.stop().await;
}
