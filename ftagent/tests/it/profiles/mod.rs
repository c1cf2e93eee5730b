//! Attack profiles, put in force and taken back by the agent's own code on the real firewalls.
#![expect(clippy::disallowed_methods, reason = "it measures time")]

mod agent;
mod daemon;
mod generated;
mod kills;
pub(crate) mod site;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ftagent::engine::OrderOutcome;
use ftagent::profile::{ProfileOrder, Tools};
use ftagent_common::api::{AckStatus, Kept, Order, ProfileState, Suite};
use uuid::Uuid;

use self::agent::{Agent, PROFILES, apply, friends, own};
use self::site::{Site, dump, inside, make_chains, run, same, start_firewalld, start_ufw, unpacked, wait};

const BOOT: &str = "boot-1";

/// Each profile in turn: in force with all sessions alive, and gone without a trace; milliseconds of each.
fn each_profile(suite: Suite, profiles: &[&str], state: &Path, files: &[&str]) {
    let mut site = Site::new();
    let mut agent = Agent::start(state, BOOT);
    let before = dump();
    let read = || files.iter().map(|file| fs::read_to_string(file).unwrap()).collect::<Vec<_>>();
    let written = read();
    let (mut there, mut gone) = (Vec::new(), Vec::new());
    for (at, profile) in profiles.iter().enumerate() {
        let application = at as u128 + 1;
        assert!(site.is_open(), "before {profile}");
        let own = if at == 0 { own(suite) } else { &[] };
        let began = Instant::now();
        let ack = agent.order(apply(application, profile, suite, own));
        there.push(began.elapsed().as_millis());
        assert_eq!(ack.status, AckStatus::Applied, "{profile}: {ack:?}");
        assert_eq!(agent.status().phase, "trial");
        let during = dump();
        assert!(during.contains("FTAGENT-PROFILE") || during.contains("ftagent_profile"), "{profile}:\n{during}");
        site.check(&format!("under {profile}"));
        // What is strict lets no stranger in.
        assert_eq!(site.is_open(), *profile != "fintech", "{profile}");
        let began = Instant::now();
        agent.roll_back(application);
        gone.push(began.elapsed().as_millis());
        same(&format!("{profile} {suite:?}"), &dump(), &before);
        assert_eq!(read(), written, "{profile}");
        site.check(&format!("after {profile}"));
    }
    println!("{suite:?}: in force after {there:?} ms, gone after {gone:?} ms");
}

#[test]
fn every_profile_comes_and_goes_in_iptables() {
    let state = tempfile::tempdir().unwrap();
    inside(move || each_profile(Suite::Iptables, &PROFILES, state.path(), &[]));
}

#[test]
fn every_profile_comes_and_goes_in_nftables() {
    let state = tempfile::tempdir().unwrap();
    inside(move || each_profile(Suite::Nftables, &PROFILES, state.path(), &[]));
}

#[test]
fn every_profile_comes_and_goes_in_ufw() {
    let (state, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    inside(move || {
        let Some(()) = unpacked(scratch.path()) else { return };
        start_ufw();
        let files = ["/etc/ufw/before.rules", "/etc/ufw/before6.rules", "/etc/ufw/user.rules", "/etc/ufw/user6.rules"];
        each_profile(Suite::Ufw, &PROFILES, state.path(), &files);
    });
}

fn in_firewalld(profiles: &'static [&'static str]) {
    let (state, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    inside(move || {
        let Some(()) = unpacked(scratch.path()) else { return };
        let _servers = start_firewalld();
        // At its start it takes the empty chains away.
        make_chains();
        each_profile(Suite::Firewalld, profiles, state.path(), &[]);
        for what in ["--get-all-rules", "--get-all-chains"] {
            assert_eq!(run(&["firewall-cmd", "--direct", what], "").unwrap().trim(), "");
            assert_eq!(run(&["firewall-cmd", "--permanent", "--direct", what], "").unwrap().trim(), "");
        }
    });
}

#[test]
fn the_strictest_profile_comes_and_goes_in_firewalld() {
    in_firewalld(&["fintech"]);
}

#[test]
#[ignore = "a command for each rule: ten minutes"]
fn every_profile_comes_and_goes_in_firewalld() {
    in_firewalld(&PROFILES);
}

#[test]
fn what_nobody_confirms_is_taken_back_in_time_without_a_control_plane() {
    let state = tempfile::tempdir().unwrap();
    inside(move || {
        let mut site = Site::new();
        let mut agent = Agent::start(state.path(), BOOT);
        let before = dump();
        let Order::ApplyProfile { application, profile, suite, rules, custom, keep, .. } =
            apply(7, "fintech", Suite::Nftables, &[])
        else {
            unreachable!("it is that order")
        };
        let order = Order::ApplyProfile { application, profile, suite, rules, custom, keep, confirm_secs: 30 };
        let began = Instant::now();
        assert_eq!(agent.order(order.clone()).status, AckStatus::Applied);
        let sure = Instant::now();
        assert_eq!(agent.order(order.clone()).output, "it is in force", "a repeated order is one");
        site.check("on trial");
        let report = agent.report();
        let (from, to) = (sure.elapsed().as_secs_f64(), began.elapsed().as_secs_f64());
        assert!(to >= 29.9 && from <= 31.5, "taken back after {from} to {to} s of 30");
        println!("taken back {to:.2} s after the order, which had 30 s");
        assert_eq!((report.application, report.state), (application, ProfileState::Lapsed));
        assert_eq!(report.reason, "lapsed: nobody confirmed it within 30 s");
        same("lapsed", &dump(), &before);
        site.check("after the lapse");
        let late = agent.confirm(7);
        assert_eq!((late.status, late.error.as_str()), (AckStatus::Failed, report.reason.as_str()));
        assert_eq!(agent.order(order).error, report.reason, "it does not come back");
        agent.roll_back(7);
    });
}

/// The dumps without an order: a table that is made anew is listed last.
fn sorted() -> Vec<String> {
    let mut lines: Vec<String> = dump().lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn what_is_confirmed_survives_restarts_and_reboots_and_is_repaired_and_what_is_not_does_not() {
    for suite in [Suite::Iptables, Suite::Nftables] {
        let state = tempfile::tempdir().unwrap();
        inside(move || {
            let before = dump();
            let mut agent = Agent::start(state.path(), BOOT);
            assert_eq!(agent.order(apply(1, "saas", suite, own(suite))).status, AckStatus::Applied);
            let whole = dump();
            assert_eq!(agent.confirm(1).output, "confirmed: it stays in force");
            assert_eq!(agent.confirm(1).output, "it was confirmed before");
            let other = agent.order(apply(2, "isp", suite, &[]));
            assert!(other.error.contains("has a profile already"), "{other:?}");

            // A stranger's rule, and ours gone: ours comes back, the stranger's stays.
            let (ruin, foreign): (&[&[&str]], &[&str]) = match suite {
                Suite::Iptables => (
                    &[&["iptables", "-F", "INPUT"], &["iptables", "-F", "FTAGENT-PROFILE"]],
                    &["iptables", "-A", "OUTPUT", "-p", "gre", "-j", "DROP"],
                ),
                _ => (
                    &[&["nft", "flush", "chain", "inet", "ftagent_profile", "input"]],
                    &["nft", "add", "table", "inet", "mine"],
                ),
            };
            run(foreign, "").unwrap();
            let with_foreign = sorted();
            for words in ruin {
                run(words, "").unwrap();
            }
            let began = Instant::now();
            wait("it is repaired", Duration::from_secs(15), || sorted() == with_foreign);
            println!("{suite:?}: repaired after {:.1} s", began.elapsed().as_secs_f64());
            wait("the repair is counted", Duration::from_secs(5), || agent.status().repairs == 1);

            assert!(agent.profiles.stop().is_empty());
            assert_eq!(sorted(), with_foreign, "the agent stopped");
            let agent = Agent::start(state.path(), BOOT);
            wait("it is known again", Duration::from_secs(5), || agent.settles());
            assert_eq!(agent.status().phase, "confirmed");
            assert!(agent.profiles.stop().is_empty());
            // A reboot: the kernel has nothing.
            run(&["nft", "flush", "ruleset"], "").unwrap();
            make_chains();
            let mut agent = Agent::start(state.path(), "boot-2");
            wait("it is back", Duration::from_secs(15), || dump() == whole);
            agent.roll_back(1);
            same("taken back", &dump(), &before);

            // On trial a restart changes nothing, a stop and a reboot take it back.
            assert_eq!(agent.order(apply(3, "saas", suite, &[])).status, AckStatus::Applied);
            let events = agent.profiles.stop();
            assert!(format!("{events:?}").contains("the agent was stopped before"), "{events:?}");
            same("stopped on trial", &dump(), &before);
            let mut agent = Agent::start(state.path(), "boot-2");
            assert_eq!(agent.order(apply(4, "saas", suite, &[])).status, AckStatus::Applied);
            let journal = fs::read(state.path().join("profile.json")).unwrap();
            let on_trial = dump();
            drop(agent.profiles.stop());
            // As if it had been killed instead.
            fs::write(state.path().join("profile.json"), journal).unwrap();
            let table = dump();
            assert!(table != on_trial);
            let mut agent = Agent::start(state.path(), "boot-3");
            let report = agent.report();
            assert!(report.reason.contains("the machine was started again"), "{report:?}");
            same("rebooted on trial", &dump(), &before);
        });
    }
}

#[test]
fn an_operator_at_the_node_keeps_it_or_takes_it_back() {
    let state = tempfile::tempdir().unwrap();
    inside(move || {
        let before = dump();
        let mut agent = Agent::start(state.path(), BOOT);
        assert!(matches!(agent.by_hand(ProfileOrder::Confirm), OrderOutcome::Refused { .. }));
        assert_eq!(agent.order(apply(1, "saas", Suite::Nftables, &[])).status, AckStatus::Applied);
        assert!(matches!(agent.by_hand(ProfileOrder::Confirm), OrderOutcome::Done { .. }));
        assert_eq!(agent.report().state, ProfileState::Confirmed);
        assert!(matches!(agent.by_hand(ProfileOrder::RollBack), OrderOutcome::Done { .. }));
        assert_eq!(agent.report().state, ProfileState::RolledBack);
        same("taken back by hand", &dump(), &before);

        // Without an agent.
        assert_eq!(agent.order(apply(2, "saas", Suite::Iptables, &[])).status, AckStatus::Applied);
        assert_eq!(agent.confirm(2).status, AckStatus::Applied);
        drop(agent.profiles.stop());
        assert_eq!(ftagent::profile::take_back_alone(state.path()), Ok(Some(Uuid::from_u128(2))));
        same("taken back alone", &dump(), &before);
        assert_eq!(ftagent::profile::take_back_alone(state.path()), Ok(None));
        let mut agent = Agent::start(state.path(), BOOT);
        let again = agent.order(apply(2, "saas", Suite::Iptables, &[]));
        assert!(again.error.contains("without the agent"), "{again:?}");
    });
}

#[test]
fn what_the_node_keeps_is_followed() {
    let state = tempfile::tempdir().unwrap();
    inside(move || {
        let mut site = Site::new();
        let mut agent = Agent::start(state.path(), BOOT);
        assert_eq!(agent.order(apply(1, "fintech", Suite::Iptables, &[])).status, AckStatus::Applied);
        assert!(!site.is_open());
        agent.profiles.set_friends(&friends(&[], &[site::STRANGER], &[]));
        wait("the friend gets in", Duration::from_secs(15), || site.is_open());
        site.check("with a new friend");
        agent.profiles.set_friends(&friends(&[8080], &[], &[]));
        wait("the port is kept", Duration::from_secs(15), || {
            agent.status().kept.ports == [22, 8080] && agent.status().kept.sources.is_empty() && site.is_open()
        });
        agent.profiles.set_friends(&friends(&[], &[], &[]));
        wait("the friend is none", Duration::from_secs(15), || !site.is_open());
        // Who is connected gets the answers to what he sends, and who goes changes nothing.
        agent.profiles.set_friends(&friends(&[], &[], &[site::STRANGER]));
        wait("the operator is kept", Duration::from_secs(15), || site.is_open());
        let kept = agent.status().kept;
        agent.profiles.set_friends(&friends(&[], &[], &[]));
        std::thread::sleep(Duration::from_secs(1));
        assert!(agent.status().kept == kept && site.is_open());
        agent.roll_back(1);
    });
}

#[test]
fn an_order_that_keeps_other_ports_leaves_the_port_of_ssh_open() {
    let state = tempfile::tempdir().unwrap();
    inside(move || {
        let mut site = Site::new();
        let mut agent = Agent::start(state.path(), BOOT);
        let mut order = apply(1, "fintech", Suite::Iptables, &[]);
        let Order::ApplyProfile { keep, .. } = &mut order else { unreachable!("it is that order") };
        *keep = Kept { ports: vec![2222], sources: vec![] };
        assert_eq!(agent.order(order).status, AckStatus::Applied);
        assert_eq!(agent.status().kept.ports, [22, 2222]);
        site.check("no connection was tracked before");
        agent.roll_back(1);
    });
}

#[test]
fn what_a_tool_refuses_leaves_nothing_and_is_said_in_its_words() {
    let state = tempfile::tempdir().unwrap();
    inside(move || {
        let before = dump();
        let mut agent = Agent::start(state.path(), BOOT);
        // (suite, own rule, words of the refusal)
        for (application, (suite, own, words)) in [
            // The reading knows words, the tool knows what belongs together.
            (Suite::Iptables, "ip6tables -A INPUT --dport 80 -j DROP", "unknown option"),
            (Suite::Nftables, "nft add rule inet ftagent_profile input udp saddr 80 drop", "error"),
            (Suite::Iptables, "iptables -F", "rules[0].cmd"),
            (Suite::Iptables, "iptables -P INPUT DROP", "rules[0].cmd"),
            (Suite::Nftables, "nft flush ruleset", "rules[0].cmd"),
            (Suite::Nftables, "nft add rule inet ftagent_profile input drop ; flush ruleset drop", "rules[0].cmd"),
            (Suite::Iptables, "iptables -A INPUT -s $(reboot) -j DROP", "rules[0].cmd"),
            (Suite::Ufw, "ufw deny from any to any port 19", "not installed"),
            (Suite::Firewalld, "firewall-cmd --direct --add-rule ipv4 filter INPUT 0 -p udp -j DROP", "not installed"),
        ]
        .into_iter()
        .enumerate()
        {
            let ack = agent.order(apply(application as u128, "saas", suite, &[own]));
            assert_eq!(ack.status, AckStatus::Failed, "{own}");
            assert!(ack.error.contains(words), "{own}: {}", ack.error);
            assert_eq!(agent.profiles.status(), None, "{own}");
            same(own, &dump(), &before);
            agent.roll_back(application as u128);
        }
        // No tool at all.
        let empty = tempfile::tempdir().unwrap();
        let hide = |at: &str| {
            let flags = nix::mount::MsFlags::MS_BIND;
            nix::mount::mount(Some(empty.path()), at, None::<&str>, flags, None::<&str>).unwrap();
        };
        hide("/usr/sbin");
        for (application, suite) in [(100, Suite::Iptables), (101, Suite::Nftables)] {
            let ack = agent.order(apply(application, "saas", suite, &[]));
            assert!(ack.error.contains("is not installed"), "{ack:?}");
            assert_eq!(agent.profiles.status(), None);
        }
        nix::mount::umount("/usr/sbin").unwrap();
        same("no tool", &dump(), &before);
        assert_eq!(agent.order(apply(102, "saas", Suite::Iptables, &[])).status, AckStatus::Applied);
        agent.roll_back(102);
    });
}

/// A few rules of a profile: each takes firewalld, and ufw, a moment.
fn some_rules(application: u128, suite: Suite) -> Order {
    let mut order = apply(application, "fintech", suite, &[]);
    let Order::ApplyProfile { rules, .. } = &mut order else { unreachable!("it is that order") };
    rules.truncate(2);
    order
}

#[test]
fn what_drops_goes_though_ufw_is_gone_or_its_files_were_changed() {
    let (state, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    inside(move || {
        let Some(()) = unpacked(scratch.path()) else { return };
        start_ufw();
        let mut agent = Agent::start(state.path(), BOOT);
        assert_eq!(agent.order(some_rules(1, Suite::Ufw)).status, AckStatus::Applied);
        assert!(dump().contains("FTAGENT-PROFILE"));
        let file = "/etc/ufw/before.rules";
        let text = fs::read_to_string(file).unwrap();
        fs::write(file, text.replace("# ftagent profile end\n", "")).unwrap();
        let back = Order::RollBackProfile { application: Uuid::from_u128(1) };
        let ack = agent.order(back.clone());
        assert!(ack.error.contains("before.rules") && ack.error.contains("by hand"), "{ack:?}");
        assert!(!dump().contains("FTAGENT"), "{}", dump());
        fs::write(file, text).unwrap();
        assert_eq!(agent.order(back).status, AckStatus::Applied);
        assert!(!fs::read_to_string(file).unwrap().contains("ftagent"));

        // Nobody knows any more what it was.
        assert_eq!(agent.order(some_rules(3, Suite::Ufw)).status, AckStatus::Applied);
        assert_eq!(agent.confirm(3).status, AckStatus::Applied);
        drop(agent.profiles.stop());
        let journal = state.path().join("profile.json");
        fs::write(&journal, "{").unwrap();
        assert_eq!(ftagent::profile::take_back_alone(state.path()), Ok(None));
        assert!(!dump().contains("FTAGENT") && !fs::read_to_string(file).unwrap().contains("ftagent"));
        fs::write(file, format!("{}# ftagent profile begin\n", fs::read_to_string(file).unwrap())).unwrap();
        fs::write(&journal, "{").unwrap();
        let left = ftagent::profile::take_back_alone(state.path());
        assert!(left.as_ref().is_err_and(|why| why.contains("before.rules")), "{left:?}");
        fs::write(file, fs::read_to_string(file).unwrap().replace("# ftagent profile begin\n", "")).unwrap();
        let mut agent = Agent::start(state.path(), BOOT);

        let own = &["ufw deny proto udp from any to any port 19"];
        assert_eq!(agent.order(apply(2, "saas", Suite::Ufw, own)).status, AckStatus::Applied);
        // As if its package had been removed, with its files.
        let flags = nix::mount::MntFlags::MNT_DETACH;
        nix::mount::umount2("/usr", flags).unwrap();
        fs::remove_file("/etc/ufw/before6.rules").unwrap();
        agent.roll_back(2);
        assert!(!dump().contains("FTAGENT"), "{}", dump());
    });
}

#[test]
fn what_drops_goes_though_firewalld_is_stopped() {
    let (state, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    inside(move || {
        let Some(()) = unpacked(scratch.path()) else { return };
        let [_bus, firewalld] = start_firewalld();
        make_chains();
        let mut agent = Agent::start(state.path(), BOOT);
        assert_eq!(agent.order(some_rules(1, Suite::Firewalld)).status, AckStatus::Applied);
        assert!(dump().contains("FTAGENT-PROFILE"));
        drop(firewalld);
        agent.roll_back(1);
        assert!(!dump().contains("FTAGENT"), "{}", dump());
    });
}

#[test]
fn what_was_taken_back_on_a_full_disk_does_not_come_back() {
    let state = tempfile::tempdir().unwrap();
    inside(move || {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("none"), state.path(), Some("tmpfs"), flags, Some("size=1m")).unwrap();
        let before = dump();
        let mut agent = Agent::start(state.path(), BOOT);
        assert_eq!(agent.order(apply(1, "saas", Suite::Nftables, &[])).status, AckStatus::Applied);
        assert_eq!(agent.confirm(1).status, AckStatus::Applied);
        let full = state.path().join("full");
        let mut bytes = 1 << 20;
        while bytes > 0 {
            // What fits: the rest of the last page too.
            let mut file = fs::OpenOptions::new().create(true).append(true).open(&full).unwrap();
            if std::io::Write::write_all(&mut file, &vec![0; bytes]).is_err() {
                bytes /= 2;
            }
        }
        agent.roll_back(1);
        same("taken back", &dump(), &before);
        // Whoever starts now, or after a kill, knows nothing of it.
        let journal = fs::read_to_string(state.path().join("profile.json")).unwrap_or_default();
        assert!(!journal.contains("confirmed"), "{journal}");
        fs::remove_file(&full).unwrap();
        wait("it is noted", Duration::from_secs(15), || agent.profiles.warnings().is_empty());
        assert!(fs::read_to_string(state.path().join("profile.json")).unwrap().contains("the control plane said so"));
        drop(agent.profiles.stop());
        let agent = Agent::start(state.path(), BOOT);
        assert!(!agent.settles());
        same("at the next start", &dump(), &before);
        drop(agent);
        nix::mount::umount2(state.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn detach_takes_away_whatever_it_can() {
    let state = tempfile::tempdir().unwrap();
    inside(move || {
        let before = dump();
        let mut agent = Agent::start(state.path(), BOOT);
        assert_eq!(agent.order(apply(1, "saas", Suite::Nftables, &[])).status, AckStatus::Applied);
        assert_eq!(agent.confirm(1).status, AckStatus::Applied);
        drop(agent.profiles.stop());
        // Programs cannot be looked for: this is no file system of BPF.
        let (folder, file) = (state.path().display().to_string(), state.path().join("ftagent.toml"));
        let text = format!("[agent]\nstate_dir = {folder:?}\nbpffs = {folder:?}\n[[interface]]\nname = \"lo\"\n");
        fs::write(&file, text).unwrap();
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_ftagent"))
            .arg("--config")
            .arg(&file)
            .arg("detach")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && said.contains("programs and maps") && said.contains("bpf"), "{done:?}");
        same("detached", &dump(), &before);
    });
}

#[test]
fn a_journal_that_cannot_be_read_refuses_what_is_new_until_it_can() {
    let state = tempfile::tempdir().unwrap();
    inside(move || {
        let before = dump();
        fs::create_dir(state.path().join("profile.json")).unwrap();
        let mut agent = Agent::start(state.path(), BOOT);
        let back = Order::RollBackProfile { application: Uuid::from_u128(1) };
        for order in [apply(1, "saas", Suite::Nftables, &[]), back] {
            let ack = agent.order(order);
            assert!(ack.status == AckStatus::Failed && ack.error.contains("cannot be read"), "{ack:?}");
        }
        assert!(matches!(agent.by_hand(ProfileOrder::RollBack), OrderOutcome::Refused { .. }));
        assert!(
            agent.profiles.warnings().iter().any(|w| w.contains("profile.json")),
            "{:?}",
            agent.profiles.warnings()
        );
        same("nothing is known", &dump(), &before);
        fs::remove_dir(state.path().join("profile.json")).unwrap();
        wait("it is read", Duration::from_secs(15), || agent.profiles.warnings().is_empty());
        assert_eq!(agent.order(apply(2, "saas", Suite::Nftables, &[])).status, AckStatus::Applied);
        agent.roll_back(2);
    });
}

#[test]
fn without_its_journal_nothing_is_begun() {
    let state = tempfile::tempdir().unwrap();
    inside(move || {
        let before = dump();
        let mut agent = Agent::with(state.path(), BOOT, Tools::default());
        // A folder in the journal's place cannot be replaced by a file.
        fs::create_dir_all(state.path().join("profile.json/x")).unwrap();
        let ack = agent.order(apply(1, "saas", Suite::Nftables, &[]));
        assert!(ack.error.contains("nothing was done"), "{ack:?}");
        same("no journal", &dump(), &before);
    });
}
