//! The link against the real control plane, stopped and started again in the middle.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ftagent::sync::{Incoming, Link, Outgoing, Secret};
use ftagent_common::api::{AckStatus, CommandAck, Order};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{PATIENCE, config, heartbeat, next, report, sample, until};

pub(crate) struct ControlPlane {
    child: Child,
    pub(super) data: PathBuf,
    pub(crate) address: SocketAddr,
    /// Where operators ask: plain HTTP on the loopback device.
    operators: SocketAddr,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl ControlPlane {
    /// On a port that is free now.
    pub(crate) fn start_anywhere(program: &Path, data: &Path) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self::start(program, data, address)
    }

    pub(super) fn start(program: &Path, data: &Path, address: SocketAddr) -> Self {
        let mut child = Command::new(program)
            .args(["serve", "--listen", &address.to_string(), "--data"])
            .arg(data)
            .arg("--token-file")
            .arg(data.join("token"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the control plane starts");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("listening on ")), "it listens");
        Self { child, data: data.into(), address, operators: address }
    }

    /// One that agents reach by TLS, with settings by their names in the environment without its prefix.
    pub(super) fn start_with(program: &Path, data: &Path, settings: &[(&str, &str)]) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self::start_at(program, data, settings, free(), free())
    }

    /// The same at these addresses.
    fn start_at(
        program: &Path,
        data: &Path,
        settings: &[(&str, &str)],
        operators: SocketAddr,
        address: SocketAddr,
    ) -> Self {
        let mut command = Command::new(program);
        command.args(["serve", "--listen", &operators.to_string(), "--data"]).arg(data);
        command.env("FTAGENT_CP_TLS_LISTEN", address.to_string());
        for (name, value) in settings {
            command.env(format!("FTAGENT_CP_{name}"), value);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the control plane starts");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("listening on https://")), "it listens");
        Self { child, data: data.into(), address, operators }
    }

    /// Ends it without a word.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it where it was.
    pub(super) fn start_again(&mut self, program: &Path, settings: &[(&str, &str)]) {
        *self = Self::start_at(program, &self.data, settings, self.operators, self.address);
    }

    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.data.join("token")).unwrap().trim().into()
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let body = body.map_or_else(String::new, |b| b.to_string());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.token(),
            body.len()
        );
        let mut tcp = TcpStream::connect(self.operators).await.unwrap();
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{method} {path}: {answer}");
        serde_json::from_str(body).unwrap()
    }
}

/// The control plane's program, if the tests are told where it is.
pub(crate) fn program() -> Option<PathBuf> {
    let program = std::env::var_os("CONTROLPLANE_BIN").map(PathBuf::from);
    if program.is_none() {
        println!("skipped: CONTROLPLANE_BIN does not name the program to test against");
    }
    program
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_control_plane_gets_everything_and_pushes_what_changes() {
    let Some(program) = program() else { return };
    let (data, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let control_plane = ControlPlane::start_anywhere(&program, data.path());
    let address = control_plane.address;
    let mut settings = config(format!("http://{address}"), state.path());
    settings.deploy_token = Some(Secret::new(&control_plane.token()));
    settings.timing.heartbeat = Duration::from_secs(30);
    let mut link = Link::start(settings).await.unwrap();
    link.heartbeat.send_replace(Some(heartbeat()));
    assert!(matches!(next(&mut link).await, Incoming::Config(_)));

    let entry = json!({"ip_address": "198.51.100.10", "label": "monitoring", "scope": "workspace"});
    control_plane.ask("POST", "/api/v1/allowlist", Some(entry)).await;
    let Incoming::Config(pushed) = next(&mut link).await else { panic!("not a configuration") };
    assert_eq!(pushed.allowlist.len(), 1);
    assert_eq!(pushed.allowlist[0].prefix, "198.51.100.10/32".parse().unwrap());

    let nodes = control_plane.ask("GET", "/api/v1/nodes", None).await;
    let node = nodes["nodes"][0]["uuid"].as_str().expect("a node").to_owned();
    let order = json!({"order": {"type": "block", "source": "198.51.100.7/32", "ttl_secs": 60}});
    control_plane.ask("POST", &format!("/api/v1/nodes/{node}/commands"), Some(order)).await;
    let Incoming::Command(command) = next(&mut link).await else { panic!("not a command") };
    assert!(matches!(command.order, Order::Block { ttl_secs: 60, .. }));
    let ack = |error: &str| CommandAck {
        command_id: command.command_id,
        status: AckStatus::Applied,
        error: error.into(),
        output: String::new(),
    };
    link.outgoing.send(Outgoing::Ack(ack(""))).await.unwrap();
    link.outgoing.send(Outgoing::Incident(report(1, 1, "active"))).await.unwrap();
    link.outgoing.send(Outgoing::Metrics(sample(0))).await.unwrap();
    let status = link.status();
    let drained = || status.borrow().spool.queued == 0 && status.borrow().connected;
    until("the first report arrives", drained).await;

    drop(control_plane);
    link.outgoing.send(Outgoing::Incident(report(1, 2, "active"))).await.unwrap();
    link.outgoing.send(Outgoing::Incident(report(1, 3, "resolved"))).await.unwrap();
    until("the loss is seen", || !status.borrow().connected && status.borrow().spool.queued >= 2).await;
    let control_plane = ControlPlane::start(&program, data.path(), address);
    until("all reports arrive", drained).await;

    let incidents = control_plane.ask("GET", "/api/v1/incidents", None).await;
    assert_eq!(incidents["total"], 1, "{incidents}");
    let incident = &incidents["incidents"][0];
    assert_eq!(incident["status"], "resolved");
    assert_eq!(incident["started_at"], "2026-05-12T14:30:00Z");
    assert_eq!(incident["uuid"], uuid::Uuid::from_u128(1).to_string());
    assert_eq!(status.borrow().spool.lost.messages(), 0);
    link.shutdown(PATIENCE).await;
}
