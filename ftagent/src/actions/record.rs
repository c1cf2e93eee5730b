//! What was run for an action, and how it went: for the audit.

use crate::clock;
use crate::engine::{Acted, Outcome};

use super::runner::Ran;

/// Commands of one report; what comes after is counted.
const MAX_COMMANDS: usize = 64;
/// Bytes of what tools said.
const MAX_WORDS: usize = 4_096;

/// Commands with their ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    commands: Vec<Vec<String>>,
    output: String,
    omitted: usize,
}

impl Record {
    /// Adds a command that was run.
    pub(super) fn add(&mut self, argv: &[String], ran: &Ran) {
        if self.commands.len() >= MAX_COMMANDS {
            self.omitted += 1;
            return;
        }
        self.commands.push(argv.to_vec());
        let line = format!("{} ({} us, {})\n", argv.join(" "), ran.took_us, ran.text());
        if self.output.len() + line.len() <= MAX_WORDS {
            self.output.push_str(&line);
        }
    }

    /// The report on `task`.
    pub(super) fn acted(self, task: uuid::Uuid, outcome: Outcome) -> Acted {
        let mut output = self.output;
        if self.omitted > 0 {
            output.push_str(&format!("and {} more commands\n", self.omitted));
        }
        Acted { task, outcome, commands: self.commands, output, at_mono_ns: clock::mono_ns() }
    }
}
