//! Decisions of a real CrowdSec LAPI, in force in XDP: how soon, for how long, and what outranks them.
//!
//! LAPI runs in the edge's namespace, from Debian's package, which `cargo xtask setup --firewalls` unpacks and never installs.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bpf_tests::bpffs::LabDir;
use bpf_tests::clock::now;
use bpf_tests::netns::{Netns, NetnsError};
use bpf_tests::skip_without_root;

use crate::agent::{Agent, program};
use crate::lab::{EDGE_V4, Lab};
use crate::many::{clean_pps, kernel_bytes, kib};

pub(crate) const BANNED: &str = "198.51.100.7";
const PORT: u16 = 9_999;
/// Without a packet for so long the sender is blocked: it sends one every millisecond.
const SILENCE: Duration = Duration::from_millis(150);

/// A LAPI with a database, a machine and a bouncer of its own.
struct Lapi {
    dir: PathBuf,
    root: PathBuf,
    netns: PathBuf,
    child: Option<Child>,
}

impl Lapi {
    fn new(dir: &Path, netns: &Netns) -> Option<Self> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent()?.join("target/crowdsec/root");
        if !root.exists() {
            println!("skipped: `cargo xtask setup --firewalls` fetches CrowdSec");
            return None;
        }
        let dir = dir.join("crowdsec");
        for name in ["data", "hub", "notifications", "plugins"] {
            std::fs::create_dir_all(dir.join(name)).expect("room");
        }
        for name in ["profiles.yaml", "simulation.yaml"] {
            std::fs::copy(root.join("etc/crowdsec").join(name), dir.join(name)).expect(name);
        }
        let at = dir.display();
        let config = format!(
            "common: {{daemonize: false, log_media: stdout, log_level: info}}\n\
             config_paths: {{config_dir: {at}, data_dir: {at}/data, simulation_path: {at}/simulation.yaml, \
             hub_dir: {at}/hub, index_path: {at}/hub/.index.json, notification_dir: {at}/notifications, \
             plugin_dir: {at}/plugins}}\n\
             cscli: {{output: raw}}\n\
             db_config: {{type: sqlite, db_path: {at}/data/crowdsec.db, use_wal: true, flush: {{max_items: 500000}}}}\n\
             api:\n  client: {{credentials_path: {at}/login.yaml}}\n  server: {{listen_uri: \"127.0.0.1:8080\", \
             profiles_path: {at}/profiles.yaml, console_path: {at}/console.yaml}}\n\
             prometheus: {{enabled: false}}\n"
        );
        std::fs::write(dir.join("config.yaml"), config).expect("room");
        let mut lapi = Self { dir, root, netns: netns.path().to_owned(), child: None };
        let login = lapi.dir.join("login.yaml");
        let login = login.to_str().expect("UTF-8");
        lapi.cscli(&["machines", "add", "node", "--password", "only-for-this-test", "-f", login]);
        lapi.add_bouncer();
        lapi.start();
        Some(lapi)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg(self.root.join("usr/bin").join(name));
        command.arg("-c").arg(self.dir.join("config.yaml")).current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    fn cscli(&self, words: &[&str]) -> String {
        let output = self.command("cscli").args(words).output().expect("cscli");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cscli {words:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn key(&self) -> PathBuf {
        self.dir.join("key")
    }

    /// Makes a key in the file that the agent reads.
    fn add_bouncer(&self) {
        use std::os::unix::fs::OpenOptionsExt as _;
        let key = self.cscli(&["bouncers", "add", "edge", "-o", "raw"]);
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(self.key());
        std::io::Write::write_all(&mut file.expect("a file"), key.as_bytes()).expect("room");
    }

    fn start(&mut self) {
        let log = std::fs::File::create(self.dir.join("log")).expect("a log");
        let also = log.try_clone().expect("a log");
        let child = self.command("crowdsec").arg("-no-cs").stdout(log).stderr(also).spawn();
        self.child = Some(child.expect("starts"));
        let deadline = now() + Duration::from_secs(20);
        while !std::fs::read_to_string(self.dir.join("log")).unwrap_or_default().contains("Local API listening") {
            assert!(now() < deadline, "LAPI never listens");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("killed");
        child.wait().expect("gone");
    }
}

impl Drop for Lapi {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// A sender that is to be banned, and whoever hears it.
pub(crate) struct Wire {
    stop: Arc<AtomicBool>,
    /// When the newest datagram was heard, in nanoseconds from `epoch`.
    heard_ns: Arc<AtomicU64>,
    epoch: Instant,
    threads: Vec<JoinHandle<Result<(), NetnsError>>>,
}

impl Wire {
    pub(crate) fn new(lab: &Lab) -> Self {
        let added = Command::new("nsenter")
            .arg(format!("--net={}", lab.wan.path().display()))
            .args(["ip", "address", "add", &format!("{BANNED}/32"), "dev", "wan0"])
            .status();
        assert!(added.expect("ip").success());
        let (stop, heard_ns, epoch) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), now());
        let (ended, heard) = (Arc::clone(&stop), Arc::clone(&heard_ns));
        let receiver = lab.edge.spawn(move || {
            let socket = UdpSocket::bind((std::net::Ipv4Addr::from(EDGE_V4), PORT)).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
            while !ended.load(Ordering::Relaxed) {
                if socket.recv(&mut [0; 16]).is_ok() {
                    heard.store((now() - epoch).as_nanos() as u64, Ordering::Relaxed);
                }
            }
        });
        let ended = Arc::clone(&stop);
        let sender = lab.wan.spawn(move || {
            let socket = UdpSocket::bind((BANNED, 0)).expect("a socket");
            while !ended.load(Ordering::Relaxed) {
                // Nobody answers, and what is refused was sent all the same.
                socket.send_to(b"hello", (std::net::Ipv4Addr::from(EDGE_V4), PORT)).ok();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let threads = vec![receiver.expect("a thread"), sender.expect("a thread")];
        let wire = Self { stop, heard_ns, epoch, threads };
        wire.until_heard();
        wire
    }

    fn heard(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.heard_ns.load(Ordering::Relaxed))
    }

    /// Waits until nothing has been heard for [`SILENCE`], and says when something was last.
    pub(crate) fn until_silent(&self) -> Instant {
        self.wait("silent", || now().saturating_duration_since(self.heard()) > SILENCE);
        self.heard()
    }

    /// Waits until something is heard, and says when.
    pub(crate) fn until_heard(&self) -> Instant {
        let before = self.heard_ns.load(Ordering::Relaxed);
        self.wait("heard", || self.heard_ns.load(Ordering::Relaxed) != before);
        self.heard()
    }

    fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = now() + Duration::from_secs(30);
        while !done() {
            assert!(now() < deadline, "never {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn is_silent_for(&self, time: Duration) -> bool {
        let before = self.heard_ns.load(Ordering::Relaxed);
        std::thread::sleep(time);
        self.heard_ns.load(Ordering::Relaxed) == before
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

struct Setup {
    // The first ones end first: they write into the directory as long as they run.
    wire: Wire,
    agent: Agent,
    lapi: Lapi,
    lab: Lab,
    dir: LabDir,
}

fn setup(name: &str, extra: &str) -> Option<Setup> {
    if skip_without_root(name) {
        return None;
    }
    let program = program("FTAGENT_BIN", "ftagent")?;
    let lab = Lab::new();
    let dir = LabDir::create("crowdsec").expect("a directory");
    let lapi = Lapi::new(dir.path(), &lab.edge)?;
    let crowdsec = format!(
        "[crowdsec]\nurl = \"http://127.0.0.1:8080\"\napi_key_file = {:?}\npoll_secs = 1\n{extra}",
        lapi.key().display().to_string()
    );
    let mut agent = Agent::new(program, dir.path(), &lab.edge, &crowdsec);
    agent.start();
    let wire = Wire::new(&lab);
    Some(Setup { wire, agent, lapi, lab, dir })
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

impl Setup {
    fn crowdsec(&self) -> serde_json::Value {
        self.agent.ask("status").expect("an answer")["crowdsec"].clone()
    }

    fn until(&self, what: &str, done: impl Fn(&serde_json::Value) -> bool) {
        self.agent.wait(what, Duration::from_secs(30), || done(&self.crowdsec()));
    }

    /// Kilobytes of memory that the agent has now.
    fn memory_kb(&self) -> u64 {
        kib(self.agent.pid().expect("it runs"), "VmRSS:")
    }
}

#[test]
fn a_decision_blocks_in_xdp_and_its_deletion_lifts_it() {
    let Some(setup) = setup("a_decision_blocks_in_xdp_and_its_deletion_lifts_it", "") else { return };
    let (mut blocked, mut lifted) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        setup.lapi.cscli(&["decisions", "add", "--ip", BANNED, "--duration", "1h"]);
        let told = now();
        blocked.push(setup.wire.until_silent().saturating_duration_since(told));
        setup.lapi.cscli(&["decisions", "delete", "--ip", BANNED]);
        let told = now();
        lifted.push(setup.wire.until_heard().saturating_duration_since(told));
    }
    println!(
        "asked every second: blocked after {:?} (median; {:?} to {:?}), lifted after {:?} ({:?} to {:?})",
        median(&mut blocked),
        blocked[0],
        blocked[6],
        median(&mut lifted),
        lifted[0],
        lifted[6]
    );
    assert!(blocked[6] < Duration::from_secs(4) && lifted[6] < Duration::from_secs(4), "{blocked:?} {lifted:?}");
    let status = setup.agent.ask("status").expect("an answer");
    assert!(status["verdicts"]["edge0"]["listed"]["packets"].as_u64().is_some_and(|n| n > 100), "{status}");
    assert!(status["crowdsec"]["packets"].as_u64().is_some_and(|n| n > 100), "{}", status["crowdsec"]);

    // Two decisions about one address, a range around it, and what nobody enforces.
    setup.lapi.cscli(&["decisions", "add", "--ip", BANNED, "--duration", "1h"]);
    setup.lapi.cscli(&["decisions", "add", "--range", "198.51.100.0/24", "--duration", "30m"]);
    setup.lapi.cscli(&["decisions", "add", "--ip", BANNED, "--duration", "2h", "--type", "captcha"]);
    setup.lapi.cscli(&["decisions", "add", "--range", "11.0.0.0/8", "--duration", "2h"]);
    setup.lapi.cscli(&["decisions", "add", "--ip", "10.99.0.1", "--duration", "2h"]);
    setup.wire.until_silent();
    setup.until("all counted", |c| {
        let others = &c["not_enforced"];
        (&others["not_ban"], &others["too_broad"], &others["guarded"]) == (&1.into(), &1.into(), &1.into())
    });
    let crowdsec = setup.crowdsec();
    assert_eq!((&crowdsec["connected"], &crowdsec["bans"]), (&true.into(), &4.into()), "{crowdsec}");
    // By its number, the eighth: by its address would take the range around it away, too.
    setup.lapi.cscli(&["decisions", "delete", "--id", "8"]);
    setup.until("one gone", |c| c["in_force"]["ipv4_addresses"].is_null());
    assert!(setup.wire.is_silent_for(Duration::from_millis(500)), "the range is left");
    // The operator's word outranks it.
    assert!(setup.agent.run(&["allow", &format!("{BANNED}/32"), "--label", "ours"]).status.success());
    setup.wire.until_heard();
    assert!(setup.agent.run(&["allow", &format!("{BANNED}/32"), "--remove"]).status.success());
    setup.wire.until_silent();
    setup.lapi.cscli(&["decisions", "delete", "--range", "198.51.100.0/24"]);
    setup.wire.until_heard();
}

#[test]
fn decisions_outlive_lapi_and_the_agent_and_end_at_their_time() {
    let name = "decisions_outlive_lapi_and_the_agent_and_end_at_their_time";
    let Some(mut setup) = setup(name, "") else { return };
    setup.lapi.cscli(&["decisions", "add", "--ip", BANNED, "--duration", "14s"]);
    let began = now();
    setup.wire.until_silent();
    std::thread::sleep(Duration::from_secs(3));
    setup.lapi.stop();
    setup.until("away", |c| c["connected"] == false && c["failures"]["unreachable"].as_u64() > Some(0));
    // Neither a killed agent nor its heir, which hears nothing of LAPI, lets anything pass.
    let heard = setup.wire.heard();
    setup.agent.kill();
    assert!(setup.wire.is_silent_for(Duration::from_millis(500)));
    setup.agent.start();
    setup.until("restored", |c| c["in_force"]["ipv4_addresses"] == 1);
    let ended = setup.wire.until_heard();
    assert!(heard < began + Duration::from_secs(3), "silent all the while");
    let lasted = ended.saturating_duration_since(began);
    println!("a decision of 14 s ended after {lasted:?} without LAPI");
    // It was made a moment before `began`.
    assert!((12.5..15.5).contains(&lasted.as_secs_f64()), "{lasted:?}");

    // LAPI comes back, and then takes the key away.
    setup.lapi.start();
    setup.until("connected", |c| c["connected"] == true);
    setup.lapi.cscli(&["decisions", "add", "--ip", BANNED, "--duration", "1h"]);
    setup.wire.until_silent();
    setup.lapi.cscli(&["bouncers", "delete", "edge"]);
    setup.until("refused", |c| c["connected"] == false && c["failures"]["refused"].as_u64() > Some(0));
    let status = setup.agent.ask("status").expect("an answer");
    let warned = status["warnings"].as_array().expect("warnings").iter().any(|w| w.to_string().contains("API key"));
    assert!(warned, "{}", status["warnings"]);
    assert!(setup.wire.is_silent_for(Duration::from_millis(500)), "what is known stays");
    // A new key in the file needs no restart; what was lifted meanwhile is found out.
    setup.lapi.cscli(&["decisions", "delete", "--ip", BANNED]);
    setup.lapi.add_bouncer();
    setup.until("connected", |c| c["connected"] == true);
    setup.wire.until_heard();
}

#[test]
fn a_hundred_thousand_decisions_at_once() {
    let Some(mut setup) = setup("a_hundred_thousand_decisions_at_once", "") else { return };
    const COUNT: u32 = 100_000;
    let before_kb = setup.memory_kb();
    let before = (clean_pps(&setup.lab), kernel_bytes(&setup.dir) / 1_024);
    let mut lines = "duration,scope,value\n".to_owned();
    for n in 1..COUNT {
        // Spread over 96.0.0.0/3 as hashes are, none twice: the factor is odd.
        let address = std::net::Ipv4Addr::from(0x6000_0000 | n.wrapping_mul(0x9e37_79b1) >> 3);
        lines += &format!("{}h,ip,{address}\n", 4 + n % 200);
    }
    lines += &format!("4h,ip,{BANNED}\n");
    let csv = setup.lapi.dir.join("many.csv");
    std::fs::write(&csv, lines).expect("room");
    // Nobody asks meanwhile: its SQLite knows one writer, and an answer is noted in it.
    setup.agent.kill();
    setup.lapi.cscli(&["decisions", "import", "-i", csv.to_str().expect("UTF-8")]);
    let began = now();
    setup.agent.start();
    let ready = now();
    let all = |c: &serde_json::Value| c["in_force"]["ipv4_addresses"].as_u64() > Some(u64::from(COUNT) * 9 / 10);
    setup.until("all in force", all);
    let in_force = now();
    // Packets may pause by themselves on a busy machine, but before the table is there they are heard again.
    let kernel_kib = || kernel_bytes(&setup.dir) / 1_024;
    setup.agent.wait("a table", Duration::from_secs(30), || kernel_kib() > before.1);
    let silent = setup.wire.until_silent();
    let peak_kb = kib(setup.agent.pid().expect("it runs"), "VmHWM:");
    println!(
        "the last source kept out {:?} after the start; memory at most {peak_kb} kB; kernel {} KiB before, {} with; \
         packets/s of others {} before, {} with",
        silent - began,
        before.1,
        kernel_kib(),
        before.0,
        clean_pps(&setup.lab)
    );
    setup.lapi.cscli(&["decisions", "delete", "--ip", BANNED]);
    setup.wire.until_heard();
    let crowdsec = setup.crowdsec();
    println!(
        "agent ready after {:?}, all in force {:?} later; {} bans, {} prefixes; memory {before_kb} kB before, {} kB after",
        ready - began,
        in_force - ready,
        crowdsec["bans"],
        crowdsec["in_force"]["ipv4_addresses"],
        setup.memory_kb()
    );
    // One more beside them, and away again.
    let (mut blocked, mut lifted, mut took) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..5 {
        setup.lapi.cscli(&["decisions", "add", "--ip", BANNED, "--duration", "1h"]);
        let told = now();
        blocked.push(setup.wire.until_silent().saturating_duration_since(told));
        took.push(setup.crowdsec()["took_ms"].as_u64().expect("a number"));
        setup.lapi.cscli(&["decisions", "delete", "--ip", BANNED]);
        let told = now();
        lifted.push(setup.wire.until_heard().saturating_duration_since(told));
    }
    took.sort_unstable();
    println!(
        "one more: blocked after {:?}, lifted after {:?} (medians, asked every second); sorted in {} ms (median)",
        median(&mut blocked),
        median(&mut lifted),
        took[2]
    );
    let ticks = setup.agent.ask("status").expect("an answer")["tick_us"].clone();
    // A restart: whole answer and file.
    setup.agent.kill();
    let began = now();
    setup.agent.start();
    setup.until("all in force", all);
    let started = now() - began;
    setup.until("told anew", |c| c["whole_answers"].as_u64() > Some(0));
    println!(
        "restarted: all in force after {started:?}, told anew by LAPI after {:?}; memory {} kB; ticks before {ticks}",
        now() - began,
        setup.memory_kb()
    );
    assert!(setup.memory_kb() < before_kb + 200_000);
    setup.lapi.cscli(&["decisions", "add", "--ip", BANNED, "--duration", "1h"]);
    setup.wire.until_silent();
    let began = now();
    setup.lapi.cscli(&["decisions", "delete", "--all"]);
    let told = now();
    let heard = setup.wire.until_heard();
    println!("all deleted in {:?} by LAPI, the last source heard {:?} later", told - began, heard - told);
}
