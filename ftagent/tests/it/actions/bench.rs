//! How long an action takes from the opening of an incident to its effect, by tool. Figures are printed and not judged:
//! the machine is shared. XDP needs the agent itself: `bpf-tests/tests/it/actions.rs`.
//!
//! The incident is the engine's own, on a simulated clock; from the tick on in which the action is asked for, everything
//! is real: the thread of the tool, its journal on disk, the tool, and the packets of one that shall be kept out. The
//! effect is the last of its packets that came through, or for what packets do not show, the tool's own word.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ftagent::actions::Actions;
use ftagent::actions::cloud::Clouds;
use ftagent::actions::runner::System;
use ftagent::actions::trial;
use ftagent::clock;
use ftagent::enforce::nftables::Nftables;
use ftagent::engine::{Acted, ActionSet, Ending, Outcome, RuleSet, Settings};
use ftagent_common::api::Action;
use ftagent_lab::floods::Dice;
use tokio::sync::mpsc::UnboundedReceiver;

use super::by_way;
use super::firewalls::{prepare_fail2ban, prepare_firewalld, prepare_ufw};
use super::sessions::rule;
use crate::floods::TARGET;
use crate::kernel::{Kernel, TICK};
use crate::profiles::site::{NODE, Peer, STRANGER, inside, run, unpacked};
use crate::scripts::THREE;

/// So long without a packet, and none comes any more.
const SILENCE_NS: u64 = 20_000_000;
/// Of the attack, in a tick.
const FRAMES: u64 = 300;
/// Between two packets of the one that shall be kept out.
const GAP: Duration = Duration::from_micros(100);

/// How often each action is done; a long run says so.
fn runs() -> usize {
    std::env::var("FTAGENT_ACTION_RUNS").map_or(5, |n| n.parse().expect("a number"))
}

/// A stranger who sends all the time, and when the last of it arrived.
pub(super) struct Stranger {
    last_ns: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    pub(super) peer: Peer,
}

impl Stranger {
    pub(super) fn new() -> Self {
        let peer = Peer::connect();
        let (last_ns, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let at_node = UdpSocket::bind((NODE, 9_999)).unwrap();
        at_node.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (last, ends) = (Arc::clone(&last_ns), Arc::clone(&over));
        std::thread::spawn(move || {
            let mut bytes = [0; 64];
            while !ends.load(Ordering::Relaxed) {
                if at_node.recv(&mut bytes).is_ok() {
                    last.store(clock::mono_ns(), Ordering::Relaxed);
                }
            }
        });
        let from = peer.run(|| UdpSocket::bind((STRANGER, 0)).unwrap());
        let ends = Arc::clone(&over);
        std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                // What a firewall rejects comes back as an error.
                from.send_to(&[7; 32], (NODE, 9_999)).ok();
                std::thread::sleep(GAP);
            }
        });
        Self { last_ns, over, peer }
    }

    /// When the last packet arrived, once no more do; none while they go on coming.
    pub(super) fn silence_ns(&self) -> Option<u64> {
        for _ in 0..200 {
            let last = self.last_ns.load(Ordering::Relaxed);
            if clock::mono_ns().saturating_sub(last) > SILENCE_NS {
                return Some(last);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    /// Waits until packets come again.
    pub(super) fn is_heard(&self) -> bool {
        let since = clock::mono_ns();
        (0..5_000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            self.last_ns.load(Ordering::Relaxed) > since
        })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// The engine at the moment at which a rule with this action has fired, when its incident opened on the simulated clock,
/// and when the last tick began on the real one.
pub(super) fn asked(json: &str, is_asked: impl Fn(&Kernel) -> bool) -> (Kernel, u64, u64) {
    let (police, json) = by_way(json);
    let mut settings = Settings { rules: vec![rule(7, json)], ..Settings::default() };
    settings.node.police = police;
    settings.response.automatic = false;
    settings.detection.floor_pps = 500;
    let mut k = Kernel::new(settings);
    let (mut opened_sim_ns, mut began_ns, mut dice) = (None, 0, Dice(1));
    // A tick at a time: the last of them asks for the action.
    while !is_asked(&k) {
        assert!(
            k.now_ns < ftagent::replay::START_NS + 3_000_000_000,
            "{}: nothing is asked for",
            &json[..json.len().min(200)]
        );
        let start = k.now_ns;
        for i in 0..FRAMES {
            let frame = THREE(&mut dice, TARGET.parse().unwrap()).frame();
            k.frame(&frame, frame.len(), start + i * TICK / FRAMES);
        }
        began_ns = clock::mono_ns();
        k.run_until(start + TICK);
        if !k.engine.view().incidents.is_empty() {
            opened_sim_ns.get_or_insert(k.now_ns);
        }
    }
    let opened_sim_ns = opened_sim_ns.expect("an incident");
    (k, opened_sim_ns, began_ns)
}

/// What an action did.
struct Took {
    commands: usize,
    /// From the opening to the tool's word, and to the effect.
    done_us: Vec<u64>,
    effect_us: Vec<u64>,
}

/// Where actions are carried out.
pub(super) struct Bench {
    runtime: tokio::runtime::Runtime,
    actions: Option<Actions>,
    results: UnboundedReceiver<Vec<Acted>>,
    pub(super) stranger: Stranger,
    dir: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (actions, results) = Actions::open(dir.path(), "this boot", "node", Clouds::default());
        Self { runtime, actions: Some(actions), results, stranger: Stranger::new(), dir }
    }

    /// Gives the tools `set` and waits for what becomes of `task`.
    pub(super) fn act(&mut self, set: &ActionSet, task: uuid::Uuid, expected: &Outcome) -> Acted {
        self.actions.as_mut().unwrap().act(set);
        self.runtime.block_on(async {
            loop {
                let wait = tokio::time::timeout(Duration::from_secs(60), self.results.recv());
                let acted = wait.await.expect("in time").expect("a result");
                if let Some(one) = acted.into_iter().find(|a| a.task == task) {
                    assert_eq!(&one.outcome, expected, "{one:?}");
                    return one;
                }
            }
        })
    }

    /// One incident: microseconds to the tool's word and to the effect.
    fn once(&mut self, json: &str, is_seen: bool) -> (usize, u64, u64) {
        let (k, opened_sim_ns, began_ns) = asked(json, |k| !k.actions.is_empty());
        // Ticks between the opening and the asking are the engine's time too.
        let waited_ns = k.now_ns - opened_sim_ns;
        let wanted = k.actions[0].clone();
        let (task, tool) = (wanted.task, wanted.tool);
        let commands = wanted.steps.len();
        let set = ActionSet { wanted: vec![wanted], ending: Vec::new() };
        let done = self.act(&set, task, &Outcome::Applied);
        let effect_ns = match is_seen {
            true => self.stranger.silence_ns().unwrap_or_else(|| panic!("{json} has no effect on packets")),
            false => done.at_mono_ns,
        };
        let set = ActionSet { wanted: Vec::new(), ending: vec![Ending { task, tool }] };
        self.act(&set, task, &Outcome::Undone);
        assert!(!is_seen || self.stranger.is_heard(), "{json} is not undone");
        let since = |ns: u64| (ns.saturating_sub(began_ns) + waited_ns) / 1_000;
        (commands, since(done.at_mono_ns), since(effect_ns))
    }

    /// One incident whose rule nftables carries, which the agent speaks to by itself: the same times.
    fn once_by_nftables(&self, json: &str) -> (usize, u64, u64) {
        let (k, opened_sim_ns, began_ns) = asked(json, |k| !k.engine.desired().rules.is_empty());
        let waited_ns = k.now_ns - opened_sim_ns;
        let mut desired: RuleSet = k.engine.desired().clone();
        // The simulated clock's ends, on the real one.
        let shift = |ns: u64| clock::mono_ns() + ns.saturating_sub(k.now_ns);
        desired.rules.values_mut().for_each(|rule| rule.expires_at_ns = rule.expires_at_ns.map(shift));
        let mut nftables = Nftables::new(false);
        let results = nftables.reconcile(&desired, clock::now());
        let done_ns = clock::mono_ns();
        assert!(!results.is_empty() && results.iter().all(|r| r.result.is_ok()), "{results:?}");
        let effect_ns = self.stranger.silence_ns().unwrap_or_else(|| panic!("{json} has no effect on packets"));
        nftables.remove_all().unwrap();
        assert!(self.stranger.is_heard(), "{json} is not undone");
        let since = |ns: u64| (ns.saturating_sub(began_ns) + waited_ns) / 1_000;
        (results.len(), since(done_ns), since(effect_ns))
    }

    /// Many incidents, and a line about them.
    fn measure(&mut self, json: &str, is_seen: bool) -> Took {
        let mut took = Took { commands: 0, done_us: Vec::new(), effect_us: Vec::new() };
        let action: Action = serde_json::from_str(by_way(json).1).unwrap();
        let is_nftables = action.tool() == "nftables";
        for _ in 0..runs() {
            let (commands, done_us, effect_us) =
                if is_nftables { self.once_by_nftables(json) } else { self.once(json, is_seen) };
            took.commands = commands;
            took.done_us.push(done_us);
            took.effect_us.push(effect_us);
        }
        took.done_us.sort_unstable();
        took.effect_us.sort_unstable();
        let ms = |all: &[u64], share: usize| all[(all.len() * share).div_ceil(100).max(1) - 1] as f64 / 1e3;
        println!(
            "{:<28} {:>2} {:>5} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1}  {}",
            action.kind(),
            took.commands,
            took.effect_us.len(),
            ms(&took.done_us, 50),
            ms(&took.done_us, 99),
            ms(&took.effect_us, 50),
            ms(&took.effect_us, 99),
            ms(&took.effect_us, 100),
            if is_seen { "packets" } else { "the tool's word" },
        );
        took
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(actions) = self.actions.take() {
            actions.stop();
        }
    }
}

fn head() {
    println!(
        "{:<28} {:>2} {:>5} {:>9} {:>9} {:>9} {:>9} {:>9}  milliseconds after the opening; effect seen by",
        "action", "n", "runs", "said p50", "said p99", "p50", "p99", "longest"
    );
}

fn on_stranger(kind: &str) -> String {
    format!(r#"{{"type":{kind},"sources":["{STRANGER}/32"]}}"#)
}

#[test]
fn the_time_from_the_opening_to_the_effect_is_printed() {
    inside(|| {
        let mut bench = Bench::new();
        for setting in ["net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.ft0.rp_filter=1", "net.ipv4.tcp_syncookies=0"] {
            run(&["sysctl", "-w", setting], "").unwrap();
        }
        head();
        bench.measure(&on_stranger(r#""iptables_drop_source""#), true);
        bench.measure(r#"{"type":"iptables_drop_protocol","protocol":"udp"}"#, true);
        bench.measure(r#"{"type":"iptables_drop_port","protocol":"udp","port":9999}"#, true);
        bench.measure(&on_stranger(r#""ipset_ban","set":"banned""#), true);
        bench.measure(&on_stranger(r#""nft_drop_source""#), true);
        bench.measure(&on_stranger(r#""null_route_source""#), true);
        bench.measure(r#"{"type":"syn_cookies"}"#, false);
        let ways = &trial::police(System, bench.dir.path(), "this boot").expect("tried").ways;
        for way in ways {
            let word = serde_json::to_value(way).unwrap();
            let word = word.as_str().unwrap();
            println!("by {word}:");
            let limit = r#"{"type":"tc_police_interface","interface":"ft0","bps":8000,"burst_bytes":2048}"#;
            bench.measure(&format!("{word} {limit}"), true);
        }
    });
}

/// The same in a firewall that is a server, or a script: seconds of start, and so only where many runs are wanted.
fn with_firewall(json: &'static str, prepare: impl FnOnce() -> Vec<super::firewalls::Server> + Send + 'static) {
    if std::env::var_os("FTAGENT_ACTION_RUNS").is_none() {
        println!("skipped: FTAGENT_ACTION_RUNS is not set");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    inside(move || {
        let Some(()) = unpacked(scratch.path()) else { return };
        let _servers = prepare();
        let mut bench = Bench::new();
        head();
        bench.measure(&on_stranger(json), true);
    });
}

#[test]
fn the_time_to_the_effect_of_ufw_is_printed() {
    with_firewall(r#""ufw_deny_source""#, || {
        prepare_ufw();
        run(&["ufw", "allow", "9999/udp"], "").unwrap();
        Vec::new()
    });
}

#[test]
fn the_time_to_the_effect_of_firewalld_is_printed() {
    with_firewall(r#""firewalld_drop_source""#, || {
        let servers = prepare_firewalld();
        run(&["firewall-cmd", "--add-port=9999/udp"], "").unwrap();
        servers
    });
}

#[test]
fn the_time_to_the_effect_of_fail2ban_is_printed() {
    with_firewall(r#""fail2ban_ban","jail":"test""#, prepare_fail2ban);
}
