//! Running other programs: captured, shown, or long with a line that tells how far they are.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write as _, stderr, stdin};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Result, bail};

/// How many of the last lines of a failed program are shown.
const TAIL: usize = 40;
/// How often a long step tells where it is when stderr is no terminal.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Runs `command` with its output on ours.
///
/// # Errors
/// When it cannot be started or does not succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", name(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", name(command));
    }
    Ok(())
}

/// Runs `command` and returns what it wrote to stdout.
///
/// # Errors
/// When it cannot be started or does not succeed; the message holds what it wrote to stderr.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", name(command)))?;
    if !output.status.success() {
        bail!("{} failed ({}): {}", name(command), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs something long under one line that shows the elapsed time and its latest output.
///
/// # Errors
/// When it cannot be started, does not succeed (with its last lines), or is not done after `limit`.
pub(crate) fn run_long(step: &str, command: &mut Command, limit: Option<Duration>) -> Result<Duration> {
    let began = Instant::now();
    let mut tail = VecDeque::with_capacity(TAIL);
    let status = watch(step, command, limit, |line| {
        if tail.len() == TAIL {
            tail.pop_front();
        }
        if !line.is_empty() {
            tail.push_back(line);
        }
    })?;
    if !status.success() {
        let mut message = format!("{} failed ({status})", name(command));
        for line in tail {
            write!(message, "\n    {line}")?;
        }
        bail!(message);
    }
    Ok(began.elapsed())
}

/// Runs something long in the same way and returns whether it succeeded, and all that it wrote.
///
/// # Errors
/// When it cannot be started, or is not done after `limit`.
pub(crate) fn observe(step: &str, command: &mut Command, limit: Duration) -> Result<(bool, String)> {
    let mut output = String::new();
    let status = watch(step, command, Some(limit), |line| {
        output.push_str(&line);
        output.push('\n');
    })?;
    Ok((status.success(), output))
}

fn watch(
    step: &str,
    command: &mut Command,
    limit: Option<Duration>,
    mut on_line: impl FnMut(String),
) -> Result<ExitStatus> {
    let began = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {}", name(command)))?;
    let (lines, received) = mpsc::sync_channel(64);
    forward(child.stdout.take().expect("stdout is piped"), lines.clone());
    forward(child.stderr.take().expect("stderr is piped"), lines);

    let mut progress = Progress::new(step);
    let mut latest = String::new();
    loop {
        match received.recv_timeout(Duration::from_millis(500)) {
            Ok(line) => {
                if !line.is_empty() {
                    latest.clone_from(&line);
                }
                on_line(line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        progress.show(began.elapsed(), &latest);
        if limit.is_some_and(|limit| began.elapsed() > limit) {
            progress.clear();
            child.kill().and_then(|()| child.wait()).context("cannot stop it")?;
            bail!("{} was not done after {} s; its last words: {latest}", name(command), began.elapsed().as_secs());
        }
    }
    let status = child.wait()?;
    progress.clear();
    Ok(status)
}

fn forward(pipe: impl Read + Send + 'static, lines: SyncSender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            // Progress bars rewrite their line: the last state is the one to show.
            let line = line.trim_end().rsplit('\r').next().unwrap_or_default().to_owned();
            if lines.send(line).is_err() {
                break;
            }
        }
    });
}

/// The moving line of a long step.
struct Progress<'a> {
    step: &'a str,
    on_terminal: bool,
    shown: Duration,
}

impl<'a> Progress<'a> {
    fn new(step: &'a str) -> Self {
        Self { step, on_terminal: stderr().is_terminal(), shown: Duration::ZERO }
    }

    fn show(&mut self, elapsed: Duration, latest: &str) {
        let every = if self.on_terminal { Duration::from_millis(200) } else { HEARTBEAT };
        if elapsed < self.shown + every {
            return;
        }
        self.shown = elapsed;
        let latest: String = latest.chars().filter(|c| !c.is_control()).take(70).collect();
        if self.on_terminal {
            eprint!("\r\x1b[2K  {} ({} s) {latest}", self.step, elapsed.as_secs());
            // A line that cannot be shown is no reason to stop the work.
            drop(stderr().flush());
        } else {
            eprintln!("  {} ({} s) {latest}", self.step, elapsed.as_secs());
        }
    }

    fn clear(&self) {
        if self.on_terminal {
            eprint!("\r\x1b[2K");
        }
    }
}

/// A command that runs as root: through sudo when we are not, which may ask for a password and then says why.
///
/// # Errors
/// When we are not root and there is no sudo, or it does not let us.
pub(crate) fn as_root(program: impl AsRef<OsStr>, why: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    let sudo = find_program("sudo").with_context(|| format!("{why} needs root, and there is no sudo"))?;
    let mut command = Command::new(&sudo);
    if stdin().is_terminal() {
        // Asked for now, and not under a line of progress.
        run(Command::new(&sudo).args(["-p", &format!("{why} needs root; password of %p: "), "--", "true"]))?;
    } else {
        // Nobody is there to type a password: fail at once and say so.
        command.arg("-n");
    }
    command.arg("--").arg(program);
    Ok(command)
}

/// Whether we are root, as the owner of our own entry in /proc tells.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Looks a program up in PATH and in the folders of administrators' programs, which are not in everybody's PATH.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    programs(program).into_iter().next()
}

/// All programs of that name, in the order in which they would be found.
pub(crate) fn programs(program: &str) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders =
        env::split_paths(&path).chain(["/usr/bin", "/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    let mut found = Vec::new();
    for candidate in folders.map(|folder| folder.join(program)) {
        let executable = fs::metadata(&candidate).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
        if executable && !found.contains(&candidate) {
            found.push(candidate);
        }
    }
    found
}

/// Takes away what cargo told us about our own package, so that another build does not take it for its own.
pub(crate) fn remove_package_variables(command: &mut Command) {
    for (key, _) in env::vars_os() {
        let Some(key) = key.to_str() else { continue };
        if key.starts_with("CARGO_PKG_") || key.starts_with("CARGO_MANIFEST_") || key.starts_with("CARGO_BIN_") {
            command.env_remove(key);
        }
    }
}

/// The command as a user would type it, for messages.
fn name(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    format!("`{}`", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_end_is_stopped() {
        let began = Instant::now();
        let limit = Some(Duration::from_millis(50));
        let error = run_long("sleeping", Command::new("sleep").arg("60"), limit).expect_err("it takes longer");
        assert!(began.elapsed() < Duration::from_secs(20));
        assert!(error.to_string().contains("`sleep 60` was not done"), "{error}");
    }

    #[test]
    fn a_failure_shows_the_last_lines() {
        let mut command = Command::new("ls");
        command.arg("/no/such/file");
        let error = run_long("listing", &mut command, None).expect_err("the file does not exist");
        assert!(error.to_string().contains("/no/such/file"), "{error}");
        let (succeeded, output) = observe("listing", &mut command, HEARTBEAT).expect("ls starts");
        assert!(!succeeded && output.contains("/no/such/file"), "{output}");
    }

    #[test]
    fn programs_are_found_and_missing_ones_are_not() {
        assert!(find_program("ls").is_some());
        assert_eq!(find_program("no-such-program-here"), None);
    }
}
