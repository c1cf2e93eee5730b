//! No path of somebody's machine.

use super::{Finding, Source};

/// Written in two parts, so that this file is not found itself.
const FOLDERS: [&str; 5] = [
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("/Us", "ers/"),
    concat!("/tmp", "/prep"),
];

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        for (index, line) in source.text.lines().enumerate() {
            if let Some(folder) = FOLDERS.iter().find(|folder| begins_path(line, folder)) {
                findings.push(source.finding(index + 1, format!("`{folder}` is a path of one machine")));
            }
        }
    }
    findings
}

/// Whether an absolute path in `line` begins with `folder`.
fn begins_path(line: &str, folder: &str) -> bool {
    let part_of_path = |c: char| c.is_alphanumeric() || "._-~}*/".contains(c);
    line.match_indices(folder).any(|(at, _)| !line[..at].ends_with(part_of_path))
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    #[test]
    fn relative_paths_and_addresses_are_fine() {
        let [home, root, work, ..] = FOLDERS;
        let good = format!("see docs{work}plan and https://host.example{home}x and ~{root}y and /var/lib/ftagent");
        assert_eq!(check(&[source("a.md", &good)]), []);
    }

    #[test]
    fn paths_of_a_machine_are_found() {
        for folder in FOLDERS {
            let bad = format!("one\nopen(\"{folder}me/x\")\n");
            assert_eq!(check(&[source("a.rs", &bad)]).len(), 1, "{bad}");
        }
    }
}
