//! No rule of any tool cuts an operator who is connected, or the control plane: for any rules, sources and sessions, by
//! what would be in force; and for some of them with real sessions under real tools.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use ftagent::actions::runner::{Runner as _, System};
use ftagent::config::Config;
use ftagent::engine::{Input, Session, Settings};
use ftagent::ground::Host;
use ftagent::persist;
use ftagent::sessions::{Reader, Sessions, SessionsError};
use ftagent_common::api::{FirewallRule, PoliceMeans, PoliceWay, ToolStep};
use ftagent_lab::floods::{Dice, real};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::friends::is_dropped;
use super::model::World;
use super::real::dump;
use super::{do_step, undo_step};
use crate::floods::TARGET;
use crate::kernel::Kernel;
use crate::profiles::site::{CONTROL_PLANE, OPERATOR, STRANGER, Site, inside, start_ufw, unpacked};
use crate::scripts::{THREE, flood};

/// A host of which nothing but its own facts is known; `management` is who administers it.
pub(super) fn host(dir: &Path, management: &str) -> (tokio::runtime::Runtime, Config, Host) {
    let path = dir.join("ftagent.toml");
    let management = match management {
        "" => String::new(),
        sources => format!("[management]\nsources = [{sources:?}]\nports = [22]\n"),
    };
    std::fs::write(&path, format!("[[interface]]\nname = \"lo\"\n{management}")).unwrap();
    let config = Config::load(&path).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let host = runtime.block_on(Host::watch(&config, "boot")).unwrap();
    (runtime, config, host)
}

/// A firewall rule that any incident fires.
pub(super) fn rule(id: usize, action: &str) -> FirewallRule {
    serde_json::from_str(&format!(r#"{{"id":{id},"name":"r","trigger":{{"type":"any"}},"action":{action}}}"#)).unwrap()
}

/// As much as opens an incident at once where 500 packets a second are normal.
fn attack(k: &mut Kernel) {
    flood(k, THREE, TARGET, 5_000, 400);
}

/// Addresses of a small space, so that they meet often; some are attackers of [`THREE`].
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        1 => (1..u64::MAX).prop_map(|seed| real(&mut Dice(seed), TARGET.parse().unwrap(), 3)),
        3 => (0..4_u8, any::<u8>()).prop_map(|(c, d)| Ipv4Addr::from([198, 51, 96 + c, d]).into()),
        1 => (0..4_u16, any::<u8>()).prop_map(|(c, d)| Ipv6Addr::from([0x2001, 0xdb8, c, 0, 0, 0, 0, d.into()]).into()),
    ]
}

fn source() -> impl Strategy<Value = IpNet> {
    (address(), prop_oneof![Just(0_u8), Just(4), Just(8)]).prop_map(|(ip, wider)| match ip {
        IpAddr::V4(v4) => IpNet::from(Ipv4Net::new(v4, 32 - wider).unwrap().trunc()),
        IpAddr::V6(v6) => IpNet::from(Ipv6Net::new(v6, 128 - 8 * wider).unwrap().trunc()),
    })
}

fn session() -> impl Strategy<Value = Session> {
    (address(), prop::sample::subsequence(vec![22_u16, 2_222, 9_090], 1..3)).prop_map(|(peer, ports)| Session {
        peer,
        ports,
        user: "alice".to_owned(),
        since: 0,
    })
}

/// The number of actions that [`action`] knows.
const ACTIONS: usize = 23;

fn action(which: usize, sources: &[IpNet]) -> String {
    let whole: Vec<&IpNet> = sources.iter().filter(|s| s.prefix_len() == s.max_prefix_len()).collect();
    let whole = serde_json::to_string(&whole).unwrap();
    let sources = serde_json::to_string(sources).unwrap();
    let on = |kind: &str, more: &str| format!(r#"{{"type":"{kind}"{more},"sources":{sources}}}"#);
    let wide = |kind: &str, more: &str| format!(r#"{{"type":"{kind}",{more}}}"#);
    match which {
        0 => on("xdp_drop_source", ""),
        1 => on("xdp_rate_limit_source", r#","pps":1"#),
        2 => wide("xdp_drop_protocol", r#""protocol":"tcp""#),
        3 => wide("xdp_drop_port", r#""protocol":"tcp","port":22"#),
        4 => wide("xdp_rate_limit_target", r#""protocol":"tcp","pps":1"#),
        5 => wide("nft_drop_protocol", r#""protocol":"tcp""#),
        6 => wide("nft_drop_port", r#""protocol":"tcp","port":22"#),
        7 => on("nft_drop_source", ""),
        8 => on("nft_rate_limit_source", r#","pps":1"#),
        9 => on("iptables_drop_source", ""),
        10 => on("ipset_ban", r#","set":"banned""#),
        11 => on("ufw_deny_source", ""),
        12 => on("null_route_source", ""),
        13 => on("firewalld_drop_source", ""),
        14 => wide("fail2ban_ban", &format!(r#""jail":"sshd","sources":{whole}"#)),
        15 => wide("iptables_drop_protocol", r#""protocol":"tcp""#),
        16 => wide("iptables_reject_protocol", r#""protocol":"tcp""#),
        17 => wide("iptables_drop_port", r#""protocol":"tcp","port":22"#),
        18 => wide("iptables_rate_limit_source", r#""pps":1"#),
        19 => wide("iptables_limit_connections", r#""connections":1"#),
        20 => wide("iptables_limit_syn", r#""pps":1"#),
        21 => wide("tc_police_interface", r#""interface":"eth0","bps":8000"#),
        _ => wide("ufw_deny_protocol", r#""protocol":"tcp""#),
    }
}

/// The prefixes that a command names, in whatever words.
fn named(step: &ToolStep) -> Vec<IpNet> {
    let words = step.run.iter().flat_map(|word| word.split(['"', ' ']));
    words.filter_map(|w| w.parse().or_else(|_| w.parse::<IpAddr>().map(IpNet::from)).ok()).collect()
}

/// Which of `steps` cuts a session from `peer`, if one does.
fn cut<'a>(steps: &[&'a ToolStep], peer: IpAddr) -> Option<&'a ToolStep> {
    let of = |program: &str| steps.iter().copied().filter(|s| s.run[0] == program).collect::<Vec<_>>();
    let meets = |step: &ToolStep| named(step).iter().any(|net| net.contains(&peer));
    let has = |step: &ToolStep, word: &str| step.run.iter().any(|w| w == word);
    // Each rule of ufw comes before those that were made before it; the first that matches decides.
    let first =
        of("ufw").into_iter().rev().find(|s| meets(s) || !s.run.windows(2).any(|w| w[0] == "from" && w[1] != "any"));
    if let Some(denied) = first.filter(|s| has(s, "deny")) {
        return Some(denied);
    }
    // A program knows itself whom it lets pass; a filter of tc that does comes before the one that polices or redirects.
    if let Some(program) = of("ftagent").into_iter().find(|s| !meets(s)) {
        return Some(program);
    }
    let police = of("tc").into_iter().find(|s| has(s, "police") || has(s, "redirect"));
    let pref = |s: &ToolStep| s.run.iter().skip_while(|w| *w != "pref").nth(1).and_then(|w| w.parse::<u32>().ok());
    if let Some(police) = police
        && !of("tc").iter().any(|s| has(s, "flowid") && meets(s) && pref(s) < pref(police))
    {
        return Some(police);
    }
    // The others act on those whom they name.
    ["ip", "firewall-cmd", "fail2ban-client"].iter().flat_map(|program| of(program)).find(|s| meets(s))
}

#[test]
fn no_rules_cut_a_session_in_use_in_any_tool() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = ["", "192.0.2.0/24"].map(|management| RefCell::new(host(dir.path(), management)));
    let (rules_seen, steps_seen) = (Cell::new(0), Cell::new(0));
    let inputs = (
        prop::collection::vec(session(), 1..5),
        prop::collection::vec(session(), 0..3),
        prop::collection::vec(address(), 0..2),
        prop::collection::vec((0..ACTIONS, prop::collection::vec(source(), 1..6)), 1..6),
        any::<bool>(),
        any::<bool>(),
        0..PoliceWay::ALL.len(),
    );
    let config = ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() };
    let done = TestRunner::new(config).run(&inputs, |(sessions, later, control, rules, managed, automatic, way)| {
        let mut borrowed = hosts[usize::from(managed)].borrow_mut();
        let (_, config, host) = &mut *borrowed;
        let control: Vec<_> = control.into_iter().map(|ip| (ip, 8_443)).collect();
        let seen = |in_use: &[Session]| {
            let (in_use, control) = (in_use.to_vec(), control.clone());
            Ok(Sessions { in_use, control, ..Sessions::default() })
        };
        host.set_sessions(seen(&sessions));
        let mut file = Settings {
            rules: rules.iter().enumerate().map(|(id, (which, sources))| rule(id, &action(*which, sources))).collect(),
            ..Settings::default()
        };
        file.response.automatic = automatic;
        file.detection.floor_pps = 500;
        let with_way = |host: &Host| {
            let mut settings = host.settings(&file);
            settings.node.police = Some(PoliceMeans { ways: vec![PoliceWay::ALL[way]], lacking: Vec::new() });
            settings
        };
        let mut k = Kernel::new(with_way(host));
        attack(&mut k);
        let mut all = sessions;
        for round in 0..2 {
            let set = host.with_friends(k.engine.desired());
            let ground = host.ground(config).datapath();
            let steps: Vec<&ToolStep> = k.actions.iter().flat_map(|w| &w.steps).collect();
            let mut world = World::new();
            let in_model = |s: &&&ToolStep| ["iptables", "ip6tables", "ipset", "ip"].contains(&s.run[0].as_str());
            // Steps that several actions have in common are run once.
            for step in steps.iter().filter(in_model) {
                match &step.members {
                    Some(members) => drop(world.feed(&step.run, &members.to_add(&members.prefixes))),
                    None => drop(world.run(&step.run)),
                }
            }
            let links = control.iter().map(|(peer, port)| (*peer, vec![*port]));
            for (peer, ports) in all.iter().map(|s| (s.peer, s.ports.clone())).chain(links) {
                // What the datapath never drops: looked up before every rule, see the stages of the datapath.
                let trusted = ground.fail_safe.iter().filter(|f| f.prefix.contains(&peer));
                let trusted: Vec<u16> = trusted.flat_map(|f| f.ports.clone()).collect();
                prop_assert!(ports.iter().all(|port| trusted.contains(port)), "{} {:?}", peer, trusted);
                prop_assert!(set.allow.iter().any(|a| a.prefix.contains(&peer)), "{} in nftables", peer);
                for rule in set.rules.values() {
                    prop_assert!(!rule.matches.all_sources().any(|s| s.contains(&peer)), "{} {:?}", peer, rule);
                }
                let program = if peer.is_ipv4() { "iptables" } else { "ip6tables" };
                prop_assert_ne!(is_dropped(&world, program, "INPUT", peer.into()), Some(true), "{} {:#?}", peer, world);
                prop_assert_eq!(cut(&steps, peer), None, "{}", peer);
            }
            rules_seen.set(rules_seen.get() + set.rules.len());
            steps_seen.set(steps_seen.get() + steps.len());
            if round == 0 {
                // Who comes while all of it is in force is spared from then on.
                all.extend(later.iter().cloned());
                host.set_sessions(seen(&all));
                k.tell(Input::Settings(Box::new(with_way(host))));
            }
        }
        // Sessions that cannot be read: nothing automated stays.
        let why = std::io::Error::other("no netlink");
        host.set_sessions(Err(SessionsError::Sockets(why)));
        k.tell(Input::Settings(Box::new(host.settings(&file))));
        prop_assert!(k.automatic().is_empty() && k.actions.is_empty());
        prop_assert!(host.warnings().iter().any(|w| w.contains("no netlink")));
        Ok(())
    });
    done.unwrap();
    println!("{} rules and {} commands", rules_seen.get(), steps_seen.get());
    assert!(rules_seen.get() > 300 && steps_seen.get() > 1_000, "next to nothing was in force");
}

#[test]
fn a_refusal_names_the_session_and_is_told_like_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let (_runtime, _, mut host) = host(dir.path(), "");
    let session =
        Session { peer: "198.51.100.7".parse().unwrap(), ports: vec![22], user: "alice".to_owned(), since: 0 };
    host.set_sessions(Ok(Sessions { in_use: vec![session], ..Sessions::default() }));
    for kind in ["xdp_drop_source", "nft_drop_source", "iptables_drop_source", "null_route_source"] {
        let action = format!(r#"{{"type":"{kind}","sources":["198.51.100.7/32"]}}"#);
        let mut file = Settings { rules: vec![rule(7, &action)], ..Settings::default() };
        file.response.automatic = false;
        file.detection.floor_pps = 500;
        let mut k = Kernel::new(host.settings(&file));
        attack(&mut k);
        let report = k.reports.values().next().expect("an incident");
        let refused: Vec<_> = report.executions.iter().filter(|e| e.rule_id == 7).collect();
        assert!(
            refused.len() == 1 && refused[0].output.contains("alice (port 22) is connected"),
            "{kind}: {refused:?}"
        );
        assert!(report.timeline.iter().any(|e| e.kind == "refused" && e.text.contains("alice")), "{kind}");
        assert_eq!(k.engine.view().refusals, 1, "{kind}");
    }
}

/// What the engine would have run of `action`, when `host` knows who is connected.
fn planned(host: &Host, police: Option<PoliceMeans>, action: &str) -> Vec<ToolStep> {
    let mut file = Settings { rules: vec![rule(7, action)], ..Settings::default() };
    file.response.automatic = false;
    file.detection.floor_pps = 500;
    let mut settings = host.settings(&file);
    settings.node.police = police;
    let mut k = Kernel::new(settings);
    attack(&mut k);
    let steps: Vec<ToolStep> = k.actions.iter().flat_map(|w| &w.steps).cloned().collect();
    assert!(!steps.is_empty(), "{action}: {:#?}", k.reports.values().next().map(|r| &r.executions));
    steps
}

/// Runs `action` on the real tool, lets `site` judge, and undoes it.
fn under(host: &Host, action: &str, judge: impl FnOnce()) {
    under_by(host, None, action, judge);
}

/// The same where an interface is limited so.
fn under_by(host: &Host, police: Option<PoliceMeans>, action: &str, judge: impl FnOnce()) {
    let steps = planned(host, police, action);
    let mut done = Vec::new();
    for step in &steps {
        let ran = do_step(&mut System, step);
        assert!(ran.is_success(), "{:?}: {}", step.run, ran.text());
        done.push(step);
    }
    judge();
    for step in done.into_iter().rev().filter(|step| !step.undo.is_empty()) {
        let ran = undo_step(&mut System, step);
        assert!(ran.is_success(), "{:?}: {}", step.undo, ran.text());
    }
}

/// A node with an operator who is logged in and a control plane that is connected, both seen by the agent's own eyes.
struct Node {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    host: Host,
    site: Site,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let records = dir.path().join("systemd/sessions");
        std::fs::create_dir_all(&records).unwrap();
        let site = Site::new();
        // Who administers the node otherwise is somebody else: what concerns everybody is refused without.
        let (runtime, _, mut host) = host(dir.path(), "203.0.113.128/25");
        let mut reader = Reader::below(dir.path(), dir.path(), [8_443]);
        assert_eq!(reader.look(0).unwrap().in_use, [], "connected, not logged in");
        let record = format!("USER=alice\nSTATE=active\nREMOTE=1\nSERVICE=sshd\nREMOTE_HOST={OPERATOR}\n");
        std::fs::write(records.join("1"), record).unwrap();
        let seen = reader.look(0).unwrap();
        let peers: Vec<_> = seen.in_use.iter().map(|s| (s.peer.to_string(), s.ports.clone())).collect();
        assert_eq!(peers, [(OPERATOR.to_owned(), vec![22])]);
        assert_eq!(seen.control, [(CONTROL_PLANE.parse().unwrap(), 8_443)]);
        assert!(host.set_sessions(Ok(seen)));
        Self { dir, runtime, host, site }
    }
}

fn on_sources(kind: &str) -> String {
    format!(r#"{{"type":{kind},"sources":["{OPERATOR}/32","{CONTROL_PLANE}/32","{STRANGER}/32"]}}"#)
}

#[test]
fn real_sessions_go_on_whatever_the_tools_are_told() {
    inside(|| {
        let mut node = Node::new();
        for setting in ["net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.ft0.rp_filter=1"] {
            assert!(System.run(&["sysctl", "-w", setting].map(str::to_owned)).is_success());
        }
        for kind in [r#""iptables_drop_source""#, r#""ipset_ban","set":"banned""#, r#""null_route_source""#] {
            assert!(node.site.is_open(), "before {kind}");
            under(&node.host, &on_sources(kind), || {
                node.site.check(&format!("under {kind}"));
                assert!(!node.site.is_open(), "{kind} has no effect on a stranger");
            });
        }
        for (action, is_closed) in [
            (r#"{"type":"iptables_drop_protocol","protocol":"tcp"}"#, true),
            (r#"{"type":"iptables_reject_protocol","protocol":"tcp"}"#, true),
            (r#"{"type":"iptables_drop_port","protocol":"tcp","port":22}"#, false),
            (r#"{"type":"iptables_drop_port","protocol":"tcp","port":8080}"#, true),
            (r#"{"type":"iptables_rate_limit_source","pps":1,"burst":1}"#, false),
            (r#"{"type":"iptables_limit_connections","connections":1}"#, false),
            (r#"{"type":"iptables_limit_syn","pps":1,"burst":1}"#, false),
        ] {
            under(&node.host, action, || {
                for _ in 0..3 {
                    node.site.check(&format!("under {action}"));
                }
                assert!(!is_closed || !node.site.is_open(), "{action} has no effect on a stranger");
            });
        }
        police(&mut node);
        // Nobody knowing of them, the same rules cut both: the test can fail.
        node.host.set_sessions(Ok(Sessions::default()));
        under(&node.host, &on_sources(r#""iptables_drop_source""#), || {
            let cut: Vec<bool> = node.site.sessions.iter_mut().map(|session| session.is_cut()).collect();
            assert_eq!(cut, [true, true]);
        });
    });
}

/// Each way that this kernel has to limit an interface: found out by the agent's own trial, which leaves nothing.
fn police(node: &mut Node) {
    let before = dump();
    persist::make_dir(&node.dir.path().join("actions")).unwrap();
    node.host.try_police(node.dir.path(), "boot");
    let told = async {
        while node.host.means().police.is_none() {
            node.host.changed().await;
        }
    };
    node.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), told).await }).expect("told");
    assert_eq!(dump(), before, "the trial leaves nothing");
    let means = node.host.means().police.expect("it was tried");
    assert_eq!(means.ways.len() + means.lacking.len(), if means.ways[0] == PoliceWay::Police { 2 } else { 3 });
    assert!(means.ways.contains(&PoliceWay::Program), "{means:#?}");
    let action = r#"{"type":"tc_police_interface","interface":"ft0","bps":8000,"burst_bytes":2048}"#;
    for way in means.ways {
        let only = PoliceMeans { ways: vec![way], lacking: Vec::new() };
        assert_eq!(node.site.heard_of_stranger(50), 50);
        under_by(&node.host, Some(only), action, || {
            let heard = node.site.heard_of_stranger(50);
            assert!((1..20).contains(&heard), "{way:?}: {heard} of 50 frames of a stranger came through");
            for _ in 0..50 {
                node.site.check(&format!("under {way:?}"));
            }
        });
        assert_eq!(dump(), before, "{way:?} leaves nothing");
        println!("an interface is limited by {way:?}");
    }
}

#[test]
fn a_real_session_goes_on_under_ufw() {
    let scratch = tempfile::tempdir().unwrap();
    inside(move || {
        let Some(()) = unpacked(scratch.path()) else { return };
        start_ufw();
        let mut node = Node::new();
        under(&node.host, r#"{"type":"ufw_deny_protocol","protocol":"tcp"}"#, || {
            node.site.check("under ufw");
            assert!(!node.site.is_open(), "ufw_deny_protocol has no effect on a stranger");
        });
    });
}
