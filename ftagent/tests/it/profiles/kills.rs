//! An agent that is killed at every step of a profile's course: what it leaves behind, the next one puts right.

use std::path::Path;
use std::process::{Command, Stdio};

use ftagent::profile::{Hook, Tools};
use ftagent_common::api::{AckStatus, Suite};

use super::BOOT;
use super::agent::{Agent, apply, own};
use super::site::{dump, inside, make_chains, same, start_firewalld, start_ufw, unpacked};

const STATE: &str = "FTAGENT_TEST_PROFILE_STATE";
const SUITE: &str = "FTAGENT_TEST_PROFILE_SUITE";
const PLACE: &str = "FTAGENT_TEST_PROFILE_PLACE";

/// Ends the process without a word at the place with this number.
fn killed_at(number: usize) -> Hook {
    let mut passed = 0;
    Box::new(move |_| {
        if passed == number {
            nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL).unwrap();
        }
        passed += 1;
    })
}

#[test]
#[ignore = "the process that the tests of this file kill"]
fn agent_to_be_killed() {
    let Some(state) = std::env::var_os(STATE) else { return };
    let suite = std::env::var(SUITE).unwrap();
    let suite = Suite::ALL.into_iter().find(|s| s.as_str() == suite).unwrap();
    let place = std::env::var(PLACE).unwrap().parse().unwrap();
    let tools = Tools { hook: Some(killed_at(place)) };
    let mut agent = Agent::with(Path::new(&state), BOOT, tools);
    assert_eq!(agent.order(apply(1, "fintech", suite, own(suite))).status, AckStatus::Applied);
    assert_eq!(agent.confirm(1).status, AckStatus::Applied);
    agent.roll_back(1);
}

/// Kills at one place after the other, or at every `stride`th, until the course ends before the next.
fn kill_everywhere(suite: Suite, stride: usize) {
    let before = dump();
    let whole = {
        let state = tempfile::tempdir().unwrap();
        let mut agent = Agent::start(state.path(), BOOT);
        assert_eq!(agent.order(apply(1, "fintech", suite, own(suite))).status, AckStatus::Applied);
        let whole = dump();
        agent.roll_back(1);
        whole
    };
    same("undisturbed", &dump(), &before);
    let (mut there, mut gone) = (0, 0);
    for place in (0..).step_by(stride) {
        let state = tempfile::tempdir().unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "profiles::kills::agent_to_be_killed", "--ignored"])
            .env(STATE, state.path())
            .env(SUITE, suite.as_str())
            .env(PLACE, place.to_string())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        let is_last = status.success();
        let mut agent = Agent::start(state.path(), BOOT);
        let what = format!("{suite:?} killed at {place}");
        if agent.settles() {
            there += 1;
            same(&what, &dump(), &whole);
            agent.roll_back(1);
        } else {
            gone += 1;
        }
        same(&what, &dump(), &before);
        if suite != Suite::Firewalld {
            let again = agent.order(apply(2, "isp", suite, &[]));
            assert_eq!(again.status, AckStatus::Applied, "{what}: {again:?}");
            agent.roll_back(2);
        }
        if is_last {
            println!(
                "{suite:?}: killed at every {stride}th of {place} places; {there} times in force afterwards, {gone} times gone"
            );
            assert!(place >= 12 && (there >= 3 || stride > 1), "{place} {there}");
            return;
        }
    }
}

#[test]
fn a_kill_at_any_step_in_iptables_and_nftables_is_put_right() {
    inside(|| kill_everywhere(Suite::Iptables, 1));
    inside(|| kill_everywhere(Suite::Nftables, 1));
}

#[test]
fn a_kill_at_any_step_in_ufw_is_put_right() {
    let scratch = tempfile::tempdir().unwrap();
    inside(move || {
        let Some(()) = unpacked(scratch.path()) else { return };
        start_ufw();
        let files = || {
            ["before.rules", "before6.rules", "user.rules", "user6.rules"]
                .map(|name| std::fs::read_to_string(format!("/etc/ufw/{name}")).unwrap())
        };
        let before = files();
        kill_everywhere(Suite::Ufw, 1);
        assert_eq!(files(), before);
    });
}

#[test]
#[ignore = "a command for each rule: ten minutes"]
fn a_kill_at_some_steps_in_firewalld_is_put_right() {
    let scratch = tempfile::tempdir().unwrap();
    inside(move || {
        let Some(()) = unpacked(scratch.path()) else { return };
        let _servers = start_firewalld();
        make_chains();
        kill_everywhere(Suite::Firewalld, 31);
    });
}
