//! Floods and slow attacks on a real web server that writes a real log: seen, blocked and ended by the agent's binary.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bpf_tests::bpffs::LabDir;
use bpf_tests::clock::now;
use bpf_tests::netns::{Netns, NetnsError};
use bpf_tests::skip_without_root;
use bpf_tests::veth::{self, EndSpec};
use ftagent_common::vocab::{AttackFamily, IncidentStatus};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};

use crate::agent::{Agent, program};
use crate::lab::{EDGE_MAC, EDGE_V4, WAN_MAC, WAN_V4};

const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 66);
const FRIEND: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 67);
const PATIENCE: Duration = Duration::from_secs(1);

/// Two namespaces, of which the far one has an attacker and a friend besides the gateway.
struct Wire {
    edge: Netns,
    wan: Netns,
    dir: LabDir,
}

fn wire(test: &str) -> Option<(Wire, PathBuf)> {
    if skip_without_root(test) {
        return None;
    }
    let program = program("FTAGENT_BIN", "ftagent")?;
    let (edge, wan) = (Netns::create("edge").expect("a namespace"), Netns::create("wan").expect("a namespace"));
    let end = |name: &str, mac, addresses: Vec<Ipv4Addr>| EndSpec {
        name: name.to_owned(),
        mac,
        addresses: addresses.into_iter().map(|ip| (ip.into(), 24)).collect(),
        queues: 1,
        default_route: true,
    };
    let edge_end = end("edge0", EDGE_MAC, vec![EDGE_V4.into()]);
    let wan_end = end("wan0", WAN_MAC, vec![WAN_V4.into(), ATTACKER, FRIEND]);
    veth::connect((&edge, &edge_end), (&wan, &wan_end)).expect("a wire");
    let dir = LabDir::create("web").expect("a directory");
    Some((Wire { edge, wan, dir }, program))
}

/// A web server with a thread for each connection and a log in the combined format.
struct Site {
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<Result<(), NetnsError>>>,
}

impl Site {
    fn start(edge: &Netns, log: &Path) -> Self {
        let address = SocketAddrV4::new(EDGE_V4.into(), 80);
        let listener = edge.run(|| TcpListener::bind(address)).expect("inside").expect("bound");
        listener.set_nonblocking(true).expect("set");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, log) = (stop.clone(), log.to_owned());
        let work = move || {
            let mut threads = Vec::new();
            while !stopping.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) if threads.len() < 500 => {
                        let (stopping, log) = (stopping.clone(), log.clone());
                        threads.push(std::thread::spawn(move || drop(serve(stream, &log, &stopping))));
                    }
                    _ => std::thread::sleep(Duration::from_millis(2)),
                }
            }
            threads.into_iter().for_each(|thread| drop(thread.join()));
        };
        Self { stop, accepting: Some(edge.spawn(work).expect("a thread")) }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.accepting.take().map(JoinHandle::join));
    }
}

/// Answers requests until the client or the test ends; `/wait` is answered after a long time, as long polling is.
fn serve(stream: TcpStream, log: &Path, stop: &AtomicBool) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let peer = stream.peer_addr()?.ip();
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    let mut request: Option<String> = None;
    while !stop.load(Ordering::Relaxed) {
        match reader.read_line(&mut line) {
            Ok(0) => break,
            Ok(_) => {}
            // What was read of a line stays in it.
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => continue,
            Err(e) => return Err(e),
        }
        let text = std::mem::take(&mut line);
        if !text.trim_end().is_empty() {
            request.get_or_insert_with(|| text.trim_end().to_owned());
            continue;
        }
        let Some(request) = request.take() else { continue };
        while request.contains("/wait") && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(200));
        }
        writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes")?;
        let entry = format!("{peer} - - [21/Nov/2026:10:00:00 +0000] \"{request}\" 200 3 \"-\" \"test/{peer}\"\n");
        OpenOptions::new().append(true).create(true).open(log)?.write_all(entry.as_bytes())?;
    }
    Ok(())
}

/// Connects from one of the far end's addresses.
fn dial(from: Ipv4Addr) -> std::io::Result<TcpStream> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0)))?;
    let stream = TcpStream::from(fd);
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    connect(stream.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(EDGE_V4.into(), 80)))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream, path: &str) -> std::io::Result<()> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?;
    stream.read_exact(&mut [0; 41])
}

/// Asks `rps` times a second until it is told to stop; how often it was answered and how often not.
fn client(
    wire: &Wire,
    from: Ipv4Addr,
    rps: u64,
    stop: &Arc<AtomicBool>,
) -> (Arc<[AtomicU64; 2]>, JoinHandle<Result<(), NetnsError>>) {
    let tally = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let (counts, stop) = (tally.clone(), stop.clone());
    let work = move || {
        let mut stream = None;
        let mut asked = 0u64;
        let began = now();
        while !stop.load(Ordering::Relaxed) {
            asked += 1;
            let path = format!("/{}", asked % 30);
            let answered = match stream.take().map_or_else(|| dial(from), Ok) {
                Ok(mut open) => ask(&mut open, &path).map(|()| stream = Some(open)).is_ok(),
                Err(_) => false,
            };
            counts[usize::from(!answered)].fetch_add(1, Ordering::Relaxed);
            let due = Duration::from_micros(asked * 1_000_000 / rps);
            std::thread::sleep(due.saturating_sub(now() - began));
        }
    };
    (tally, wire.wan.spawn(work).expect("a thread"))
}

/// The sources of the rules in force.
fn blocked(agent: &Agent) -> Vec<String> {
    let answer = agent.ask("rules").expect("an answer");
    let rules = answer["rules"].as_array().expect("a list");
    rules.iter().filter_map(|rule| rule["matches"]["source"].as_str()).map(str::to_owned).collect()
}

#[test]
fn a_flood_in_the_access_log_is_blocked_at_its_source_and_ends() {
    let Some((wire, program)) = wire("a_flood_in_the_access_log_is_blocked_at_its_source_and_ends") else { return };
    let log = wire.dir.path().join("access.log");
    let extra = format!("[http]\nfloor_rps = 100\n[[access_log]]\npath = {:?}\n", log.display().to_string());
    let mut agent = Agent::new(program, wire.dir.path(), &wire.edge, &extra);
    agent.start();
    let site = Site::start(&wire.edge, &log);
    let (stop, calm) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (friend, friend_thread) = client(&wire, FRIEND, 10, &calm);
    std::thread::sleep(Duration::from_secs(2));
    let began = now();
    let (attacker, attacker_thread) = client(&wire, ATTACKER, 300, &stop);

    agent.wait("a block of the attacker", Duration::from_secs(20), || blocked(&agent) == ["10.99.0.66/32"]);
    println!("blocked {:?} after the first request of the flood", now() - began);
    let answered = attacker[0].load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_secs(3));
    // A request that was under way may have been answered.
    assert!(attacker[0].load(Ordering::Relaxed) <= answered + 2, "the flood is answered on");
    let report = agent.incidents().remove(0);
    assert_eq!((report.family, report.status), (AttackFamily::HttpFlood, IncidentStatus::Active));
    assert_eq!(report.threshold.quantity, "requests_per_sec");
    assert!(report.confidence >= 0.5 && report.subtype.as_deref() == Some("get_flood"), "{report:#?}");
    let status = agent.ask("status").expect("an answer");
    assert!(status["http"]["logs"][0]["lines"].as_u64().is_some_and(|n| n > 300), "{}", status["http"]);
    println!("{}", report.explanation.join("\n"));

    // The log is rotated under way.
    std::fs::rename(&log, wire.dir.path().join("access.log.1")).expect("renamed");
    stop.store(true, Ordering::Relaxed);
    attacker_thread.join().expect("ends").expect("inside");
    agent.wait("an end", Duration::from_secs(20), || blocked(&agent).is_empty());
    assert!(agent.incidents().iter().all(|i| i.status == IncidentStatus::Resolved));
    calm.store(true, Ordering::Relaxed);
    friend_thread.join().expect("ends").expect("inside");
    let (answered, lost) = (friend[0].load(Ordering::Relaxed), friend[1].load(Ordering::Relaxed));
    println!("the friend: {answered} answered, {lost} lost");
    assert!(answered > 40 && lost == 0, "{answered} answered, {lost} lost");
    let status = agent.ask("status").expect("an answer");
    assert_eq!(status["http"]["logs"][0]["rotations"], 1, "{}", status["http"]);
    drop(site);
}

#[test]
fn a_source_of_many_slow_connections_is_blocked_and_patient_clients_are_not() {
    let Some((wire, program)) = wire("a_source_of_many_slow_connections_is_blocked_and_patient_clients_are_not") else {
        return;
    };
    let extra = "[http]\nmin_connections = 20\nlook_secs = 1\nslow_secs = 5\n";
    let mut agent = Agent::new(program, wire.dir.path(), &wire.edge, extra);
    agent.start();
    let site = Site::start(&wire.edge, &wire.dir.path().join("access.log"));
    // Answered and kept open, and waiting for an answer: as many as a page's visitors have.
    let open = |count: u32, path: &'static str, wait: bool| {
        let work = move || {
            (0..count)
                .map(|_| {
                    let mut stream = dial(FRIEND).expect("connects");
                    if wait {
                        stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).expect("sent");
                    } else {
                        ask(&mut stream, path).expect("answered");
                    }
                    stream
                })
                .collect::<Vec<_>>()
        };
        wire.wan.run(work).expect("inside")
    };
    let mut kept = open(30, "/page", false);
    let waiting = open(30, "/wait", true);
    let began = now();
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let attack = wire.wan.spawn(move || {
        let mut streams: Vec<TcpStream> = (0..60).map(|_| dial(ATTACKER).expect("connects")).collect();
        let mut send = |text: &str| streams.iter_mut().for_each(|s| drop(s.write_all(text.as_bytes())));
        send("GET / HTTP/1.1\r\n");
        while !stopping.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_secs(2));
            send("X-a: b\r\n");
        }
    });
    let attack = attack.expect("a thread");
    agent.wait("a block of the attacker", Duration::from_secs(30), || !blocked(&agent).is_empty());
    println!("blocked {:?} after the first connection", now() - began);
    assert_eq!(blocked(&agent), ["10.99.0.66/32"]);
    let report = agent.incidents().remove(0);
    println!("{}", report.explanation.join("\n"));
    assert_eq!((report.family, report.subtype.as_deref()), (AttackFamily::HttpFlood, Some("slow_rate")));
    assert!(report.confidence >= 0.7, "{report:#?}");
    for stream in &mut kept {
        ask(stream, "/again").expect("patient clients are served");
    }
    assert_eq!(agent.incidents().len(), 1);
    stop.store(true, Ordering::Relaxed);
    attack.join().expect("ends").expect("inside");
    // Blocked clients cannot say goodbye: the server has to notice.
    drop(site);
    agent.wait("an end", Duration::from_secs(30), || blocked(&agent).is_empty());
    drop(waiting);
}
