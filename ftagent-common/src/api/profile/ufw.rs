//! Profiles for ufw: our chains below ufw's own, and in the files from which ufw loads them at its next start.
//!
//! ufw's commands know neither rates of packets nor flags, so a profile lives where ufw keeps such rules itself. It
//! comes into force by one transaction of each family and not by `ufw reload`, which takes the whole firewall down and
//! up again. The operator's own are commands, because that is what is asked for.

use super::compile::{CHAINS, Compiled, Step};
use super::custom::Custom;
use super::iptables::{chains, shown, used};
use super::{ProfileRule, Suite, TrafficPath};

/// The program of each family, ufw's file, and how ufw's chains begin.
const FAMILIES: [(bool, &str, &str, &str); 2] = [
    (false, "iptables-restore", "/etc/ufw/before.rules", "ufw"),
    (true, "ip6tables-restore", "/etc/ufw/before6.rules", "ufw6"),
];

pub(super) fn compile(rules: &[ProfileRule], own: &[Custom]) -> Compiled {
    let mut steps = Vec::new();
    for (v6, program, file, prefix) in FAMILIES {
        let mut block = chains(rules, &[], v6);
        let mut undo = String::from("*filter\n");
        for (path, _, chain) in CHAINS.iter().filter(|(path, ..)| used(rules, &[], *path)) {
            let parent = match path {
                TrafficPath::ToNode => "input",
                TrafficPath::Through => "forward",
            };
            let jump = format!("{prefix}-before-{parent} -m comment --comment ftagent -j {chain}\n");
            block.push_str(&format!("-I {jump}"));
            undo.push_str(&format!("-D {jump}-F {chain}\n-X {chain}\n"));
        }
        let command = vec![program.to_owned(), "--wait=5".to_owned(), "--noflush".to_owned()];
        steps.push(Step {
            undo: command.clone(),
            command,
            input: format!("*filter\n{block}COMMIT\n"),
            undo_input: format!("{undo}COMMIT\n"),
            file: String::new(),
        });
        steps.push(Step { input: block, file: file.to_owned(), ..Step::default() });
    }
    for custom in own {
        let command = |verbs: &[&str]| {
            ["ufw"]
                .iter()
                .chain(verbs)
                .map(|w| (*w).to_owned())
                .chain(custom.line.split(' ').map(str::to_owned))
                .collect()
        };
        steps.push(Step { command: command(&["prepend"]), undo: command(&["delete"]), ..Step::default() });
    }
    Compiled { suite: Suite::Ufw, rules: shown(rules, own), steps, warnings: Vec::new() }
}
