//! Compiled profiles and previewed commands, run by the firewalls themselves.
//!
//! Each test is a thread in namespaces of its own. iptables and nftables are the machine's; ufw, firewalld and fail2ban
//! are unpacked by `cargo xtask setup --firewalls` and laid over `/usr` and `/etc` there, for nobody else to see.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use controlplane::domain::{ProfileId, compile_profile};
use ftagent_common::api::{Action, Compiled, CustomRule, Kept, NodeMeans, PreviewContext, Step, Suite, preview};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const BEGIN: &str = "# ftagent profile begin";
const END: &str = "# ftagent profile end";

/// Runs `test` in network and mount namespaces of its own; skipped without the right to make them.
fn inside(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        if let Err(why) = unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS) {
            println!("skipped: namespaces cannot be made: {why}");
            return;
        }
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).unwrap();
        run(&["ip", "link", "set", "lo", "up"], "").unwrap();
        // Whoever uses iptables first gets empty chains, which the tool never takes away again.
        for program in ["iptables", "ip6tables"] {
            run(&[program, "-P", "INPUT", "ACCEPT"], "").unwrap();
        }
        test();
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// The unpacked firewalls laid over this thread's `/usr` and `/etc`; none where they were not fetched.
fn unpacked(scratch: &Path) -> Option<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent()?.join("target/firewalls/root");
    if !root.exists() {
        println!("skipped: `cargo xtask setup --firewalls` fetches the firewalls");
        return None;
    }
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
    Some(())
}

/// Runs a command of the system's, whatever the caller's search path.
fn run(words: &[impl AsRef<str>], input: &str) -> Result<String, String> {
    use std::io::Write as _;
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{}: {e}", words[0]))?;
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{words:?}: {}{}\n{input}", text(&output.stdout), text(&output.stderr)))
    }
}

fn dump() -> String {
    let of = |words: &[&str]| {
        let text = run(words, "").unwrap();
        text.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect::<String>()
    };
    // Counters of policies grow with the machine's own discovery of neighbours.
    let saved = |program| {
        let text = of(&[program]);
        text.lines().map(|l| l.split(" [").next().unwrap_or(l).to_owned() + "\n").collect::<String>()
    };
    saved("iptables-save") + &saved("ip6tables-save") + &of(&["nft", "list", "tables"])
}

/// Fails with the lines that differ.
fn same(what: &str, now: &str, before: &str) {
    let only =
        |a: &str, b: &str| a.lines().filter(|l| !b.lines().any(|m| m == *l)).map(str::to_owned).collect::<Vec<_>>();
    assert!(now == before, "{what}: new {:#?}, gone {:#?}", only(now, before), only(before, now));
}

/// Does what the agent is to do with a step.
fn take(step: &Step) -> Result<(), String> {
    if !step.file.is_empty() {
        let text = fs::read_to_string(&step.file).map_err(|e| format!("{}: {e}", step.file))?;
        let block = format!("{BEGIN}\n{}{END}\nCOMMIT\n", step.input);
        fs::write(&step.file, text.replacen("COMMIT\n", &block, 1)).unwrap();
    } else if !step.command.is_empty() {
        run(&step.command, &step.input)?;
    }
    Ok(())
}

fn take_back(step: &Step) -> Result<(), String> {
    if !step.file.is_empty() {
        let text = fs::read_to_string(&step.file).unwrap();
        let (before, rest) = text.split_once(BEGIN).unwrap();
        let (_, after) = rest.split_once(&format!("{END}\n")).unwrap();
        fs::write(&step.file, format!("{before}{after}")).unwrap();
    } else if !step.undo.is_empty() {
        run(&step.undo, &step.undo_input)?;
    }
    Ok(())
}

/// Puts it in force and takes it back: what shows then is what showed before.
fn try_out(name: &str, compiled: &Compiled) {
    let before = dump();
    for step in &compiled.steps {
        take(step).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let during = dump();
    assert!(during.contains("FTAGENT-PROFILE") || during.contains("ftagent_profile"), "{name}:\n{during}");
    for step in compiled.steps.iter().rev() {
        take_back(step).unwrap_or_else(|e| panic!("{name} back: {e}"));
    }
    same(name, &dump(), &before);
}

fn own(suite: Suite) -> Vec<CustomRule> {
    let commands: &[&str] = match suite {
        Suite::Iptables => &[
            "iptables -A INPUT -p udp -m multiport --dports 19,1900 -j DROP",
            "ip6tables -A INPUT -s 2001:db8:1::/48 -j REJECT --reject-with icmp6-port-unreachable",
            "iptables -A FORWARD -p tcp --syn -m hashlimit --hashlimit-above 10/sec --hashlimit-burst 20 --hashlimit-mode \
             srcip --hashlimit-name mine -j DROP",
        ],
        Suite::Nftables => &[
            "nft add rule inet ftagent_profile input udp dport { 19, 1900 } counter drop",
            "nft add rule inet ftagent_profile forward ip saddr 198.51.100.0/24 limit rate over 10/second drop",
        ],
        Suite::Ufw => &["ufw deny proto udp from any to any port 19", "ufw deny from 2001:db8:1::/48 to any"],
        Suite::Firewalld => &["firewall-cmd --direct --add-rule ipv4 filter INPUT 0 -p udp --dport 19 -j DROP"],
    };
    commands.iter().map(|cmd| CustomRule { cmd: (*cmd).to_owned(), title: "mine".to_owned() }).collect()
}

fn kept() -> Kept {
    let sources = ["198.51.100.7/32", "2001:db8::/32"].map(|s| s.parse().unwrap());
    Kept { ports: vec![22, 2222], sources: sources.to_vec() }
}

#[test]
fn iptables_and_nftables_take_every_profile_and_lose_it_without_a_trace() {
    inside(|| {
        for id in ProfileId::ALL {
            for suite in [Suite::Iptables, Suite::Nftables] {
                let compiled = compile_profile(*id, suite, &own(suite), &kept()).unwrap();
                for step in &compiled.steps {
                    // The tool's own look before the leap.
                    let program = step.command[0].as_str();
                    let test = if program == "nft" {
                        ["nft", "-c", "-f", "-"]
                    } else {
                        [program, "--noflush", "--test", "--wait=5"]
                    };
                    run(&test, &step.input).unwrap_or_else(|e| panic!("{id:?}: {e}"));
                }
                try_out(&format!("{id:?} {suite:?}"), &compiled);
            }
        }
        println!("{} profiles in iptables, ip6tables and nftables", ProfileId::ALL.len());
    });
}

/// What the packages' own set-up does after unpacking.
fn start_ufw() {
    for folder in ["/usr/share/ufw", "/usr/share/ufw/iptables"] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if [".rules", ".conf", ".init"].iter().any(|end| name.ends_with(end)) {
                fs::copy(&path, Path::new("/etc/ufw").join(name)).unwrap();
            }
        }
    }
    run(&["ufw", "--force", "enable"], "").unwrap();
    // With its first rule ufw writes its files anew, with lines that those of the package do not have.
    run(&["ufw", "allow", "9"], "").unwrap();
    run(&["ufw", "delete", "allow", "9"], "").unwrap();
}

/// The commands of an action's preview, done and undone.
fn try_action(json: &str) {
    let action: Action = serde_json::from_str(json).unwrap();
    action.validate().unwrap();
    let sources = ["198.51.100.7", "2001:db8::7"].map(|s| s.parse().unwrap()).to_vec();
    let context = PreviewContext {
        target: "203.0.113.5/32".parse().unwrap(),
        sources,
        spoofed: false,
        spared: Vec::new(),
        node: NodeMeans::default(),
    };
    let shown = preview(&action, &context);
    let steps = shown.steps();
    for step in &steps {
        run(&step.run, "").unwrap_or_else(|e| panic!("{json}: {e}"));
    }
    for step in steps.iter().rev() {
        let Err(why) = run(&step.undo, "") else { continue };
        // ufw takes the rule that stood in for its own away with its own.
        let look = step.look().unwrap_or_else(|| panic!("{json}: {why}"));
        let output = Command::new(&look.argv[0]).args(&look.argv[1..]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert_eq!(look.sees(output.status.code(), &said), Some(false), "{json}: {why}");
    }
}

#[test]
fn ufw_takes_every_profile_and_every_action_and_loses_them_without_a_trace() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().to_owned();
    inside(move || {
        mount(Some("none"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let Some(()) = unpacked(&path) else { return };
        start_ufw();
        let before = dump();
        let rules = fs::read_to_string("/etc/ufw/user.rules").unwrap();
        for json in [
            r#"{"type":"ufw_deny_protocol","protocol":"udp"}"#,
            r#"{"type":"ufw_deny_protocol","protocol":"gre"}"#,
            r#"{"type":"ufw_deny_protocol","protocol":"esp"}"#,
            r#"{"type":"ufw_deny_source"}"#,
            r#"{"type":"ufw_deny_source","sources":["10.0.0.0/8"]}"#,
        ] {
            try_action(json);
            same(json, &dump(), &before);
        }
        assert_eq!(fs::read_to_string("/etc/ufw/user.rules").unwrap(), rules);
        let files = || ["/etc/ufw/before.rules", "/etc/ufw/before6.rules"].map(|f| fs::read_to_string(f).unwrap());
        let before = files();
        for (at, id) in ProfileId::ALL.iter().enumerate() {
            let own = if at == 0 { own(Suite::Ufw) } else { Vec::new() };
            let compiled = compile_profile(*id, Suite::Ufw, &own, &kept()).unwrap();
            try_out(&format!("{id:?} ufw"), &compiled);
            assert_eq!(files(), before, "{id:?}");
        }
        println!("{} profiles in ufw {}", ProfileId::ALL.len(), run(&["ufw", "--version"], "").unwrap());
    });
}

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn start(words: &[&str]) -> Server {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    Server(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// Up to a minute.
fn wait_for(words: &[&str]) {
    for _ in 0..300 {
        if run(words, "").is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    panic!("{}", run(words, "").unwrap_err());
}

/// firewalld's file of direct rules with the words of the steps: it reads all of them at once.
fn direct_file(compiled: &Compiled) -> (String, usize) {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
    let (mut text, mut rules) = (String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<direct>\n"), 0);
    for step in &compiled.steps {
        match step.command.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["firewall-cmd", "--direct", "--add-chain", family, table, chain] => {
                text.push_str(&format!("<chain ipv=\"{family}\" table=\"{table}\" chain=\"{chain}\"/>\n"));
            }
            ["firewall-cmd", "--direct", "--add-rule", family, table, chain, place, words @ ..] => {
                rules += 1;
                let words = escape(&words.join(" "));
                text.push_str(&format!(
                    "<rule ipv=\"{family}\" table=\"{table}\" chain=\"{chain}\" priority=\"{place}\">{words}</rule>\n"
                ));
            }
            other => panic!("{other:?}"),
        }
    }
    (text + "</direct>\n", rules)
}

#[test]
fn firewalld_takes_every_profile_and_its_action() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().to_owned();
    inside(move || {
        mount(Some("none"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let Some(()) = unpacked(&path) else { return };
        fs::create_dir_all("/run/dbus").unwrap();
        // A polkit of the machine, started by the bus, would not know firewalld's actions; without one root may all.
        let services = "/usr/share/dbus-1/system-services";
        if Path::new(services).exists() {
            mount(Some("none"), services, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        }
        let _bus = start(&["/usr/bin/dbus-daemon", "--system", "--nofork", "--nopidfile"]);
        let _firewalld = start(&["/usr/bin/python3", "/usr/sbin/firewalld", "--nofork", "--nopid"]);
        wait_for(&["firewall-cmd", "--state"]);
        let rich = || run(&["firewall-cmd", "--list-all"], "").unwrap();
        let before = rich();
        try_action(r#"{"type":"firewalld_drop_source","ttl_secs":60}"#);
        assert_eq!(rich(), before);

        // One command after the other, as the agent is to do it: a profile of each kind of rule, done and undone.
        let compiled = compile_profile(ProfileId::Fintech, Suite::Firewalld, &own(Suite::Firewalld), &kept()).unwrap();
        try_out("Fintech firewalld", &compiled);
        let left = run(&["firewall-cmd", "--direct", "--get-all-rules"], "").unwrap();
        assert_eq!(left.trim(), "");

        for id in ProfileId::ALL {
            let compiled = compile_profile(*id, Suite::Firewalld, &[], &kept()).unwrap();
            let (file, rules) = direct_file(&compiled);
            fs::write("/etc/firewalld/direct.xml", file).unwrap();
            run(&["firewall-cmd", "--reload"], "").unwrap_or_else(|e| panic!("{id:?}: {e}"));
            let saved = dump();
            let ours = saved.lines().filter(|l| l.starts_with("-A ") && l.contains("FTAGENT-")).count();
            assert_eq!(ours, rules, "{id:?}:\n{saved}");
        }
        println!("{} profiles in firewalld {}", ProfileId::ALL.len(), run(&["firewall-cmd", "--version"], "").unwrap());
    });
}

#[test]
fn fail2ban_takes_its_action() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().to_owned();
    inside(move || {
        mount(Some("none"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let Some(()) = unpacked(&path) else { return };
        fs::create_dir_all("/run/fail2ban").unwrap();
        fs::create_dir_all("/var/lib/fail2ban").unwrap();
        fs::write("/var/log/quiet.log", "").unwrap();
        let jail = "[DEFAULT]\nbackend = polling\n[test]\nenabled = true\nfilter = sshd\nlogpath = /var/log/quiet.log\n\
                    action = iptables-allports[name=test]\n";
        fs::write("/etc/fail2ban/jail.conf", jail).unwrap();
        fs::remove_dir_all("/etc/fail2ban/jail.d").ok();
        let server = ["/usr/bin/python3", "/usr/bin/fail2ban-server", "-f", "start"];
        let _server = start(&server);
        wait_for(&["fail2ban-client", "status", "test"]);
        let jailed = || run(&["fail2ban-client", "get", "test", "banip"], "").unwrap();
        assert_eq!(jailed().trim(), "");
        try_action(r#"{"type":"fail2ban_ban","jail":"test"}"#);
        assert_eq!(jailed().trim(), "");
    });
}
