//! Counting what a test program reported.

use std::fmt;

/// Tests by outcome.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    /// Ignored by attribute, or passed by saying why they could not be run.
    pub(crate) skipped: u32,
    /// The reasons that were said.
    pub(crate) skips: Vec<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.skips.extend_from_slice(&other.skips);
    }

    pub(crate) fn total(&self) -> u32 {
        self.passed + self.failed + self.skipped
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Reads the output of a test program that was run with `--show-output`.
///
/// A test that cannot run here prints a line `skipped: why` and returns; it counts as skipped, not as passed. A
/// program that ended badly without naming a failed test, by a signal for example, counts as one failure.
pub(crate) fn parse(output: &str, succeeded: bool) -> Tally {
    let mut tally = Tally::default();
    // Output of failed tests is shown too, and a failure stays one whatever it printed.
    let mut among_successes = false;
    let mut told_already = false;
    for line in output.lines() {
        if let Some(counts) = line.strip_prefix("test result: ") {
            tally.passed += count(counts, "passed");
            tally.failed += count(counts, "failed");
            tally.skipped += count(counts, "ignored");
            among_successes = false;
        } else if line == "successes:" {
            among_successes = true;
        } else if line == "failures:" {
            among_successes = false;
        } else if line.starts_with("---- ") && line.ends_with(" stdout ----") {
            told_already = false;
        } else if among_successes && line.starts_with("skipped: ") && !told_already {
            told_already = true;
            tally.skips.push(line.to_owned());
        }
    }
    let told = u32::try_from(tally.skips.len()).unwrap_or(u32::MAX).min(tally.passed);
    tally.passed -= told;
    tally.skipped += told;
    if !succeeded && tally.failed == 0 {
        tally.failed = 1;
    }
    tally
}

/// The number before `word` in `ok. 3 passed; 0 failed; …`.
fn count(counts: &str, word: &str) -> u32 {
    let part = counts.split([';', '.']).find_map(|part| part.trim().strip_suffix(word));
    part.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(output: &str, succeeded: bool, expected: (u32, u32, u32)) {
        let tally = parse(output, succeeded);
        assert_eq!((tally.passed, tally.failed, tally.skipped), expected, "{output}");
    }

    #[test]
    fn results_of_several_programs_are_added() {
        let one = "running 3 tests\ntest a ... ok\n\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 4 \
            filtered out; finished in 0.00s\n";
        check(one, true, (2, 0, 1));
        check(&one.repeat(2), true, (4, 0, 2));
    }

    #[test]
    fn a_test_that_says_why_it_is_skipped_has_not_passed() {
        let output = "successes:\n\n---- a stdout ----\nskipped: a needs root\nskipped: again\n\n---- b stdout ----\n\
            fine\n\nsuccesses:\n    a\n    b\n\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured\n";
        check(output, true, (1, 0, 1));
    }

    #[test]
    fn what_a_failed_test_printed_is_no_skip() {
        let output = "failures:\n\n---- a stdout ----\nskipped: half of it\npanicked\n\nfailures:\n    a\n\n\
            test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured\n";
        check(output, false, (1, 1, 0));
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        check("running 3 tests\ntest a ... ok\n", false, (0, 1, 0));
        check("", true, (0, 0, 0));
    }
}
