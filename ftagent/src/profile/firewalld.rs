//! firewalld: direct rules at run time, one command each. What leads into our chains comes last and goes first.

use std::collections::HashSet;

use ftagent_common::api::{PROFILE_CHAINS, Step};

use super::run::RunError;
use super::tools::Tools;
use super::xtables;
use crate::program::StartError;

const RULE: [&str; 3] = ["firewall-cmd", "--direct", "--add-rule"];
const CHAIN: [&str; 3] = ["firewall-cmd", "--direct", "--add-chain"];

/// What firewalld says that it has of ours, in its own words.
#[derive(Default)]
struct Listed {
    chains: HashSet<String>,
    /// In our chains.
    rules: HashSet<String>,
    /// Into our chains.
    jumps: HashSet<String>,
}

fn list(tools: &mut Tools) -> Result<Listed, String> {
    let is_ours = |name: &str| PROFILE_CHAINS.iter().any(|(_, _, chain)| *chain == name);
    let mut listed = Listed::default();
    let mut ask = |what: &str| tools.ask(&["firewall-cmd", "--direct", what]).map_err(|error| error.to_string());
    for line in ask("--get-all-chains")?.lines() {
        if let [_, "filter", chain] = line.split(' ').collect::<Vec<_>>().as_slice()
            && is_ours(chain)
        {
            listed.chains.insert(line.to_owned());
        }
    }
    for line in ask("--get-all-rules")?.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, "filter", chain, ..] = words.as_slice() else { continue };
        if is_ours(chain) {
            listed.rules.insert(line.to_owned());
        } else if words.windows(2).any(|w| w == ["--comment", "ftagent"])
            && words.windows(2).any(|w| w[0] == "-j" && is_ours(w[1]))
        {
            listed.jumps.insert(line.to_owned());
        }
    }
    Ok(listed)
}

/// What a step adds, in the words of the list.
fn added(step: &Step) -> Option<(bool, String)> {
    let words: Vec<&str> = step.command.iter().map(String::as_str).collect();
    let (verb, rest) = words.split_at_checked(3)?;
    if verb == RULE { Some((true, rest.join(" "))) } else { (verb == CHAIN).then(|| (false, rest.join(" "))) }
}

/// Whether firewalld runs.
pub(super) fn prepare(tools: &mut Tools) -> Result<(), String> {
    tools.ask(&["firewall-cmd", "--state"]).map(drop).map_err(|error| error.to_string())
}

pub(super) fn put(tools: &mut Tools, steps: &[Step]) -> Result<(), String> {
    let mut listed = list(tools)?;
    let is_listed = |listed: &Listed, (is_rule, words): &(bool, String)| {
        if *is_rule {
            listed.rules.contains(words) || listed.jumps.contains(words)
        } else {
            listed.chains.contains(words)
        }
    };
    let all: Vec<(bool, String)> = steps.iter().filter_map(added).collect();
    if all.iter().all(|add| is_listed(&listed, add)) {
        let there: usize = xtables::look(tools)?.iter().map(|ours| ours.rules.len() + ours.jumps.len()).sum();
        if there < all.iter().filter(|(is_rule, _)| *is_rule).count() {
            // Somebody emptied the chains behind firewalld's back: it would say that all is there.
            take(tools)?;
            listed = Listed::default();
        }
    }
    for step in steps {
        if added(step).is_some_and(|add| !is_listed(&listed, &add)) {
            tools.run(&step.command, "").map_err(|error| error.to_string())?;
        }
    }
    let wanted: HashSet<&String> = all.iter().map(|(_, words)| words).collect();
    for stale in listed.jumps.iter().chain(&listed.rules).filter(|words| !wanted.contains(words)) {
        remove(tools, "--remove-rule", stale)?;
    }
    Ok(())
}

pub(super) fn take(tools: &mut Tools) -> Result<(), String> {
    let listed = match list(tools) {
        Ok(listed) => listed,
        // Rules at run time end with it; what the kernel still has of them goes without it.
        Err(_) if is_gone(tools) => return xtables::take(tools),
        Err(why) => return Err(why),
    };
    for words in &listed.jumps {
        remove(tools, "--remove-rule", words)?;
    }
    // Nothing leads into them any more: all rules of a chain at once.
    let mut filled: Vec<String> =
        listed.rules.iter().map(|words| words.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect();
    filled.sort_unstable();
    filled.dedup();
    for chain in &filled {
        remove(tools, "--remove-rules", chain)?;
    }
    for chain in &listed.chains {
        remove(tools, "--remove-chain", chain)?;
    }
    Ok(())
}

/// Whether firewalld does not run; one that does not answer may.
fn is_gone(tools: &mut Tools) -> bool {
    match tools.ask(&["firewall-cmd", "--state"]) {
        Ok(_) => false,
        Err(RunError::Start(StartError::Missing { .. })) => true,
        // Without the bus nobody can run who is only spoken to by it.
        Err(RunError::Refused { words, .. }) => {
            words.contains("not running") || words.contains("Failed to connect to socket")
        }
        Err(_) => false,
    }
}

fn remove(tools: &mut Tools, verb: &str, words: &str) -> Result<(), String> {
    let command = ["firewall-cmd", "--direct", verb].into_iter().chain(words.split(' ')).map(str::to_owned);
    tools.run(&command.collect::<Vec<_>>(), "").map(drop).map_err(|error| error.to_string())
}
