//! The real program: start, second start, signals, kill -9 in the middle of writes.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Client;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::support::rule;

/// A running server; killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) url: String,
    lines: Vec<String>,
}

fn command(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_controlplane"));
    command.args(["--listen", "127.0.0.1:0", "--data"]).arg(data).stderr(Stdio::null());
    command
}

impl Process {
    pub(crate) fn start(data: &Path, args: &[&str]) -> Self {
        Self::start_with(data, args, &[])
    }

    /// With settings, by their names in the environment without our prefix.
    pub(crate) fn start_with(data: &Path, args: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut command = command(data);
        for (name, value) in settings {
            command.env(format!("FTAGENT_CP_{name}"), value);
        }
        let child = command.arg("serve").args(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut process = Self { child, url: String::new(), lines: Vec::new() };
        for line in BufReader::new(process.child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(url) = line.strip_prefix("listening on ") {
                process.url = url.to_owned();
                return process;
            }
            process.lines.push(line);
        }
        panic!("it ended before it listened: {:?}", process.lines);
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Host and port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.url.split("//").nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn token(&self) -> Option<String> {
        self.lines.iter().find_map(|l| l.strip_prefix("deploy token: ")).map(str::to_owned)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn run(data: &Path, args: &[&str]) -> (bool, String) {
    let output = command(data).args(args).stderr(Stdio::piped()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

pub(crate) async fn json_of(client: &Client, url: &str, token: &str) -> Value {
    client.get(url).bearer_auth(token).send().await.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn the_first_start_shows_a_token_once_and_a_signal_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let file = folder.path().join("token");
    std::fs::write(&file, "an older one that anybody can read").unwrap();
    let mut first = Process::start(&data, &["--token-file", file.to_str().unwrap()]);
    let token = first.token().unwrap();
    assert!(token.len() == 64 && token.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), token);
    let mode =
        |path: &Path| std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777;
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(&data.join("controlplane.sqlite")), 0o600);
    let client = Client::new();
    assert_eq!(json_of(&client, &format!("{}/api/v1/nodes", first.url), &token).await["total"], 0);

    let (ok, made) = run(&data, &["token", "create", "--name", "ci", "--role", "readonly"]);
    assert!(ok, "{made}");
    let second_token = made.trim().strip_prefix("deploy token: ").unwrap().to_owned();
    assert_eq!(json_of(&client, &format!("{}/api/v1/nodes", first.url), &second_token).await["ok"], true);
    assert!(run(&data, &["token", "list"]).1.contains("readonly"));
    assert!(run(&data, &["token", "revoke", "2"]).0);
    assert_eq!(json_of(&client, &format!("{}/api/v1/nodes", first.url), &second_token).await["ok"], false);
    assert!(!run(&data, &["token", "revoke", "1"]).0, "the last owner");

    let create = async || {
        let url = format!("{}/api/v1/firewall-rules", first.url);
        client.post(url).bearer_auth(&token).json(&rule("r")).send().await.unwrap().status().as_u16()
    };
    assert!(run(&data, &["subscription", "inactive"]).0);
    assert_eq!(create().await, 402);
    assert!(run(&data, &["subscription", "active"]).0);
    assert_eq!(create().await, 200);

    let pid = first.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(first.child.wait().unwrap().success());
    let second = Process::start(&data, &[]);
    assert_eq!(second.token(), None);
    assert!(second.lines.iter().any(|l| l.contains("controlplane token create")));
}

#[tokio::test]
async fn acknowledged_writes_survive_kill_9_and_the_chain_verifies() {
    kill_9(&[]).await;
}

#[tokio::test]
async fn acknowledged_writes_survive_kill_9_on_postgres_too() {
    let Some(cluster) = Cluster::shared() else { return };
    let url = cluster.database().await;
    kill_9(&["--database", &url]).await;
}

/// Kills the program in the middle of writes, four times.
async fn kill_9(database: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(folder.path(), database);
    let token = process.token().unwrap();
    let client = Client::new();
    let mut acknowledged = Vec::new();
    for round in 0..4 {
        let url = format!("{}/api/v1/firewall-rules", process.url);
        let written = Arc::new(AtomicUsize::new(0));
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (client, url, token) = (client.clone(), url.clone(), token.clone());
                let written = written.clone();
                tokio::spawn(async move {
                    let mut names = Vec::new();
                    for n in 0.. {
                        let name = format!("r{round}-{writer}-{n}");
                        let request = client.post(&url).bearer_auth(&token).json(&rule(&name));
                        match request.send().await {
                            Ok(answer) if answer.status() == 200 => {
                                names.push(name);
                                written.fetch_add(1, Ordering::Relaxed);
                            }
                            _ => break,
                        }
                    }
                    names
                })
            })
            .collect();
        // A slow disk takes longer for the first ones.
        for _ in 0..3_000 {
            if written.load(Ordering::Relaxed) >= 4 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(70 * round)).await;
        process.child.kill().unwrap();
        for writer in writers {
            acknowledged.extend(writer.await.unwrap());
        }
        process = Process::start(folder.path(), database);
        assert_eq!(process.token(), None);
    }
    assert!(acknowledged.len() >= 16, "only {} writes were acknowledged", acknowledged.len());
    let mut present = std::collections::HashSet::new();
    for offset in (0..).step_by(500) {
        let url = format!("{}/api/v1/firewall-rules?limit=500&offset={offset}", process.url);
        let page = json_of(&client, &url, &token).await;
        let rules = page["rules"].as_array().unwrap();
        present.extend(rules.iter().map(|r| r["name"].as_str().unwrap().to_owned()));
        if rules.is_empty() {
            break;
        }
    }
    let lost: Vec<_> = acknowledged.iter().filter(|name| !present.contains(*name)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    let verdict = json_of(&client, &format!("{}/api/v1/audit/verify", process.url), &token).await;
    assert_eq!(verdict["intact"], json!(true));
    let audited = json_of(&client, &format!("{}/api/v1/audit?action=rule.create", process.url), &token).await;
    assert_eq!(audited["total"], json!(present.len()), "each rule with its record, and no record without its rule");
    println!("{} acknowledged, {} present", acknowledged.len(), present.len());
}

#[test]
fn what_cannot_work_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("cp.toml");
    std::fs::write(&config, "colour = \"red\"\n").unwrap();
    let config = config.to_str().unwrap();
    let (ok, text) = run(folder.path(), &["--config", config, "check-config"]);
    assert!(!ok && text.contains("colour") && text.contains("cp.toml"), "{text}");
    std::fs::write(config, "log = \"debug\"\nmetrics_minutes_days = 90\n").unwrap();
    let (ok, text) = run(folder.path(), &["--config", config, "check-config"]);
    assert!(ok && text.contains("metrics_minutes_days = 90"), "{text}");
    let (ok, text) = run(folder.path(), &["token", "list"]);
    assert!(!ok && text.contains("serve"), "{text}");
    std::fs::write(folder.path().join("controlplane.sqlite"), "this is no database, whatever its name says".repeat(9))
        .unwrap();
    let (ok, text) = run(folder.path(), &["migrate"]);
    assert!(!ok && text.contains("controlplane.sqlite"), "{text}");
    let (ok, text) = run(folder.path(), &["openapi"]);
    assert!(ok && serde_json::from_str::<Value>(&text).is_ok_and(|d| d["openapi"].is_string()));
}
