use std::fs;
use std::net::{TcpListener, TcpStream};

use super::*;

const SECOND: u64 = 1_000_000_000;

/// What a machine writes down of logins.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new(port: u16) -> Self {
        let machine = Self { dir: tempfile::tempdir().expect("a folder") };
        fs::create_dir_all(machine.dir.path().join("systemd/sessions")).expect("made");
        machine.port(port);
        machine
    }

    fn port(&self, port: u16) {
        fs::write(self.dir.path().join("sshd_config"), format!("Port {port}\n")).expect("written");
    }

    fn utmp(&self, entries: &[Vec<u8>]) {
        fs::write(self.dir.path().join("utmp"), entries.concat()).expect("written");
    }

    fn logind(&self, name: &str, user: &str, host: &str, since: u64) {
        let text =
            format!("USER={user}\nSTATE=active\nREMOTE=1\nSERVICE=sshd\nREMOTE_HOST={host}\nREALTIME={since}000000\n");
        fs::write(self.dir.path().join("systemd/sessions").join(name), text).expect("written");
    }

    fn reader(&self) -> Reader {
        Reader::below(self.dir.path(), self.dir.path(), [])
    }
}

/// What a look finds.
fn found(reader: &mut Reader, now_ns: u64) -> Vec<(String, String, Vec<u16>)> {
    let sessions = reader.look(now_ns).expect("readable");
    sessions.in_use.into_iter().map(|s| (s.peer.to_string(), s.user, s.ports)).collect()
}

/// Runs `test` where the machine has 198.51.100.1, from which its connections to itself come; skipped without the right.
fn inside(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(why) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            println!("skipped: a network namespace cannot be made: {why}");
            return;
        }
        for words in ["link set lo up", "addr add 198.51.100.1/24 dev lo", "addr add 198.51.100.7/24 dev lo"] {
            let ran = std::process::Command::new("ip").args(words.split(' ')).status().expect("ip");
            assert!(ran.success(), "{words}");
        }
        test();
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn connect(listener: &TcpListener) -> [TcpStream; 2] {
    let address = listener.local_addr().expect("bound");
    let client = TcpStream::connect(address).expect("connects");
    [client, listener.accept().expect("accepts").0]
}

#[test]
fn a_session_is_a_login_with_a_connection_and_neither_alone() {
    inside(|| {
        let ssh = TcpListener::bind("198.51.100.1:0").expect("bound");
        let port = ssh.local_addr().expect("bound").port();
        let machine = Machine::new(port);
        let mut reader = machine.reader();
        let ends = connect(&ssh);
        assert_eq!(found(&mut reader, 0), [], "a handshake is nobody's login");
        machine.logind("1", "alice", "198.51.100.1", 5);
        machine.logind("2", "bob", "198.51.100.7", 6);
        let alice = ("198.51.100.1".to_owned(), "alice".to_owned(), vec![port]);
        assert_eq!(found(&mut reader, SECOND), std::slice::from_ref(&alice), "bob is logged in and not connected");
        // It lingers for two minutes, and no longer.
        drop(ends);
        fs::remove_file(machine.dir.path().join("systemd/sessions/1")).expect("removed");
        assert_eq!(found(&mut reader, 110 * SECOND), [alice]);
        assert_eq!(found(&mut reader, 122 * SECOND), []);
    });
}

#[test]
fn a_session_goes_on_when_its_server_listens_no_more() {
    inside(|| {
        // At the port that is configured, and at one that nobody told.
        for is_told in [true, false] {
            let ssh = TcpListener::bind("198.51.100.1:0").expect("bound");
            let port = ssh.local_addr().expect("bound").port();
            let machine = Machine::new(if is_told { port } else { 9 });
            let mut reader = machine.reader();
            let _ends = connect(&ssh);
            machine.logind("1", "alice", "198.51.100.1", 5);
            let alice = ("198.51.100.1".to_owned(), "alice".to_owned(), vec![port]);
            assert_eq!(found(&mut reader, 0), std::slice::from_ref(&alice), "{is_told}");
            drop(ssh);
            for minute in 1..6 {
                assert_eq!(
                    found(&mut reader, minute * 60 * SECOND),
                    std::slice::from_ref(&alice),
                    "{is_told} {minute}"
                );
            }
        }
    });
}

#[test]
fn a_server_at_a_port_that_nobody_told_is_found_and_remembered() {
    inside(|| {
        let ssh = TcpListener::bind("198.51.100.1:0").expect("bound");
        let port = ssh.local_addr().expect("bound").port();
        let machine = Machine::new(9);
        let mut reader = machine.reader();
        machine.logind("1", "alice", "198.51.100.1", 5);
        assert_eq!(found(&mut reader, 0), []);
        let _ends = connect(&ssh);
        // All ports are looked at once in a minute.
        assert_eq!(found(&mut reader, SECOND), []);
        let alice = ("198.51.100.1".to_owned(), "alice".to_owned(), vec![port]);
        assert_eq!(found(&mut reader, 61 * SECOND), std::slice::from_ref(&alice));
        assert_eq!(found(&mut reader, 150 * SECOND), [alice]);
        assert_eq!(reader.look(151 * SECOND).expect("readable").ports, if port < 9 { [port, 9] } else { [9, port] });
    });
}

#[test]
fn a_record_of_a_dead_server_is_none() {
    inside(|| {
        let ssh = TcpListener::bind("198.51.100.1:0").expect("bound");
        let machine = Machine::new(ssh.local_addr().expect("bound").port());
        let _ends = connect(&ssh);
        let mut child = std::process::Command::new("true").spawn().expect("runs");
        let dead = child.id().cast_signed();
        child.wait().expect("ends");
        let peer = "198.51.100.1".parse().expect("an address");
        machine.utmp(&[records::utmp_of(7, dead, "old", peer, 1)]);
        assert_eq!(found(&mut machine.reader(), 0), []);
        let alive = std::process::id().cast_signed();
        machine.utmp(&[records::utmp_of(7, dead, "old", peer, 1), records::utmp_of(7, alive, "new", peer, 2)]);
        assert_eq!(found(&mut machine.reader(), 0)[0].1, "new");
    });
}

#[test]
fn what_cannot_be_read_is_an_error_and_what_is_not_there_a_warning() {
    let machine = Machine::new(22);
    fs::create_dir(machine.dir.path().join("utmp")).expect("made");
    let why = machine.reader().look(0).expect_err("a folder is no file").to_string();
    assert!(why.contains("utmp") && why.contains("who is logged in"), "{why}");
    let empty = tempfile::tempdir().expect("a folder");
    let sessions = Reader::below(empty.path(), empty.path(), []).look(0).expect("nothing is there");
    assert!(sessions.warnings[0].contains("management.sources"), "{:?}", sessions.warnings);
    let machine = Machine::new(22);
    fs::write(machine.dir.path().join("systemd/sessions/1.ref"), "REMOTE=1").expect("written");
    assert_eq!(machine.reader().look(0).expect("readable").warnings, Vec::<String>::new());
}

#[test]
fn of_too_many_those_count_who_came_first() {
    let mut reader = Machine::new(22).reader();
    for n in 0..400_u32 {
        let peer = IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n));
        let session = Session { peer, ports: vec![22], user: String::new(), since: i64::from(400 - n) };
        reader.known.insert(peer, (session, 0));
    }
    let sessions = reader.look(0).expect("readable");
    assert_eq!(sessions.in_use.len(), MAX_PEERS);
    assert!(sessions.in_use.iter().all(|s| s.since <= MAX_PEERS as i64));
    assert!(sessions.warnings.iter().any(|w| w.contains("400 addresses")), "{:?}", sessions.warnings);
}

#[test]
fn own_connections_to_a_control_plane_are_known_and_those_of_others_are_not() {
    let server = TcpListener::bind("127.9.9.1:0").expect("bound");
    let port = server.local_addr().expect("bound").port();
    let ends = connect(&server);
    let reader = |ports: &[u16]| Reader::below(Path::new("/nonexistent"), Path::new("/nonexistent"), ports.to_vec());
    let control = reader(&[port]).look(0).expect("readable").control;
    assert_eq!(control, [("127.9.9.1".parse().expect("an address"), port)]);
    assert_eq!(reader(&[1]).look(0).expect("readable").control, []);
    // The link breaks: its way back stays open for ten minutes.
    let mut reader = reader(&[port]);
    assert_eq!(reader.look(SECOND).expect("readable").control, control);
    drop((ends, server));
    assert_eq!(reader.look(600 * SECOND).expect("readable").control, control);
    assert_eq!(reader.look(602 * SECOND).expect("readable").control, []);
}
