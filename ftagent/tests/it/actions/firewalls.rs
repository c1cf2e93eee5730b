//! The keeper on the real ufw, firewalld and fail2ban, unpacked by `cargo xtask setup --firewalls` and laid over `/usr`
//! and `/etc` in a mount namespace of each test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ftagent::actions::runner::{Ran, Runner, System};
use ftagent::engine::Outcome;
use ftagent::program::PATH;
use ftagent_common::api::{NodeMeans, ToolStep};
use ftagent_lab::floods::Dice;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::random::{count, sequence};
use super::real::{dump, in_lanes, same, survive, survive_plan, there, tool};
use super::{LATER_NS, open, outcomes, steps, steps_where, wanted};

/// Runs `test` where the firewalls are installed for it alone; skipped where they were not fetched.
fn inside(test: impl FnOnce() + Send + 'static) {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().to_owned();
    let thread = std::thread::spawn(move || {
        if let Err(why) = unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS) {
            println!("skipped: namespaces cannot be made: {why}");
            return;
        }
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).unwrap();
        mount(Some("none"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        if !lay_over(&path) {
            println!("skipped: `cargo xtask setup --firewalls` fetches the firewalls");
            return;
        }
        for words in ["ip link set lo up", "iptables -P INPUT ACCEPT", "ip6tables -P INPUT ACCEPT"] {
            tool(words).unwrap();
        }
        test();
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn lay_over(scratch: &Path) -> bool {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/firewalls/root");
    let Ok(root) = root.canonicalize() else { return false };
    let (upper, work) = (scratch.join("upper"), scratch.join("work"));
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir_all(&work).unwrap();
    let overlay = |options: String, at: &str| {
        mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    };
    overlay(format!("lowerdir={}:/usr", root.join("usr").display()), "/usr");
    let (upper, work, etc) = (upper.display(), work.display(), root.join("etc").display().to_string());
    overlay(format!("lowerdir={etc}:/etc,upperdir={upper},workdir={work}"), "/etc");
    for at in ["/run", "/var/log", "/var/lib"] {
        mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    }
    true
}

/// A server that ends with the test.
pub(super) struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn start(words: &str) -> Server {
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).env("PATH", PATH).stdin(Stdio::null());
    Server(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// Up to a minute.
fn wait_for(words: &str) {
    let up = (0..300).any(|_| {
        std::thread::sleep(Duration::from_millis(200));
        tool(words).is_ok()
    });
    assert!(up, "{}", tool(words).unwrap_err());
}

/// What the package's own set-up does after unpacking, and then switches it on.
pub(super) fn prepare_ufw() {
    for folder in ["/usr/share/ufw", "/usr/share/ufw/iptables"] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if [".rules", ".conf", ".init"].iter().any(|end| name.ends_with(end)) {
                fs::copy(&path, Path::new("/etc/ufw").join(name)).unwrap();
            }
        }
    }
    tool("ufw --force enable").unwrap();
    // With its first rule ufw writes its files anew, with lines that those of the package do not have.
    for words in ["ufw allow 9", "ufw prepend deny from 2001:db8::1", "ufw delete deny from 2001:db8::1"] {
        tool(words).unwrap();
    }
}

/// firewalld and the bus that it is spoken to by.
pub(super) fn prepare_firewalld() -> Vec<Server> {
    fs::create_dir_all("/run/dbus").unwrap();
    // A polkit of the machine, started by the bus, would not know firewalld's actions; without one root may all.
    let services = "/usr/share/dbus-1/system-services";
    if Path::new(services).exists() {
        mount(Some("none"), services, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    }
    let bus = start("/usr/bin/dbus-daemon --system --nofork --nopidfile");
    vec![start_firewalld(), bus]
}

fn start_firewalld() -> Server {
    let firewalld = start("/usr/bin/python3 /usr/sbin/firewalld --nofork --nopid");
    wait_for("firewall-cmd --state");
    firewalld
}

/// fail2ban with a jail `test` that nothing is written for.
pub(super) fn prepare_fail2ban() -> Vec<Server> {
    fs::create_dir_all("/run/fail2ban").unwrap();
    fs::create_dir_all("/var/lib/fail2ban").unwrap();
    fs::write("/var/log/quiet.log", "").unwrap();
    let jail = "[DEFAULT]\nbackend = polling\n[test]\nenabled = true\nfilter = sshd\nlogpath = /var/log/quiet.log\n\
                action = iptables-allports[name=test, protocol=all]\n";
    fs::write("/etc/fail2ban/jail.conf", jail).unwrap();
    fs::remove_dir_all("/etc/fail2ban/jail.d").ok();
    let server = start("/usr/bin/python3 /usr/bin/fail2ban-server -f start");
    wait_for("fail2ban-client status test");
    // Its chains come with the first ban of each family and stay.
    for source in ["203.0.113.8", "2001:db8::ff"] {
        for verb in ["banip", "unbanip"] {
            tool(&format!("fail2ban-client set test {verb} {source}")).unwrap();
        }
    }
    std::thread::sleep(Duration::from_secs(3));
    vec![server]
}

#[test]
fn ufw_is_as_before_after_every_action() {
    inside(|| {
        prepare_ufw();
        let whole = whole_ufw;
        for json in [
            r#"{"type":"ufw_deny_source","sources":["198.51.100.7/32","2001:db8::7/128"]}"#,
            r#"{"type":"ufw_deny_source","sources":["10.0.0.0/16"]}"#,
            r#"{"type":"ufw_deny_protocol","protocol":"udp"}"#,
            r#"{"type":"ufw_deny_protocol","protocol":"gre"}"#,
        ] {
            survive(json, &whole);
        }
    });
}

fn whole_ufw() -> String {
    let files = ["/etc/ufw/user.rules", "/etc/ufw/user6.rules"].map(|path| fs::read_to_string(path).unwrap());
    dump() + &files.concat() + &tool("ufw show added").unwrap()
}

const UFW: &str = r#"{"type":"ufw_deny_source","sources":["198.51.100.7/32","2001:db8::7/128"]}"#;

#[test]
fn what_stands_in_the_place_of_a_rule_of_ufw_stays_and_is_told() {
    inside(|| {
        prepare_ufw();
        let run = |words: &[&str]| {
            let ran = System.run(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
            assert!(ran.is_success(), "{words:?}: {}", ran.text());
        };
        let other = ["from", "2001:db8::7", "to", "any"];
        for verb in [&["allow"][..], &["deny", "log"]] {
            run(&[&["ufw"][..], verb, &other].concat());
            fails_in_ufw("another rule stands in the place of ufw prepend deny from 2001:db8::7");
            run(&[&["ufw", "delete"][..], verb, &other].concat());
        }
        // The same with words of an operator's is there already, and stays.
        run(&["ufw", "deny", "from", "198.51.100.7", "to", "any", "comment", "say \"no\""]);
        let before = whole_ufw();
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = open(System, dir.path(), 0);
        let one = wanted(1, steps(UFW));
        keeper.set(vec![one.clone()], []);
        let acted = keeper.work(0);
        assert_eq!((outcomes(&acted), acted[0].commands.len()), (vec![&Outcome::Applied], 2), "{acted:#?}");
        keeper.set(Vec::new(), [one.task]);
        assert_eq!(outcomes(&keeper.work(LATER_NS)), [&Outcome::Undone]);
        assert_eq!(whole_ufw(), before);
    });
}

fn node(lacks_busctl: bool) -> NodeMeans {
    NodeMeans { lacks_busctl, police: None }
}

/// An action fails, says `why`, and leaves nothing.
fn fails_in_ufw(why: &str) {
    let before = whole_ufw();
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = open(System, dir.path(), 0);
    keeper.set(vec![wanted(1, steps(UFW))], []);
    let acted = keeper.work(LATER_NS);
    let [Outcome::Failed(said)] = outcomes(&acted)[..] else { panic!("{acted:#?}") };
    assert!(said.contains(why), "{said}");
    assert!(keeper.stuck().is_empty() && keeper.is_idle_but_wanted(), "{:?}", keeper.stuck());
    assert_eq!(whole_ufw(), before);
}

/// Why the immediate rule of a source comes right before its own run of ufw, and not with those of all others first.
#[test]
fn what_only_the_chains_of_ufw_have_goes_with_its_next_rule() {
    inside(|| {
        prepare_ufw();
        let immediate = |step: &ToolStep| step.run[0].ends_with("tables");
        let (first, rest): (Vec<ToolStep>, Vec<ToolStep>) = steps(UFW).into_iter().partition(immediate);
        let other = steps(&UFW.replace("198.51.100.7", "198.51.100.8")).remove(0);
        let all: Vec<&ToolStep> = first.iter().chain([&other]).collect();
        assert_eq!(all.len(), 3);
        for step in &all {
            assert!(System.run(&step.run).is_success(), "{step:?}");
        }
        let are_there = || all.iter().map(|step| there(step)).collect::<Vec<_>>();
        assert_eq!(are_there(), [Some(true); 3]);
        // Of both families.
        assert!(System.run(&rest[0].run).is_success());
        assert_eq!(are_there(), [Some(true), Some(false), Some(false)]);
    });
}

#[test]
fn a_ufw_that_does_not_filter_is_said_to() {
    inside(|| {
        prepare_ufw();
        // Switched off while a rule of ours is in force, and on again.
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = open(System, dir.path(), 0);
        let one = wanted(1, steps(UFW));
        let before = whole_ufw();
        keeper.set(vec![one.clone()], []);
        assert_eq!(outcomes(&keeper.work(0)), [&Outcome::Applied]);
        assert_eq!(keeper.repair(0), []);
        tool("ufw --force disable").unwrap();
        let amiss = keeper.repair(0);
        let [Outcome::Amiss(Some(why))] = outcomes(&amiss)[..] else { panic!("{amiss:#?}") };
        assert!(why.contains("iptables -w 5 -I ufw-user-input -s 198.51.100.7/32"), "{why}");
        assert_eq!(keeper.repair(0), [], "said once");
        fails_in_ufw("ufw status: exit 0: Status: inactive");
        tool("ufw --force enable").unwrap();
        let well = keeper.repair(0);
        assert_eq!(outcomes(&well), [&Outcome::Amiss(None)], "{well:#?}");
        assert_eq!(keeper.repair(0), []);
        keeper.set(Vec::new(), [one.task]);
        assert_eq!(outcomes(&keeper.work(LATER_NS)), [&Outcome::Undone]);
        assert_eq!(whole_ufw(), before);
        let defaults = fs::read_to_string("/etc/default/ufw").unwrap();
        fs::write("/etc/default/ufw", defaults.replace("IPV6=yes", "IPV6=no")).unwrap();
        tool("ufw --force disable").unwrap();
        tool("ufw --force enable").unwrap();
        fails_in_ufw("ufw does not filter IPv6");
    });
}

#[test]
fn firewalld_is_as_before_after_its_action() {
    inside(|| {
        let _servers = prepare_firewalld();
        let whole = || dump() + &tool("firewall-cmd --list-all").unwrap();
        // By its bus, and by its own program where there is no busctl.
        for lacks_busctl in [false, true] {
            survive_plan(FIREWALLD, steps_where(FIREWALLD, node(lacks_busctl)), &whole);
        }
    });
}

const FIREWALLD: &str =
    r#"{"type":"firewalld_drop_source","sources":["198.51.100.7/32","2001:db8::/48"],"ttl_secs":600}"#;

#[test]
fn one_agent_undoes_in_firewalld_what_another_did_by_its_other_program() {
    inside(|| {
        let _servers = prepare_firewalld();
        let whole = || dump() + &tool("firewall-cmd --list-all").unwrap();
        let before = whole();
        for lacked in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let mut keeper = open(System, dir.path(), 0);
            keeper.set(vec![wanted(1, steps_where(FIREWALLD, node(lacked)))], []);
            assert_eq!(outcomes(&keeper.work(0)), [&Outcome::Applied]);
            let during = whole();
            let mut keeper = open(System, dir.path(), 0);
            keeper.set(vec![wanted(1, steps_where(FIREWALLD, node(!lacked)))], []);
            let again = keeper.work(0);
            assert_eq!((outcomes(&again), again[0].commands.len()), (vec![&Outcome::Applied], 0));
            assert_eq!(whole(), during);
            keeper.set(Vec::new(), []);
            keeper.work(LATER_NS);
            assert!(keeper.is_idle(), "{:?}", keeper.stuck());
            assert_eq!(whole(), before);
        }
    });
}

/// Somebody else does the same a moment before.
struct Late;

impl Runner for Late {
    fn run(&mut self, argv: &[String]) -> Ran {
        if argv.iter().any(|word| ["addRichRule", "removeRichRule"].contains(&word.as_str())) {
            assert!(System.run(argv).is_success(), "{argv:?}");
        }
        System.run(argv)
    }

    fn feed(&mut self, argv: &[String], _: &str) -> Ran {
        unreachable!("firewalld has no members: {argv:?}")
    }

    fn list(&mut self, argv: &[String], _: &mut dyn FnMut(&str)) -> Ran {
        unreachable!("firewalld has no members: {argv:?}")
    }
}

#[test]
fn what_firewalld_has_or_lacks_already_is_done() {
    inside(|| {
        let _servers = prepare_firewalld();
        let before = tool("firewall-cmd --list-all").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = open(Late, dir.path(), 0);
        let one = wanted(1, steps(FIREWALLD));
        keeper.set(vec![one.clone()], []);
        let acted = keeper.work(0);
        assert_eq!(outcomes(&acted), [&Outcome::Applied], "{acted:#?}");
        assert!(acted[0].output.contains("ALREADY_ENABLED"), "{}", acted[0].output);
        keeper.set(Vec::new(), [one.task]);
        let undone = keeper.work(LATER_NS);
        assert_eq!(outcomes(&undone), [&Outcome::Undone], "{undone:#?}");
        assert!(undone[0].output.contains("NOT_ENABLED"), "{}", undone[0].output);
        assert_eq!(tool("firewall-cmd --list-all").unwrap(), before);
    });
}

#[test]
fn a_firewalld_that_does_not_run_is_said_to_and_undone_when_it_is_back() {
    inside(|| {
        let [firewalld, _bus] = prepare_firewalld().try_into().ok().expect("two servers");
        let before = tool("firewall-cmd --list-all").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = open(System, dir.path(), 0);
        let one = wanted(1, steps(FIREWALLD));
        keeper.set(vec![one.clone()], []);
        assert_eq!(outcomes(&keeper.work(0)), [&Outcome::Applied]);
        drop(firewalld);
        let other = wanted(2, steps(&FIREWALLD.replace("198.51.100.7", "198.51.100.8")));
        keeper.set(vec![one.clone(), other], []);
        let acted = keeper.work(0);
        let [Outcome::Failed(why)] = outcomes(&acted)[..] else { panic!("{acted:#?}") };
        assert!(why.starts_with("firewalld is not running: busctl "), "{why}");
        keeper.set(Vec::new(), [one.task]);
        let acted = keeper.work(LATER_NS);
        let [Outcome::Stuck(why)] = outcomes(&acted)[..] else { panic!("{acted:#?}") };
        assert!(why.starts_with("firewalld is not running: busctl "), "{why}");
        let _firewalld = start_firewalld();
        let acted = keeper.work(2 * LATER_NS);
        assert_eq!(outcomes(&acted), [&Outcome::Undone], "{acted:#?}");
        assert!(keeper.is_idle());
        assert_eq!(tool("firewall-cmd --list-all").unwrap(), before);
    });
}

#[test]
fn fail2ban_is_as_before_after_its_action() {
    inside(|| {
        let _server = prepare_fail2ban();
        let jailed = || tool("fail2ban-client get test banip").unwrap();
        let json = r#"{"type":"fail2ban_ban","jail":"test","sources":["198.51.100.7/32","2001:db8::7/128"]}"#;
        survive(json, &jailed);
    });
}

/// Actions of all three, some with a rule in common, and of the tools below them.
const TOGETHER: [&str; 9] = [
    UFW,
    r#"{"type":"ufw_deny_source","sources":["2001:db8::7/128","10.0.0.0/16"]}"#,
    r#"{"type":"ufw_deny_protocol","protocol":"gre"}"#,
    FIREWALLD,
    r#"{"type":"firewalld_drop_source","sources":["198.51.100.7/32"],"ttl_secs":600}"#,
    r#"{"type":"fail2ban_ban","jail":"test","sources":["198.51.100.7/32","2001:db8::7/128"]}"#,
    r#"{"type":"fail2ban_ban","jail":"test","sources":["198.51.100.7/32","198.51.100.8/32"]}"#,
    r#"{"type":"iptables_drop_source","sources":["198.51.100.7/32"]}"#,
    r#"{"type":"iptables_drop_protocol","protocol":"udp"}"#,
];

/// Scripts and servers, which take their time: of the sequences a twentieth.
#[test]
fn the_firewalls_are_as_before_after_any_sequence() {
    in_lanes(u64::from(count(60)).div_ceil(20), |seeds| {
        if seeds.clone().next().is_some() {
            inside(move || some_sequences(seeds));
        }
    });
}

fn some_sequences(seeds: impl Iterator<Item = u64>) {
    prepare_ufw();
    let _servers = (prepare_firewalld(), prepare_fail2ban());
    let words = ["firewall-cmd --list-all", "fail2ban-client get test banip"];
    let whole = || whole_ufw() + &words.map(|words| tool(words).unwrap()).concat();
    let (before, mut done) = (whole(), 0);
    for seed in seeds {
        let dir = tempfile::tempdir().unwrap();
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let log = sequence(
            &mut dice,
            dir.path(),
            &TOGETHER,
            || System,
            |dice, set| {
                let all: Vec<_> = set.iter().flat_map(|w| &w.steps).collect();
                if !all.is_empty() {
                    System.run(&all[dice.below(all.len() as u64) as usize].undo);
                }
            },
        );
        same(&format!("seed {seed}: {log:#?}"), &whole(), &before);
        done += 1;
        if seed.is_multiple_of(50) {
            eprintln!("sequence {seed} of the firewalls is over");
        }
    }
    println!("{done} sequences on the real firewalls");
}
