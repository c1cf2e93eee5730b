//! Commands of plans that are ftagent's own: carried out in this process, as `ftagent …` does where people run them.

use clap::Parser as _;

use super::runner::Ran;
use crate::cli::{Cli, Command, TcBucketArguments};
use crate::clock;
use crate::xdp::bucket::Bucket;

/// The first word of such commands.
pub(super) const PROGRAM: &str = "ftagent";

/// Carries out a command.
pub(super) fn run(argv: &[String]) -> Ran {
    let began_ns = clock::mono_ns();
    let (exit, output) = match Cli::try_parse_from(argv).map(|cli| cli.command) {
        Ok(Command::TcBucket(arguments)) => match tc_bucket(arguments) {
            Ok(()) => (0, String::new()),
            Err(why) => (1, why),
        },
        Ok(_) => (2, "no part of an action".to_owned()),
        Err(error) => (2, error.to_string()),
    };
    Ran { exit: Some(exit), output, took_us: clock::mono_ns().saturating_sub(began_ns) / 1_000 }
}

/// Limits what an interface receives.
///
/// # Errors
/// In the kernel's words.
pub fn tc_bucket(arguments: TcBucketArguments) -> Result<(), String> {
    let TcBucketArguments { interface, pref, bps, burst_bytes, spare } = arguments;
    let spared = spare.into_iter().map(|prefix| prefix.0).collect();
    Bucket { interface, preference: pref, bps, burst_bytes, spared }.attach()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Ran {
        super::run(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn only_what_is_part_of_an_action_is_carried_out() {
        for (line, part) in [
            ("ftagent detach", "no part of an action"),
            ("ftagent tc-bucket --interface lo --pref 0 --bps 8000 --burst-bytes 2048", "--pref"),
            ("ftagent tc-bucket --interface lo --pref 1 --bps 7999 --burst-bytes 2048", "--bps"),
            ("ftagent tc-bucket --interface lo --pref 1 --bps 8000 --burst-bytes 1", "--burst-bytes"),
            ("ftagent tc-bucket --interface lo --pref 1 --bps 8000 --burst-bytes 2048 --spare x", "--spare"),
        ] {
            let ran = run(line);
            assert!(ran.exit == Some(2) && ran.output.contains(part), "{line}: {ran:?}");
        }
        let ran = run("ftagent tc-bucket --interface nobodys0 --pref 1 --bps 8000 --burst-bytes 2048");
        assert!(ran.exit == Some(1) && !ran.output.is_empty(), "{ran:?}");
    }
}
