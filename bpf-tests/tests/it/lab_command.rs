//! `ftagent lab`, as an operator runs it.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use bpf_tests::skip_without_root;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::agent::program;

/// What a lab of this process id left.
fn left_behind(pid: u32) -> Vec<String> {
    let mark = format!("ftlab-{pid}-");
    let folders = [Path::new("/run/netns").to_owned(), std::env::temp_dir()];
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
    entries.filter_map(|e| e.file_name().into_string().ok()).filter(|name| name.starts_with(&mark)).collect()
}

/// What this machine itself has: devices, and programs attached to them.
fn devices() -> String {
    let output = Command::new("ip").args(["-details", "link", "show"]).output().expect("ip is there");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_lab_prints_the_ladder_and_the_time_to_the_first_drop_and_leaves_nothing() {
    if skip_without_root("the_lab_prints_the_ladder_and_the_time_to_the_first_drop_and_leaves_nothing") {
        return;
    }
    let Some(program) = program("FTAGENT_BIN", "ftagent") else { return };
    let before = devices();
    let words = "lab --json --seconds 0.004 --rounds 2 --entries 7,90 --only ftagent,ftagent-ip,ftagent-tc --runs 1";
    let child = Command::new(program)
        .args(words.split(' '))
        .args(["--config", "/nonexistent/ftagent.toml"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let pid = child.id();
    let output = child.wait_with_output().expect("ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("round 2 of 2"), "{said}");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");

    let rows = answer["ladder"].as_array().expect("rows");
    assert_eq!(rows.len(), 6, "three peers, two lists: {rows:?}");
    for row in rows {
        assert_eq!(
            (&row["error"], row["leaked"].as_u64(), row["rounds"].as_u64()),
            (&Value::Null, Some(0), Some(2)),
            "{row}"
        );
        assert!(row["packets"].as_u64() > Some(16_000), "{row}");
    }
    let times = answer["latency"]["first_drop_ms"].as_array().expect("times");
    assert_eq!(times.len(), 1);
    assert!(times[0].as_f64().is_some_and(|ms| ms > 0.0), "{times:?}");
    assert_eq!(left_behind(pid), Vec::<String>::new());
    assert_eq!(devices(), before, "the machine's own devices are as they were");
}

#[test]
fn the_lab_cleans_up_when_it_is_interrupted() {
    if skip_without_root("the_lab_cleans_up_when_it_is_interrupted") {
        return;
    }
    let Some(program) = program("FTAGENT_BIN", "ftagent") else { return };
    let mut child = Command::new(program)
        .args(["lab", "--rounds", "1000", "--seconds", "600", "--entries", "10", "--only", "xdp-drop,nft-raw"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let pid = child.id();
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("round 2 ")), "it never came to its second round");
    assert_ne!(left_behind(pid), Vec::<String>::new(), "the lab stands");
    kill(Pid::from_raw(pid as i32), Signal::SIGINT).expect("it runs");
    let said: Vec<String> = lines.collect();
    assert_eq!(child.wait().expect("ends").code(), Some(1));
    assert!(said.iter().any(|line| line.contains("interrupted")), "{said:?}");
    assert_eq!(left_behind(pid), Vec::<String>::new());
}

#[test]
fn the_lab_needs_root_and_says_so() {
    if skip_without_root("the_lab_needs_root_and_says_so") {
        return;
    }
    let Some(program) = program("FTAGENT_BIN", "ftagent") else { return };
    // A copy where anybody may execute it.
    let dir = tempfile::tempdir().expect("a directory");
    let copy = dir.path().join("ftagent");
    // Copied by another program: what this one has open for writing, a child that another test is starting just now has
    // open too, and nobody may execute it.
    assert!(Command::new("cp").arg(program).arg(&copy).status().expect("cp").success());
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("opened");
    let output = Command::new(copy).arg("lab").uid(65_534).gid(65_534).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("sudo ftagent lab"), "{said}");
}
