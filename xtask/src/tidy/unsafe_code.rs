//! `unsafe` stands only where ARCHITECTURE.md says so.

use super::{Finding, Source, names};

/// Beginnings of the paths in which it may.
const ALLOWED: &[&str] = &[
    "ftagent-common/src/frame.rs",
    "ftagent-common/src/abi",
    "ftagent-common/src/packet/",
    "ftagent-ebpf/",
    "ftagent/src/xdp",
    "ftagent/src/netlink",
    "lab/src/ladder/batch.rs",
];

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let outside = sources.iter().filter(|s| s.is_rust() && !ALLOWED.iter().any(|path| s.path.starts_with(path)));
    let mut findings = Vec::new();
    for source in outside {
        for (line, code) in source.code() {
            if names(&without_strings(code), "unsafe") {
                findings.push(source.finding(line, "`unsafe` may only stand where ARCHITECTURE.md lists it"));
            }
        }
    }
    findings
}

/// The code between its string literals, for words that a message may hold.
fn without_strings(code: &str) -> String {
    code.split('"').step_by(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    #[test]
    fn it_may_stand_where_it_is_listed() {
        let good = [
            source("ftagent-common/src/frame.rs", "unsafe { *p }"),
            source("ftagent/src/xdp/maps.rs", "unsafe impl Pod for X {}"),
            source("ftagent/src/daemon.rs", "// unsafe would be wrong\n#![forbid(unsafe_code)]\nlet a = \"unsafe\";\n"),
        ];
        assert_eq!(check(&good), []);
    }

    #[test]
    fn it_may_not_stand_elsewhere() {
        let bad = source("controlplane/src/main.rs", "fn main() {\n    unsafe { work() }\n}\n");
        let found = check(&[bad]);
        assert_eq!((found.len(), found[0].line), (1, 2));
    }
}
