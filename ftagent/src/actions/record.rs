//! What was run for an action, and how it went: for the audit.

use crate::clock;
use crate::engine::{Acted, Outcome};

use super::runner::Ran;

/// Commands of one report; what comes after is counted.
const MAX_COMMANDS: usize = 64;
/// Bytes of what tools said.
const MAX_WORDS: usize = 4_096;

/// Bytes of one request that are reported.
const MAX_REQUEST: usize = 2_048;

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

    /// Adds a command that read `lines` lines about `what`.
    pub(super) fn add_fed(&mut self, argv: &[String], lines: usize, what: &str, ran: &Ran) {
        if self.commands.len() >= MAX_COMMANDS {
            self.omitted += 1;
            return;
        }
        self.commands.push(argv.to_vec());
        let line = format!("{}, {lines} lines: {what} ({} us, {})\n", argv.join(" "), ran.took_us, ran.text());
        if self.output.len() + line.len() <= MAX_WORDS {
            self.output.push_str(&line);
        }
    }

    /// Adds a request that was sent, and what came of it.
    pub(super) fn add_request(&mut self, argv: Vec<String>, came: &str, took_us: u64) {
        if self.commands.len() >= MAX_COMMANDS {
            self.omitted += 1;
            return;
        }
        let shown = argv.iter().filter(|word| !word.is_empty()).cloned().collect::<Vec<_>>().join(" ");
        let shown = cut(&shown, MAX_REQUEST);
        let line = format!("{shown} ({took_us} us, {came})\n");
        // A body may name thousands of prefixes.
        self.commands.push(argv.iter().map(|word| cut(word, MAX_REQUEST)).collect());
        if self.output.len() + line.len() <= MAX_WORDS {
            self.output.push_str(&line);
        }
    }

    /// Whether anything was run.
    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.omitted == 0
    }

    /// Adds words that no command said.
    pub(super) fn note(&mut self, words: &str) {
        if self.output.len() + words.len() < MAX_WORDS {
            self.output.push_str(words);
            self.output.push('\n');
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

/// At most so many bytes of a text, and how many there were.
fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}… ({} bytes)", &text[..end], text.len())
}
