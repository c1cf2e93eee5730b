//! The time line on the screen; coloured on a terminal alone.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use crate::clock::now;

/// Where the time line goes.
pub struct Story {
    to_stderr: bool,
    coloured: bool,
    started: Instant,
}

impl Story {
    /// Tells on standard output, or on standard error if the former is for a machine.
    pub fn new(to_stderr: bool) -> Self {
        let terminal = if to_stderr { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
        let coloured = terminal && std::env::var_os("NO_COLOR").is_none();
        Self { to_stderr, coloured, started: now() }
    }

    /// Something that happened now.
    pub fn step(&self, text: &str) {
        self.print(&format!("{:7.2} s  {text}", self.started.elapsed().as_secs_f64()), "");
    }

    /// The beginning of a scenario.
    pub fn heading(&self, text: &str) {
        self.print(&format!("\n{:7.2} s  {text}", self.started.elapsed().as_secs_f64()), "1");
    }

    /// Something that happened `millis` after the first attack packet.
    pub fn event(&self, millis: f64, text: &str) {
        self.print(&format!("{millis:+10.0} ms  {text}"), "");
    }

    pub fn note(&self, text: &str) {
        self.print(&format!("               {text}"), "2");
    }

    pub fn good(&self, text: &str) {
        self.print(&format!("           ok  {text}"), "32");
    }

    pub fn bad(&self, text: &str) {
        self.print(&format!("       FAILED  {text}"), "31");
    }

    /// A line of a table below a heading.
    pub fn row(&self, text: &str) {
        self.print(&format!("           {text}"), "");
    }

    /// A line of a table that has a problem.
    pub fn bad_row(&self, text: &str) {
        self.print(&format!("         ! {text}"), "31");
    }

    fn print(&self, line: &str, colour: &str) {
        let line = if self.coloured && !colour.is_empty() {
            format!("\x1b[{colour}m{line}\x1b[0m\n")
        } else {
            format!("{line}\n")
        };
        // A closed pipe must not end the demonstration before it has cleaned up.
        let written = if self.to_stderr {
            io::stderr().write_all(line.as_bytes())
        } else {
            let mut out = io::stdout();
            out.write_all(line.as_bytes()).and_then(|()| out.flush())
        };
        written.ok();
    }
}
