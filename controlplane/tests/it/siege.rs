//! Strangers who cost the server what they can, beside agents who must not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::process::Process;

/// How long it goes on.
const SIEGE: Duration = Duration::from_secs(6);

/// What a stranger sends: what comes first, what comes again and again, and how often.
struct Stranger {
    name: &'static str,
    first: Vec<u8>,
    again: Vec<u8>,
    every: Duration,
    /// Whether it says that no more comes, and waits.
    half_closes: bool,
}

fn strangers(token: &str) -> Vec<Stranger> {
    let head = |more: &str| {
        let path = "POST /api/v1/firewall-rules HTTP/1.1\r\nhost: x\r\ncontent-type: application/json";
        format!("{path}\r\nauthorization: Bearer {token}\r\n{more}").into_bytes()
    };
    let stranger = |name, first, again: &[u8], every, half_closes| Stranger {
        name,
        first,
        again: again.to_vec(),
        every: Duration::from_millis(every),
        half_closes,
    };
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 65_536], b"\r\n"].concat();
    vec![
        stranger("a slow head", b"GET /api/v1/nodes HTTP/1.1\r\n".to_vec(), b"a: b\r\n", 500, false),
        stranger("a slow body", head("content-length: 900000\r\n\r\n{"), b" ", 500, false),
        stranger("half of a body", head("content-length: 900000\r\n\r\n{"), b"", 500, true),
        stranger("half of a head", b"GET /api/v1/no".to_vec(), b"", 500, true),
        stranger(
            "headers without an end",
            b"GET / HTTP/1.1\r\n".to_vec(),
            &b"a: bbbbbbbbbbbb\r\n".repeat(100),
            0,
            false,
        ),
        stranger("a body without an end", head("transfer-encoding: chunked\r\n\r\n"), &chunk, 0, false),
        stranger("a gigabyte", head("content-length: 1073741824\r\n\r\n"), &[b' '; 65_536], 0, false),
    ]
}

impl Stranger {
    /// Comes again whenever the server has enough; counts how much was sent.
    async fn run(&self, address: &str, over: &AtomicBool, sent: &AtomicUsize) {
        while !over.load(Ordering::Relaxed) {
            // Every end is the one that was asked for.
            drop(timeout(SIEGE * 2, self.visit(address, over, sent)).await);
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn visit(&self, address: &str, over: &AtomicBool, sent: &AtomicUsize) -> std::io::Result<()> {
        let (mut reads, mut writes) = TcpStream::connect(address).await?.into_split();
        writes.write_all(&self.first).await?;
        if self.half_closes {
            writes.shutdown().await?;
        }
        let mut answer = [0; 4_096];
        let send = async {
            while !over.load(Ordering::Relaxed) {
                if !self.half_closes {
                    writes.write_all(&self.again).await?;
                    sent.fetch_add(self.again.len(), Ordering::Relaxed);
                }
                sleep(self.every).await;
            }
            Ok(())
        };
        let receive = async { while reads.read(&mut answer).await.is_ok_and(|n| n > 0) {} };
        tokio::select! {
            sent = send => sent,
            () = receive => Ok(()),
        }
    }
}

fn memory_mib(server: &Process) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1_024.0
}

/// Sends samples of a node for a while, ten times a second; how long each took.
#[expect(clippy::disallowed_methods, reason = "it measures time")]
async fn measure(url: String, uuid: String, key: String, time: Duration) -> Vec<Duration> {
    let client = Client::new();
    let began = Instant::now();
    let mut took = Vec::new();
    while began.elapsed() < time {
        let at = time::OffsetDateTime::now_utc().format(&time::format_description::well_known::Rfc3339).unwrap();
        let body = json!({ "samples": [{ "at": at, "pps": 1, "bps": 1, "dropped_pps": 0 }] });
        let sent = Instant::now();
        let request = client.post(format!("{url}/api/v1/agent/metrics")).bearer_auth(&key).json(&body);
        let answer = request.header("X-Node-UUID", &uuid).timeout(Duration::from_secs(10)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
        took.push(sent.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
    took
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[(took.len() * 99).div_ceil(100) - 1]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_do_not_notice_strangers() {
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(folder.path(), &[]);
    let owner = server.token().unwrap();
    let client = Client::new();
    let mut nodes = Vec::new();
    for n in 0..8 {
        let request = client.post(format!("{}/api/deploy", server.url)).bearer_auth(&owner);
        let node: Value =
            request.json(&json!({ "name": format!("edge-{n}") })).send().await.unwrap().json().await.unwrap();
        nodes.push(["node_uuid", "api_key"].map(|key| node[key].as_str().unwrap().to_owned()));
    }
    let fleet = async |time: Duration| {
        let mut agents = JoinSet::new();
        for [uuid, key] in nodes.clone() {
            agents.spawn(measure(server.url.clone(), uuid, key, time));
        }
        p99(agents.join_all().await.concat())
    };
    let quiet = fleet(Duration::from_secs(2)).await;
    let before = memory_mib(&server);

    let (over, address) = (Arc::new(AtomicBool::new(false)), server.url.trim_start_matches("http://").to_owned());
    let mut under_way = JoinSet::new();
    let mut counts = Vec::new();
    // With a token of their own: its limit is theirs too.
    let request = client.post(format!("{}/api/v1/workspace/tokens", server.url)).bearer_auth(&owner);
    let token = json!({ "name": "stolen", "role": "admin" });
    let token: Value = request.json(&token).send().await.unwrap().json().await.unwrap();
    for stranger in strangers(token["value"].as_str().unwrap()) {
        let sent = Arc::new(AtomicUsize::new(0));
        counts.push((stranger.name, sent.clone()));
        // Those who send as fast as they can are few: the machine is theirs too.
        let many = if stranger.every.is_zero() { 2 } else { 50 };
        let stranger = Arc::new(stranger);
        for _ in 0..many {
            let (stranger, address, over, sent) = (stranger.clone(), address.clone(), over.clone(), sent.clone());
            under_way.spawn(async move { stranger.run(&address, &over, &sent).await });
        }
    }
    sleep(Duration::from_millis(500)).await;
    let besieged = fleet(SIEGE).await;
    let after = memory_mib(&server);
    over.store(true, Ordering::Relaxed);
    under_way.shutdown().await;
    let sent: Vec<_> = counts.iter().map(|(name, sent)| (*name, sent.load(Ordering::Relaxed))).collect();
    println!(
        "p99 of agents {quiet:?}, beside strangers {besieged:?}; memory {before:.0} MiB, then {after:.0} MiB; {sent:?}"
    );
    assert!(sent.iter().filter(|(_, bytes)| *bytes > 0).count() >= 5, "{sent:?}");
    assert!(besieged < Duration::from_secs(1), "p99 {besieged:?}, quiet {quiet:?}");
    assert!(after - before < 100.0, "{before:.0} MiB, then {after:.0} MiB");
    let rules: Value = client
        .get(format!("{}/api/v1/firewall-rules", server.url))
        .bearer_auth(&owner)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(rules["total"], 0, "nothing of it was taken");
}
