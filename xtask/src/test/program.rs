//! One compiled test program, as cargo's messages describe it.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use serde_json::Value;

use super::OF_BOTH;
use super::passes::{self, Passes};
use crate::{process, repo};

/// The package whose integration tests take another database where `FTAGENT_TEST_DATABASE` asks for it.
const OF_DATABASES: &str = "controlplane";

/// The package whose integration tests make network namespaces and load programs.
const LAB: &str = "bpf-tests";

/// Kinds of tests, in the order in which they run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    Unit,
    Integration,
    Root,
    Doc,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Unit, Self::Integration, Self::Root, Self::Doc];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Integration => "integration",
            Self::Root => "root",
            Self::Doc => "doc",
        }
    }
}

/// One run of a test program.
#[derive(Clone, Default)]
pub(crate) struct Run {
    pub(crate) what: String,
    threads: usize,
    words: Vec<OsString>,
    variables: &'static [(&'static str, &'static str)],
    /// How many tests it must report, where each is named.
    pub(crate) tests: Option<usize>,
}

impl Run {
    /// A run of these tests and no others; none of no tests, since without a name all would run.
    fn of(what: String, threads: usize, tests: Vec<String>) -> Option<Self> {
        // Whole names: a part of one may be a part of another's.
        let words = ["--exact".to_owned()].into_iter().chain(tests.iter().cloned()).map(OsString::from).collect();
        let count = tests.len();
        (count > 0).then(|| Self { what, threads, words, tests: Some(count), ..Self::default() })
    }
}

#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Program {
    pub(crate) kind: Kind,
    pub(crate) package: String,
    pub(crate) name: String,
    folder: PathBuf,
    path: PathBuf,
}

impl Program {
    /// The test program that one line of `cargo test --no-run --message-format=json` announces, if it does.
    pub(crate) fn from_message(line: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(line).ok()?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            return None;
        }
        let path = PathBuf::from(text(&message["executable"])?);
        let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
        let package = folder.file_name()?.to_string_lossy().into_owned();
        let is_integration = message["target"]["kind"].as_array()?.iter().any(|kind| kind == "test");
        let kind = match is_integration {
            true if package == LAB => Kind::Root,
            true => Kind::Integration,
            false => Kind::Unit,
        };
        Some(Self { kind, package, name: text(&message["target"]["name"])?, folder, path })
    }

    /// The runs of it that these filters ask for, one after the other.
    ///
    /// # Errors
    /// Its tests cannot be listed, or not be told apart.
    pub(crate) fn runs(&self, filters: &[OsString]) -> Result<Vec<Run>> {
        if self.kind == Kind::Root {
            let Passes { together, alone } = passes::split(&self.list(&[])?, self.list(filters)?)?;
            let passes =
                [Run::of(self.to_string(), labs(), together), Run::of(format!("{self}, one by one"), 1, alone)];
            return Ok(passes.into_iter().flatten().collect());
        }
        let run = Run { what: self.to_string(), threads: threads(), words: filters.to_vec(), ..Run::default() };
        let mut runs = vec![run];
        if self.package == OF_DATABASES && self.kind == Kind::Integration {
            // Everything that goes over HTTP once more, on the other database.
            let skipped = OF_BOTH.iter().flat_map(|name| ["--skip", name]).map(OsString::from);
            runs.push(Run {
                what: format!("{self} on PostgreSQL"),
                words: filters.iter().cloned().chain(skipped).collect(),
                variables: &[("FTAGENT_TEST_DATABASE", "postgres")],
                ..runs[0].clone()
            });
        }
        Ok(runs)
    }

    /// The names of its tests that these filters choose.
    fn list(&self, filters: &[OsString]) -> Result<Vec<String>> {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.folder).args(["--list", "--format=terse"]).args(filters);
        process::capture(&mut command).map(|listed| passes::names(&listed))
    }

    /// The command of one of its runs; as root where it makes labs.
    ///
    /// # Errors
    /// It needs root, and that cannot be had.
    pub(crate) fn command(&self, run: &Run) -> Result<Command> {
        let programs = repo::target().join("debug");
        let variables = [
            ("CARGO_MANIFEST_DIR", self.folder.clone()),
            ("FTAGENT_BIN", programs.join("ftagent")),
            ("CONTROLPLANE_BIN", programs.join("controlplane")),
            ("FTAGENT_REQUIRE_EBPF", "1".into()),
        ];
        let mut command;
        if self.kind == Kind::Root {
            command = process::as_root("env", "a lab of network namespaces")
                .context("run the tests as root, or leave those of the lab out with --no-root")?;
            // sudo does not hand variables on: ours, and those by which the tests are told what they may use.
            let given = env::vars_os().filter(|(key, _)| key.as_encoded_bytes().starts_with(b"FTAGENT_"));
            let ours = variables.into_iter().map(|(key, value)| (OsString::from(key), OsString::from(value)));
            for (mut word, value) in given.chain(ours) {
                word.push("=");
                word.push(value);
                command.arg(word);
            }
            command.arg("FTAGENT_REQUIRE_ROOT=1").arg(&self.path);
        } else {
            command = Command::new(&self.path);
            command.envs(variables);
        }
        command.envs(run.variables.iter().copied()).current_dir(&self.folder);
        command.arg(format!("--test-threads={}", run.threads)).arg("--show-output").args(&run.words);
        Ok(command)
    }
}

/// Tests at once: most of them wait for programs, sockets and timers half of their time.
fn threads() -> usize {
    2 * cpus()
}

/// Tests in labs at once. They wait too, but some have floods that want a CPU for a second or two.
fn labs() -> usize {
    cpus().min(4)
}

fn cpus() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.package, self.name, self.kind.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(package: &str, kind: &str, test: bool, executable: &str) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","manifest_path":"/r/{package}/Cargo.toml","target":{{"kind":["{kind}"],
            "name":"it"}},"profile":{{"test":{test}}},"executable":{executable}}}"#
        )
    }

    #[test]
    fn test_programs_are_told_from_other_artifacts() {
        let cases = [
            (message("ftagent", "lib", true, r#""/t/x""#), Some(Kind::Unit)),
            (message("ftagent", "test", true, r#""/t/x""#), Some(Kind::Integration)),
            (message("bpf-tests", "test", true, r#""/t/x""#), Some(Kind::Root)),
            (message("bpf-tests", "lib", true, r#""/t/x""#), Some(Kind::Unit)),
            (message("ftagent", "bin", false, r#""/t/x""#), None),
            (message("ftagent", "lib", true, "null"), None),
            (r#"{"reason":"build-finished","success":true}"#.to_owned(), None),
            ("not JSON".to_owned(), None),
        ];
        for (line, expected) in cases {
            assert_eq!(Program::from_message(&line).map(|program| program.kind), expected, "{line}");
        }
    }
}
