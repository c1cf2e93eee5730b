//! R2: the daemon is killed at any moment of its life, and upgraded and downgraded, while frames come: none is misjudged.
//!
//! `FTAGENT_KILLS` and `FTAGENT_KILL_FRAMES` ask for longer runs than a test's, `FTAGENT_SEED` for other moments, and
//! `FTAGENT_ADOPT_MS` for another bound of the median time from `exec` to adoption than a debug build on a busy machine has.
//!
//! What got through is counted behind the datapath, and what the datapath says is compared with what was sent: every
//! frame of a blocked source is dropped for the block, every frame of an allowed one passes for the allowlist.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bpf_tests::bpffs::LabDir;
use bpf_tests::clock::now;
use bpf_tests::generator::{Bounds, Generator, Pace, Vary};
use bpf_tests::meter::{ATTACK_MAC, Counts, Direction, Meter};
use bpf_tests::netns::NetnsError;
use bpf_tests::packet::PacketBuilder;
use bpf_tests::skip_without_root;
use ftagent::xdp::counters;
use ftagent::xdp::info;
use ftagent::xdp::maps::Maps;
use ftagent::xdp::pins::Pins;
use ftagent_common::abi::{ABI_VERSION, Reason};
use ftagent_common::vocab::AttachMode;

use crate::agent::{Agent, program};
use crate::datapath::net;
use crate::endurance::asked_for;
use crate::lab::{EDGE_MAC, EDGE_V4, EDGE_V6, Lab, WAN_MAC};

/// Frames of one kind a second, while it is that kind's turn.
pub(crate) const PACE: u64 = 100_000;

/// Draws from 0 to `below`, the same for the same seed (xorshift64*).
struct Draw(u64);

impl Draw {
    fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below.max(1)
    }
}

/// What is on the list at all times, of both families; what comes and goes is appended.
const LISTED: &str = "198.18.0.0/17\n2001:db8:bad::/48\n";

/// A daemon, its wire, and what it was told to enforce.
pub(crate) struct Siege {
    // Ends first: it writes into its directory as long as it runs.
    pub(crate) agent: Agent,
    pub(crate) lab: Arc<Lab>,
    pub(crate) dir: LabDir,
}

impl Siege {
    pub(crate) fn new(name: &str) -> Option<Self> {
        if skip_without_root(name) {
            return None;
        }
        let program = program("FTAGENT_BIN", "ftagent")?;
        let lab = Arc::new(Lab::new());
        let dir = LabDir::create("survival").expect("a directory");
        let list = dir.path().join("list");
        std::fs::write(&list, LISTED).expect("a list");
        let extra = format!(
            "[datapath]\nmax_blocks = 4096\nmax_prefixes = 4096\n[[allow]]\nprefix = \"198.19.0.0/16\"\n\
             [[allow]]\nprefix = \"2001:db8:900d::/48\"\n[[lists]]\nname = \"feed\"\npath = {:?}\nrefresh_secs = 1\n",
            list.display().to_string()
        );
        let agent = Agent::new(program, dir.path(), &lab.edge, &extra);
        Some(Self { lab, dir, agent })
    }

    pub(crate) fn pins(&self) -> Pins {
        Pins::below(&self.dir.bpf()).expect("a bpffs")
    }

    /// The program that the pinned link runs.
    fn program(&self) -> Option<u32> {
        info::link(&self.pins().link(AttachMode::Native, "edge0")).ok().map(|link| link.program_id)
    }

    /// Starts the agent and returns how long it took from `exec` until its program was in the link.
    pub(crate) fn adopt(&mut self) -> Duration {
        let before = self.program();
        let began = now();
        self.agent.spawn();
        self.agent.wait("a new program in the link", Duration::from_secs(30), || {
            self.program().is_some_and(|id| Some(id) != before)
        });
        began.elapsed()
    }

    pub(crate) fn wait_until_ready(&self) {
        let is_ready = || self.agent.ask("status").is_some_and(|s| s["ready"] == true);
        self.agent.wait("ready", Duration::from_secs(30), is_ready);
    }

    /// Puts another list into its place, as feeds do.
    fn replace_list(&self, turn: u64) {
        let more: String = (0..2_000).map(|i| format!("100.{}.{}.0/24\n", 64 + turn % 32, i % 256)).collect();
        let next = self.dir.path().join("list.next");
        std::fs::write(&next, format!("{LISTED}{more}")).expect("written");
        std::fs::rename(next, self.dir.path().join("list")).expect("renamed");
    }

    /// Changes what a reload changes: the allowlist, which is swapped with the whole rule set.
    fn swap_rules(&self, turn: u64) {
        let text = std::fs::read_to_string(&self.agent.config).expect("the configuration");
        let kept = text.split("[[allow]]\nprefix = \"192.0.2.").next().expect("a first part").to_owned();
        let text = format!("{kept}[[allow]]\nprefix = \"192.0.2.{}/32\"\n", turn % 256);
        std::fs::write(&self.agent.config, text).expect("written");
        self.agent.signal(nix::sys::signal::Signal::SIGHUP);
    }

    /// What is enforced from now on: the lists are loaded and a source is blocked by an order.
    pub(crate) fn fortify(&mut self) {
        self.agent.start();
        let is_loaded = |s: &serde_json::Value| s["lists"].as_array().is_some_and(|l| l[0]["loaded"] == true);
        self.agent.wait("loaded", Duration::from_secs(20), || self.agent.ask("status").is_some_and(|s| is_loaded(&s)));
        assert!(self.agent.run(&["block", "203.0.113.7"]).status.success(), "an operator's block");
        let maps = Maps::open(&self.pins().maps()).expect("maps");
        // The tables are made after the list is loaded: in force when a packet would find the IPv6 prefix.
        self.agent.wait("in force", Duration::from_secs(20), || {
            !maps.observe().expect("maps can be read").block6_net.is_empty()
        });
    }
}

/// Frames of four kinds in turn, until it is told to stop.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<[AtomicU64; 2]>,
    thread: JoinHandle<Result<(), NetnsError>>,
}

impl Stream {
    pub(crate) fn start(lab: &Lab, pps: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent: Arc<[AtomicU64; 2]> = Arc::default();
        let (flag, count, device) = (Arc::clone(&stop), Arc::clone(&sent), lab.wan0.index);
        let work = move || {
            let v4 = |source, mac| PacketBuilder::v4(source, EDGE_V4).macs(mac, EDGE_MAC).udp(4_000, 5_000).build();
            let v6 = |source, mac| PacketBuilder::v6(source, EDGE_V6).macs(mac, EDGE_MAC).udp(4_000, 5_000).build();
            let kinds = [
                (0, v4([198, 18, 0, 1], ATTACK_MAC), Some("198.18.0.0/17")),
                (1, v4([198, 19, 0, 1], WAN_MAC), Some("198.19.0.0/16")),
                (0, v4([203, 0, 113, 7], ATTACK_MAC), None),
                (0, v6([0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 1], ATTACK_MAC), None),
                (1, v6([0x2001, 0xdb8, 0x900d, 0, 0, 0, 0, 1], WAN_MAC), None),
            ];
            let mut generators: Vec<(usize, Generator)> = (1..)
                .zip(kinds)
                .map(|(seed, (class, frame, sources))| {
                    let vary = Vary { sources: sources.map(net), ..Vary::default() };
                    let mut generator = Generator::load(&frame, &vary, seed).expect("loads");
                    generator.keep_ready().expect("ready");
                    (class, generator)
                })
                .collect();
            while !flag.load(Ordering::Relaxed) {
                for (class, generator) in &mut generators {
                    let bounds = Bounds::new(pps / 100 + 1, Duration::from_secs(5));
                    let arrived = generator.send(device, Pace::PerSecond(pps), bounds).expect("sends").arrived();
                    count[*class].fetch_add(arrived, Ordering::Relaxed);
                }
            }
        };
        Self { stop, sent, thread: lab.wan.spawn(work).expect("a thread in the namespace") }
    }

    /// Frames of blocked and of allowed sources so far.
    fn sent(&self) -> [u64; 2] {
        [0, 1].map(|class: usize| self.sent[class].load(Ordering::Relaxed))
    }

    pub(crate) fn finish(self) -> [u64; 2] {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic").expect("inside");
        thread::sleep(Duration::from_millis(200));
        [0, 1].map(|class: usize| self.sent[class].load(Ordering::Relaxed))
    }
}

/// Frames dropped for a block, dropped for anything else, and passed for the allowlist.
pub(crate) fn judged(maps: &[&Maps]) -> [u64; 3] {
    let mut sums = [0; 3];
    for maps in maps {
        let all = counters::interface(maps, 0).expect("counters");
        for reason in Reason::ALL {
            let packets = all.reasons[reason.index()].packets;
            match reason {
                Reason::BlockedSource | Reason::BlockedPrefix | Reason::Listed => sums[0] += packets,
                Reason::Allowlisted => sums[2] += packets,
                reason if reason.is_drop() => sums[1] += packets,
                _ => {}
            }
        }
    }
    sums
}

/// Compares what was sent with what the datapath says and with what got behind it.
pub(crate) fn assert_none_misjudged(what: &str, sent: [u64; 2], judged: [u64; 3], behind: Counts) {
    println!("{what}: {} blocked and {} allowed frames sent; {judged:?} judged, {behind:?} behind", sent[0], sent[1]);
    assert_eq!(behind.attack, 0, "{what}: blocked frames got through");
    assert!(behind.other >= sent[1], "{what}: allowed frames are missing behind the datapath");
    assert_eq!(judged, [sent[0], 0, sent[1]], "{what}: blocked, otherwise dropped, allowed");
    assert!(sent[0] > 0 && sent[1] > 0);
}

pub(crate) fn meter(siege: &Siege) -> Meter {
    siege.lab.edge.run(|| Meter::attach("edge0", Direction::In)).expect("inside").expect("a meter")
}

pub(crate) fn growth(after: [u64; 3], before: [u64; 3]) -> [u64; 3] {
    [0, 1, 2].map(|i: usize| after[i] - before[i])
}

#[test]
fn a_daemon_killed_at_any_moment_misjudges_no_frame() {
    let Some(mut siege) = Siege::new("a_daemon_killed_at_any_moment_misjudges_no_frame") else { return };
    let kills = asked_for("FTAGENT_KILLS", 8);
    let frames = asked_for("FTAGENT_KILL_FRAMES", 100_000);
    let mut draw = Draw(asked_for("FTAGENT_SEED", 7));

    // Before anything is enforced: whatever a start that ended early leaves is accepted by the next.
    let early = kills.div_ceil(8);
    for _ in 0..early {
        siege.agent.spawn();
        thread::sleep(Duration::from_millis(draw.below(600)));
        siege.agent.kill();
    }
    siege.fortify();
    let maps = Maps::open(&siege.pins().maps()).expect("maps");
    let behind = meter(&siege);
    let before = judged(&[&maps]);
    let stream = Stream::start(&siege.lab, PACE);

    let mut adoptions = Vec::new();
    let mut orders = Vec::new();
    let mut moments = [0u32; 7];
    for turn in 0..kills - early {
        let moment = (turn % 7) as usize;
        moments[moment] += 1;
        match moment {
            // It runs from the turn before, and does nothing in particular.
            0 => thread::sleep(Duration::from_millis(draw.below(300))),
            1 => siege.swap_rules(turn),
            2 => orders.push(siege.agent.begin(&["block", &format!("192.88.{}.{}", turn / 250 % 250, turn % 250 + 1)])),
            3 => {
                siege.replace_list(turn);
                thread::sleep(Duration::from_millis(600 + draw.below(600)));
            }
            4 => siege.agent.signal(nix::sys::signal::Signal::SIGTERM),
            // While it starts, at any point of it, and again.
            _ => {
                siege.agent.kill();
                siege.agent.spawn();
                thread::sleep(Duration::from_millis(draw.below(700)));
            }
        }
        thread::sleep(Duration::from_micros(draw.below(30_000)));
        siege.agent.kill();
        adoptions.push(siege.adopt());
        // Whoever asked a daemon that is gone has been told so.
        for order in &mut orders {
            order.wait().expect("it ends");
        }
        orders.clear();
        if moment != 3 {
            siege.wait_until_ready();
        }
    }
    while stream.sent().iter().sum::<u64>() < frames {
        thread::sleep(Duration::from_millis(50));
    }
    let sent = stream.finish();
    let counted = growth(judged(&[&maps]), before);
    adoptions.sort();
    println!(
        "{kills} kills, {early} before the first enforcement, then idle, swap, block, list, stop, start, start: \
         {moments:?}; adopted after {:?} at best, {:?} in the middle, {:?} at worst",
        adoptions[0],
        adoptions[adoptions.len() / 2],
        adoptions[adoptions.len() - 1],
    );
    assert_none_misjudged("kills", sent, counted, behind.counts().expect("readable"));
    let bound = Duration::from_millis(asked_for("FTAGENT_ADOPT_MS", 5_000));
    let median = adoptions[adoptions.len() / 2];
    assert!(median < bound, "adopted after {median:?} in the middle");
}

/// Gives what is pinned the name of another layout version, as if an agent of that version had pinned it.
pub(crate) fn disguise(bpffs: &Path, version: u32) {
    let root = bpffs.join("ftagent");
    std::fs::rename(root.join(format!("v{ABI_VERSION}")), root.join(format!("v{version}"))).expect("renamed");
}

#[test]
fn an_upgrade_of_the_layout_and_a_downgrade_misjudge_no_frame() {
    let Some(mut siege) = Siege::new("an_upgrade_of_the_layout_and_a_downgrade_misjudge_no_frame") else { return };
    siege.fortify();
    let behind = meter(&siege);
    let mut all = vec![Maps::open(&siege.pins().maps()).expect("maps")];
    let before = judged(&[&all[0]]);
    let stream = Stream::start(&siege.lab, PACE);
    let rounds = asked_for("FTAGENT_UPGRADES", 4);
    for round in 0..rounds {
        siege.agent.kill();
        let other = if round % 2 == 0 { 0 } else { ABI_VERSION + 7 };
        disguise(&siege.dir.bpf(), other);
        if round % 4 > 1 {
            // A start of the other version that ends early is no reason to give anything up.
            siege.agent.spawn();
            thread::sleep(Duration::from_millis(150 + 100 * (round % 5)));
            siege.agent.kill();
        }
        if round == 1 {
            // A file that was just written is not read at once, and is no reason to go without it.
            siege.replace_list(round);
        }
        let took = siege.adopt();
        siege.wait_until_ready();
        println!("version {other} replaced by {ABI_VERSION} after {took:?}");
        assert!(!siege.dir.bpf().join(format!("ftagent/v{other}")).exists(), "nothing of the other version is left");
        all.push(Maps::open(&siege.pins().maps()).expect("maps"));
        thread::sleep(Duration::from_millis(200));
    }
    // Maps of other sizes are made anew as well, beside those that stay.
    siege.agent.kill();
    let text = std::fs::read_to_string(&siege.agent.config).expect("the configuration");
    std::fs::write(&siege.agent.config, text.replace("= 4096", "= 8192")).expect("written");
    siege.replace_list(rounds);
    println!("maps of other sizes after {:?}", siege.adopt());
    siege.wait_until_ready();
    thread::sleep(Duration::from_millis(200));
    let sent = stream.finish();
    // Nobody else has the maps of the versions that are gone, and their counters are read here.
    let counted = growth(judged(&all.iter().collect::<Vec<_>>()), before);
    assert_none_misjudged("upgrades", sent, counted, behind.counts().expect("readable"));
}
