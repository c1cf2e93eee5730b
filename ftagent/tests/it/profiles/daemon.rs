//! The agent itself and the real control plane: a profile ordered over REST, tried, confirmed, kept over a kill, and
//! taken back at the node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use super::site::{Site, dump, inside, same, wait};
use crate::sync::controlplane::{ControlPlane, program};

const PATIENCE: Duration = Duration::from_secs(60);

struct Node {
    folder: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// Writes the configuration; the interface is the site's.
    fn new(folder: &Path, control_plane: &ControlPlane) -> Self {
        let at = |name: &str| folder.join(name).display().to_string();
        fs::create_dir(folder.join("bpf")).unwrap();
        mount(Some("bpf"), &folder.join("bpf"), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        let text = format!(
            "[agent]\nname = \"edge-1\"\nstate_dir = {:?}\nruntime_dir = {:?}\nbpffs = {:?}\n\
             [[interface]]\nname = \"ft0\"\n[control_plane]\nurl = \"http://{}\"\ndeploy_token = {:?}\n",
            at("state"),
            at("run"),
            at("bpf"),
            control_plane.address,
            control_plane.token(),
        );
        fs::write(folder.join("ftagent.toml"), text).unwrap();
        Self { folder: folder.into(), child: None }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ftagent"));
        command.arg("--config").arg(self.folder.join("ftagent.toml")).args(words).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn ask(&self, words: &[&str]) -> Option<Value> {
        let output = self.run(&[words, &["--json"]].concat());
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    fn start(&mut self) {
        let log = fs::File::create(self.folder.join("log")).unwrap();
        self.child = Some(self.command(&["run"]).stdout(Stdio::null()).stderr(log).spawn().unwrap());
        for _ in 0..300 {
            if self.ask(&["status"]).is_some_and(|status| status["ready"] == true) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the agent does not start: {}", fs::read_to_string(self.folder.join("log")).unwrap());
    }

    fn end(&mut self, signal: nix::sys::signal::Signal) {
        let mut child = self.child.take().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        child.wait().unwrap();
    }

    fn phase(&self) -> Option<String> {
        let profile = self.ask(&["profile"])?["profile"].clone();
        profile["phase"].as_str().map(str::to_owned)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

#[test]
fn a_profile_is_ordered_tried_confirmed_and_taken_back() {
    let Some(program) = program() else { return };
    if !ftagent::object::is_built() {
        println!("skipped: built without a compiler for BPF");
        return;
    }
    let (data, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    inside(move || {
        let mut site = Site::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let control_plane = ControlPlane::start_anywhere(&program, data.path());
        let ask = |method: &str, path: &str, body: Option<Value>| {
            runtime.block_on(control_plane.ask(method, &format!("/api/v1{path}"), body))
        };
        let mut node = Node::new(folder.path(), &control_plane);
        node.start();
        wait("the node is there", PATIENCE, || ask("GET", "/nodes", None)["total"] == 1);
        let agent = || ask("GET", "/nodes", None)["nodes"][0]["protocol_version"].clone();
        wait("its agent is known", PATIENCE, || agent() == 2 || agent().is_null());
        std::thread::sleep(Duration::from_secs(2));
        let before = dump();
        let apply = |suite: &str| {
            let body = json!({
                "profile_id": "fintech", "suite": suite, "node_ids": ["all"], "confirm_secs": 300,
                "keep": { "ports": [22], "sources": [] },
            });
            ask("POST", "/attack-profiles/apply", Some(body))["applications"][0]["id"].as_i64().unwrap()
        };
        let application =
            |id: i64| ask("GET", &format!("/attack-profiles/applications/{id}"), None)["application"].clone();
        let stands = |id: i64, status: &str| {
            wait(status, PATIENCE, || application(id)["status"] == status);
        };

        let first = apply("nftables");
        stands(first, "trial");
        assert_eq!(node.phase().as_deref(), Some("trial"));
        assert!(!site.is_open());
        site.check("on trial");
        let shown = String::from_utf8(node.run(&["profile"]).stdout).unwrap();
        assert!(shown.contains("fintech in nftables: on trial") && shown.contains("127.0.0.1/32"), "{shown}");
        let status = String::from_utf8(node.run(&["status"]).stdout).unwrap();
        assert!(status.contains("profile    fintech in nftables: on trial"), "{status}");
        ask("POST", &format!("/attack-profiles/applications/{first}/confirm"), Some(json!({})));
        stands(first, "confirmed");
        assert_eq!(node.phase().as_deref(), Some("confirmed"));

        node.end(nix::sys::signal::SIGKILL);
        site.check("without an agent");
        node.start();
        assert_eq!(node.phase().as_deref(), Some("confirmed"));
        let back = node.run(&["profile", "rollback"]);
        assert!(back.status.success(), "{back:?}");
        same("taken back at the node", &dump(), &before);
        stands(first, "rolled_back");
        assert!(application(first)["error"].as_str().unwrap().contains("an operator took it back"));
        assert!(site.is_open());

        // Confirmed at the node, and taken back there when the agent is gone.
        let second = apply("iptables");
        stands(second, "trial");
        assert!(node.run(&["profile", "confirm"]).status.success());
        stands(second, "confirmed");
        node.end(nix::sys::signal::SIGTERM);
        assert!(!site.is_open());
        let back = node.run(&["profile", "rollback"]);
        let said = String::from_utf8_lossy(&back.stdout).into_owned();
        assert!(back.status.success() && said.contains("nothing of application"), "{back:?}");
        same("taken back without the agent", &dump(), &before);

        node.start();
        stands(second, "rolled_back");
        assert!(application(second)["error"].as_str().unwrap().contains("without the agent"));

        // What is on trial when the agent is told to stop goes with it, and the control plane hears of it.
        let third = apply("nftables");
        stands(third, "trial");
        ask("POST", &format!("/attack-profiles/applications/{third}/rollback"), Some(json!({})));
        stands(third, "rolled_back");
        let fourth = apply("nftables");
        stands(fourth, "trial");
        node.end(nix::sys::signal::SIGTERM);
        stands(fourth, "lapsed");
        assert!(application(fourth)["error"].as_str().unwrap().contains("the agent was stopped"));
        same("stopped on trial", &dump(), &before);
        site.check("at the end");
    });
}
