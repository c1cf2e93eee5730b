//! The tests of the lab in two passes: most of them beside each other, because they wait most of the time, and those
//! that share something with all others alone.

use anyhow::{Result, ensure};

/// Tests that no other may run beside. A lab has namespaces, devices, a BPF file system and a folder of its own, so that
/// a test is here only for what none of these keeps apart.
const ALONE: &[&str] = &[
    // Look for whatever this process made and did not remove, and measure on both CPUs.
    "ladder::a_ladder_that_is_stopped_leaves_nothing",
    "ladder::a_missing_tool_gives_a_row_with_its_reason",
    "ladder::every_peer_has_a_row_and_nothing_leaks_through_a_defence",
    // Sweeps what dead processes left on the machine, and so does `ftagent lab` in other tests: one of them is first.
    "guards::what_a_killed_process_leaves_is_swept_by_the_next_one",
    // Floods from both CPUs as fast as they can.
    "sum::the_verdicts_of_two_cpus_add_up_to_the_frames_sent",
];

/// Tests by the pass that they run in, under their full names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Passes {
    pub(super) together: Vec<String>,
    pub(super) alone: Vec<String>,
}

/// Puts each of the `chosen` tests into one pass; `all` are those that the program has.
///
/// # Errors
/// A name of the list is no test's: whoever renamed it would have it run beside others.
pub(super) fn split(all: &[String], chosen: Vec<String>) -> Result<Passes> {
    split_by(ALONE, all, chosen)
}

fn split_by(lonely: &[&str], all: &[String], chosen: Vec<String>) -> Result<Passes> {
    for name in lonely {
        ensure!(all.iter().any(|test| test == name), "no test is called {name:?}: mend xtask/src/test/passes.rs");
    }
    let (alone, together) = chosen.into_iter().partition(|test| lonely.contains(&test.as_str()));
    Ok(Passes { together, alone })
}

/// The names of tests in what a test program prints with `--list --format=terse`.
pub(super) fn names(listed: &str) -> Vec<String> {
    listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn every_test_is_in_one_pass_and_similar_names_are_kept_apart() {
        let all = owned(&["a::flood", "a::flood_of_two", "b::a::flood", "b::rest"]);
        let passes = split_by(&["a::flood", "b::rest"], &all, all.clone()).expect("all are there");
        assert_eq!(passes.alone, ["a::flood", "b::rest"]);
        assert_eq!(passes.together, ["a::flood_of_two", "b::a::flood"]);
        let chosen = owned(&["a::flood", "a::flood_of_two"]);
        let passes = split_by(&["a::flood", "b::rest"], &all, chosen).expect("all are there");
        assert_eq!((passes.alone, passes.together), (owned(&["a::flood"]), owned(&["a::flood_of_two"])));
    }

    #[test]
    fn a_name_that_no_test_has_is_an_error() {
        let all = owned(&["a::flood"]);
        let error = split_by(&["flood"], &all, all.clone()).expect_err("it is only the end of a name");
        assert!(error.to_string().contains("\"flood\""), "{error}");
        assert!(split(&all, all.clone()).is_err(), "not the program that the list is of");
    }

    #[test]
    fn names_are_read_from_a_list() {
        assert_eq!(
            names("a::flood: test\nb::rest: test\nc: benchmark\n\n2 tests, 1 benchmark\n"),
            ["a::flood", "b::rest"]
        );
    }
}
