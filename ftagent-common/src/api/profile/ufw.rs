//! Profiles for ufw: our chains in the files that ufw loads before its own rules, and then a reload.
//!
//! ufw's commands know neither rates of packets nor flags, so a profile lives where ufw keeps such rules itself. The
//! operator's own are commands, because that is what is asked for.

use super::compile::{CHAINS, Compiled, Step};
use super::custom::Custom;
use super::iptables::{chains, shown, used};
use super::{ProfileRule, Suite, TrafficPath};

const FILES: [(bool, &str, &str); 2] =
    [(false, "/etc/ufw/before.rules", "ufw"), (true, "/etc/ufw/before6.rules", "ufw6")];

pub(super) fn compile(rules: &[ProfileRule], own: &[Custom]) -> Compiled {
    let mut steps = Vec::new();
    // Undone last: when the files are without the block and loaded, nothing leads into the chains.
    for program in ["iptables-restore", "ip6tables-restore"] {
        let mut input = String::from("*filter\n");
        for (_, _, chain) in CHAINS.iter().filter(|(path, ..)| used(rules, &[], *path)) {
            input.push_str(&format!(":{chain} - [0:0]\n-F {chain}\n"));
        }
        input.push_str("COMMIT\n");
        let mut undo_input = String::from("*filter\n");
        for (_, _, chain) in CHAINS.iter().filter(|(path, ..)| used(rules, &[], *path)) {
            undo_input.push_str(&format!("-F {chain}\n-X {chain}\n"));
        }
        undo_input.push_str("COMMIT\n");
        let command = vec![program.to_owned(), "--wait=5".to_owned(), "--noflush".to_owned()];
        steps.push(Step { undo: command.clone(), command, input, undo_input, file: String::new() });
    }
    // Undone after the files: loads them as they are then.
    let reload = vec!["ufw".to_owned(), "reload".to_owned()];
    steps.push(Step { undo: reload.clone(), ..Step::default() });
    for (v6, file, prefix) in FILES {
        let mut input = chains(rules, &[], v6);
        for (path, _, chain) in CHAINS.iter().filter(|(path, ..)| used(rules, &[], *path)) {
            let parent = match path {
                TrafficPath::ToNode => "input",
                TrafficPath::Through => "forward",
            };
            input.push_str(&format!("-I {prefix}-before-{parent} -m comment --comment ftagent -j {chain}\n"));
        }
        steps.push(Step { input, file: file.to_owned(), ..Step::default() });
    }
    steps.push(Step { command: reload, ..Step::default() });
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
