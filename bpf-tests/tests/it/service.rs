//! The shipped unit under a systemd of its own: what its sandbox leaves is enough for the agent and for the tools that
//! it runs.
//!
//! The machine's own root is laid under a file system in memory, and systemd boots there in namespaces of its own, of
//! which that of the network is the lab's.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use bpf_tests::bpffs::LabDir;
use bpf_tests::clock::now;
use bpf_tests::skip_without_root;
use ftagent_common::api::{ExecutionOutcome, IncidentReport, RuleExecution};

use crate::agent::{flood, program};
use crate::lab::Lab;

/// An action of each tool that needs no server of its own.
const CONFIG: &str = r#"
[agent]
name = "edge-1"
[[interface]]
name = "edge0"
[detection]
hold_down_ms = 1500
[response]
automatic = false
[[rule]]
name = "iptables"
trigger = { type = "any" }
action = { type = "iptables_drop_port", protocol = "tcp", port = 81 }
[[rule]]
name = "ipset"
trigger = { type = "any" }
action = { type = "ipset_ban", set = "banned", sources = ["198.51.100.8/32"] }
[[rule]]
name = "nftables"
trigger = { type = "any" }
action = { type = "nft_drop_source", sources = ["198.51.100.9/32"] }
[[rule]]
name = "route"
trigger = { type = "any" }
action = { type = "null_route_source", sources = ["198.51.100.10/32"] }
[[rule]]
name = "sysctl"
trigger = { type = "any" }
action = { type = "syn_cookies" }
[[rule]]
name = "tc"
trigger = { type = "any" }
action = { type = "tc_police_interface", interface = "edge0", bps = 1000000000 }
[[rule]]
name = "xdp"
trigger = { type = "any" }
action = { type = "xdp_drop_source", sources = ["198.51.100.12/32"] }
"#;
const ACTIONS: usize = 7;

const TARGET: &str = "[Unit]\nRequires=sysinit.target\nAllowIsolate=yes\n";

/// `$1`: a folder of the lab's; `$2`: who boots it; the rest: its arguments.
const BOOT: &str = "
set -e
mount -t tmpfs none \"$1\"
mkdir \"$1/upper\" \"$1/work\" \"$1/root\"
mount -t overlay overlay -o \"lowerdir=/,upperdir=$1/upper,workdir=$1/work\" \"$1/root\"
mkdir -p \"$1/root/etc/ftagent\" \"$1/root/etc/ufw\"
at=\"$1/root\" boot=\"$2\"
shift 2
exec \"$boot\" -D \"$at\" \"$@\"";

/// A booted systemd.
struct Machine {
    boot: Child,
    leader: u32,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Everybody in its namespace of processes goes with the first of them.
        let first = nix::unistd::Pid::from_raw(self.leader.cast_signed());
        nix::sys::signal::kill(first, nix::sys::signal::Signal::SIGKILL).ok();
        self.boot.kill().ok();
        self.boot.wait().ok();
    }
}

fn nspawn() -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/firewalls/root/usr/bin/systemd-nspawn");
    let all = [PathBuf::from("/usr/bin/systemd-nspawn"), unpacked];
    let is_there = Path::new("/usr/lib/systemd/systemd").is_file();
    all.into_iter().find(|path| is_there && path.is_file())
}

impl Machine {
    /// Boots one, or says why there is none.
    fn boot(lab: &Lab, dir: &LabDir, ftagent: &Path) -> Result<Self, String> {
        let nspawn = nspawn().ok_or("there is no systemd-nspawn: `cargo xtask setup --firewalls` fetches it")?;
        let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let root = dir.path().join("machine");
        std::fs::create_dir(&root).expect("made");
        let bind = |from: &Path, to: &str| format!("--bind={}:{to}", from.display());
        let log = std::fs::File::create(dir.path().join("boot.log")).expect("a log");
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", BOOT, "sh"]).arg(&root).arg(nspawn);
        command.args(["--boot", "--register=no", "--keep-unit", "--capability=all", "--machine=ftagent-lab"]);
        command.arg("--system-call-filter=bpf perf_event_open");
        command.arg(format!("--network-namespace-path={}", lab.edge.path().display()));
        command.args([
            bind(ftagent, "/usr/local/bin/ftagent"),
            bind(&repo.join("dist/ftagent.service"), "/etc/systemd/system/ftagent.service"),
            bind(&file("lab.target", TARGET), "/etc/systemd/system/lab.target"),
            bind(&file("service.toml", CONFIG), "/etc/ftagent/ftagent.toml"),
            bind(&dir.bpf(), "/sys/fs/bpf"),
        ]);
        command.arg("systemd.unit=lab.target").env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let mut machine = Self { boot: command.spawn().expect("starts"), leader: 0 };
        let deadline = now() + Duration::from_secs(90);
        while now() < deadline {
            std::thread::sleep(Duration::from_millis(200));
            let pid = machine.boot.id();
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            machine.leader = children.split_ascii_whitespace().next().and_then(|c| c.parse().ok()).unwrap_or(0);
            if machine.leader != 0 && machine.run(&["systemctl", "is-active", "lab.target"]).status.success() {
                return Ok(machine);
            }
            if machine.boot.try_wait().is_ok_and(|ended| ended.is_some()) {
                break;
            }
        }
        let log = std::fs::read_to_string(dir.path().join("boot.log")).unwrap_or_default();
        Err(format!("systemd does not boot here: {}", log.lines().rev().take(5).collect::<Vec<_>>().join("; ")))
    }

    fn run(&self, words: &[&str]) -> Output {
        let leader = self.leader.to_string();
        let mut command = Command::new("nsenter");
        command.args(["-t", &leader, "-m", "-p", "-n", "-u", "-i"]).args(words).stdin(Stdio::null());
        command.output().expect("runs")
    }

    fn said(&self, words: &[&str]) -> String {
        let output = self.run(words);
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// Waits, and tells of the service when it is in vain.
    fn wait(&self, what: &str, patience: Duration, mut done: impl FnMut() -> bool) {
        let deadline = now() + patience;
        while !done() {
            let journal = || self.said(&["journalctl", "-u", "ftagent", "--no-pager", "-n", "40"]);
            assert!(now() < deadline, "never {what}: {}", journal());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn executions(&self) -> Vec<RuleExecution> {
        let answer = self.run(&["ftagent", "incidents", "--json"]).stdout;
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
        let incidents: Vec<IncidentReport> = serde_json::from_value(answer["incidents"].clone()).unwrap_or_default();
        incidents.into_iter().flat_map(|incident| incident.executions).collect()
    }
}

#[test]
fn the_shipped_unit_lets_the_agent_do_what_every_tool_is_asked_for() {
    if skip_without_root("the_shipped_unit_lets_the_agent_do_what_every_tool_is_asked_for") {
        return;
    }
    let Some(ftagent) = program("FTAGENT_BIN", "ftagent") else { return };
    let (lab, dir) = (Lab::new(), LabDir::create("service").expect("a directory"));
    let machine = match Machine::boot(&lab, &dir, &ftagent) {
        Ok(machine) => machine,
        Err(why) => return println!("skipped: {why}"),
    };
    let patience = Duration::from_secs(60);
    machine.run(&["systemctl", "start", "ftagent"]);
    machine.wait("active", patience, || machine.run(&["systemctl", "is-active", "ftagent"]).status.success());
    let status = machine.said(&["ftagent", "status"]);
    assert!(status.contains("edge0        native"), "{status}");
    // What it may write, and what it may not.
    let pid = machine.said(&["systemctl", "show", "-p", "MainPID", "--value", "ftagent"]);
    let writes = |path: &str| machine.run(&["nsenter", "-t", pid.trim(), "-m", "touch", path]).status.success();
    let paths = ["/etc/ufw/x", "/run/x", "/var/lib/ftagent/x", "/etc/x", "/usr/x", "/sys/kernel/x", "/var/x"];
    assert_eq!(paths.map(writes), [true, true, true, false, false, false, false], "{paths:?}");
    let flood = flood(&lab, 50_000, Duration::from_secs(5));
    let of = |outcome| machine.executions().iter().filter(|e| e.outcome == outcome).count();
    machine.wait("all in force", patience, || machine.executions().len() >= ACTIONS);
    let told = machine.executions();
    assert!(told.iter().all(|e| e.outcome == ExecutionOutcome::Applied), "{told:#?}");
    flood.join().expect("no panic").expect("sent");
    machine.wait("all undone", patience, || of(ExecutionOutcome::Undone) == ACTIONS);
    // Killed, it comes again and takes over what is attached; reloaded and stopped, it does as it is told.
    machine.run(&["systemctl", "kill", "-s", "KILL", "ftagent"]);
    let is_another = || {
        let now = machine.said(&["systemctl", "show", "-p", "MainPID", "--value", "ftagent"]);
        now != pid && machine.run(&["ftagent", "status"]).status.success()
    };
    machine.wait("there again", patience, is_another);
    let journal = machine.said(&["journalctl", "-u", "ftagent", "--no-pager"]);
    assert!(journal.contains("adopted=true"), "{journal}");
    for verb in ["reload", "stop"] {
        assert!(machine.run(&["systemctl", verb, "ftagent"]).status.success(), "{verb}");
    }
}
