//! `cargo xtask fuzz`: the tests that compare with a reference, for as long as is asked.
//!
//! `cargo xtask test` runs a short share of each; this runs the same tests with other bounds.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::{process, repo, setup};

#[derive(Args)]
pub(crate) struct Options {
    /// What to compare: the parser in user space, or the policy in the kernel, which needs root
    #[arg(value_enum, default_value_t = Subject::Parser)]
    subject: Subject,
    /// Frames to judge; without --seconds too, 100,000,000 for the parser and 1,000,000 for the policy
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    executions: Option<u64>,
    /// End after this time if not before
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Where the random numbers begin: the same seed and the same captures give the same frames
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Threads, each with a seed of its own; the parser alone
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    threads: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// The datapath's parser against a reader on etherparse's slices
    Parser,
    /// The loaded program against a model of its rules
    Policy,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let (package, program, test, share) = match options.subject {
        Subject::Parser => ("ftagent-common", "differential", "both_parsers_see_the_same", 100_000_000),
        Subject::Policy => ("bpf-tests", "it", "the_kernel_decides_as_the_model_does", 1_000_000),
    };
    let mut build = repo::cargo();
    build.args(["test", "-p", package, "--test", program]);
    if options.subject == Subject::Parser {
        // Unoptimised it is twenty times slower; the policy's time is the kernel's.
        build.arg("--release");
    } else {
        setup::ensure(&setup::Options::default())?;
        build.env("FTAGENT_REQUIRE_EBPF", "1");
    }
    let output = process::capture(build.args(["--no-run", "--message-format=json"]))?;
    let path = executable(&output, program).with_context(|| format!("cargo built no test program {program}"))?;
    // By `env`, since sudo hands no variables on.
    let mut fuzz = match options.subject {
        Subject::Parser => Command::new("env"),
        Subject::Policy => process::as_root("env", "running programs in the kernel")?,
    };
    let executions = options.executions.or(if options.seconds.is_none() { Some(share) } else { None });
    let bounds = [
        ("EXECUTIONS", executions),
        ("SECONDS", options.seconds),
        ("SEED", Some(options.seed)),
        ("THREADS", Some(options.threads)),
    ];
    for (name, value) in bounds {
        if let Some(value) = value {
            fuzz.arg(format!("FTAGENT_FUZZ_{name}={value}"));
        }
    }
    fuzz.current_dir(repo::root().join(package)).arg(path).args(["--test-threads=1", "--nocapture", test]);
    let status = fuzz.status().context("cannot start the test program")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The path of a test program among cargo's messages.
fn executable(messages: &str, program: &str) -> Option<String> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == program && message["profile"]["test"] == true;
        is_it.then(|| message["executable"].as_str().map(str::to_owned)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_program_is_found_among_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"it"},"profile":{"test":false},"executable":"/no"}"#,
            "\nnot json\n",
            r#"{"reason":"compiler-artifact","target":{"name":"it"},"profile":{"test":true},"executable":"/yes"}"#,
        );
        assert_eq!(executable(messages, "it").as_deref(), Some("/yes"));
        assert_eq!(executable(messages, "other"), None);
    }
}
