//! What the agent's part of the gate writes is taken away again: at the end of an incident, in modes that drop nothing,
//! and by the heir of an agent that was killed.

use bpf_tests::skip_without_root;
use ftagent::clock::mono_ns;
use ftagent::config::{GateConfig, SynChoice};
use ftagent::enforce::gate::{Around, Gate};
use ftagent::engine::{Gated, RuleSet};
use ftagent::xdp::compile::{Slots, key};
use ftagent::xdp::gate::Wanted;
use ftagent::xdp::pins::Pins;
use ftagent_common::abi::{AUTOMATIC, feature, gate as how};
use ftagent_common::vocab::Mode;
use ipnet::IpNet;

use crate::datapath::{Datapath, net};
use crate::gate::gate_maps;

const OWN: &str = "10.99.0.1/32";
const BEHIND: &str = "198.51.100.7/32";
const MINUTE_NS: u64 = 60_000_000_000;

/// What an engine wants that has put these targets, of this node or behind it, behind the gate.
fn wanted(mode: Mode, targets: &[(&str, bool)]) -> RuleSet {
    let gated = |(target, local): &(&str, bool)| {
        let incident = uuid::Uuid::from_u128(7);
        (net(target), Gated { ends_ns: mono_ns() + MINUTE_NS, local: *local, incident })
    };
    RuleSet { mode: Some(mode), gated: targets.iter().map(gated).collect(), ..RuleSet::default() }
}

/// A new agent's gate on what is in the kernel, before it looked at the interfaces.
fn opened(datapath: &Datapath) -> Gate {
    let wanted = Wanted { reflector_ports: vec![], served_ports: vec![], warmup_ns: 0 };
    let config = GateConfig { reflectors: false, wanted, syn: SynChoice::Cookies };
    let maps = Pins::below(&datapath.dir.bpf()).expect("a bpffs").maps();
    datapath.lab.edge.run(|| Gate::open(&maps, config, datapath.dir.path()).expect("maps")).expect("inside")
}

/// And after it.
fn heir(datapath: &Datapath) -> Gate {
    let mut gate = opened(datapath);
    attach(datapath, &mut gate);
    gate
}

fn attach(datapath: &Datapath, gate: &mut Gate) {
    let look = || gate.set_attached(&datapath.attached, Around::default(), mono_ns());
    datapath.lab.edge.run(look).expect("inside");
}

fn apply(datapath: &Datapath, gate: &mut Gate, set: &RuleSet) {
    let errors = datapath.lab.edge.run(|| gate.apply(set, &Slots::default())).expect("inside");
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(gate.features() & feature::GATE != 0, !set.gated.is_empty(), "the stage is in the path while needed");
}

/// `net.ipv4.tcp_syncookies` of the edge, and what is done for each target.
fn there(datapath: &Datapath) -> (String, Vec<(IpNet, u8)>) {
    let read = || std::fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies").expect("a setting");
    let setting = datapath.lab.edge.run(read).expect("inside").trim().to_owned();
    let maps = gate_maps(datapath);
    let targets = [OWN, BEHIND].map(net).into_iter().filter_map(|target| {
        let entry = maps.gated.lookup(&key(target)).expect("readable")?;
        assert_eq!(entry.flags, AUTOMATIC, "it ends with a silent agent");
        assert!(entry.expires_at_ns > mono_ns(), "and by itself");
        Some((target, entry.how))
    });
    (setting, targets.collect())
}

#[test]
fn the_gate_and_the_hosts_setting_go_with_the_incident() {
    if skip_without_root("the_gate_and_the_hosts_setting_go_with_the_incident") {
        return;
    }
    let datapath = Datapath::new();
    let (before, _) = there(&datapath);
    assert_ne!(before, "2");
    let mut gate = heir(&datapath);
    let both = [(OWN, true), (BEHIND, false)];
    apply(&datapath, &mut gate, &wanted(Mode::Enforce, &both));
    let cookies = (net(OWN), how::LOCAL | how::COOKIES);
    assert_eq!(there(&datapath), ("2".to_owned(), vec![cookies, (net(BEHIND), 0)]));
    // Only for targets of this node are there cookies to give.
    apply(&datapath, &mut gate, &wanted(Mode::Enforce, &both[1..]));
    assert_eq!(there(&datapath), (before.clone(), vec![(net(BEHIND), 0)]));
    apply(&datapath, &mut gate, &wanted(Mode::Enforce, &[]));
    assert_eq!(there(&datapath), (before, vec![]));
}

#[test]
fn a_mode_that_drops_nothing_leaves_the_hosts_setting_alone() {
    if skip_without_root("a_mode_that_drops_nothing_leaves_the_hosts_setting_alone") {
        return;
    }
    let datapath = Datapath::new();
    let (before, _) = there(&datapath);
    let mut gate = heir(&datapath);
    for mode in [Mode::Evaluate, Mode::Bypass] {
        apply(&datapath, &mut gate, &wanted(mode, &[(OWN, true)]));
        assert_eq!(there(&datapath), (before.clone(), vec![(net(OWN), how::LOCAL)]), "{mode}");
        apply(&datapath, &mut gate, &wanted(Mode::Enforce, &[(OWN, true)]));
        assert_eq!(there(&datapath).0, "2", "after {mode}");
    }
    apply(&datapath, &mut gate, &wanted(Mode::Bypass, &[(OWN, true)]));
    assert_eq!(there(&datapath).0, before, "switched over while a target is behind the gate");
}

#[test]
fn an_heir_keeps_what_is_wanted_still_and_undoes_the_rest() {
    if skip_without_root("an_heir_keeps_what_is_wanted_still_and_undoes_the_rest") {
        return;
    }
    let datapath = Datapath::new();
    let (before, _) = there(&datapath);
    let mut killed = heir(&datapath);
    apply(&datapath, &mut killed, &wanted(Mode::Enforce, &[(OWN, true), (BEHIND, false)]));
    drop(killed);
    // The daemon's order: what the engine remembers comes before the interfaces, and nothing is missing in between.
    let mut second = opened(&datapath);
    let cookies = ("2".to_owned(), vec![(net(OWN), how::LOCAL | how::COOKIES)]);
    apply(&datapath, &mut second, &wanted(Mode::Enforce, &[(OWN, true)]));
    assert_eq!(there(&datapath), cookies);
    attach(&datapath, &mut second);
    assert_eq!(there(&datapath), cookies);
    drop(second);
    let mut third = opened(&datapath);
    apply(&datapath, &mut third, &wanted(Mode::Enforce, &[]));
    assert_eq!(there(&datapath), (before, vec![]), "what it never knew of is undone, the setting too");
}
