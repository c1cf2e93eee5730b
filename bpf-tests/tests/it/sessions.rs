//! Operators who are logged in while an attack is fought: their connections go on under rules in XDP and in nftables
//! that cut everybody else's.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use bpf_tests::bpffs::LabDir;
use bpf_tests::skip_without_root;
use ftagent_common::api::ExecutionOutcome;

use crate::agent::{Agent, flood, program};
use crate::lab::{EDGE_V4, Lab};

const RULES: &str = r#"
[[rule]]
name = "port"
trigger = { type = "any" }
action = { type = "xdp_drop_port", protocol = "tcp", port = 22 }
[[rule]]
name = "elsewhere"
trigger = { type = "any" }
action = { type = "nft_drop_port", protocol = "tcp", port = 2222 }
[[rule]]
name = "source"
trigger = { type = "any" }
action = { type = "xdp_drop_source", sources = ["10.99.0.3/32"] }
"#;

const ALICE: [u8; 4] = [10, 99, 0, 3];
const BOB: [u8; 4] = [10, 99, 0, 4];
const STRANGER: [u8; 4] = [10, 99, 0, 5];
const PATIENCE: Duration = Duration::from_secs(15);

/// Echoes whatever comes to a port of the edge.
fn serve(lab: &Lab, port: u16) {
    let bound = lab.edge.run(move || TcpListener::bind((IpAddr::from(EDGE_V4), port)).expect("bound"));
    let listener = bound.expect("inside");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut bytes = [0; 64];
                while let Ok(n @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..n]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

/// Connects to the edge from an address of the far end.
fn dial(lab: &Lab, from: [u8; 4], port: u16, patience: Duration) -> std::io::Result<TcpStream> {
    let dialled = lab.wan.run(move || {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
        let address = |ip: [u8; 4], port: u16| SockaddrStorage::from(SocketAddr::from((ip, port)));
        let stream = TcpStream::from(socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?);
        // Bounds the connecting too.
        stream.set_write_timeout(Some(patience))?;
        stream.set_read_timeout(Some(patience))?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&stream), &address(from, 0))?;
        connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &address(EDGE_V4, port))?;
        Ok(stream)
    });
    dialled.expect("inside")
}

fn is_alive(session: &mut TcpStream) -> bool {
    let mut heard = [0; 4];
    session.write_all(b"word").and_then(|()| session.read_exact(&mut heard)).is_ok() && &heard == b"word"
}

#[test]
fn sessions_of_operators_go_on_under_rules_that_cut_everybody_elses() {
    if skip_without_root("sessions_of_operators_go_on_under_rules_that_cut_everybody_elses") {
        return;
    }
    let Some(program) = program("FTAGENT_BIN", "ftagent") else { return };
    let lab = Lab::new();
    let dir = LabDir::create("sessions").expect("a directory");
    for address in [ALICE, BOB, STRANGER] {
        let words = format!("addr add {}/24 dev wan0", IpAddr::from(address));
        let added = lab.wan.run(move || Command::new("ip").args(words.split(' ')).status().expect("ip"));
        assert!(added.expect("inside").success());
        // The wire's ends do not ask for each other's addresses.
        let words = format!("neigh replace {} lladdr 02:00:00:00:00:02 dev edge0", IpAddr::from(address));
        let added = lab.edge.run(move || Command::new("ip").args(words.split(' ')).status().expect("ip"));
        assert!(added.expect("inside").success());
    }
    serve(&lab, 22);
    serve(&lab, 2_222);
    let mut alice = dial(&lab, ALICE, 22, PATIENCE).expect("connects");
    // An SSH server at a port that nobody told the agent of.
    let mut bob = dial(&lab, BOB, 2_222, PATIENCE).expect("connects");
    let mut stranger = dial(&lab, STRANGER, 22, Duration::from_secs(1)).expect("connects");
    let records = dir.path().join("logins");
    std::fs::create_dir(&records).expect("made");
    for (user, address) in [("alice", ALICE), ("bob", BOB)] {
        let host = IpAddr::from(address);
        let text = format!("USER={user}\nSTATE=active\nREMOTE=1\nSERVICE=sshd\nREMOTE_HOST={host}\n");
        std::fs::write(records.join(user), text).expect("written");
    }
    let mut agent = Agent::new(program, dir.path(), &lab.edge, RULES);
    agent.logins = Some(records);
    agent.start();
    let status = agent.ask("status").expect("an answer");
    let seen: Vec<_> = status["sessions"].as_array().expect("sessions").iter().map(|s| s["user"].clone()).collect();
    assert_eq!(seen, ["alice", "bob"], "a stranger who is connected is nobody's session");
    let flood = flood(&lab, 50_000, Duration::from_secs(5));
    agent.wait("the rules", PATIENCE, || {
        let executions: Vec<_> = agent.incidents().into_iter().flat_map(|i| i.executions).collect();
        let applied = executions.iter().filter(|e| e.rule_id != 0 && e.outcome == ExecutionOutcome::Applied).count();
        let refused: Vec<_> = executions.iter().filter(|e| e.outcome == ExecutionOutcome::Refused).collect();
        applied >= 2 && refused.iter().any(|e| e.output.contains("alice (port 22) is connected"))
    });
    assert!(!is_alive(&mut stranger), "the rule in XDP cuts a stranger's connection");
    for port in [22, 2_222] {
        let new = dial(&lab, STRANGER, port, Duration::from_millis(700));
        assert!(new.is_err(), "the rule on port {port} has no effect on a stranger");
    }
    for _ in 0..20 {
        assert!(is_alive(&mut alice), "alice's session under a rule in XDP");
        assert!(is_alive(&mut bob), "bob's session under a rule in nftables");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(dial(&lab, ALICE, 22, PATIENCE).is_ok(), "she can open another");
    flood.join().expect("no panic").expect("sent");
}
