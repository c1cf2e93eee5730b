//! The agent's own binary in a lab: what it survives, and what it says when it cannot start.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use bpf_tests::bpffs::LabDir;
use bpf_tests::clock::now;
use bpf_tests::generator::{Bounds, Generator, Pace, Vary};
use bpf_tests::netns::Netns;
use bpf_tests::packet::PacketBuilder;
use bpf_tests::skip_without_root;
use ftagent_common::api::IncidentReport;
use ftagent_common::vocab::IncidentStatus;
use serde_json::Value;

use crate::lab::{EDGE_MAC, EDGE_V4, Lab, WAN_MAC};

/// A built program: named by the environment, else beside this test's own binary.
pub(crate) fn program(variable: &str, name: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join(name)));
    let found = named.or(beside).filter(|path| path.is_file());
    if found.is_none() {
        println!("skipped: {name} is not built; run `cargo build -p {name}` or `cargo xtask test`");
    }
    found
}

/// An agent with a configuration of its own.
pub(crate) struct Agent {
    program: PathBuf,
    pub(crate) config: PathBuf,
    netns: PathBuf,
    /// Records of systemd-logind that it sees instead of the machine's.
    pub(crate) logins: Option<PathBuf>,
    child: Option<Child>,
}

/// A `/run` of its own with somebody's records of logins, and then the program.
const WITH_LOGINS: &str =
    "mount -t tmpfs none /run && mkdir /run/systemd && ln -s \"$0\" /run/systemd/sessions && exec \"$@\"";

impl Agent {
    /// Writes the configuration: the lab's interface, and `extra`.
    pub(crate) fn new(program: PathBuf, dir: &Path, netns: &Netns, extra: &str) -> Self {
        let config = dir.join("ftagent.toml");
        let path = |name: &str| dir.join(name).display().to_string();
        let text = format!(
            "[agent]\nname = \"edge-1\"\nstate_dir = {:?}\nruntime_dir = {:?}\nbpffs = {:?}\n\
             [[interface]]\nname = \"edge0\"\n[detection]\nhold_down_ms = 1500\n{extra}",
            path("state"),
            path("run"),
            path("bpf"),
        );
        std::fs::write(&config, text).expect("a configuration");
        Self { program, config, netns: netns.path().to_owned(), logins: None, child: None }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display()));
        if let (Some(logins), ["run"]) = (&self.logins, words) {
            command.args(["unshare", "-m", "sh", "-c", WITH_LOGINS]).arg(logins);
        }
        command.arg(&self.program).arg("--config").arg(&self.config).args(words).stdin(Stdio::null());
        command
    }

    /// Starts it and waits until it enforces.
    pub(crate) fn start(&mut self) {
        self.spawn();
        self.wait("ready", Duration::from_secs(20), || self.ask("status").is_some_and(|s| s["ready"] == true));
    }

    /// Starts it and waits for nothing.
    pub(crate) fn spawn(&mut self) {
        let log = std::fs::File::create(self.config.with_extension("log")).expect("a log");
        // `exec`ed by nsenter, so that the child's id is the agent's.
        let child = self.command(&["run"]).stdout(Stdio::null()).stderr(log).spawn().expect("starts");
        self.child = Some(child);
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let child = self.child.as_ref().expect("it runs");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), signal).expect("signalled");
    }

    /// Its process, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("killed");
        child.wait().expect("gone");
    }

    /// What a command prints as JSON, if it succeeds.
    pub(crate) fn ask(&self, command: &str) -> Option<Value> {
        let output = self.command(&[command, "--json"]).output().expect("runs");
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("runs")
    }

    /// Runs a command and does not wait for its answer; it ends by itself when nobody answers.
    pub(crate) fn begin(&self, words: &[&str]) -> Child {
        self.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts")
    }

    pub(crate) fn incidents(&self) -> Vec<IncidentReport> {
        let answer = self.ask("incidents").expect("an answer");
        serde_json::from_value(answer["incidents"].clone()).expect("incidents")
    }

    pub(crate) fn rules(&self) -> usize {
        self.ask("rules").and_then(|r| r["rules"].as_array().map(Vec::len)).expect("an answer")
    }

    pub(crate) fn wait(&self, what: &str, patience: Duration, mut done: impl FnMut() -> bool) {
        let deadline = now() + patience;
        while !done() {
            let log = std::fs::read_to_string(self.config.with_extension("log")).unwrap_or_default();
            assert!(now() < deadline, "never {what}: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Frames that a rule of their target dropped, or the gate before it.
    fn mitigated(status: &Value) -> u64 {
        let packets = |reason: &str| status["verdicts"]["edge0"][reason]["packets"].as_u64().unwrap_or(0);
        packets("target_rule") + packets("syn_gate")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Sends forged SYNs from the lab's far end in the background.
pub(crate) fn flood(
    lab: &Lab,
    pps: u64,
    lasts: Duration,
) -> std::thread::JoinHandle<Result<u64, bpf_tests::netns::NetnsError>> {
    let device = lab.wan0.index;
    let work = move || {
        let frame = PacketBuilder::v4([198, 18, 0, 1], EDGE_V4).macs(WAN_MAC, EDGE_MAC).tcp(40_000, 80, 0x02).build();
        let vary = Vary {
            sources: Some("0.0.0.0/1".parse().expect("a prefix")),
            source_ports: Some(1_024..=65_535),
            ..Vary::default()
        };
        let mut generator = Generator::load(&frame, &vary, 7).expect("the generator loads");
        let bounds = Bounds { frames: pps * lasts.as_secs().max(1), time: lasts, stop: None, began: None };
        generator.send(device, Pace::PerSecond(pps), bounds).expect("sends").arrived()
    };
    lab.wan.spawn(work).expect("a thread in the namespace")
}

struct Setup {
    // Ends first: it writes into its directory as long as it runs.
    agent: Agent,
    lab: Lab,
    dir: LabDir,
}

fn setup(name: &str, extra: &str) -> Option<Setup> {
    if skip_without_root(name) {
        return None;
    }
    let program = program("FTAGENT_BIN", "ftagent")?;
    let lab = Lab::new();
    let dir = LabDir::create("agent").expect("a directory");
    let agent = Agent::new(program, dir.path(), &lab.edge, extra);
    Some(Setup { lab, dir, agent })
}

fn link_and_maps(dir: &LabDir) -> (u32, Vec<(String, u32)>) {
    let pins = ftagent::xdp::pins::Pins::below(&dir.bpf()).expect("a bpffs");
    let link =
        ftagent::xdp::info::link(&pins.link(ftagent_common::vocab::AttachMode::Native, "edge0")).expect("a link");
    let maps = std::fs::read_dir(pins.maps()).expect("maps").flatten();
    let mut ids: Vec<(String, u32)> = maps
        .map(|entry| {
            let info = aya::maps::MapInfo::from_pin(entry.path()).expect("a map");
            (entry.file_name().to_string_lossy().into_owned(), info.id())
        })
        .collect();
    ids.sort();
    (link.id, ids)
}

#[test]
fn a_killed_agent_leaves_the_drop_in_force_and_its_heir_adopts_it() {
    let Some(mut setup) = setup("a_killed_agent_leaves_the_drop_in_force_and_its_heir_adopts_it", "") else { return };
    let agent = &mut setup.agent;
    agent.start();
    let before = link_and_maps(&setup.dir);
    let flood = flood(&setup.lab, 50_000, Duration::from_secs(5));
    agent.wait("a rule that drops", Duration::from_secs(4), || {
        agent.ask("status").is_some_and(|s| Agent::mitigated(&s) > 5_000)
    });
    let seen = agent.ask("status").expect("an answer");
    agent.kill();

    // Nobody is there, and the kernel goes on.
    let maps =
        ftagent::xdp::maps::Maps::open(&ftagent::xdp::pins::Pins::below(&setup.dir.bpf()).expect("a bpffs").maps())
            .expect("maps");
    let count = |reason: ftagent_common::abi::Reason| {
        ftagent::xdp::counters::interface(&maps, 0).expect("counters").reasons[reason.index()].packets
    };
    let clean = count(ftagent_common::abi::Reason::Clean);
    std::thread::sleep(Duration::from_millis(500));
    let dropped = count(ftagent_common::abi::Reason::TargetRule) + count(ftagent_common::abi::Reason::SynGate);
    assert!(dropped > Agent::mitigated(&seen) + 10_000, "the drop goes on: {dropped}");
    assert_eq!(count(ftagent_common::abi::Reason::Clean), clean, "nothing passes while nobody is there");

    agent.start();
    assert_eq!(link_and_maps(&setup.dir), before, "the same link and the same maps");
    println!("link {} and {} maps adopted: {:?}", before.0, before.1.len(), before.1);
    assert_eq!(count(ftagent_common::abi::Reason::Clean), clean, "nothing passes while the heir starts");
    let incidents = agent.incidents();
    assert_eq!((incidents.len(), incidents[0].status), (1, IncidentStatus::Active), "the incident goes on");

    flood.join().expect("no panic").expect("sent");
    agent.wait("resolved", Duration::from_secs(10), || agent.incidents()[0].status == IncidentStatus::Resolved);
    assert_eq!(agent.incidents().len(), 1, "one attack, one incident");
    agent.wait("undone", Duration::from_secs(5), || agent.rules() == 0);
    assert_eq!(count(ftagent_common::abi::Reason::Clean), clean, "nothing passed from the kill to the end");
}

#[test]
fn what_keeps_the_agent_from_starting_is_named_with_its_remedy() {
    let Some(setup) = setup("what_keeps_the_agent_from_starting_is_named_with_its_remedy", "") else { return };
    let good = std::fs::read_to_string(&setup.agent.config).expect("the configuration");
    let rows: [(&str, String, &[&str]); 6] = [
        ("an unknown key", good.replace("[agent]", "[agent]\ncolour = \"red\""), &["colour", "unknown field"]),
        ("an interface that is not there", good.replace("edge0", "edge7"), &["edge7 does not exist", "edge0"]),
        ("no bpffs", good.replace("/bpf\"", "\""), &["is not a bpffs", "mount -t bpf"]),
        ("too little memory", format!("{good}[datapath]\nmax_memory_bytes = 1000\n"), &["max_memory_bytes"]),
        (
            "a mode that does not work here",
            good.replace("name = \"edge0\"", "name = \"lo\"\nattach = \"native\""),
            &["lo", "native was asked for"],
        ),
        (
            "no token for the control plane",
            format!("{good}[control_plane]\nurl = \"http://127.0.0.1:9\"\n"),
            &["no deploy token"],
        ),
    ];
    for (name, text, words) in rows {
        std::fs::write(&setup.agent.config, text).expect("written");
        let output = setup.agent.run(&["run"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        for word in words {
            assert!(said.contains(word), "{name}: {word:?} is not in {said}");
        }
    }
    std::fs::write(&setup.agent.config, good).expect("written");
    let missing =
        Command::new(&setup.agent.program).args(["--config", "/nonexistent.toml", "run"]).output().expect("runs");
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nonexistent.toml"));
}

#[test]
fn without_privileges_the_agent_says_which_it_needs() {
    let Some(setup) = setup("without_privileges_the_agent_says_which_it_needs", "") else { return };
    let check = setup.agent.run(&["check"]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    let open: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(setup.dir.path(), open).expect("readable");
    let nobody =
        Command::new(&setup.agent.program).arg("--config").arg(&setup.agent.config).arg("check").uid(65_534).output();
    let Ok(nobody) = nobody else {
        println!("skipped: nobody may not execute {}", setup.agent.program.display());
        return;
    };
    let said = String::from_utf8_lossy(&nobody.stdout).into_owned();
    assert_eq!(nobody.status.code(), Some(1), "{said}");
    assert!(said.contains("CAP_BPF"), "{said}");
}

#[test]
fn a_second_agent_on_one_state_directory_is_refused() {
    let Some(mut setup) = setup("a_second_agent_on_one_state_directory_is_refused", "") else { return };
    setup.agent.start();
    let pid = setup.agent.child.as_ref().expect("it runs").id().to_string();
    for command in ["run", "detach"] {
        let output = setup.agent.run(&[command]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(&pid), "{command} names the other's process: {said}");
    }
    setup.agent.kill();
    let output = setup.agent.run(&["detach"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!setup.dir.bpf().join("ftagent").exists(), "nothing is left pinned");
}

#[test]
fn an_operators_orders_reach_the_kernel_and_the_guard_refuses_friends() {
    let Some(mut setup) = setup(
        "an_operators_orders_reach_the_kernel_and_the_guard_refuses_friends",
        "[[allow]]\nprefix = \"192.0.2.0/24\"\nlabel = \"office\"\n",
    ) else {
        return;
    };
    let agent = &mut setup.agent;
    agent.start();
    fn say(agent: &Agent, words: &[&str]) -> (Option<i32>, String) {
        let output = agent.run(words);
        let all = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&all).into_owned())
    }
    assert_eq!(say(agent, &["block", "198.51.100.7", "--ttl", "10m"]).0, Some(0));
    let (code, said) = say(agent, &["block", "10.99.0.1"]);
    assert_eq!(code, Some(3), "its own address: {said}");
    let (code, said) = say(agent, &["block", "192.0.2.9"]);
    assert_eq!(code, Some(3), "an allowed address: {said}");
    let matches = "protocol udp source-port 53 length 512-1500";
    assert_eq!(
        say(agent, &["rules", "add", "--target", "10.99.0.1", "--match", matches, "--action", "limit 100pps"]).0,
        Some(0)
    );
    assert_eq!(agent.rules(), 2);
    agent.kill();
    agent.start();
    assert_eq!(agent.rules(), 2, "orders of operators outlive the agent");
    assert_eq!(say(agent, &["rules", "delete", "--target", "10.99.0.1", "--match", matches]).0, Some(0));
    assert_eq!(say(agent, &["unblock", "198.51.100.7"]).0, Some(0));
    assert_eq!(say(agent, &["unblock", "198.51.100.7"]).0, Some(3), "there is nothing to lift any more");
    assert_eq!(agent.rules(), 0);
}

#[test]
fn an_address_that_comes_while_the_agent_runs_is_protected() {
    let Some(mut setup) = setup("an_address_that_comes_while_the_agent_runs_is_protected", "") else { return };
    setup.agent.start();
    let refused = |agent: &Agent| agent.run(&["block", "10.99.0.77"]).status.code() == Some(3);
    assert!(!refused(&setup.agent), "nobody's address yet");
    let words = ["-n", setup.lab.edge.name(), "addr", "add", "10.99.0.77/24", "dev", "edge0"];
    assert!(Command::new("ip").args(words).status().expect("iproute2").success());
    let agent = &setup.agent;
    agent.wait("refused as its own", Duration::from_secs(10), || refused(agent));
    agent.wait("counted", Duration::from_secs(5), || {
        let maps = agent.ask("status").map(|s| s["maps"].clone()).unwrap_or_default();
        let protected = maps.as_array().and_then(|maps| maps.iter().find(|m| m["name"] == "PROTECTED")).cloned();
        protected.is_some_and(|m| m["entries"].as_u64() >= Some(3))
    });
}

#[test]
fn an_interface_that_is_made_anew_gets_its_program_again() {
    let Some(mut setup) = setup("an_interface_that_is_made_anew_gets_its_program_again", "") else { return };
    setup.agent.start();
    let interface = |agent: &Agent| agent.ask("status").map(|s| s["interfaces"][0].clone()).unwrap_or_default();
    let before = interface(&setup.agent);
    assert_eq!(before["serves"], serde_json::json!(["edge0"]));
    assert_eq!(before["program"], "ftagent_xdp");
    let ip = |words: &str| {
        let words = ["-n", setup.lab.edge.name()].into_iter().chain(words.split(' '));
        assert!(Command::new("ip").args(words).status().expect("iproute2").success());
    };
    ip("link del edge0");
    let agent = &setup.agent;
    agent.wait("said", Duration::from_secs(5), || {
        agent.ask("status").is_some_and(|s| s["warnings"].to_string().contains("edge0: no such interface now"))
    });
    ip("link add edge0 type veth peer name edge1");
    ip("link set edge0 up");
    agent.wait("attached again", Duration::from_secs(10), || interface(agent)["link_id"] != before["link_id"]);
    let after = interface(agent);
    assert_eq!((after["mode"].as_str(), after["reason"].as_str()), (Some("native"), Some("")));
    let output = agent.run(&["detach"]);
    assert!(!output.status.success(), "the agent runs on");
    let shown = Command::new("ip").args(["-n", setup.lab.edge.name(), "link", "show", "edge0"]).output();
    let shown = String::from_utf8_lossy(&shown.expect("iproute2").stdout).into_owned();
    assert!(shown.contains("xdp"), "{shown}");
    assert!(!agent.ask("status").is_some_and(|s| s["warnings"].to_string().contains("no such interface")));
}

#[test]
fn a_full_map_refuses_the_next_block_and_says_so() {
    let name = "a_full_map_refuses_the_next_block_and_says_so";
    let Some(mut setup) = setup(name, "[datapath]\nmax_blocks = 16\n") else { return };
    setup.agent.start();
    let codes: Vec<Option<i32>> =
        (1..=17).map(|last| setup.agent.run(&["block", &format!("198.51.100.{last}")]).status.code()).collect();
    let done = codes.iter().filter(|code| **code == Some(0)).count();
    assert_eq!((done, codes[16]), (16, Some(1)), "{codes:?}");
    let blocked = setup.agent.ask("status").expect("an answer");
    let map = blocked["maps"].as_array().and_then(|maps| maps.iter().find(|m| m["name"] == "BLOCK4")).cloned();
    let entries = map.and_then(|m| m["entries"].as_u64()).expect("the map is shown");
    assert_eq!(entries as usize, done, "what was said to be blocked is in the kernel, and nothing else");
    let output = setup.agent.run(&["block", "198.51.100.99"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("full"), "{said}");
}

#[test]
fn a_full_disk_delays_neither_detection_nor_the_drop() {
    let Some(mut setup) = setup("a_full_disk_delays_neither_detection_nor_the_drop", "") else { return };
    let state = setup.dir.path().join("state");
    std::fs::create_dir(&state).expect("a directory");
    let size: Option<&str> = Some("size=64k");
    nix::mount::mount(Some("tmpfs"), &state, Some("tmpfs"), nix::mount::MsFlags::empty(), size).expect("a small disk");
    let agent = &mut setup.agent;
    agent.start();
    let filler = state.join("filler");
    while std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&filler)
        .and_then(|mut f| std::io::Write::write_all(&mut f, &[0; 4_096]))
        .is_ok()
    {}
    let flood = flood(&setup.lab, 50_000, Duration::from_secs(2));
    agent.wait("a rule that drops", Duration::from_secs(4), || {
        agent.ask("status").is_some_and(|s| Agent::mitigated(&s) > 5_000)
    });
    agent.wait("said", Duration::from_secs(5), || {
        agent.ask("status").is_some_and(|s| s["warnings"].to_string().contains("no space left"))
    });
    flood.join().expect("no panic").expect("sent");
    std::fs::remove_file(&filler).expect("room again");
    agent.wait("undone", Duration::from_secs(10), || agent.rules() == 0);
    agent.wait("the warning gone", Duration::from_secs(40), || {
        agent.ask("status").is_some_and(|s| !s["warnings"].to_string().contains("no space left"))
    });
    agent.kill();
    nix::mount::umount(&state).expect("unmounts");
}

#[test]
fn an_order_that_was_answered_survives_a_kill() {
    let Some(mut setup) = setup("an_order_that_was_answered_survives_a_kill", "") else { return };
    setup.agent.start();
    for turn in 1..=5 {
        assert!(setup.agent.run(&["block", &format!("198.51.100.{turn}")]).status.success());
        setup.agent.kill();
        setup.agent.start();
        assert_eq!(setup.agent.rules(), turn, "after {turn} kills");
    }
}
