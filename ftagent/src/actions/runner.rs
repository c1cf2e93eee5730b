//! Runs the commands of tools, and keeps so much of what they say and no more.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::Duration;

use ftagent_common::api::{is_so_already, meaning};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::own;
use crate::clock;
use crate::program::{End, Program, StartError};

/// What one command may take. ufw and firewalld, which are scripts, take a second on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of output that are kept; what comes after is read and forgotten.
const MAX_OUTPUT: usize = 64 << 10;
/// For what a program that has ended had said.
const DRAIN_NS: u64 = 500_000_000;
/// Between two looks whether a program that closed its output has ended.
const LOOK_MS: u16 = 20;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// None: it was not started, was killed, or did not end in time.
    pub exit: Option<i32>,
    /// What it said on both outputs; without an exit status, why.
    pub output: String,
    pub took_us: u64,
}

impl Ran {
    pub fn is_success(&self) -> bool {
        self.exit == Some(0)
    }

    /// Whether all is as `argv` should make it.
    pub fn has_done(&self, argv: &[String]) -> bool {
        self.is_success() || is_so_already(argv, self.exit, &self.output)
    }

    /// The command, its end and its words, and what those mean where they do not say it.
    pub fn story(&self, argv: &[String]) -> String {
        let meaning = meaning(argv, &self.output).map(|meaning| format!("{meaning}: ")).unwrap_or_default();
        format!("{meaning}{}: {}", argv.join(" "), self.text())
    }

    /// Its end and its words on one line, for people.
    pub fn text(&self) -> String {
        let words = self.output.split_whitespace().collect::<Vec<_>>().join(" ");
        let words: String = words.chars().take(400).collect();
        match self.exit {
            Some(exit) if words.is_empty() => format!("exit {exit}"),
            Some(exit) => format!("exit {exit}: {words}"),
            None => words,
        }
    }
}

/// Who runs commands.
pub trait Runner {
    fn run(&mut self, argv: &[String]) -> Ran;

    /// Runs a command that reads `input`.
    fn feed(&mut self, argv: &[String], input: &str) -> Ran;

    /// Runs a command that changes nothing, and gives every line that it writes to `hear`, however many there are.
    fn list(&mut self, argv: &[String], hear: &mut dyn FnMut(&str)) -> Ran;

    /// Runs commands that change nothing, in any order or at once; how each ended, in their order.
    fn look_at(&mut self, all: &[Vec<String>]) -> Vec<Ran> {
        all.iter().map(|argv| self.run(argv)).collect()
    }
}

/// Looks that are under way at once. Tools that are scripts take longer to start than to look.
const AT_ONCE: usize = 4;

/// The machine itself.
#[derive(Debug, Default)]
pub struct System;

impl Runner for System {
    fn run(&mut self, argv: &[String]) -> Ran {
        if argv.first().is_some_and(|program| program == own::PROGRAM) {
            return own::run(argv);
        }
        let began_ns = clock::mono_ns();
        wait(start(argv, ""), began_ns, None)
    }

    fn feed(&mut self, argv: &[String], input: &str) -> Ran {
        let began_ns = clock::mono_ns();
        wait(start(argv, input), began_ns, None)
    }

    fn list(&mut self, argv: &[String], hear: &mut dyn FnMut(&str)) -> Ran {
        let began_ns = clock::mono_ns();
        wait(start(argv, ""), began_ns, Some(hear))
    }

    fn look_at(&mut self, all: &[Vec<String>]) -> Vec<Ran> {
        let mut rans = Vec::with_capacity(all.len());
        for some in all.chunks(AT_ONCE) {
            let began_ns = clock::mono_ns();
            let started: Vec<_> = some.iter().map(|argv| start(argv, "")).collect();
            rans.extend(started.into_iter().map(|one| wait(one, began_ns, None)));
        }
        rans
    }
}

fn start(argv: &[String], input: &str) -> Result<Program, StartError> {
    Program::start(argv, input, [Stdio::piped(), Stdio::piped()])
}

fn wait(started: Result<Program, StartError>, began_ns: u64, hear: Option<&mut dyn FnMut(&str)>) -> Ran {
    let (exit, output) = match started {
        Ok(program) => finish(program, PATIENCE, hear),
        Err(why) => (None, why.to_string()),
    };
    Ran { exit, output, took_us: clock::mono_ns().saturating_sub(began_ns) / 1_000 }
}

/// Reads what it says until it ends.
fn finish(mut program: Program, patience: Duration, hear: Option<&mut dyn FnMut(&str)>) -> (Option<i32>, String) {
    let mut said = Said { kept: Vec::new(), line: Vec::new(), hear };
    let (out, err) = program.pipes();
    let mut pipes: [Option<Box<dyn Pipe>>; 2] = [out.map(|p| Box::new(p) as _), err.map(|p| Box::new(p) as _)];
    let end = program.wait(patience, |left| {
        let wait_ms = u16::try_from(left.as_millis()).unwrap_or(u16::MAX).clamp(1, LOOK_MS);
        if !read_ready(&mut pipes, wait_ms, &mut said) && pipes.iter().all(Option::is_none) {
            std::thread::sleep(Duration::from_micros(200));
        }
    });
    if matches!(end, End::Exit(_)) {
        // What somebody out of its group holds open is not waited for, nor one that goes on writing.
        let enough_ns = clock::mono_ns() + DRAIN_NS;
        while clock::mono_ns() < enough_ns && read_ready(&mut pipes, 0, &mut said) {}
        said.end();
    }
    let output = String::from_utf8_lossy(&said.kept).into_owned();
    match end {
        End::Exit(status) => match status.code() {
            Some(code) => (Some(code), output),
            None => (None, format!("it was killed by a signal ({status}): {output}")),
        },
        End::Late => (None, format!("it did not end within {} s and was killed: {output}", patience.as_secs())),
        End::Unknown(error) => (None, format!("its end is not known: {error}")),
    }
}

/// What a command said.
struct Said<'a> {
    /// Of both outputs, or of the second alone where somebody hears the first.
    kept: Vec<u8>,
    /// What was said of a line that has not ended.
    line: Vec<u8>,
    hear: Option<&'a mut dyn FnMut(&str)>,
}

impl Said<'_> {
    fn take(&mut self, is_error: bool, bytes: &[u8]) {
        let Some(hear) = self.hear.as_mut().filter(|_| !is_error) else {
            let room = MAX_OUTPUT.saturating_sub(self.kept.len());
            return self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        };
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            let room = MAX_OUTPUT.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                hear(String::from_utf8_lossy(&self.line).trim_end());
                self.line.clear();
            }
        }
    }

    /// There will be no more.
    fn end(&mut self) {
        if let Some(hear) = self.hear.as_mut().filter(|_| !self.line.is_empty()) {
            hear(&String::from_utf8_lossy(&self.line));
            self.line.clear();
        }
    }
}

trait Pipe: Read + AsFd {}
impl<T: Read + AsFd> Pipe for T {}

/// Reads once from each pipe that has something within `wait_ms`; a pipe at its end goes. Whether anything was read.
fn read_ready(pipes: &mut [Option<Box<dyn Pipe>>; 2], wait_ms: u16, said: &mut Said<'_>) -> bool {
    let ready: Vec<usize> = {
        let open: Vec<usize> = (0..pipes.len()).filter(|at| pipes[*at].is_some()).collect();
        if open.is_empty() {
            return false;
        }
        let mut fds: Vec<PollFd<'_>> =
            pipes.iter().flatten().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
        if !poll(&mut fds, PollTimeout::from(wait_ms)).is_ok_and(|n| n > 0) {
            return false;
        }
        open.into_iter().zip(&fds).filter(|(_, fd)| fd.any() == Some(true)).map(|(at, _)| at).collect()
    };
    let mut any = false;
    let mut buffer = [0; 16_384];
    for at in ready {
        let Some(pipe) = &mut pipes[at] else { continue };
        match pipe.read(&mut buffer) {
            Ok(0) => pipes[at] = None,
            Ok(len) => {
                any = true;
                said.take(at == 1, &buffer[..len]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => pipes[at] = None,
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> Ran {
        System.run(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_a_program_says_and_how_it_ends_is_told() {
        let ran = run(&["sh", "-c", "echo out; echo err >&2; exit 3"]);
        assert_eq!(ran.exit, Some(3));
        assert!(ran.output.contains("out") && ran.output.contains("err"), "{ran:?}");
        assert_eq!(run(&["true"]).exit, Some(0));
        let killed = run(&["sh", "-c", "kill -9 $$"]);
        assert!(killed.exit.is_none() && killed.output.contains("signal"), "{killed:?}");
    }

    #[test]
    fn output_without_end_is_cut_and_does_not_block() {
        let ran = run(&["head", "-c", "1000000", "/dev/zero"]);
        assert_eq!((ran.exit, ran.output.len()), (Some(0), MAX_OUTPUT));
    }

    #[test]
    fn what_a_program_reads_is_whole_and_every_line_of_it_is_heard() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let input: String = (0..200_000).map(|n| format!("line {n}\n")).collect();
        let ran = System.feed(&words("sha256sum"), &input);
        let same = System.feed(&words("sha256sum"), &(input.clone() + "one more"));
        assert!(ran.is_success() && ran.output != same.output && ran.output.len() > 64, "{ran:?}");
        // Who does not read it all holds up nobody.
        assert_eq!(System.feed(&words("head -n 1"), &input).output, "line 0\n");
        let script = "i=0; while [ $i -lt 30000 ]; do echo line $i; i=$((i+1)); done; echo to both >&2; printf end";
        let mut heard = Vec::new();
        let ran = System.list(&["sh", "-c", script].map(str::to_owned), &mut |line| heard.push(line.to_owned()));
        assert_eq!((ran.exit, ran.output.as_str(), heard.len()), (Some(0), "to both\n", 30_001));
        assert!(heard.iter().enumerate().take(30_000).all(|(n, line)| *line == format!("line {n}")));
        assert_eq!(heard[30_000], "end");
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let ran = run(&["firewall-cmd-of-another-world"]);
        assert!(ran.exit.is_none() && ran.output.contains("is not installed: install the package"), "{ran:?}");
    }

    #[test]
    fn what_does_not_end_is_killed_and_its_words_are_kept() {
        let began_ns = clock::mono_ns();
        let words = ["sh", "-c", "echo begun; sleep 1000 & sleep 1000"].map(str::to_owned);
        let (exit, output) = finish(start(&words, "").unwrap(), Duration::from_secs(1), None);
        assert_eq!((exit, output.as_str()), (None, "it did not end within 1 s and was killed: begun\n"));
        assert!(clock::mono_ns() - began_ns < 5_000_000_000);
    }

    #[test]
    fn a_descendant_that_keeps_the_output_open_is_not_waited_for() {
        let began_ns = clock::mono_ns();
        // In its group, and out of it.
        for script in ["sleep 5 & echo done", "setsid sleep 5 & echo done"] {
            let ran = run(&["sh", "-c", script]);
            assert_eq!((ran.exit, ran.output.as_str()), (Some(0), "done\n"), "{script}");
        }
        assert!(clock::mono_ns() - began_ns < 3_000_000_000);
        let ran = run(&["sh", "-c", "setsid timeout 8 yes & echo done; exit 3"]);
        assert_eq!(ran.exit, Some(3));
        assert!(clock::mono_ns() - began_ns < 6_000_000_000, "{}", ran.took_us);
    }
}
