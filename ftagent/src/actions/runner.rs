//! Runs argument vectors: no shell, an environment of two words, an end in any case, and so much output and no more.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ftagent_common::api::{is_so_already, meaning};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::own;
use crate::clock;

/// Where programs are looked for, whatever the agent was started with.
pub const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// What one command may take. ufw and firewalld, which are scripts, take a second on a busy machine.
const PATIENCE_NS: u64 = 20_000_000_000;
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
        wait(start(argv, Stdio::null()), began_ns, None)
    }

    fn feed(&mut self, argv: &[String], input: &str) -> Ran {
        let began_ns = clock::mono_ns();
        // A file that is whole before anybody reads it: nothing is held up, whoever reads how much.
        let started = whole(input).map_err(|error| format!("{argv:?}: no file for its input: {error}"));
        wait(started.and_then(|file| start(argv, file.into())), began_ns, None)
    }

    fn list(&mut self, argv: &[String], hear: &mut dyn FnMut(&str)) -> Ran {
        let began_ns = clock::mono_ns();
        wait(start(argv, Stdio::null()), began_ns, Some(hear))
    }

    fn look_at(&mut self, all: &[Vec<String>]) -> Vec<Ran> {
        let mut rans = Vec::with_capacity(all.len());
        for some in all.chunks(AT_ONCE) {
            let began_ns = clock::mono_ns();
            let started: Vec<_> = some.iter().map(|argv| start(argv, Stdio::null())).collect();
            rans.extend(started.into_iter().map(|one| wait(one, began_ns, None)));
        }
        rans
    }
}

/// A file of no folder that holds `input`.
fn whole(input: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"input", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(input.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn wait(started: Result<Child, String>, began_ns: u64, hear: Option<&mut dyn FnMut(&str)>) -> Ran {
    let (exit, output) = match started {
        Ok(child) => finish(child, began_ns + PATIENCE_NS, hear),
        Err(why) => (None, why),
    };
    Ran { exit, output, took_us: clock::mono_ns().saturating_sub(began_ns) / 1_000 }
}

fn start(argv: &[String], input: Stdio) -> Result<Child, String> {
    let [program, arguments @ ..] = argv else { return Err("there is no command".to_owned()) };
    // `Command` looks in the parent's search path: ours is fixed.
    let Some(path) = place_of(program) else {
        return Err(format!("{program} is not installed: install the package {}", package(program)));
    };
    let mut command = Command::new(path);
    command.args(arguments).env_clear().env("PATH", PATH).env("LC_ALL", "C").current_dir("/");
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own: what it started is killed with it.
    command.process_group(0);
    command.spawn().map_err(|error| format!("{program} cannot be started: {error}"))
}

fn place_of(program: &str) -> Option<PathBuf> {
    PATH.split(':').map(|dir| Path::new(dir).join(program)).find(|path| path.is_file())
}

/// Whether this machine has a program.
pub fn is_installed(program: &str) -> bool {
    place_of(program).is_some()
}

/// The package that has a program, in Debian's and most others' words.
fn package(program: &str) -> &str {
    match program {
        "ip6tables" => "iptables",
        "ip" | "tc" => "iproute2",
        "firewall-cmd" => "firewalld",
        "busctl" => "systemd",
        "fail2ban-client" => "fail2ban",
        "sysctl" => "procps",
        other => other,
    }
}

/// Reads what it says and waits for its end, until `deadline_ns`.
fn finish(mut child: Child, deadline_ns: u64, hear: Option<&mut dyn FnMut(&str)>) -> (Option<i32>, String) {
    let mut said = Said { kept: Vec::new(), line: Vec::new(), hear };
    let mut pipes: [Option<Box<dyn Pipe>>; 2] =
        [child.stdout.take().map(|p| Box::new(p) as _), child.stderr.take().map(|p| Box::new(p) as _)];
    loop {
        let left_ns = deadline_ns.saturating_sub(clock::mono_ns());
        if left_ns == 0 {
            return give_up(child, &said.kept);
        }
        match child.try_wait() {
            Ok(Some(status)) => {
                // What a descendant still holds open is not waited for, nor one that goes on writing.
                let enough_ns = clock::mono_ns() + DRAIN_NS;
                while clock::mono_ns() < enough_ns && read_ready(&mut pipes, 0, &mut said) {}
                said.end();
                let output = String::from_utf8_lossy(&said.kept).into_owned();
                return match status.code() {
                    Some(code) => (Some(code), output),
                    None => (None, format!("it was killed by a signal ({status}): {output}")),
                };
            }
            Ok(None) => {}
            Err(error) => return (None, format!("its end is not known: {error}")),
        }
        let wait_ms = u16::try_from(left_ns / 1_000_000).unwrap_or(u16::MAX).clamp(1, LOOK_MS);
        if !read_ready(&mut pipes, wait_ms, &mut said) && pipes.iter().all(Option::is_none) {
            std::thread::sleep(Duration::from_micros(200));
        }
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

fn give_up(mut child: Child, kept: &[u8]) -> (Option<i32>, String) {
    let group = i32::try_from(child.id()).map(Pid::from_raw);
    // It may have ended just now.
    if let Ok(Err(error)) = group.map(|group| killpg(group, Signal::SIGKILL)) {
        tracing::debug!(%error, "a command that took too long was gone when it was to be killed");
    }
    drop(child.wait());
    let secs = PATIENCE_NS / 1_000_000_000;
    (None, format!("it did not end within {secs} s and was killed: {}", String::from_utf8_lossy(kept)))
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
    fn the_environment_is_fixed() {
        let ran = run(&["env"]);
        let mut lines: Vec<&str> = ran.output.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["LC_ALL=C", &format!("PATH={PATH}")]);
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
        assert!(ran.exit.is_none() && ran.output.contains("is not installed"), "{ran:?}");
        assert_eq!(
            (package("ip6tables"), package("firewall-cmd"), package("tc")),
            ("iptables", "firewalld", "iproute2")
        );
    }

    #[test]
    fn what_does_not_end_is_killed_with_what_it_started() {
        let words = ["sh", "-c", "echo begun; sleep 1000 & sleep 1000"].map(str::to_owned);
        let child = start(&words, Stdio::null()).unwrap();
        let group = child.id();
        let began_ns = clock::mono_ns();
        let (exit, output) = finish(child, began_ns + 300_000_000, None);
        assert!(exit.is_none() && output.contains("begun") && output.contains("killed"), "{output}");
        assert!(clock::mono_ns() - began_ns < 5_000_000_000);
        // State and group of each process, behind the name; one that is dead may wait for init to take note of it.
        let is_alive = |stat: String| {
            let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
            fields.get(2) == Some(&group.to_string().as_str()) && !["Z", "X"].contains(&fields[0])
        };
        let any = || {
            let all = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("stat"));
            all.filter_map(|path| std::fs::read_to_string(path).ok()).any(is_alive)
        };
        let ends = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            !any()
        });
        assert!(ends, "a descendant of the command goes on");
    }

    #[test]
    fn a_descendant_that_keeps_the_output_open_is_not_waited_for() {
        let began_ns = clock::mono_ns();
        let ran = run(&["sh", "-c", "sleep 5 & echo done"]);
        assert_eq!((ran.exit, ran.output.as_str()), (Some(0), "done\n"));
        assert!(clock::mono_ns() - began_ns < 2_000_000_000, "{ran:?}");
        let ran = run(&["sh", "-c", "timeout 8 yes & echo done; exit 3"]);
        assert_eq!(ran.exit, Some(3));
        assert!(clock::mono_ns() - began_ns < 5_000_000_000, "{}", ran.took_us);
    }
}
