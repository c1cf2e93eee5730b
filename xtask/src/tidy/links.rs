//! Every relative link of a Markdown file leads to a file or folder of the repository.

use std::collections::HashSet;

use super::{Finding, Source};

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut known = HashSet::new();
    for source in sources {
        let mut path = source.path.as_str();
        known.insert(path);
        while let Some((folder, _)) = path.rsplit_once('/') {
            known.insert(folder);
            path = folder;
        }
    }
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| source.path.ends_with(".md")) {
        let folder = source.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (line, target) in targets(&source.text) {
            let Some(file) = file_of(target) else { continue };
            match resolve(folder, file) {
                Some(path) if path.is_empty() || known.contains(path.as_str()) => {}
                _ => findings.push(source.finding(line, format!("the link to {target} leads nowhere"))),
            }
        }
    }
    findings
}

/// The targets of `[text](target)` and `[name]: target`, outside code, with their lines.
fn targets(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        // Every second part is between backticks; the target of a link whose text is, is in the part after it.
        for part in line.split('`').step_by(2) {
            for (_, rest) in part.match_indices("](").map(|(at, _)| part.split_at(at + 2)) {
                if let Some((target, _)) = rest.split_once([')', ' ']) {
                    found.push((index + 1, target));
                }
            }
        }
        if let Some((name, target)) = line.split_once("]: ")
            && name.starts_with('[')
        {
            found.push((index + 1, target.split(' ').next().unwrap_or_default()));
        }
    }
    found
}

/// The file of a link, unless it leads to another place or within its own file.
fn file_of(target: &str) -> Option<&str> {
    let target = target.trim_matches(['<', '>']);
    let elsewhere = target.starts_with("//") || target.split('/').next().is_some_and(|first| first.contains(':'));
    let file = target.split(['#', '?']).next().unwrap_or_default();
    (!elsewhere && !file.is_empty()).then_some(file)
}

/// The path from the root, or none when it leaves the repository.
fn resolve(folder: &str, file: &str) -> Option<String> {
    let (folder, file) = file.strip_prefix('/').map_or((folder, file), |file| ("", file));
    let mut parts = Vec::new();
    for part in folder.split('/').chain(file.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    fn count(text: &str) -> usize {
        check(&[source("docs/a.md", text), source("docs/b.md", ""), source("README.md", ""), source("x/y.rs", "")])
            .len()
    }

    #[test]
    fn links_that_lead_somewhere_are_fine() {
        let good = "[b](b.md#part) [readme](../README.md \"title\") [`y`](/x/y.rs) [folder](../x/) [root](..)\n\
            [web](https://host.example/x) [part](#part) `[no](link.md)`\n```\n[no](link.md)\n```\n[ref]: b.md\n";
        assert_eq!(count(good), 0);
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        for bad in ["[c](c.md)", "[`c`](c.md)", "[up](../../README.md)", "[x](/y.rs)", "[ref]: c.md", "![i](i.png)"] {
            assert_eq!(count(bad), 1, "{bad}");
        }
    }
}
