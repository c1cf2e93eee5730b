//! A hundred thousand sources into the XDP datapath of a running agent, by a list: how long until the last of them is kept
//! out and until it is heard again, what that needs of memory, and what it costs everybody else's packets.
//!
//! `FTAGENT_ACTION_SOURCES=1000,10000,100000 cargo test -p bpf-tests --test it -- --nocapture many::` prints figures;
//! without the variable a few sources go the same way. Only what must hold is judged: that all are in force, have their
//! effect on real packets, and are gone afterwards.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use aya::maps::MapData;
use bpf_tests::bpffs::LabDir;
use bpf_tests::clock::now;
use bpf_tests::skip_without_root;
use ftagent::xdp::maps::Maps;
use ftagent::xdp::pins::Pins;
use nix::sys::signal::Signal;

use crate::agent::{Agent, program};
use crate::crowdsec::{BANNED, Wire};
use crate::lab::{EDGE_V4, Lab, WAN_V4};

/// Where packets of everybody else go; nobody reads them there.
const SINK: u16 = 9_998;
/// So long they are counted.
const COUNTED: Duration = Duration::from_millis(400);
/// The best of so many counts: the machine is shared.
const COUNTS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);
/// A list on purpose empty.
const EMPTY: &str = "# nobody\n";

fn counts() -> Vec<u32> {
    let text = std::env::var("FTAGENT_ACTION_SOURCES").unwrap_or_else(|_| "300".to_owned());
    text.split(',').map(|n| n.parse().expect("a number")).collect()
}

/// As many sources, no two of which make one prefix; the sender on the wire comes last.
fn sources(count: u32) -> String {
    let others = (1..count).map(|n| Ipv4Addr::from(0x6000_0000 + n * 97).to_string());
    others.chain([BANNED.to_owned()]).map(|source| source + "\n").collect()
}

/// Puts a list into place that was complete for a while: one that may be written to still has to settle.
fn put(path: &Path, list: &str) {
    let new = path.with_extension("new");
    fs::write(&new, list).expect("room");
    let file = File::options().write(true).open(&new).expect("a file");
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).expect("an older file");
    fs::rename(&new, path).expect("put into place");
}

/// Kibibytes in a line of `/proc/PID/status`.
pub(crate) fn kib(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("its memory");
    line.split_ascii_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
}

/// Bytes that the kernel holds for the agent's maps, the tables of lists included, which are pinned in no place.
pub(crate) fn kernel_bytes(dir: &LabDir) -> u64 {
    let pins = Pins::below(&dir.bpf()).expect("a bpffs").maps();
    let slots = Maps::open(&pins).expect("maps").lists4;
    let tables: BTreeSet<u32> = (0..2).filter_map(|slot| slots.id(slot).expect("a slot")).collect();
    // One may be replaced at this moment.
    let tables = tables.into_iter().filter_map(|id| MapData::from_id(id).ok());
    let pinned = fs::read_dir(&pins).expect("maps").map(|entry| {
        let path = entry.expect("a map").path();
        MapData::from_pin(path).expect("a map")
    });
    let memory = |map: MapData| {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd())).expect("a map");
        let memory = info.lines().find_map(|line| line.strip_prefix("memlock:")).expect("its memory");
        memory.trim().parse::<u64>().expect("a number")
    };
    pinned.chain(tables).map(memory).sum()
}

/// Datagrams that came to the sink, which is full.
fn arrived() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/udp").expect("sockets");
    let line = text.lines().find(|line| line.contains(&format!(":{SINK:04X} "))).expect("the sink");
    line.split_ascii_whitespace().last().and_then(|n| n.parse().ok()).expect("what it dropped")
}

/// Packets per second of one whom nothing blocks, as fast as one thread can send; the best of some counts.
pub(crate) fn clean_pps(lab: &Lab) -> u64 {
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    let (from, to) = (Ipv4Addr::from(WAN_V4), Ipv4Addr::from(EDGE_V4));
    let sender = lab.wan.spawn(move || {
        let socket = UdpSocket::bind((from, 0)).expect("a socket");
        while !ends.load(Ordering::Relaxed) {
            // What a full queue refuses was not sent.
            socket.send_to(&[7; 32], (to, SINK)).ok();
        }
    });
    let best = lab.edge.run(move || {
        let _sink = UdpSocket::bind((to, SINK)).expect("a socket");
        let count = || {
            let (before, began) = (arrived(), now());
            std::thread::sleep(COUNTED);
            ((arrived() - before) as f64 / (now() - began).as_secs_f64()) as u64
        };
        (0..COUNTS).map(|_| count()).max().unwrap_or(0)
    });
    over.store(true, Ordering::Relaxed);
    sender.expect("a thread").join().expect("no panic").expect("sent");
    best.expect("counted")
}

/// What is measured.
struct Row {
    effect: Duration,
    undone: Duration,
    rss_kib: u64,
    peak_kib: u64,
    kernel_kib: (u64, u64),
    pps: (u64, u64),
}

struct Setup {
    // The first ones end first: they write into the directory as long as they run.
    wire: Wire,
    agent: Agent,
    lab: Lab,
    dir: LabDir,
}

fn setup(name: &str) -> Option<Setup> {
    if skip_without_root(name) {
        return None;
    }
    let program = program("FTAGENT_BIN", "ftagent")?;
    let lab = Lab::new();
    let dir = LabDir::create("many").expect("a directory");
    let path = dir.path().join("sources");
    put(&path, EMPTY);
    let list = format!("[[lists]]\nname = \"many\"\npath = {:?}\n", path.display().to_string());
    let mut agent = Agent::new(program, dir.path(), &lab.edge, &list);
    agent.start();
    let wire = Wire::new(&lab);
    Some(Setup { wire, agent, lab, dir })
}

impl Setup {
    /// Puts a list into force, by the signal that reads the configuration anew.
    fn order(&self, list: &str) {
        put(&self.dir.path().join("sources"), list);
        self.agent.signal(Signal::SIGHUP);
    }

    fn wait_for(&self, prefixes: u32) {
        // On a busy machine it may be too late with an answer.
        let loaded = || self.agent.ask("status").is_some_and(|status| status["lists"][0]["v4"] == prefixes);
        self.agent.wait("loaded", PATIENCE, loaded);
    }

    fn measure(&self, count: u32) -> Row {
        let pid = self.agent.pid().expect("it runs");
        let kernel_kib = || kernel_bytes(&self.dir) / 1_024;
        self.wait_for(0);
        let list = sources(count);
        let before = (clean_pps(&self.lab), kernel_kib());
        // The highest memory that it had, from now on.
        fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("its own memory");
        let rss_kib = kib(pid, "VmRSS:");
        let began = now();
        self.order(&list);
        self.wait_for(count);
        // Packets may pause by themselves on a busy machine, but before the table is there they are heard again.
        self.agent.wait("a table", PATIENCE, || kernel_kib() > before.1);
        let effect = self.wire.until_silent().saturating_duration_since(began);
        let (peak_kib, kernel_kib) = (kib(pid, "VmHWM:"), (before.1, kernel_kib()));
        let pps = (before.0, clean_pps(&self.lab));
        assert!(pps.1 > 0, "nobody else is heard any more");
        assert!(self.wire.is_silent_for(Duration::from_millis(200)), "the last source of {count} is heard");
        let listed = |status: serde_json::Value| status["verdicts"]["edge0"]["listed"]["packets"].as_u64();
        let drops = || self.agent.ask("status").and_then(listed) > Some(0);
        self.agent.wait("counted as listed", PATIENCE, drops);
        let began = now();
        self.order(EMPTY);
        let undone = self.wire.until_heard() - began;
        self.wait_for(0);
        Row { effect, undone, rss_kib, peak_kib, kernel_kib, pps }
    }
}

#[test]
fn many_sources_go_into_xdp_by_a_list() {
    println!(
        "{:>7} {:>10} {:>10} {:>8} {:>8} {:>11} {:>9} {:>10} {:>9}",
        "sources", "effect ms", "undone ms", "RSS KiB", "at most", "kernel KiB", "with", "pps before", "with"
    );
    for count in counts() {
        let Some(setup) = setup("many_sources_go_into_xdp_by_a_list") else { return };
        let row = setup.measure(count);
        println!(
            "{count:>7} {:>10.1} {:>10.1} {:>8} {:>8} {:>11} {:>9} {:>10} {:>9}",
            row.effect.as_secs_f64() * 1e3,
            row.undone.as_secs_f64() * 1e3,
            row.rss_kib,
            row.peak_kib,
            row.kernel_kib.0,
            row.kernel_kib.1,
            row.pps.0,
            row.pps.1
        );
    }
}
