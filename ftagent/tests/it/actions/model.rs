//! A model of iptables, ipset, ip, tc and sysctl, as far as the plans use them: fast enough for many thousand sequences.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ftagent::actions::runner::{Ran, Runner};

/// What the tools hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct World {
    /// Program and chain to rules, in order.
    pub(super) chains: BTreeMap<String, Vec<String>>,
    pub(super) sets: BTreeMap<String, BTreeSet<String>>,
    pub(super) routes: BTreeSet<String>,
    pub(super) cookies: String,
    /// Whether each device is up.
    links: BTreeMap<String, bool>,
    /// Device and kind.
    qdiscs: BTreeSet<(String, String)>,
    /// By device and preference; what is added twice is there twice.
    filters: BTreeMap<(String, String), Vec<String>>,
}

impl World {
    pub(super) fn new() -> Self {
        let chains = ["iptables INPUT", "ip6tables INPUT"].map(|name| (name.to_owned(), Vec::new())).into();
        Self { chains, cookies: "0".to_owned(), ..Self::default() }
    }

    /// The command's exit status and output.
    pub(super) fn run(&mut self, argv: &[String]) -> (i32, String) {
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        let exit = match words.as_slice() {
            [program @ ("iptables" | "ip6tables"), "-w", "5", verb, chain, rule @ ..] => {
                self.tables(program, verb, chain, &rule.join(" "))
            }
            ["ipset", "create", set, ..] => i32::from(self.sets.insert((*set).to_owned(), BTreeSet::new()).is_some()),
            ["ipset", "save", set] => match self.sets.get(*set) {
                None => return (1, "The set with the given name does not exist".to_owned()),
                Some(members) => {
                    let made = format!("create {set} hash:net family inet hashsize 1024 maxelem 262144 timeout 60\n");
                    let lines = members.iter().map(|member| format!("add {set} {member} timeout 60\n"));
                    return (0, made + &lines.collect::<String>());
                }
            },
            ["ipset", "list", "-t", set] => i32::from(!self.sets.contains_key(*set)),
            ["ipset", "destroy", set] => {
                let used = self.chains.values().flatten().any(|rule| rule.contains(&format!("--match-set {set} ")));
                if used || self.sets.remove(*set).is_none() { 1 } else { 0 }
            }
            ["ip", family, "route", "show", "exact", prefix, "type", "blackhole", "proto", number] => {
                let there = self.routes.contains(&format!("{family} route blackhole {prefix} proto {number}"));
                return (0, if there { format!("blackhole {prefix}\n") } else { String::new() });
            }
            ["ip", family, "rule", "show", "pref", "187"] => {
                let start = format!("{family} rule pref 187 from ");
                let short = |prefix: &str| prefix.trim_end_matches("/32").trim_end_matches("/128").to_owned();
                let ours = self.routes.iter().filter_map(|r| r.strip_prefix(&start)?.strip_suffix(" blackhole"));
                return (0, ours.map(|prefix| format!("187:\tfrom {} blackhole\n", short(prefix))).collect());
            }
            ["ip", "link", ..] | ["tc" | "ftagent", ..] => return self.traffic_control(&words),
            ["ip", family, what, verb @ ("add" | "del"), rest @ ..] => {
                let object = format!("{family} {what} {}", rest.join(" "));
                let done = if *verb == "add" { self.routes.insert(object) } else { self.routes.remove(&object) };
                if done { 0 } else { 2 }
            }
            ["sysctl", "-n", _] => return (0, format!("{}\n", self.cookies)),
            ["sysctl", "-w", setting] => {
                self.cookies = setting.rsplit('=').next().expect("a value").to_owned();
                0
            }
            other => panic!("the model does not know {other:?}"),
        };
        (exit, if exit == 2 { "Chain or set does not exist".to_owned() } else { String::new() })
    }

    /// The same of a command that reads lines.
    pub(super) fn feed(&mut self, argv: &[String], input: &str) -> (i32, String) {
        assert_eq!(argv, ["ipset", "restore", "-exist"]);
        for (at, line) in input.lines().enumerate() {
            let words: Vec<&str> = line.split(' ').collect();
            let (set, member) = (self.sets.get_mut(words[1]), words[2].to_owned());
            match (set, words[0]) {
                (None, _) => {
                    return (1, format!("Error in line {}: The set with the given name does not exist", at + 1));
                }
                (Some(set), "add") => drop(set.insert(member)),
                (Some(set), "del") => drop(set.remove(&member)),
                other => panic!("the model does not know {other:?}"),
            }
        }
        (0, String::new())
    }

    fn traffic_control(&mut self, words: &[&str]) -> (i32, String) {
        const GONE: &str = "Cannot find device";
        let gone = || (1, GONE.to_owned());
        let said = |there: bool, line: &str| (0, if there { line.to_owned() } else { String::new() });
        match *words {
            ["ip", "link", "show", "dev", device] => self.links.get(device).map_or_else(gone, |_| said(true, "link")),
            ["ip", "link", "show", "dev", device, "up"] => {
                self.links.get(device).map_or_else(gone, |is_up| said(*is_up, "link"))
            }
            ["ip", "link", "add", "name", device, ..] => {
                (2 * i32::from(self.links.insert(device.to_owned(), false).is_some()), String::new())
            }
            ["ip", "link", "del", "dev", device] => {
                self.qdiscs.retain(|(of, _)| of != device);
                (i32::from(self.links.remove(device).is_none()), GONE.to_owned())
            }
            ["ip", "link", "set", "dev", device, .., way] => match self.links.get_mut(device) {
                Some(is_up) => {
                    *is_up = way == "up";
                    said(true, "")
                }
                None => gone(),
            },
            ["tc", "qdisc", "show", "dev", device] => {
                let of = self.qdiscs.iter().filter(|(of, _)| of == device);
                (0, of.map(|(_, kind)| format!("qdisc {kind} 1:\n")).collect())
            }
            ["tc", "qdisc", verb, "dev", device, ref rest @ ..] => {
                let kind = if rest.contains(&"clsact") { "clsact" } else { "tbf" };
                if kind == "tbf" && !self.links.contains_key(device) {
                    return gone();
                }
                let object = (device.to_owned(), kind.to_owned());
                if verb == "add" {
                    return (2 * i32::from(!self.qdiscs.insert(object)), String::new());
                }
                self.filters.retain(|(of, _), _| kind != "clsact" || of != device);
                (2 * i32::from(!self.qdiscs.remove(&object)), String::new())
            }
            ["tc", "filter", "show", "dev", device, _] => {
                (0, self.filters.iter().filter(|((of, _), _)| of == device).flat_map(|(_, all)| all.clone()).collect())
            }
            ["tc", "filter", "show", "dev", device, _, "pref", place] => {
                let all = self.filters.get(&(device.to_owned(), place.to_owned())).into_iter().flatten();
                let one = |line: &String| match line.split_once("redirect dev ") {
                    Some((_, to)) if self.links.contains_key(to.trim()) => {
                        format!("(Redirect to device {})\n", to.trim())
                    }
                    Some(_) => "(Redirect to device *)\n".to_owned(),
                    None => line.clone(),
                };
                (0, all.map(one).collect())
            }
            ["tc", "filter", "del", "dev", device, "ingress", "pref", place] => {
                let there = self.filters.remove(&(device.to_owned(), place.to_owned()));
                (2 * i32::from(there.is_none()), String::new())
            }
            ["tc", "filter", "add", "dev", device, "ingress", "pref", place, ref rest @ ..]
            | ["ftagent", "tc-bucket", "--interface", device, "--pref", place, ref rest @ ..] => {
                let line = rest.join(" ") + "\n";
                let has_device =
                    line.split_once("redirect dev ").is_none_or(|(_, to)| self.links.contains_key(to.trim()));
                if !has_device || !self.qdiscs.contains(&(device.to_owned(), "clsact".to_owned())) {
                    return (2, "Parent Qdisc doesn't exists.".to_owned());
                }
                self.filters.entry((device.to_owned(), place.to_owned())).or_default().push(line);
                said(true, "")
            }
            ref other => panic!("the model does not know {other:?}"),
        }
    }

    fn tables(&mut self, program: &str, verb: &str, chain: &str, rule: &str) -> i32 {
        let name = format!("{program} {chain}");
        let jumps = self.chains.values().flatten().any(|rule| rule.ends_with(&format!("-j {chain}")));
        let target = rule.rsplit("-j ").next().expect("one").to_owned();
        let known_target = !target.starts_with("ftagent-") || self.chains.contains_key(&format!("{program} {target}"));
        let set = rule.split("--match-set ").nth(1).and_then(|rest| rest.split(' ').next());
        if set.is_some_and(|set| !self.sets.contains_key(set)) || !known_target {
            return 2;
        }
        let Some(rules) = self.chains.get_mut(&name) else {
            return if verb == "-N" { i32::from(self.chains.insert(name, Vec::new()).is_some()) } else { 1 };
        };
        match verb {
            "-N" => 1,
            "-S" => 0,
            "-X" if jumps || !rules.is_empty() => 1,
            "-X" => i32::from(self.chains.remove(&name).is_none()),
            "-I" => {
                rules.insert(0, rule.to_owned());
                0
            }
            "-A" => {
                rules.push(rule.to_owned());
                0
            }
            "-C" => i32::from(!rules.iter().any(|r| r == rule)),
            _ => match rules.iter().position(|r| r == rule) {
                Some(at) => {
                    rules.remove(at);
                    0
                }
                None => 1,
            },
        }
    }
}

/// Runs commands on a shared [`World`].
#[derive(Clone)]
pub(super) struct Model(pub(super) Rc<RefCell<World>>);

impl Runner for Model {
    fn run(&mut self, argv: &[String]) -> Ran {
        let (exit, output) = self.0.borrow_mut().run(argv);
        Ran { exit: Some(exit), output, took_us: 0 }
    }

    fn feed(&mut self, argv: &[String], input: &str) -> Ran {
        let (exit, output) = self.0.borrow_mut().feed(argv, input);
        Ran { exit: Some(exit), output, took_us: 0 }
    }

    fn list(&mut self, argv: &[String], hear: &mut dyn FnMut(&str)) -> Ran {
        let ran = self.run(argv);
        ran.output.lines().for_each(&mut *hear);
        ran
    }
}
