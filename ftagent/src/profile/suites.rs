//! What is the same in all suites: looking, putting in force, taking back. Each of them may be repeated at any time.

use ftagent_common::api::{PROFILE_TABLE, Suite};

use super::course::Current;
use super::tools::Tools;
use super::{firewalld, ufw, xtables};
use crate::program::NOT_INSTALLED;

/// Looks whether the tools are there, before anything is written or run; answers what is left out, if anything is.
pub(super) fn prepare(tools: &mut Tools, current: &mut Current) -> Result<String, String> {
    observe(tools, current)?;
    let note = fit(tools, current)?;
    match current.wanted.suite {
        Suite::Iptables | Suite::Nftables => {}
        Suite::Ufw => ufw::check(tools, current)?,
        Suite::Firewalld => firewalld::prepare(tools)?,
    }
    Ok(note)
}

/// Fits steps that were compiled anew to what this node has; answers what is left out, if anything is.
pub(super) fn fit(tools: &mut Tools, current: &mut Current) -> Result<String, String> {
    if current.wanted.suite == Suite::Ufw { ufw::fit(tools, current) } else { Ok(String::new()) }
}

/// Puts it in force, or what is missing of it.
pub(super) fn put(tools: &mut Tools, current: &mut Current) -> Result<(), String> {
    match current.wanted.suite {
        Suite::Iptables => xtables::put(tools, current.steps.iter()),
        Suite::Nftables => {
            for step in &current.steps {
                tools.run(&step.command, &step.input).map_err(|error| error.to_string())?;
            }
            Ok(())
        }
        Suite::Ufw => ufw::put(tools, current),
        Suite::Firewalld => firewalld::put(tools, &current.steps),
    }
}

/// Takes back what is there of it.
pub(super) fn take(tools: &mut Tools, current: &Current) -> Result<(), String> {
    match current.wanted.suite {
        Suite::Iptables => xtables::take(tools),
        Suite::Nftables => take_table(tools),
        Suite::Ufw => ufw::take(tools, current),
        Suite::Firewalld => firewalld::take(tools),
    }
}

/// Takes back whatever of ours there is, where nobody knows any more what it was.
pub(super) fn take_leftovers(tools: &mut Tools) -> Vec<String> {
    // firewalld first: it does not let go of what the kernel has no more.
    let taken = [firewalld::take(tools), xtables::take(tools), take_table(tools), ufw::take_blocks(tools)];
    // A tool that is not there made nothing.
    taken.into_iter().filter_map(Result::err).filter(|why| !why.contains(NOT_INSTALLED)).collect()
}

/// What of it shows in the tools' own dumps; empty parts where there is nothing.
pub(super) fn observe(tools: &mut Tools, current: &Current) -> Result<String, String> {
    Ok(match current.wanted.suite {
        Suite::Nftables => table(tools)?.unwrap_or_default(),
        Suite::Iptables | Suite::Firewalld => xtables::text(&xtables::look(tools)?),
        Suite::Ufw => xtables::text(&xtables::look(tools)?) + &ufw::text(tools, current),
    })
}

/// Our table without what it counts, if it is there.
fn table(tools: &mut Tools) -> Result<Option<String>, String> {
    let tables = tools.ask(&["nft", "list", "tables", "inet"]).map_err(|error| error.to_string())?;
    if !tables.lines().any(|line| line.trim() == format!("table inet {PROFILE_TABLE}")) {
        return Ok(None);
    }
    let listed = tools.ask(&["nft", "-s", "-t", "-n", "list", "table", "inet", PROFILE_TABLE]);
    listed.map(Some).map_err(|error| error.to_string())
}

fn take_table(tools: &mut Tools) -> Result<(), String> {
    if table(tools)?.is_none() {
        return Ok(());
    }
    let command = ["nft", "-f", "-"].map(str::to_owned);
    // Made before it is deleted, so that deleting what somebody deleted meanwhile never fails.
    let input = format!("table inet {PROFILE_TABLE}\ndelete table inet {PROFILE_TABLE}\n");
    tools.run(&command, &input).map(drop).map_err(|error| error.to_string())
}
