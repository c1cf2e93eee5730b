//! The outbox against a real receiver that fails in every way a receiver can.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use controlplane::app::CaptureLimits;
use controlplane::outbound::Outbound;
use ring::hmac;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, settings};
use crate::support::{Node, Server, UUID, report};

/// How a receiver behaves, one word for each request; the last one stays.
type Script = Mutex<Vec<&'static str>>;

/// A request that arrived.
#[derive(Clone)]
struct Got {
    headers: HeaderMap,
    body: Bytes,
    /// What it was answered.
    how: &'static str,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Event and the incident's severity.
    fn told(&self) -> (String, String) {
        let body = self.json();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&body["event"]), text(&body["incident"]["severity"]))
    }
}

#[derive(Default)]
struct Inner {
    script: Script,
    got: Mutex<Vec<Got>>,
    under_way: AtomicUsize,
}

#[derive(Clone)]
struct Receiver {
    inner: Arc<Inner>,
    url: String,
}

impl Receiver {
    async fn start(script: &[&'static str]) -> Self {
        let inner = Arc::new(Inner { script: Mutex::new(script.to_vec()), ..Inner::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?a=b", listener.local_addr().unwrap());
        let service = axum::Router::new().fallback(receive).with_state(inner.clone());
        tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        Self { inner, url }
    }

    fn behave(&self, script: &[&'static str]) {
        *self.inner.script.lock().unwrap() = script.to_vec();
    }

    fn got(&self) -> Vec<Got> {
        self.inner.got.lock().unwrap().clone()
    }

    async fn wait(&self, count: usize) -> Vec<Got> {
        eventually(&format!("{count} requests"), async || self.got().len() >= count).await;
        self.got()
    }
}

async fn receive(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    let how = {
        let mut script = inner.script.lock().unwrap();
        if script.len() > 1 { script.remove(0) } else { script.first().copied().unwrap_or("ok") }
    };
    inner.got.lock().unwrap().push(Got { headers, body, how });
    inner.under_way.fetch_add(1, Ordering::SeqCst);
    let answer = match how {
        "ok" => "thanks".into_response(),
        "500" => (StatusCode::INTERNAL_SERVER_ERROR, "broken, you sent sesame").into_response(),
        "429" => (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "300")]).into_response(),
        "redirect" => (StatusCode::FOUND, [(header::LOCATION, "http://127.0.0.1:1/")]).into_response(),
        "huge" => "x".repeat(32 << 20).into_response(),
        "slow" => {
            tokio::time::sleep(Duration::from_millis(300)).await;
            "late".into_response()
        }
        "hang" => std::future::pending().await,
        other => panic!("no such behaviour: {other}"),
    };
    inner.under_way.fetch_sub(1, Ordering::SeqCst);
    answer
}

async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..1_500 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not happen within 15 s: {what}");
}

/// A server whose worker runs, and a node that reports.
struct Lab {
    server: Server,
    node: Node,
    worker: Option<JoinHandle<()>>,
}

impl Lab {
    async fn sqlite() -> Self {
        Self::on(Server::start().await).await
    }

    async fn postgres() -> Option<Self> {
        let cluster = Cluster::shared()?;
        let database = settings(&cluster.database().await);
        let folder = tempfile::tempdir().unwrap();
        Some(Self::on(Server::start_on(&database, folder, Some(cluster), CaptureLimits::default()).await).await)
    }

    async fn on(server: Server) -> Self {
        let node = server.deploy("edge-1").await;
        let mut lab = Self { server, node, worker: None };
        lab.start_worker();
        lab
    }

    fn start_worker(&mut self) {
        let draining = self.server.drain.subscribe();
        self.worker = Some(tokio::spawn(self.server.app.clone().deliver(draining)));
    }

    /// Ends the worker without a word, with everything that it is about.
    async fn kill_worker(&mut self) {
        let worker = self.worker.take().unwrap();
        worker.abort();
        assert!(worker.await.is_err_and(|e| e.is_cancelled()));
    }

    async fn webhook(&self, path: &str, url: &str, more: Value) -> i64 {
        let mut body = json!({
            "kind": "webhook", "name": format!("hook {url}"), "settings": { "url": url, "timeout_secs": 1 },
            "secrets": { "secret": "sesame" }, "headers": { "X-Api-Key": "open-sesame" },
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let made = self.server.made(&format!("/api/v1/{path}"), &body).await;
        made[&path[..path.len() - 1]]["id"].as_i64().unwrap()
    }

    /// Reports incident number `n`.
    async fn report(&self, n: u32, revision: u32, severity: &str, status: &str) {
        let uuid = UUID.replace("0f9619ff", &format!("{n:08x}"));
        let mut body = report(&uuid, revision, status);
        body["target"] = json!(format!("203.0.113.{n}/32"));
        body["severity"] = json!(severity);
        self.server.report(&self.node, "/incidents", &body).await;
    }

    async fn destination(&self, path: &str, id: i64) -> Value {
        let (status, answer) = self.server.get(&format!("/api/v1/{path}/{id}")).await;
        assert_eq!(status, 200, "{answer}");
        answer[&path[..path.len() - 1]].clone()
    }

    async fn deliveries(&self, path: &str, id: i64) -> Vec<Value> {
        let (status, answer) = self.server.get(&format!("/api/v1/{path}/{id}/deliveries?limit=500")).await;
        assert_eq!(status, 200, "{answer}");
        answer["deliveries"].as_array().unwrap().clone()
    }

    /// Waits until nothing waits for the destination.
    async fn settled(&self, path: &str, id: i64) -> Vec<Value> {
        eventually("nothing waits", async || self.destination(path, id).await["pending"] == 0).await;
        self.deliveries(path, id).await
    }
}

macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Lab::sqlite().await).await;
            })+
        }

        mod postgres {
            $(#[tokio::test]
            async fn $test() {
                if let Some(lab) = super::Lab::postgres().await {
                    super::$test(lab).await;
                }
            })+
        }
    };
}

on_both! {
    an_incident_is_told_from_its_beginning_to_its_end,
    the_severity_decides_who_is_told_and_a_refused_write_tells_nobody,
    a_receiver_that_fails_is_tried_three_times_and_parked,
    a_busy_receiver_gets_the_time_it_asks_for,
    a_circuit_opens_and_closes_and_order_is_kept,
    a_killed_worker_loses_nothing,
    a_dead_destination_holds_up_no_other,
    what_cannot_be_sent_to_says_so,
    history_ends,
    what_is_told_in_a_maintenance_window_waits_for_its_end,
}

async fn an_incident_is_told_from_its_beginning_to_its_end(lab: Lab) {
    let receiver = Receiver::start(&["ok"]).await;
    let id = lab.webhook("integrations", &receiver.url, json!({})).await;
    assert_eq!(lab.destination("integrations", id).await["status"], "configured");
    lab.report(1, 1, "medium", "active").await;
    lab.report(1, 2, "medium", "active").await;
    lab.report(1, 3, "critical", "active").await;
    lab.report(1, 3, "critical", "active").await;
    lab.report(1, 4, "critical", "resolved").await;
    let got = receiver.wait(3).await;
    let told: Vec<_> = got.iter().map(Got::told).collect();
    let expected = [("attack_open", "medium"), ("attack_update", "critical"), ("attack_resolved", "critical")];
    assert_eq!(told, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    for got in &got {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"sesame");
        let verify = |text: &[u8], signature: &str| {
            let bytes: Vec<u8> = (0..signature.len() / 2)
                .map(|i| u8::from_str_radix(&signature[2 * i..2 * i + 2], 16).unwrap())
                .collect();
            hmac::verify(&key, text, &bytes).unwrap();
        };
        let stamped = [got.header("x-ftagent-timestamp").as_bytes(), b".", &got.body].concat();
        verify(&stamped, got.header("x-ftagent-signature").strip_prefix("v1=").unwrap());
        verify(&got.body, got.header("x-flowtriq-signature").strip_prefix("sha256=").unwrap());
        assert_eq!(got.header("x-api-key"), "open-sesame");
        assert_eq!(got.header("content-type"), "application/json");
        assert_eq!(got.json()["delivery"], got.header("x-ftagent-delivery"));
        assert_eq!(got.json()["event"], got.header("x-ftagent-event"));
        assert_eq!(got.json()["top_sources"][0]["ip"], "198.51.100.7");
    }
    let history = lab.settled("integrations", id).await;
    assert_eq!(history.len(), 3);
    assert!(history.iter().all(|d| d["status"] == "delivered" && d["http_status"] == 200 && d["answer"] == "thanks"));
    assert_eq!(history[0]["uuid"], got[2].header("x-ftagent-delivery"), "newest first");
    let shown = lab.destination("integrations", id).await;
    assert_eq!((&shown["status"], &shown["circuit"]), (&json!("connected"), &json!("closed")));
    assert_eq!((&shown["has_secrets"]["secret"], &shown["headers"]), (&json!(true), &json!(["X-Api-Key"])));
    assert!(!shown.to_string().contains("sesame"));
    let (_, audit) = lab.server.get("/api/v1/audit?limit=500").await;
    assert!(!audit.to_string().contains("sesame"));
    // An operator's change is told too.
    lab.report(2, 1, "high", "active").await;
    assert_eq!(lab.server.patch("/api/v1/incidents/2", &json!({ "status": "false_positive" })).await.0, 200);
    assert_eq!(receiver.wait(5).await[4].json()["incident"]["status"], "false_positive");
}

async fn the_severity_decides_who_is_told_and_a_refused_write_tells_nobody(lab: Lab) {
    let (all, high) = (Receiver::start(&["ok"]).await, Receiver::start(&["ok"]).await);
    lab.webhook("channels", &all.url, json!({})).await;
    let id = lab.webhook("channels", &high.url, json!({ "min_severity": "high" })).await;
    let off = lab.webhook("channels", &high.url, json!({ "name": "off", "enabled": false })).await;
    lab.report(1, 1, "medium", "active").await;
    lab.report(1, 2, "high", "active").await;
    // Lowered by an operator, but told: its end is told as well.
    assert_eq!(lab.server.patch("/api/v1/incidents/1", &json!({ "severity": "low" })).await.0, 200);
    lab.report(1, 3, "high", "resolved").await;
    assert_eq!(lab.server.patch("/api/v1/incidents/1", &json!({ "status": "active" })).await.0, 422);
    let told: Vec<_> = all.wait(4).await.iter().map(|g| g.told().0).collect();
    assert_eq!(told, ["attack_open", "attack_update", "attack_update", "attack_resolved"]);
    let told: Vec<_> = high.wait(3).await.iter().map(|g| g.told().0).collect();
    assert_eq!(told, ["attack_update", "attack_update", "attack_resolved"]);
    assert_eq!(lab.settled("channels", id).await.len(), 3);
    assert_eq!(lab.deliveries("channels", off).await.len(), 0);
    assert_eq!(lab.destination("channels", off).await["status"], "disabled");
}

async fn a_receiver_that_fails_is_tried_three_times_and_parked(lab: Lab) {
    let table = [
        ("500", "it answered 500"),
        ("redirect", "it answered 302: redirects are not followed"),
        ("hang", "no answer within 1 s"),
    ];
    let mut made = Vec::new();
    for (how, error) in table {
        let receiver = Receiver::start(&[how]).await;
        let id = lab.webhook("channels", &receiver.url, json!({})).await;
        made.push((receiver, id, error));
    }
    let closed = lab.webhook("channels", "http://127.0.0.1:1/", json!({})).await;
    let huge = Receiver::start(&["huge"]).await;
    let taken = lab.webhook("channels", &huge.url, json!({})).await;
    lab.report(1, 1, "high", "active").await;
    for attempt in 1..=3 {
        for (receiver, id, _) in &made {
            receiver.wait(attempt).await;
            eventually("settled", async || lab.deliveries("channels", *id).await[0]["attempts"] == attempt).await;
        }
        // More than the longest wait with its jitter: 12 s, then 48 s.
        lab.server.clock.advance(49);
    }
    for (receiver, id, error) in &made {
        let history = lab.settled("channels", *id).await;
        assert_eq!((&history[0]["status"], &history[0]["error"]), (&json!("failed"), &json!(error)));
        assert!(!history[0].to_string().contains("sesame"), "{}", history[0]);
        let uuids: Vec<_> = receiver.got().iter().map(|g| g.header("x-ftagent-delivery").to_owned()).collect();
        assert!(uuids.len() == 3 && uuids.iter().all(|u| *u == uuids[0]), "{uuids:?}");
        let shown = lab.destination("channels", *id).await;
        assert_eq!((&shown["status"], &shown["last_error"]), (&json!("failing"), &json!(error)));
    }
    let refused = lab.settled("channels", closed).await;
    assert!(refused[0]["error"].as_str().unwrap().starts_with("cannot connect"), "{}", refused[0]);
    let history = lab.settled("channels", taken).await;
    assert_eq!((&history[0]["status"], history[0]["answer"].as_str().unwrap().len()), (&json!("delivered"), 1_024));
}

async fn a_busy_receiver_gets_the_time_it_asks_for(lab: Lab) {
    let receiver = Receiver::start(&["429", "ok"]).await;
    let id = lab.webhook("channels", &receiver.url, json!({})).await;
    lab.report(1, 1, "high", "active").await;
    eventually("it rests", async || lab.destination("channels", id).await["resting_until"].is_string()).await;
    let shown = lab.destination("channels", id).await;
    assert_eq!((&shown["circuit"], &shown["failures"]), (&json!("closed"), &json!(0)), "busy is not broken");
    lab.report(2, 1, "high", "active").await;
    lab.server.clock.advance(290);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(receiver.got().len(), 1, "also what is new waits");
    lab.server.clock.advance(15);
    assert_eq!(lab.settled("channels", id).await.len(), 2);
    assert_eq!(receiver.got().len(), 3);
}

async fn a_circuit_opens_and_closes_and_order_is_kept(lab: Lab) {
    let receiver = Receiver::start(&["500"]).await;
    let id = lab.webhook("channels", &receiver.url, json!({})).await;
    for n in 1..=3 {
        lab.report(n, 1, "low", "active").await;
    }
    let circuit = async || lab.destination("channels", id).await["circuit"].as_str().unwrap().to_owned();
    eventually("it opens", async || {
        lab.server.clock.advance(1);
        circuit().await == "open"
    })
    .await;
    let tried = receiver.got().len();
    for n in 4..=9 {
        lab.report(n, 1, "low", "active").await;
        lab.report(n, 2, "high", "active").await;
        lab.report(n, 3, "high", "resolved").await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(receiver.got().len(), tried, "nothing goes out while it is open");
    lab.server.clock.advance(31);
    receiver.wait(tried + 1).await;
    eventually("it opens again", async || circuit().await == "open").await;
    assert_eq!(receiver.got().len(), tried + 1, "one probe");
    receiver.behave(&["ok"]);
    lab.server.clock.advance(61);
    let history = lab.settled("channels", id).await;
    assert_eq!(circuit().await, "closed");
    assert!(history.iter().filter(|d| d["status"] == "delivered").count() >= 18);
    let mut told: HashMap<i64, Vec<String>> = HashMap::new();
    for got in receiver.got().iter().filter(|g| g.how == "ok") {
        told.entry(got.json()["incident"]["id"].as_i64().unwrap()).or_default().push(got.told().0);
    }
    for incident in 4..=9 {
        assert_eq!(told[&incident], ["attack_open", "attack_update", "attack_resolved"], "{incident}");
    }
}

async fn a_killed_worker_loses_nothing(mut lab: Lab) {
    let receiver = Receiver::start(&["slow"]).await;
    let id = lab.webhook("channels", &receiver.url, json!({})).await;
    for n in 1..=20 {
        lab.report(n, 1, "low", "active").await;
        lab.report(n, 2, "low", "resolved").await;
        if n % 5 == 0 {
            // In the middle: requests have arrived, and nobody is there for the answer.
            eventually("under way", async || receiver.inner.under_way.load(Ordering::SeqCst) > 0).await;
            lab.kill_worker().await;
            lab.start_worker();
            lab.server.clock.advance(66);
        }
    }
    let history = lab.settled("channels", id).await;
    assert_eq!(history.len(), 40);
    assert!(history.iter().all(|d| d["status"] == "delivered"), "{history:?}");
    let got = receiver.got();
    let mut first: HashMap<String, Bytes> = HashMap::new();
    let mut order: HashMap<i64, Vec<String>> = HashMap::new();
    for got in &got {
        let uuid = got.header("x-ftagent-delivery").to_owned();
        if let Some(before) = first.insert(uuid, got.body.clone()) {
            assert_eq!(before, got.body, "a repeat is the same");
        } else {
            order.entry(got.json()["incident"]["id"].as_i64().unwrap()).or_default().push(got.told().0);
        }
    }
    assert_eq!(first.len(), 40, "nothing is lost, and repeats carry the same id");
    assert!(got.len() > 40, "some were sent twice");
    assert!(order.values().all(|events| *events == ["attack_open", "attack_resolved"]), "{order:?}");
    println!("40 deliveries, {} requests", got.len());
}

async fn a_dead_destination_holds_up_no_other(lab: Lab) {
    let (dead, well) = (Receiver::start(&["hang"]).await, Receiver::start(&["ok"]).await);
    lab.webhook("channels", &dead.url, json!({ "settings": { "url": dead.url, "timeout_secs": 30 } })).await;
    let id = lab.webhook("integrations", &well.url, json!({})).await;
    for n in 1..=30 {
        lab.report(n, 1, "low", "active").await;
    }
    assert_eq!(lab.settled("integrations", id).await.len(), 30);
    assert_eq!(well.got().len(), 30);
    assert!(dead.got().len() <= 8);
}

async fn what_cannot_be_sent_to_says_so(lab: Lab) {
    let made = lab
        .server
        .made(
            "/api/v1/channels",
            &json!({
                "kind": "slack", "name": "ops", "secrets": { "webhook_url": "https://hooks.example.net/T1/sesame" },
            }),
        )
        .await;
    assert_eq!(made["channel"]["status"], "not_connected");
    assert_eq!(made["signing_secret"], Value::Null);
    assert!(!made.to_string().contains("sesame"));
    let (status, answer) = lab.server.post("/api/v1/channels/1/test", &json!({})).await;
    assert_eq!((status, &answer["error"]["details"][0]["field"]), (422, &json!("kind")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("not_connected"), "{answer}");
    lab.report(1, 1, "high", "active").await;
    assert_eq!(lab.deliveries("channels", 1).await.len(), 0);

    let receiver = Receiver::start(&["ok", "500"]).await;
    let id = lab.webhook("integrations", &receiver.url, json!({ "secrets": {} })).await;
    let tested = lab.server.made(&format!("/api/v1/integrations/{id}/test"), &json!({})).await;
    assert_eq!((&tested["delivery"]["status"], &tested["delivery"]["event"]), (&json!("delivered"), &json!("test")));
    let failed = lab.server.made(&format!("/api/v1/integrations/{id}/test"), &json!({})).await;
    assert_eq!((&failed["delivery"]["status"], &failed["delivery"]["http_status"]), (&json!("failed"), &json!(500)));
    assert_eq!(lab.deliveries("integrations", id).await.len(), 2);
    assert_eq!(lab.server.delete(&format!("/api/v1/integrations/{id}")).await.0, 200);
    assert_eq!(lab.server.get(&format!("/api/v1/integrations/{id}/deliveries")).await.0, 404);
}

async fn history_ends(lab: Lab) {
    let receiver = Receiver::start(&["ok"]).await;
    let dead = lab.webhook("channels", "http://127.0.0.1:1/", json!({})).await;
    let id = lab.webhook("channels", &receiver.url, json!({})).await;
    for n in 1..=5 {
        lab.report(n, 1, "low", "active").await;
    }
    lab.settled("channels", id).await;
    let (store, now) = (&lab.server.store, lab.server.app.now());
    assert_eq!(store.prune_deliveries(now.plus_secs(-60), now.plus_secs(-60), 3, now).await.unwrap(), 2);
    let kept: Vec<_> = lab.deliveries("channels", id).await.iter().map(|d| d["incident_id"].clone()).collect();
    assert_eq!(kept, [5, 4, 3], "the newest");
    assert_eq!(store.prune_deliveries(now.plus_secs(1), now.plus_secs(1), 3, now).await.unwrap(), 3 + 5 + 5);
    assert_eq!(lab.destination("channels", dead).await["pending"], 0);
}

async fn what_is_told_in_a_maintenance_window_waits_for_its_end(lab: Lab) {
    let receiver = Receiver::start(&["ok"]).await;
    let id = lab.webhook("channels", &receiver.url, json!({})).await;
    let begins = lab.server.app.now().plus_secs(-30);
    let window = json!({ "name": "move", "schedule": { "type": "once", "starts_at": begins, "minutes": 15 } });
    lab.server.made("/api/v1/maintenance", &window).await;
    lab.report(1, 1, "critical", "active").await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(receiver.got().is_empty(), "held");
    let waiting = lab.deliveries("channels", id).await;
    assert_eq!((waiting.len(), &waiting[0]["status"], &waiting[0]["attempts"]), (1, &json!("pending"), &json!(0)));
    // Not given up as if it had been tried for so long, and due when the window ends.
    let (store, now) = (&lab.server.store, lab.server.app.now());
    assert_eq!(store.prune_deliveries(now.plus_secs(60), now.plus_secs(60), 3, now).await.unwrap(), 0);
    let claim = async |secs| store.claim_deliveries(9, 9, begins.plus_secs(secs), now.plus_secs(3_600)).await.unwrap();
    assert!(claim(14 * 60 + 59).await.is_empty());
    assert_eq!(claim(15 * 60).await[0].waiting.len(), 1);
}

#[tokio::test]
async fn everything_about_a_destination_is_checked() {
    let server = Server::start().await;
    let base = json!({ "kind": "webhook", "name": "a", "settings": { "url": "https://example.net/" } });
    let made = server.made("/api/v1/channels", &base).await;
    assert_eq!(made["signing_secret"].as_str().unwrap().len(), 64);
    assert_eq!(made["channel"]["settings"]["timeout_secs"], 10);
    assert_eq!(server.post("/api/v1/channels", &base).await.0, 409);
    assert_eq!(server.post("/api/v1/integrations", &base).await.0, 200, "names are each group's own");
    assert_eq!(server.get("/api/v1/integrations/1").await.0, 404, "a channel is no integration");
    let table = [
        (json!({ "name": "b", "settings": { "url": "ftp://example.net/" } }), 422),
        (json!({ "name": "" }), 422),
        (json!({ "name": "b", "kind": "splunk_hec" }), 422),
        (json!({ "name": "b", "kind": "smoke" }), 400),
        (json!({ "name": "b", "min_severity": "grave" }), 400),
        (json!({ "name": "b", "headers": { "Host": "x" } }), 422),
        (json!({ "name": "b", "colour": 1 }), 400),
    ];
    for (change, expected) in table {
        let mut body = base.clone();
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let (status, answer) = server.post("/api/v1/channels", &body).await;
        assert_eq!(status, expected, "{change}: {answer}");
    }
    let patch = async |body: Value| server.patch("/api/v1/channels/1", &body).await;
    assert_eq!(patch(json!({ "secrets": { "secret": null } })).await.0, 422);
    let (status, answer) = patch(json!({ "headers": { "X-A": "1" }, "enabled": false, "name": "c" })).await;
    assert_eq!(
        (status, &answer["channel"]["headers"], &answer["channel"]["name"]),
        (200, &json!(["X-A"]), &json!("c"))
    );
    assert_eq!(server.get("/api/v1/channels?limit=501").await.0, 400);
    assert_eq!(server.get("/api/v1/channels/1/deliveries?limit=0").await.0, 400);
    let readonly = server.token("readonly").await;
    for (path, expected) in [("/channels/1", 200), ("/channels/1/deliveries", 403)] {
        let request = server.client.get(format!("{}/api/v1{path}", server.url)).bearer_auth(&readonly);
        assert_eq!(crate::support::checked(request).await.0, expected, "{path}");
    }
    assert_eq!(server.delete("/api/v1/channels/1").await.0, 200);
    assert_eq!(server.get("/api/v1/channels/1").await.0, 404);
}

#[tokio::test]
async fn private_addresses_and_unknown_certificates_are_refused() {
    let outgoing = |url: &str| controlplane::outbound::Outgoing {
        url: url.parse().unwrap(),
        headers: HeaderMap::new(),
        body: Bytes::from_static(b"{}"),
        timeout: Duration::from_secs(5),
    };
    let receiver = Receiver::start(&["ok"]).await;
    let named = receiver.url.replace("127.0.0.1", "localhost");
    let fault = Outbound::new(false).post(&outgoing(&named)).await.unwrap_err();
    assert!(fault.to_string().contains("no public address"), "{fault}");
    assert_eq!(receiver.got().len(), 0);
    assert_eq!(Outbound::new(true).post(&outgoing(&named)).await.unwrap().status, 200);

    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    drop(rustls::crypto::ring::default_provider().install_default());
    let (cert, key) = (made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes());
    let tls = axum_server::tls_rustls::RustlsConfig::from_pem(cert, key).await.unwrap();
    let service = axum::Router::new().fallback(|| async { "secure" }).into_make_service();
    tokio::spawn(axum_server::from_tcp_rustls(listener, tls).unwrap().serve(service));
    let fault = Outbound::new(true).post(&outgoing(&url)).await.unwrap_err();
    assert!(fault.to_string().starts_with("no TLS"), "{fault}");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let answered = Outbound::with_roots(roots, true).post(&outgoing(&url)).await.unwrap();
    assert_eq!((answered.status, answered.body.as_slice()), (200, b"secure".as_slice()));
}
