//! ufw: our chains hang below its own, lie in the files that it loads them from, and the operator's own rules are its.

use std::path::Path;

use ftagent_common::api::Step;

use super::course::Current;
use super::run::RunError;
use super::tools::Tools;
use super::xtables;
use crate::program::StartError;

const BEGIN: &str = "# ftagent profile begin\n";
const END: &str = "# ftagent profile end\n";
/// Where ufw notes its rules, a line `### tuple ###` for each.
const RULES: [&str; 2] = ["/etc/ufw/user.rules", "/etc/ufw/user6.rules"];
/// Where blocks of ours may be.
const FILES: [&str; 2] = ["/etc/ufw/before.rules", "/etc/ufw/before6.rules"];
const CHAINS: [(&str, &str); 2] = [("iptables-save", ":ufw-before-input "), ("ip6tables-save", ":ufw6-before-input ")];

/// Leaves out what ufw does not do here; answers what that is.
pub(super) fn fit(tools: &mut Tools, current: &mut Current) -> Result<String, String> {
    let mut note = String::new();
    for (save, chain) in CHAINS {
        if xtables::dump(tools, save)?.contains(&format!("\n{chain}")) {
            continue;
        }
        if save == "iptables-save" {
            let said = tools.ask(&["ufw", "status"]).map_err(|error| error.to_string())?;
            return Err(format!("ufw is not in force here (`ufw status`: {})", said.trim()));
        }
        current.steps.retain(|step| step.file != "/etc/ufw/before6.rules" && !is_of(step, "ip6tables-restore"));
        note = "; ufw does not manage IPv6 here, its part is left out".to_owned();
    }
    Ok(note)
}

/// Looks before anything is run whether all of it could be taken back again.
pub(super) fn check(tools: &mut Tools, current: &Current) -> Result<(), String> {
    for step in current.steps.iter().filter(|step| !step.file.is_empty()) {
        with_block(&tools.read(&step.file)?, &step.input).map_err(|why| format!("{}: {why}", step.file))?;
    }
    for step in current.steps.iter().filter(|step| is_of(step, "ufw")) {
        let mut words: Vec<&str> = step.command.iter().map(String::as_str).collect();
        words.insert(1, "--dry-run");
        let said = tools.ask(&words).map_err(|error| error.to_string())?;
        // Taking it back would take the operator's own.
        if said.contains("Skipping") {
            return Err(format!("{}: ufw has this rule already, leave it out", step.command.join(" ")));
        }
    }
    Ok(())
}

pub(super) fn put(tools: &mut Tools, current: &mut Current) -> Result<(), String> {
    xtables::put(tools, current.steps.iter())?;
    for step in current.steps.iter().filter(|step| !step.file.is_empty()) {
        let text = tools.read(&step.file)?;
        let wanted = with_block(&text, &step.input).map_err(|why| format!("{}: {why}", step.file))?;
        if wanted != text {
            tools.write(&step.file, &wanted)?;
        }
    }
    let before = tuples(tools);
    for step in current.steps.iter().filter(|step| is_of(step, "ufw")) {
        tools.run(&step.command, "").map_err(|error| error.to_string())?;
    }
    let new = tuples(tools).into_iter().filter(|tuple| !before.contains(tuple));
    current.noted.extend(new);
    Ok(())
}

/// What drops goes first: files that somebody changed, or an ufw that is gone, keep nobody cut off.
pub(super) fn take(tools: &mut Tools, current: &Current) -> Result<(), String> {
    let mut left: Vec<String> = xtables::take(tools).err().into_iter().collect();
    for step in current.steps.iter().rev().filter(|step| is_of(step, "ufw")) {
        // What is not there is said and is no failure. Without ufw its own notes are all there is of its rules.
        match tools.run(&step.undo, "") {
            Ok(_) | Err(RunError::Start(StartError::Missing { .. })) => {}
            Err(error) => left.push(error.to_string()),
        }
    }
    for step in current.steps.iter().filter(|step| !step.file.is_empty() && Path::new(&step.file).exists()) {
        left.extend(take_block(tools, &step.file).err());
    }
    // With its rules ufw may have loaded the block again.
    left.extend(xtables::take(tools).err());
    if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
}

/// Takes our block out of every file that may have one.
pub(super) fn take_blocks(tools: &mut Tools) -> Result<(), String> {
    let files = FILES.iter().filter(|file| Path::new(file).exists());
    let left: Vec<String> = files.filter_map(|file| take_block(tools, file).err()).collect();
    if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
}

fn take_block(tools: &mut Tools, file: &str) -> Result<(), String> {
    let text = tools.read(file)?;
    let wanted = without_block(&text).map_err(|why| format!("{file}: {why}"))?;
    if wanted != text { tools.write(file, &wanted) } else { Ok(()) }
}

/// Whose blocks and rules are there, besides what the kernel has.
pub(super) fn text(tools: &Tools, current: &Current) -> String {
    let mut text = String::new();
    for step in current.steps.iter().filter(|step| !step.file.is_empty()) {
        let there = tools.read(&step.file).is_ok_and(|file| file.contains(&format!("{BEGIN}{}{END}", step.input)));
        text.push_str(&format!("{} {there}\n", step.file));
    }
    let there = tuples(tools);
    text + &current.noted.iter().filter(|tuple| there.contains(tuple)).map(|t| format!("{t}\n")).collect::<String>()
}

fn is_of(step: &Step, program: &str) -> bool {
    step.command.first().is_some_and(|word| word == program)
}

fn tuples(tools: &Tools) -> Vec<String> {
    let texts = RULES.iter().filter_map(|path| tools.read(path).ok());
    let lines = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|line| line.starts_with("### tuple ###")).collect()
}

/// `text` with our block at the end of its table `filter`, and no other of ours.
fn with_block(text: &str, block: &str) -> Result<String, String> {
    let text = without_block(text)?;
    let filter = place(&text, "*filter", 0).ok_or("has no table filter")?;
    let commit = place(&text, "COMMIT", filter).ok_or("its table filter has no COMMIT")?;
    Ok(format!("{}{BEGIN}{block}{END}{}", &text[..commit], &text[commit..]))
}

fn without_block(text: &str) -> Result<String, String> {
    let Some((before, rest)) = text.split_once(BEGIN) else { return Ok(text.to_owned()) };
    match rest.split_once(END) {
        Some((_, after)) if !after.contains(BEGIN) => Ok(format!("{before}{after}")),
        _ => Err("the lines that mark our block were changed: take the block out by hand".to_owned()),
    }
}

/// Where the first line from `from` on that is `word` begins.
fn place(text: &str, word: &str, from: usize) -> Option<usize> {
    let mut at = from;
    for line in text[from..].split_inclusive('\n') {
        if line.trim_end() == word {
            return Some(at);
        }
        at += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_stands_at_the_end_of_the_table_filter() {
        let text = "# nat first\n*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n*filter\n:a - [0:0]\n-A a -j DROP\nCOMMIT\n";
        let with = with_block(text, "-I x\n").expect("a place");
        let expected = format!(
            "# nat first\n*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n*filter\n:a - [0:0]\n-A a -j DROP\n{BEGIN}-I x\n{END}COMMIT\n"
        );
        assert_eq!(with, expected);
        assert_eq!(with_block(&with, "-I x\n"), Ok(expected), "twice is once");
        assert_eq!(without_block(&with).as_deref(), Ok(text));
        assert!(with_block("*nat\nCOMMIT\n", "").is_err() && with_block("*filter\n", "").is_err());
        assert!(without_block(&with.replace(END, "")).is_err());
    }
}
