//! A program of the lab: started inside its namespace, its output kept, ended with its guard.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clock::now;

/// How long a program may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// A running program.
pub struct Process {
    name: &'static str,
    child: Child,
    lines: Receiver<String>,
    log: PathBuf,
    left_alone: bool,
}

impl Process {
    /// Starts `command`; standard error goes to `log`.
    pub fn start(name: &'static str, mut command: Command, log: PathBuf) -> anyhow::Result<Self> {
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stdout = child.stdout.take().context("standard output was asked for")?;
        let (sender, lines) = channel();
        // Reads on when nobody listens, so that the program never waits for a full pipe.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                sender.send(line).ok();
            }
        });
        Ok(Self { name, child, lines, log, left_alone: false })
    }

    /// Waits for a line that `wanted` accepts.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        patience: Duration,
        stop: &AtomicBool,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = now() + patience;
        loop {
            match self.lines.recv_timeout(Duration::from_millis(20)) {
                Ok(line) => {
                    if let Some(found) = wanted(&line) {
                        return Ok(found);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!("{} ended with {status} before it printed {what}{}", self.name, self.last_words());
                }
            }
            if stop.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            if now() > deadline {
                bail!("{} did not print {what} within {patience:?}{}", self.name, self.last_words());
            }
        }
    }

    /// Whether it ended, and how.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The last lines of its log, for a message.
    pub fn last_words(&self) -> String {
        last_lines(&self.log, 12)
    }

    /// Leaves the program running when the guard goes.
    pub fn leave_alone(&mut self) {
        self.left_alone = true;
    }

    /// Ends the program at once and waits until it is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks the program to end and waits; kills it if it does not.
    pub fn end(&mut self) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        // A process id is positive and fits.
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM)?;
        let deadline = now() + GRACE;
        while now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.child.kill()?;
        self.child.wait()?;
        bail!("{} did not end within {GRACE:?} of SIGTERM and was killed", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.left_alone {
            // The kernel kills it at the latest when this process ends.
            self.end().ok();
        }
    }
}

fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| format!("\n    {line}")).collect()
}
