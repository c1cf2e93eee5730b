//! No file of more than 800 lines without its tests: at that length it holds more than one idea.

use super::{Finding, Source};

const MOST: usize = 800;

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        let lines = source.text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count();
        if lines > MOST {
            findings.push(source.finding(0, format!("{lines} lines without tests, {MOST} are the most: split it")));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    #[test]
    fn tests_do_not_count() {
        let text = format!("{}#[cfg(test)]\n{}", "a\n".repeat(800), "b\n".repeat(500));
        assert_eq!(check(&[source("a.rs", &text), source("a.md", &"a\n".repeat(2000))]), []);
    }

    #[test]
    fn a_long_file_is_found() {
        assert_eq!(check(&[source("a.rs", &"a\n".repeat(801))]).len(), 1);
    }
}
