//! A node in namespaces of its own with an operator, a control plane and a stranger across a wire, and the firewalls
//! that `cargo xtask setup --firewalls` unpacked.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};

pub(crate) const NODE: &str = "192.0.2.1";
pub(crate) const OPERATOR: &str = "192.0.2.2";
pub(crate) const CONTROL_PLANE: &str = "192.0.2.3";
pub(crate) const STRANGER: &str = "192.0.2.4";

/// Runs `test` in network and mount namespaces of its own; skipped without the right to make them.
pub(crate) fn inside(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        if let Err(why) = unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS) {
            println!("skipped: namespaces cannot be made: {why}");
            return;
        }
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).unwrap();
        run(&["ip", "link", "set", "lo", "up"], "").unwrap();
        make_chains();
        test();
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Whoever uses a chain of iptables first gets it empty, and the tool never takes it away again.
pub(crate) fn make_chains() {
    for program in ["iptables", "ip6tables"] {
        for chain in ["INPUT", "FORWARD", "OUTPUT"] {
            run(&[program, "-P", chain, "ACCEPT"], "").unwrap();
        }
    }
}

/// Runs a command of the system's, whatever the caller's search path.
pub(crate) fn run(words: &[impl AsRef<str>], input: &str) -> Result<String, String> {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{}: {e}", words[0]))?;
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{words:?}: {}{}\n{input}", text(&output.stdout), text(&output.stderr)))
    }
}

/// The tools' own dumps, without times and counters.
pub(crate) fn dump() -> String {
    let saved = |program: &str| {
        let text = run(&[program], "").unwrap();
        let lines = text.lines().filter(|l| !l.starts_with('#'));
        lines.map(|l| l.split(" [").next().unwrap_or(l).to_owned() + "\n").collect::<String>()
    };
    saved("iptables-save") + &saved("ip6tables-save") + &run(&["nft", "-s", "-t", "list", "ruleset"], "").unwrap()
}

/// Fails with the lines that differ.
pub(crate) fn same(what: &str, now: &str, before: &str) {
    let only =
        |a: &str, b: &str| a.lines().filter(|l| !b.lines().any(|m| m == *l)).map(str::to_owned).collect::<Vec<_>>();
    assert!(now == before, "{what}: new {:#?}, gone {:#?}", only(now, before), only(before, now));
}

/// The unpacked firewalls laid over this thread's `/usr` and `/etc`; none where they were not fetched.
pub(crate) fn unpacked(scratch: &Path) -> Option<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent()?.join("target/firewalls/root");
    if !root.exists() {
        println!("skipped: `cargo xtask setup --firewalls` fetches the firewalls");
        return None;
    }
    mount(Some("none"), scratch, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let (upper, work) = (scratch.join("upper"), scratch.join("work"));
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir_all(&work).unwrap();
    let overlay = |options: String, at: &str| {
        mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    };
    overlay(format!("lowerdir={}:/usr", root.join("usr").display()), "/usr");
    let (upper, work, etc) = (upper.display(), work.display(), root.join("etc").display().to_string());
    overlay(format!("lowerdir={etc}:/etc,upperdir={upper},workdir={work}"), "/etc");
    for at in ["/run", "/var/log", "/var/lib"] {
        mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    }
    Some(())
}

/// What the package's own set-up does after unpacking, and then switches it on, with SSH let in.
pub(crate) fn start_ufw() {
    for folder in ["/usr/share/ufw", "/usr/share/ufw/iptables"] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if [".rules", ".conf", ".init"].iter().any(|end| name.ends_with(end)) {
                fs::copy(&path, Path::new("/etc/ufw").join(name)).unwrap();
            }
        }
    }
    run(&["ufw", "--force", "enable"], "").unwrap();
    // With its first rule ufw writes its files anew, with lines that those of the package do not have.
    for words in [&["allow", "22"][..], &["allow", "8080"], &["allow", "9"], &["delete", "allow", "9"]] {
        run(&[&["ufw"], words].concat(), "").unwrap();
    }
}

/// A server that ends with the test.
pub(crate) struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn start(words: &[&str]) -> Server {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    Server(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// firewalld and the bus that it is spoken to by, with the test's ports open.
pub(crate) fn start_firewalld() -> [Server; 2] {
    fs::create_dir_all("/run/dbus").unwrap();
    // A polkit of the machine, started by the bus, would not know firewalld's actions; without one root may all.
    let services = "/usr/share/dbus-1/system-services";
    if Path::new(services).exists() {
        mount(Some("none"), services, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    }
    let bus = start(&["/usr/bin/dbus-daemon", "--system", "--nofork", "--nopidfile"]);
    let firewalld = start(&["/usr/bin/python3", "/usr/sbin/firewalld", "--nofork", "--nopid"]);
    wait("firewalld runs", Duration::from_secs(60), || run(&["firewall-cmd", "--state"], "").is_ok());
    run(&["firewall-cmd", "--add-port=22/tcp", "--add-port=8080/tcp"], "").unwrap();
    [bus, firewalld]
}

/// Waits for something.
pub(crate) fn wait(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    let pause = Duration::from_millis(50);
    for _ in 0..patience.as_millis() / pause.as_millis() {
        if holds() {
            return;
        }
        std::thread::sleep(pause);
    }
    panic!("never: {what}");
}

type Job = Box<dyn FnOnce() + Send>;

/// The other end of the wire: a thread in a network namespace of its own that does what it is given.
pub(crate) struct Peer(mpsc::Sender<Job>);

impl Peer {
    /// Lays the wire between this thread's namespace and the peer's.
    pub(crate) fn connect() -> Self {
        let (jobs, work) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(nix::unistd::gettid().to_string()).unwrap();
            work.into_iter().for_each(|job| job());
        });
        let tid = told.recv().unwrap();
        let ip = |words: &[&str]| run(&[&["ip"], words].concat(), "").unwrap();
        ip(&["link", "add", "ft0", "type", "veth", "peer", "name", "ft1", "netns", &tid]);
        ip(&["addr", "add", &format!("{NODE}/24"), "dev", "ft0"]);
        ip(&["link", "set", "ft0", "up"]);
        let peer = Self(jobs);
        peer.run(|| {
            let ip = |words: &[&str]| run(&[&["ip"], words].concat(), "").unwrap();
            for address in [OPERATOR, CONTROL_PLANE, STRANGER] {
                ip(&["addr", "add", &format!("{address}/24"), "dev", "ft1"]);
            }
            ip(&["link", "set", "ft1", "up"]);
        });
        peer
    }

    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.0.send(Box::new(move || drop(tell.send(job())))).unwrap();
        told.recv().unwrap()
    }
}

/// Echoes what comes over its first connection until that ends.
fn echo(address: &str, port: u16) -> TcpListener {
    let listener = TcpListener::bind((address.parse::<IpAddr>().unwrap(), port)).unwrap();
    let accepting = listener.try_clone().unwrap();
    std::thread::spawn(move || {
        for stream in accepting.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut bytes = [0; 64];
                let mut stream = stream;
                while let Ok(n @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..n]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    listener
}

/// A connection whose two ends are watched.
pub(crate) struct Session {
    name: &'static str,
    stream: TcpStream,
    said: u32,
}

impl Session {
    /// Says something and hears it again.
    pub(crate) fn is_alive(&mut self, when: &str) {
        self.said += 1;
        let word = self.said.to_be_bytes();
        let mut heard = [0; 4];
        let talk = self.stream.write_all(&word).and_then(|()| self.stream.read_exact(&mut heard));
        assert!(talk.is_ok() && heard == word, "{} is dead {when}: {talk:?}", self.name);
    }
}

impl Session {
    /// Whether it is dead: nothing comes back for a while. Of no use after that.
    pub(crate) fn is_cut(&mut self) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        let talk = self.stream.write_all(&[0; 4]).and_then(|()| self.stream.read_exact(&mut [0; 4]));
        talk.is_err()
    }
}

fn dial(from: &str, to: &str, port: u16, patience: Duration) -> std::io::Result<TcpStream> {
    let address = |ip: &str, port: u16| SockaddrStorage::from(SocketAddr::new(ip.parse().unwrap(), port));
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let stream = TcpStream::from(fd);
    // Bounds the connecting too.
    stream.set_write_timeout(Some(patience))?;
    stream.set_read_timeout(Some(patience))?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&stream), &address(from, 0))?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &address(to, port))?;
    Ok(stream)
}

/// Everybody who talks with the node.
pub(crate) struct Site {
    pub(crate) peer: Peer,
    pub(crate) sessions: [Session; 2],
    _listeners: [TcpListener; 3],
}

impl Site {
    /// An operator's session to the node's port 22, the node's session to its control plane, and a service at 8080.
    pub(crate) fn new() -> Self {
        let peer = Peer::connect();
        let listeners = [echo(NODE, 22), echo(NODE, 8080), peer.run(|| echo(CONTROL_PLANE, 8443))];
        let patience = Duration::from_secs(10);
        let operator = peer.run(move || dial(OPERATOR, NODE, 22, patience)).unwrap();
        let link = dial(NODE, CONTROL_PLANE, 8443, patience).unwrap();
        let session = |name, stream| Session { name, stream, said: 0 };
        let sessions = [session("the operator's session", operator), session("the control plane's session", link)];
        Self { peer, sessions, _listeners: listeners }
    }

    /// Both sessions live, and another one of the operator's can be opened.
    pub(crate) fn check(&mut self, when: &str) {
        self.sessions.iter_mut().for_each(|session| session.is_alive(when));
        let opened = self.peer.run(|| dial(OPERATOR, NODE, 22, Duration::from_secs(5)).map(drop));
        assert!(opened.is_ok(), "no new session of the operator {when}: {opened:?}");
    }

    /// How many of so many datagrams of a kilobyte the node hears that the stranger sends at once.
    pub(crate) fn heard_of_stranger(&self, count: usize) -> usize {
        let ear = UdpSocket::bind((NODE, 9_997)).unwrap();
        ear.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
        self.peer.run(move || {
            let mouth = UdpSocket::bind((STRANGER, 0)).unwrap();
            for _ in 0..count {
                mouth.send_to(&[7; 1_000], (NODE, 9_997)).unwrap();
            }
        });
        std::iter::repeat_with(|| ear.recv(&mut [0; 8])).take_while(Result::is_ok).count()
    }

    /// Whether a stranger reaches the service.
    pub(crate) fn is_open(&self) -> bool {
        self.peer.run(|| dial(STRANGER, NODE, 8080, Duration::from_millis(700)).is_ok())
    }
}
