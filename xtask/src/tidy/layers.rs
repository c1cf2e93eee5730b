//! Which folder must not name what: decisions know no clock, task, socket, file or database.

use super::{Finding, Source, names};

/// A folder (or file), the words its code must not hold, and why.
struct Layer {
    path: &'static str,
    forbidden: &'static [&'static str],
    reason: &'static str,
}

#[rustfmt::skip]
const PURE: &[&str] = &[
    "tokio", "aya", "axum", "sqlx", "reqwest", "rtnetlink", "tracing_subscriber", "fs::", "std::fs", "std::process",
    "std::thread", "std::env", "TcpStream", "TcpListener", "UdpSocket", "UnixStream", "UnixListener", "UnixDatagram",
    "Instant::now", "SystemTime::now", "OffsetDateTime::now_utc", "Uuid::new_v4",
];

const LAYERS: &[Layer] = &[
    Layer { path: "ftagent/src/engine", forbidden: PURE, reason: "the engine decides from state, input and `now`" },
    Layer {
        path: "controlplane/src/domain",
        forbidden: PURE,
        reason: "the domain decides from state, input and `now`",
    },
    Layer { path: "ftagent-common/src", forbidden: PURE_COMMON, reason: "ftagent-common has no I/O" },
    Layer { path: "ftagent-ebpf/src", forbidden: &["aya_log_ebpf", "std"], reason: "nothing is logged per packet" },
    Layer { path: "controlplane/src/http", forbidden: &["sqlx"], reason: "http calls app, and SQL is in store" },
    Layer {
        path: "controlplane/src/dashboard",
        forbidden: &["sqlx", "crate::store"],
        reason: "the dashboard calls app",
    },
    Layer { path: "controlplane/src/app", forbidden: &["axum", "sqlx"], reason: "use cases know no HTTP and no SQL" },
    Layer { path: "controlplane/src/store", forbidden: &["axum"], reason: "the store knows no HTTP" },
    Layer { path: "controlplane", forbidden: &["aya"], reason: "the control plane loads no programs" },
    Layer { path: "ftagent/src", forbidden: &["sqlx", "rusqlite"], reason: "the agent has no database" },
];

const PURE_COMMON: &[&str] = &[
    "tokio",
    "axum",
    "sqlx",
    "reqwest",
    "fs::",
    "std::fs",
    "std::process",
    "std::thread",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "Instant::now",
    "SystemTime::now",
    "OffsetDateTime::now_utc",
];

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        for layer in LAYERS.iter().filter(|layer| lies_in(&source.path, layer.path)) {
            for (line, code) in source.code() {
                if let Some(word) = layer.forbidden.iter().find(|word| names(code, word)) {
                    findings.push(
                        source.finding(line, format!("`{word}` has no place in {}: {}", layer.path, layer.reason)),
                    );
                }
            }
        }
    }
    findings
}

/// Whether `path` is the file `layer.rs`, or lies in the folder `layer`.
fn lies_in(path: &str, layer: &str) -> bool {
    path.strip_prefix(layer).is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    #[test]
    fn a_layer_names_what_it_may() {
        let good = [
            source(
                "ftagent/src/engine/detect.rs",
                "// no tokio here\nuse std::time::Duration;\nuse std::net::IpAddr;\n",
            ),
            source("ftagent/src/xdp/maps.rs", "use aya::maps::Array;\n"),
            source("controlplane/src/http/v1/nodes.rs", "use axum::Json;\n"),
            source("controlplane/src/store/sqlite/nodes.rs", "use sqlx::query;\n"),
            source("ftagent/src/engineering.rs", "use tokio::time;\n"),
        ];
        assert_eq!(check(&good), []);
    }

    #[test]
    fn a_layer_does_not_name_what_it_must_not() {
        let bad = [
            ("ftagent/src/engine/detect.rs", "let now = Instant::now();"),
            ("ftagent/src/engine.rs", "use tokio::time;"),
            ("ftagent/src/engine/mod.rs", "use std::{fs::File, io};"),
            ("controlplane/src/domain/rule.rs", "use std::net::UdpSocket;"),
            ("controlplane/src/http/v1/nodes.rs", "sqlx::query(\"\")"),
            ("controlplane/src/store/mod.rs", "use axum::Json;"),
            ("controlplane/src/jobs/prune.rs", "use aya::Ebpf;"),
            ("ftagent/src/spool.rs", "use sqlx::query;"),
        ];
        for (path, text) in bad {
            assert_eq!(check(&[source(path, text)]).len(), 1, "{path}: {text}");
        }
    }
}
