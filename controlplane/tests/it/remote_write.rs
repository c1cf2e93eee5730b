//! Time series on their way to a real Prometheus, from the distribution's package.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reqwest::Client;
use serde_json::{Value, json};

use crate::process::Process;

/// `crypt("sesame")` with the cheapest cost, for Prometheus' file of users.
const SESAME: &str = "$2b$04$xee1WmQhUJs9WvT2/9w6n.itXYS06HipHIGwxryYJKolFTk/SVeDu";

/// A Prometheus that takes what is written to it; killed when dropped.
struct Prometheus {
    program: PathBuf,
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Prometheus {
    /// None, with a message, where it is not installed (an error with `CI=true`).
    async fn start() -> Option<Self> {
        let Some(program) = find() else {
            let install = "cargo xtask setup --databases";
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "Prometheus is not installed: {install}");
            println!("skipped: Prometheus is not installed ({install} installs it)");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("prometheus.yml"), "global:\n  scrape_interval: 1h\n").unwrap();
        let users = format!("basic_auth_users:\n  ftagent: {SESAME}\n");
        std::fs::write(folder.path().join("web.yml"), users).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = run(&program, folder.path(), port);
        let prometheus = Self { program, child, folder, port };
        prometheus.ready().await;
        Some(prometheus)
    }

    async fn ready(&self) {
        let client = Client::new();
        for _ in 0..200 {
            let request = client.get(self.url("/-/ready")).basic_auth("ftagent", Some("sesame"));
            if request.send().await.is_ok_and(|answer| answer.status() == 200) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("Prometheus does not get ready");
    }

    fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn start_again(&mut self) {
        self.child = run(&self.program, self.folder.path(), self.port);
        self.ready().await;
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The points of each series that a query finds within the last ten minutes, by their labels.
    async fn points(&self, query: &str) -> Vec<(Value, Vec<(i64, String)>)> {
        let client = Client::new();
        let request = client.get(self.url(&format!("/api/v1/query?query={query}%5B10m%5D")));
        let answer: Value = request.basic_auth("ftagent", Some("sesame")).send().await.unwrap().json().await.unwrap();
        let series = answer["data"]["result"].as_array().unwrap_or_else(|| panic!("{answer}"));
        let points = |one: &Value| {
            let values = one["values"].as_array().unwrap().iter();
            let point = |v: &Value| (v[0].as_f64().unwrap() as i64, v[1].as_str().unwrap().to_owned());
            (one["metric"].clone(), values.map(point).collect())
        };
        series.iter().map(points).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("prometheus")).find(|path| path.is_file())
}

fn run(program: &Path, folder: &Path, port: u16) -> Child {
    let file = |name: &str| folder.join(name).display().to_string();
    Command::new(program)
        .arg(format!("--config.file={}", file("prometheus.yml")))
        .arg(format!("--web.config.file={}", file("web.yml")))
        .arg(format!("--storage.tsdb.path={}", file("data")))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--web.enable-remote-write-receiver")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A server that writes to it, with this in its configuration, and a node's credentials.
async fn server(folder: &Path, prometheus: &Prometheus, more: &str) -> (Process, String, String, String) {
    std::fs::create_dir_all(folder).unwrap();
    let password = folder.join("password");
    std::fs::write(&password, "sesame\n").unwrap();
    let url = prometheus.url("/api/v1/write");
    let config = format!(
        "remote_write_url = {url:?}\nremote_write_user = \"ftagent\"\nremote_write_password_file = {password:?}\n{more}"
    );
    std::fs::write(folder.join("cp.toml"), config).unwrap();
    let server = Process::start(&folder.join("data"), &["--config", folder.join("cp.toml").to_str().unwrap()]);
    let owner = server.token().unwrap();
    let client = Client::new();
    let request = client.post(format!("{}/api/deploy", server.url)).bearer_auth(&owner);
    let node: Value = request.json(&json!({ "name": "edge-1" })).send().await.unwrap().json().await.unwrap();
    let text = |key: &str| node[key].as_str().unwrap().to_owned();
    (server, owner, text("node_uuid"), text("api_key"))
}

/// Sends samples of these seconds, each with its own rate; they must be accepted.
async fn measure(server: &Process, uuid: &str, key: &str, seconds: impl Iterator<Item = i64>) {
    let sample = |secs: i64| {
        let at = time::OffsetDateTime::from_unix_timestamp(secs).unwrap();
        let at = at.format(&time::format_description::well_known::Rfc3339).unwrap();
        json!({ "at": at, "pps": secs % 1_000, "bps": 8, "dropped_pps": 1, "tcp_pps": 2, "udp_pps": 3, "icmp_pps": 4, "other_pps": 5 })
    };
    let body = json!({ "samples": seconds.map(sample).collect::<Vec<_>>() });
    let request = Client::new().post(format!("{}/api/v1/agent/metrics", server.url)).bearer_auth(key);
    let answer = request.header("X-Node-UUID", uuid).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
}

/// A figure of the server's own metrics.
async fn figure(server: &Process, name: &str) -> Option<f64> {
    let text = Client::new().get(format!("{}/metrics", server.url)).send().await.unwrap().text().await.unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

const SENT: &str = "ftagent_controlplane_remote_write_samples_total{outcome=\"sent\"}";
const QUEUED: &str = "ftagent_controlplane_remote_write_queued_samples";

async fn wait_for(server: &Process, name: &str, wanted: f64) {
    for _ in 0..150 {
        if figure(server, name).await == Some(wanted) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{name} is {:?}, not {wanted}", figure(server, name).await);
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "Prometheus takes what is of now")]
async fn samples_arrive_whole_and_those_of_an_outage_too() {
    let Some(mut prometheus) = Prometheus::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let (server, owner, uuid, key) = server(folder.path(), &prometheus, "metrics_in_database = false\n").await;
    let start = time::OffsetDateTime::now_utc().unix_timestamp() - 300;
    measure(&server, &uuid, &key, start..start + 30).await;
    wait_for(&server, SENT, 210.0).await;
    let found = prometheus.points("ftagent_node_packets_per_second").await;
    let [(labels, points)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((&labels["node"], &labels["workspace"], &labels["job"]), (&json!(uuid), &json!("1"), &json!("ftagent")));
    let expected: Vec<_> = (start..start + 30).map(|secs| (secs, (secs % 1_000).to_string())).collect();
    assert_eq!(points, &expected);
    let split = prometheus.points("ftagent_node_protocol_packets_per_second").await;
    let mut split: Vec<_> = split.iter().map(|(l, p)| (l["protocol"].as_str().unwrap(), p[29].1.as_str())).collect();
    split.sort_unstable();
    assert_eq!(split, [("icmp", "4"), ("other", "5"), ("tcp", "2"), ("udp", "3")]);

    // The receiver is away: agents are answered all the same, and what they measured waits.
    prometheus.stop();
    measure(&server, &uuid, &key, start + 30..start + 60).await;
    measure(&server, &uuid, &key, start + 60..start + 90).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(figure(&server, QUEUED).await, Some(420.0));
    prometheus.start_again().await;
    wait_for(&server, SENT, 630.0).await;
    assert_eq!(figure(&server, QUEUED).await, Some(0.0));
    // Seconds that come again, or too late, are left out and spoil nothing.
    measure(&server, &uuid, &key, start + 80..start + 100).await;
    wait_for(&server, SENT, 700.0).await;
    let late = "ftagent_controlplane_remote_write_samples_total{outcome=\"late\"}";
    assert_eq!(figure(&server, late).await, Some(70.0));
    let found = prometheus.points("ftagent_node_packets_per_second").await;
    assert_eq!(found[0].1.len(), 100, "every second once");

    // The database has none of it, and says so.
    let series = format!("{}/api/v1/nodes/{uuid}/metrics", server.url);
    let series: Value = Client::new().get(series).bearer_auth(&owner).send().await.unwrap().json().await.unwrap();
    assert_eq!((&series["kept"], &series["metrics"]), (&json!(false), &json!([])));
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "Prometheus takes what is of now")]
async fn a_full_queue_and_a_refusal_are_counted_and_hold_nobody_up() {
    let Some(mut prometheus) = Prometheus::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let more = "remote_write_queue_samples = 10000\nremote_write_batch_samples = 2100\n";
    let (server, owner, uuid, key) = server(folder.path(), &prometheus, more).await;
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    prometheus.stop();
    for n in 0..6 {
        measure(&server, &uuid, &key, now - 1_800 + n * 300..now - 1_500 + n * 300).await;
    }
    // 12,600 samples of 300 seconds each time, of which 8,400 and no 10,500 have room.
    assert_eq!(figure(&server, QUEUED).await, Some(8_400.0));
    let dropped = "ftagent_controlplane_remote_write_samples_total{outcome=\"dropped\"}";
    assert_eq!(figure(&server, dropped).await, Some(4_200.0));
    // The database keeps them too, as long as it is not told otherwise.
    let series = format!("{}/api/v1/nodes/{uuid}/metrics", server.url);
    let series: Value = Client::new().get(series).bearer_auth(&owner).send().await.unwrap().json().await.unwrap();
    assert_eq!(series["kept"], json!(true));
    assert!(!series["metrics"].as_array().unwrap().is_empty());
    prometheus.start_again().await;
    wait_for(&server, SENT, 8_400.0).await;

    // With a wrong password every batch is refused for good.
    let other = tempfile::tempdir().unwrap();
    let stranger = self::server(other.path(), &prometheus, "").await;
    drop(stranger.0);
    std::fs::write(other.path().join("password"), "tahini\n").unwrap();
    let config = other.path().join("cp.toml");
    let server = Process::start(&other.path().join("data"), &["--config", config.to_str().unwrap()]);
    measure(&server, &stranger.2, &stranger.3, now..now + 5).await;
    wait_for(&server, "ftagent_controlplane_remote_write_samples_total{outcome=\"refused\"}", 35.0).await;
}
