//! The programs that labs, tests and builds call, and the package that holds each.

use std::path::PathBuf;

use anyhow::Result;

use super::distribution::{self, Family};
use crate::process;

/// One program that must be there.
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    /// What needs it.
    pub(crate) purpose: &'static str,
    debian: &'static str,
    fedora: &'static str,
    arch: &'static str,
    alpine: &'static str,
}

#[rustfmt::skip]
pub(crate) const TOOLS: &[Tool] = &[
    Tool { program: "cc", purpose: "links every program here", debian: "build-essential", fedora: "gcc", arch: "base-devel", alpine: "build-base" },
    Tool { program: "git", purpose: "lists the files that lint and fmt look at", debian: "git", fedora: "git", arch: "git", alpine: "git" },
    Tool { program: "ip", purpose: "shows a lab's devices, addresses and routes", debian: "iproute2", fedora: "iproute", arch: "iproute2", alpine: "iproute2" },
    Tool { program: "tc", purpose: "shows the tc fall-back of the datapath", debian: "iproute2", fedora: "iproute-tc", arch: "iproute2", alpine: "iproute2-tc" },
    Tool { program: "nft", purpose: "reads back the nftables rules that the agent wrote", debian: "nftables", fedora: "nftables", arch: "nftables", alpine: "nftables" },
    Tool { program: "bpftool", purpose: "shows programs and maps as the kernel holds them", debian: "bpftool", fedora: "bpftool", arch: "bpf", alpine: "bpftool" },
    Tool { program: "tshark", purpose: "reads captures back", debian: "tshark", fedora: "wireshark-cli", arch: "wireshark-cli", alpine: "tshark" },
];

/// What only the tests start, each time for themselves. Debian's package also makes and starts a server of the machine's
/// own: nobody who only builds or tries the demo should get one.
#[rustfmt::skip]
pub(crate) const DATABASES: &[Tool] = &[
    Tool { program: "initdb", purpose: "makes the PostgreSQL of the control plane's tests", debian: "postgresql", fedora: "postgresql-server", arch: "postgresql", alpine: "postgresql" },
    Tool { program: "prometheus", purpose: "receives the time series of the control plane's tests", debian: "prometheus", fedora: "golang-github-prometheus", arch: "prometheus", alpine: "prometheus" },
];

/// What only the fuzzing of the API needs (`cargo xtask test --api`); the rest comes into an environment of its own.
#[rustfmt::skip]
pub(crate) const PYTHON: &[Tool] = &[
    Tool { program: "python3", purpose: "runs the fuzzer of the API in an environment of its own", debian: "python3-venv", fedora: "python3", arch: "python", alpine: "python3" },
];

/// What `ftagent lab` and the benches compare with, and leave out where it is missing.
#[rustfmt::skip]
pub(crate) const PEERS: &[Tool] = &[
    Tool { program: "iptables-restore", purpose: "a peer of the drop ladder", debian: "iptables", fedora: "iptables-nft", arch: "iptables", alpine: "iptables" },
    Tool { program: "ipset", purpose: "a peer of the drop ladder", debian: "ipset", fedora: "ipset", arch: "ipset", alpine: "ipset" },
    Tool { program: "xdp-filter", purpose: "a peer of the drop ladder", debian: "xdp-tools", fedora: "xdp-tools", arch: "xdp-tools", alpine: "xdp-tools" },
];

impl Tool {
    pub(crate) fn find(&self) -> Option<PathBuf> {
        process::find_program(self.program).or_else(|| {
            // Debian keeps the server's programs of each version of PostgreSQL out of the search path.
            let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
            versions.map(|version| version.path().join("bin").join(self.program)).find(|path| path.exists())
        })
    }

    /// The package on this distribution; Debian's name where we do not know the distribution.
    pub(crate) fn package(&self) -> &'static str {
        match Family::here() {
            Family::Debian | Family::Other => self.debian,
            Family::Fedora => self.fedora,
            Family::Arch => self.arch,
            Family::Alpine => self.alpine,
        }
    }
}

/// Those of `tools` that are not there.
pub(crate) fn missing(tools: &'static [Tool]) -> Vec<&'static Tool> {
    tools.iter().filter(|tool| tool.find().is_none()).collect()
}

/// Installs the packages of `tools`, saying what each is for.
pub(crate) fn install(tools: &[&Tool]) -> Result<()> {
    let mut packages = Vec::new();
    for tool in tools {
        eprintln!("  {} is missing: {}", tool.program, tool.purpose);
        if !packages.contains(&tool.package()) {
            packages.push(tool.package());
        }
    }
    if packages.is_empty() { Ok(()) } else { distribution::install(&packages) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_stands_once_in_the_table() {
        let mut programs: Vec<_> =
            TOOLS.iter().chain(DATABASES).chain(PYTHON).chain(PEERS).map(|tool| tool.program).collect();
        programs.sort_unstable();
        programs.dedup();
        assert_eq!(programs.len(), TOOLS.len() + DATABASES.len() + PYTHON.len() + PEERS.len());
    }
}
