//! A server on a port of its own with a clock that stands still, and calls that check every answer's shape.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use controlplane::app::{App, CaptureLimits, Captures, Sending, Vault};
use controlplane::clock::ManualClock;
use controlplane::domain::{Secret, Timestamp};
use controlplane::http::{Context, router};
use controlplane::outbound::Outbound;
use controlplane::store::Store;
use controlplane::store::files::CaptureFiles;
use controlplane::store::sql::{Database, SqlStore};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::cluster::{Cluster, settings};

/// When every test begins.
pub(crate) const NOW: &str = "2026-05-12T14:30:00Z";

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) owner: String,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) drain: watch::Sender<bool>,
    pub(crate) client: Client,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) database: Database,
    pub(crate) app: Arc<App>,
    pub(crate) store: Arc<dyn Store>,
    /// What the database lives in, if it is PostgreSQL.
    _cluster: Option<Arc<Cluster>>,
}

/// A node that was deployed.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) uuid: String,
    pub(crate) key: String,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(tempfile::tempdir().unwrap(), CaptureLimits::default()).await
    }

    /// One that keeps captures within `limits`.
    pub(crate) async fn start_with(folder: tempfile::TempDir, limits: CaptureLimits) -> Self {
        let (database, cluster) = Self::database(&folder).await;
        Self::start_on(&database, folder, cluster, limits).await
    }

    /// A fresh database: SQLite, or PostgreSQL where `FTAGENT_TEST_DATABASE=postgres` asks for it.
    async fn database(folder: &tempfile::TempDir) -> (Database, Option<Arc<Cluster>>) {
        if std::env::var("FTAGENT_TEST_DATABASE").as_deref() == Ok("postgres") {
            let cluster = Cluster::shared().expect("FTAGENT_TEST_DATABASE asks for PostgreSQL");
            (settings(&cluster.database().await), Some(cluster))
        } else {
            (Database::Sqlite(folder.path().join("cp.sqlite")), None)
        }
    }

    /// One on this database, which may hold something already: then there is no owner's token.
    pub(crate) async fn start_on(
        database: &Database,
        folder: tempfile::TempDir,
        cluster: Option<Arc<Cluster>>,
        limits: CaptureLimits,
    ) -> Self {
        let store: Arc<dyn Store> = Arc::new(SqlStore::open(database).await.unwrap());
        let clock = Arc::new(ManualClock::new(NOW.parse::<Timestamp>().unwrap()));
        let files = CaptureFiles::open(&folder.path().join("captures")).unwrap();
        let captures = Captures::new(files, limits);
        let vault = Vault::new(&Secret::from_random([7; 32]));
        let sending = Sending::new(vault, Outbound::new(true), Duration::from_millis(20));
        let app = Arc::new(App::new(store.clone(), clock.clone(), captures, sending));
        let owner = app.bootstrap().await.unwrap().map(|token| token.reveal().to_owned()).unwrap_or_default();
        let (drain, draining) = watch::channel(false);
        let service =
            router(Context::new(app.clone(), 100, draining), true).into_make_service_with_connect_info::<SocketAddr>();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        Self {
            url,
            owner,
            clock,
            drain,
            client: Client::new(),
            folder,
            database: database.clone(),
            app,
            store,
            _cluster: cluster,
        }
    }

    /// A request with the owner's token.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).bearer_auth(&self.owner)
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        checked(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        checked(self.request(Method::POST, path).json(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> (u16, Value) {
        checked(self.request(Method::PATCH, path).json(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> (u16, Value) {
        checked(self.request(Method::DELETE, path)).await
    }

    /// Creates or changes something that must work.
    pub(crate) async fn made(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.post(path, body).await;
        assert_eq!(status, 200, "{path} {body}: {answer}");
        answer
    }

    pub(crate) async fn deploy(&self, name: &str) -> Node {
        let answer = self.made("/api/deploy", &json!({ "name": name, "ip": "203.0.113.5" })).await;
        let text = |key: &str| answer[key].as_str().unwrap().to_owned();
        Node { uuid: text("node_uuid"), key: text("api_key") }
    }

    /// A token of another role.
    pub(crate) async fn token(&self, role: &str) -> String {
        let answer = self.made("/api/v1/workspace/tokens", &json!({ "name": role, "role": role })).await;
        answer["value"].as_str().unwrap().to_owned()
    }

    pub(crate) fn agent(&self, node: &Node, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}/api/v1/agent{path}", self.url))
            .bearer_auth(&node.key)
            .header("X-Node-UUID", &node.uuid)
    }

    pub(crate) async fn report(&self, node: &Node, path: &str, body: &Value) -> Value {
        let (status, answer) = checked(self.agent(node, Method::POST, path).json(body)).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    pub(crate) async fn heartbeat(&self, node: &Node, ratio: f64) {
        let body =
            json!({ "protocol_version": 1, "agent_version": "0.1.0", "mode": "enforce", "threshold_ratio": ratio });
        self.report(node, "/heartbeat", &body).await;
    }
}

/// Sends, and checks what holds for every answer.
pub(crate) async fn checked(request: RequestBuilder) -> (u16, Value) {
    let (status, text) = shaped(request.send().await.unwrap()).await;
    (status, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{status} is no JSON ({e}): {text}")))
}

async fn shaped(answer: Response) -> (u16, String) {
    let status = answer.status();
    let headers = answer.headers().clone();
    for name in ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"] {
        assert!(headers.get(name).is_some_and(|v| v.to_str().unwrap().parse::<u64>().is_ok()), "{status} lacks {name}");
    }
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert!(!status.is_redirection(), "{status}");
    if matches!(status.as_u16(), 429 | 503) {
        assert!(headers.get("retry-after").is_some_and(|v| v.to_str().unwrap().parse::<u64>().unwrap() > 0));
    }
    let text = answer.text().await.unwrap();
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{status} is no JSON ({e}): {text}"));
    assert_eq!(value["ok"], json!(status.is_success()), "{status} {text}");
    if !status.is_success() {
        let error = &value["error"];
        assert!(error["code"].is_string() && error["message"].is_string() && error["details"].is_array(), "{text}");
        assert!(status.as_u16() < 500 || status.as_u16() == 503, "{text}");
    }
    (status.as_u16(), text)
}

/// A report of an incident as an agent sends it.
pub(crate) fn report(uuid: &str, revision: u32, status: &str) -> Value {
    json!({
        "uuid": uuid, "revision": revision, "status": status, "target": "203.0.113.5/32", "family": "udp_flood",
        "severity": "high", "confidence": 0.934, "spoofed": false, "started_at": "2026-05-12T14:29:00.123456Z",
        "updated_at": "2026-05-12T14:29:30Z", "peak_pps": 50_000 + revision, "peak_bps": 400_000_000,
        "current_pps": 49_000, "current_bps": 390_000_000,
        "threshold": { "quantity": "pps", "value": 10_000, "origin": "floor", "ratio": 5.0 },
        "packets": 1_000_000, "dropped_packets": 990_000, "source_count": 12,
        "top_sources": [{ "ip": "198.51.100.7", "pps": 4_000, "share": 0.5 }],
        "timeline": [{ "at": "2026-05-12T14:29:00Z", "kind": "opened", "text": "seen" }],
    })
}

pub(crate) const UUID: &str = "0f9619ff-8b86-4011-b42d-00cf4fc964ff";

/// A rule that fires at every incident.
pub(crate) fn rule(name: &str) -> Value {
    json!({ "name": name, "trigger": { "type": "any" }, "action": { "type": "xdp_drop_source" } })
}
