//! Profiles for firewalld: direct rules in chains of our own, at run time, so that a reload of firewalld takes them away.
//!
//! Rich rules know no rate of a source and no flags, so what they cannot say is said directly.

use super::compile::{CHAINS, Compiled, Step};
use super::custom::Custom;
use super::iptables::{lines, shown, used};
use super::{ProfileRule, Suite};

pub(super) fn compile(rules: &[ProfileRule], own: &[Custom]) -> Compiled {
    let mut steps = Vec::new();
    for (v6, family) in [(false, "ipv4"), (true, "ipv6")] {
        for (path, parent, chain) in CHAINS {
            if !used(rules, own, path) {
                continue;
            }
            let mut step = |verb: &str, what: &str, words: &str| {
                let command = |verb: &str| {
                    let option = format!("--{verb}-{what}");
                    let head = ["firewall-cmd", "--direct", &option, family, "filter"].map(str::to_owned);
                    head.into_iter().chain(words.split(' ').map(str::to_owned)).collect::<Vec<_>>()
                };
                steps.push(Step { command: command(verb), undo: command("remove"), ..Step::default() });
            };
            step("add", "chain", chain);
            for (at, line) in lines(rules, own, path, v6).iter().enumerate() {
                step("add", "rule", &format!("{chain} {at} {line}"));
            }
            // Before the rules that firewalld makes itself.
            step("add", "rule", &format!("{parent} -10 -m comment --comment ftagent -j {chain}"));
        }
    }
    Compiled { suite: Suite::Firewalld, rules: shown(rules, own), steps, warnings: Vec::new() }
}
