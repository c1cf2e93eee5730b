//! Runs a firewall's program, and answers all that it says, or why it failed.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::program::{End, Program, StartError};

/// Of each of the two outputs; a program that has more to say fails.
const OUTPUT_BYTES: u64 = 32 << 20;
/// By so much it may go over, to be found out: the kernel refuses what would go further, a piece at a time.
const BEYOND_BYTES: u64 = 1 << 20;
/// Of a program's words in a message.
const WORDS: usize = 1_000;

/// Why a program did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{command}: no room for its output: {source}")]
    Room { command: String, source: io::Error },
    #[error("{command}: {words}")]
    Refused { command: String, words: String },
    #[error("{command}: no answer within {secs} s, it was ended")]
    Late { command: String, secs: u64 },
    #[error("{command}: more output than an agent reads")]
    TooLong { command: String },
}

/// Runs `words` with `input` on its standard input; answers its standard output.
///
/// # Errors
/// The program is not there, said no (with its own words), or took longer than `patience`.
pub(super) fn run(words: &[String], input: &str, patience: Duration) -> Result<String, RunError> {
    if words.is_empty() {
        return Ok(String::new());
    }
    let shown = || words.join(" ");
    let fail = |source| RunError::Room { command: shown(), source };
    // Files, and no pipes: whoever goes on in the background with one of them holds up nobody.
    let (mut out, mut err) = (room().map_err(fail)?, room().map_err(fail)?);
    let theirs = [Stdio::from(out.try_clone().map_err(fail)?), Stdio::from(err.try_clone().map_err(fail)?)];
    let mut pause = Duration::from_millis(1);
    let end = Program::start(words, input, theirs)?.wait(patience, |left| {
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(20));
    });
    let (out, err) = (read(&mut out), read(&mut err));
    match end {
        End::Late | End::Unknown(_) => Err(RunError::Late { command: shown(), secs: patience.as_secs() }),
        End::Exit(_) if out.len() as u64 > OUTPUT_BYTES => Err(RunError::TooLong { command: shown() }),
        End::Exit(status) if status.success() => Ok(String::from_utf8_lossy(&out).into_owned()),
        End::Exit(status) => {
            let said: Vec<u8> = if err.trim_ascii().is_empty() { out } else { err };
            let said: String = String::from_utf8_lossy(&said).trim().chars().take(WORDS).collect();
            let words = if said.is_empty() { status.to_string() } else { said };
            Err(RunError::Refused { command: shown(), words })
        }
    }
}

/// A file of no folder that takes what a program says, and no more than it may say.
fn room() -> io::Result<File> {
    let file = File::from(memfd_create(c"output", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.set_len(OUTPUT_BYTES + BEYOND_BYTES)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW))?;
    Ok(file)
}

/// What was written so far: the place in the file is the program's own.
fn read(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What cannot be read was not said.
    let written = file.stream_position().and_then(|len| file.rewind().map(|()| len)).unwrap_or(0);
    drop(file.take(written).read_to_end(&mut bytes));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn a_program_reads_its_input_and_is_told_nothing_of_ours() {
        let long = "x".repeat(1 << 20);
        let patience = Duration::from_secs(10);
        assert_eq!(run(&words(&["cat"]), &long, patience).expect("it runs"), long);
        let told = run(&words(&["env"]), "", patience).expect("it runs");
        let mut names: Vec<_> = told.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["LC_ALL", "PATH"]);
    }

    #[test]
    fn what_is_missing_refused_or_late_is_said() {
        let run = |line: &[&str], secs| run(&words(line), "", Duration::from_secs(secs)).expect_err("it fails");
        assert!(run(&["no-such-firewall"], 1).to_string().contains("not installed"));
        let refused = run(&["ls", "/no/such/folder"], 5).to_string();
        assert!(refused.contains("/no/such/folder") && refused.contains("No such file"), "{refused}");
        assert!(run(&["sleep", "60"], 1).to_string().contains("within 1 s"));
        assert!(run(&["head", "-c", "40000000", "/dev/zero"], 20).to_string().contains("more output than"));
    }

    #[test]
    fn who_goes_on_in_the_background_holds_up_nobody() {
        let began_ns = clock::mono_ns();
        // Out of the group, with both outputs in hand.
        let script = "setsid sh -c 'echo late; sleep 6' & echo done";
        let said = run(&words(&["sh", "-c", script]), "", Duration::from_secs(5)).expect("it runs");
        assert!(said.contains("done"), "{said}");
        assert!(clock::mono_ns() - began_ns < 4_000_000_000);
        // And neither does who is given much and reads nothing.
        assert_eq!(run(&words(&["true"]), &"x".repeat(1 << 20), Duration::from_secs(5)).expect("it runs"), "");
    }
}
