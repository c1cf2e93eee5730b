//! Nothing stays: neither after the guard went, nor after a panic, nor (once swept) after SIGKILL.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bpf_tests::bpffs::{self, LabDir};
use bpf_tests::inside::{self, Life};
use bpf_tests::netns::{self, NETNS_DIR, Netns};
use bpf_tests::skip_without_root;

use crate::lab::{EDGE_V4, EDGE_V6, Lab};

fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mounts").expect("the list of mounts")
}

#[test]
fn a_wire_carries_both_families_and_goes_with_its_guards() {
    if skip_without_root("a_wire_carries_both_families_and_goes_with_its_guards") {
        return;
    }
    let lab = Lab::new();
    let path = lab.edge.path().to_owned();
    let listeners = lab
        .edge
        .run(|| {
            let bind = |address: std::net::SocketAddr| TcpListener::bind(address).expect("a listener");
            (bind((EDGE_V4, 80).into()), bind((EDGE_V6, 80).into()))
        })
        .expect("inside");
    lab.wan
        .run(|| {
            TcpStream::connect_timeout(&(EDGE_V4, 80).into(), Duration::from_secs(2)).expect("IPv4 through the wire");
            TcpStream::connect_timeout(&(EDGE_V6, 80).into(), Duration::from_secs(2)).expect("IPv6 through the wire");
            UdpSocket::bind("0.0.0.0:0").expect("a socket")
        })
        .expect("inside");
    drop(listeners);
    drop(lab);
    assert!(!path.exists());
    assert!(!mounts().contains(path.to_str().expect("a plain name")));
}

/// Not a test of its own: the child process of the tests below, told apart by its environment.
#[test]
fn child_that_builds_a_lab_and_does_not_clean_up() {
    let Ok(end) = std::env::var("LAB_CHILD_END") else { return };
    let netns = Netns::create("child").expect("a namespace");
    let dir = LabDir::create("child").expect("a directory");
    println!("\nmade {} {}", netns.name(), dir.path().display());
    match end.as_str() {
        "panic" => panic!("on purpose"),
        _ => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
    }
}

/// Starts the child and waits until its lab stands.
fn child(end: &str) -> (std::process::Child, String, String) {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["child_that_builds_a_lab_and_does_not_clean_up", "--nocapture", "--test-threads=1"])
        .env("LAB_CHILD_END", end)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child process");
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let line =
        stdout.lines().map_while(Result::ok).find(|l| l.starts_with("made ")).expect("the child says what it made");
    let mut words = line.split(' ').skip(1).map(str::to_owned);
    (child, words.next().expect("a name"), words.next().expect("a path"))
}

#[test]
fn a_panic_leaves_nothing_behind() {
    if skip_without_root("a_panic_leaves_nothing_behind") {
        return;
    }
    let (mut child, name, dir) = child("panic");
    assert!(!child.wait().expect("the child ends").success());
    assert!(!Path::new(NETNS_DIR).join(&name).exists());
    assert!(!Path::new(&dir).exists());
    assert!(!mounts().contains(&name) && !mounts().contains(&dir));
}

#[test]
fn what_a_killed_process_leaves_is_swept_by_the_next_one() {
    if skip_without_root("what_a_killed_process_leaves_is_swept_by_the_next_one") {
        return;
    }
    let (mut child, name, dir) = child("wait");
    assert!(!netns::sweep().contains(&name), "the namespace of a running process is left alone");
    assert!(Path::new(NETNS_DIR).join(&name).exists());
    child.kill().expect("the child is ours");
    child.wait().expect("the child ends");
    assert!(netns::sweep().contains(&name));
    assert!(bpffs::sweep().contains(&dir.clone().into()));
    assert!(!Path::new(NETNS_DIR).join(&name).exists());
    assert!(!Path::new(&dir).exists());
    assert!(!mounts().contains(&name) && !mounts().contains(&dir));
}

#[test]
fn a_program_inside_sees_the_devices_of_its_namespace_alone() {
    if skip_without_root("a_program_inside_sees_the_devices_of_its_namespace_alone") {
        return;
    }
    let lab = Lab::new();
    let helper = Path::new(env!("CARGO_BIN_EXE_inside"));
    let output = inside::command(helper, &lab.edge, Path::new("/bin/ls"), Life::WithParent)
        .arg("/sys/class/net")
        .output()
        .expect("ls runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let devices: Vec<String> = String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect();
    assert!(devices.contains(&"edge0".to_owned()) && !devices.contains(&"wan0".to_owned()), "{devices:?}");
    assert!(Path::new("/sys/class/net/lo").exists() && !Path::new("/sys/class/net/edge0").exists());
}

#[test]
fn a_program_inside_dies_with_the_thread_that_started_it() {
    if skip_without_root("a_program_inside_dies_with_the_thread_that_started_it") {
        return;
    }
    let lab = Lab::new();
    let helper = Path::new(env!("CARGO_BIN_EXE_inside"));
    let mut command = inside::command(helper, &lab.edge, Path::new("/bin/sh"), Life::WithParent);
    command.args(["-c", "echo up; exec sleep 30"]).stdout(Stdio::piped());
    let mut child = std::thread::spawn(move || {
        let mut child = command.spawn().expect("sleep runs");
        child.stdout.as_mut().expect("piped").read_exact(&mut [0; 3]).expect("it is up");
        child
    })
    .join()
    .expect("the thread ends");
    assert_eq!(child.wait().expect("the child ends").signal(), Some(9));
}
