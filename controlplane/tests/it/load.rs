//! Load on the real program by many at once, and a ledger of what was acknowledged: for tests that kill it, or copy its
//! database, in the middle.
//!
//! Agents report incidents as agents do, each message again until it is acknowledged. Operators create and delete rules
//! and write notes with idempotency keys, again with the same key until there is an answer. A receiver of webhooks keeps
//! the first of each delivery id, as its documentation says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::process::{Process, json_of, run};
use crate::support::{report, rule};

const AGENTS: u32 = 4;
const OPERATORS: u32 = 6;
/// Requests whose key a killed process had taken, and that are asked again later.
const PARKED: usize = 3;

/// What was acknowledged.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Names of rules, and whether they were deleted.
    pub(crate) rules: BTreeMap<String, bool>,
    pub(crate) notes: BTreeSet<String>,
    /// Incidents that were opened, updated and resolved.
    pub(crate) incidents: BTreeSet<Uuid>,
    /// Requests that were sent, answered or not.
    pub(crate) requests: u64,
    /// Changes whose answer was lost with the process, and that the same key found done.
    pub(crate) found_done: u64,
    /// Keys that were used again after their answer, and got the same one.
    pub(crate) replayed: u64,
}

impl Ledger {
    fn add(&mut self, other: Self) {
        self.rules.extend(other.rules);
        self.notes.extend(other.notes);
        self.incidents.extend(other.incidents);
        self.requests += other.requests;
        self.found_done += other.found_done;
        self.replayed += other.replayed;
    }
}

/// A receiver that honours delivery ids.
#[derive(Clone, Default)]
pub(crate) struct Receiver {
    /// Incident and event by the id of the delivery.
    first: Arc<Mutex<HashMap<String, (String, String)>>>,
    requests: Arc<Mutex<u64>>,
}

impl Receiver {
    async fn start() -> (Self, String) {
        let receiver = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let service = axum::Router::new().fallback(receive).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        (receiver, url)
    }

    /// Events by incident, and how many requests brought them.
    pub(crate) fn told(&self) -> (BTreeMap<String, Vec<String>>, u64) {
        let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (incident, event) in self.first.lock().unwrap().values() {
            told.entry(incident.clone()).or_default().push(event.clone());
        }
        told.values_mut().for_each(|events| events.sort());
        (told, *self.requests.lock().unwrap())
    }
}

async fn receive(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> &'static str {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let delivery = headers["x-ftagent-delivery"].to_str().unwrap().to_owned();
    *receiver.requests.lock().unwrap() += 1;
    let told = (text(&body["incident"]["uuid"]), text(&body["event"]));
    receiver.first.lock().unwrap().entry(delivery).or_insert(told);
    "ok"
}

/// The load, while it runs.
pub(crate) struct Load {
    url: watch::Sender<String>,
    pub(crate) token: String,
    stop: watch::Sender<bool>,
    workers: JoinSet<Ledger>,
    pub(crate) receiver: Receiver,
    client: Client,
    board: Value,
}

#[derive(Clone)]
struct Caller {
    client: Client,
    url: watch::Receiver<String>,
    stop: watch::Receiver<bool>,
    token: String,
}

/// What an idempotent request came to.
enum Asked {
    Answered(Value),
    /// Done before, and its answer is lost.
    Done,
    /// Its key is taken by a process that was killed: later.
    Parked,
}

impl Caller {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", *self.url.borrow()))
    }

    fn stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Sends until there is an answer that is one: status and body.
    async fn until_answered(&self, ledger: &mut Ledger, make: impl Fn() -> RequestBuilder) -> (u16, Value) {
        loop {
            ledger.requests += 1;
            if let Ok(answer) = make().send().await {
                let status = answer.status().as_u16();
                if let Ok(body) = answer.json::<Value>().await
                    && status < 500
                    && status != 429
                {
                    return (status, body);
                }
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// A POST with a key.
    async fn once(&self, ledger: &mut Ledger, path: &str, key: &str, body: &Value) -> Asked {
        loop {
            ledger.requests += 1;
            let request = self.request(Method::POST, path).bearer_auth(&self.token).json(body);
            if let Ok(answer) = request.header("Idempotency-Key", key).send().await {
                let status = answer.status().as_u16();
                if let Ok(answer) = answer.json::<Value>().await {
                    let message = answer["error"]["message"].as_str().unwrap_or_default();
                    match status {
                        200 => return Asked::Answered(answer),
                        409 if message.contains("its answer was lost") => return Asked::Done,
                        503 if message.contains("is not answered yet") => return Asked::Parked,
                        500.. | 429 => {}
                        _ => panic!("{path} with the key {key}: {status} {answer}"),
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Opens, updates and resolves one incident after the other.
    async fn agent(self, number: u32, node: (String, String)) -> Ledger {
        let mut ledger = Ledger::default();
        for n in 0_u32.. {
            if self.stopped() {
                break;
            }
            let uuid = Uuid::from_u128(u128::from(number + 1) << 64 | u128::from(n));
            for (revision, severity, status, path) in [
                (1, "medium", "active", String::new()),
                (2, "critical", "active", format!("/{uuid}")),
                (3, "critical", "resolved", format!("/{uuid}/resolve")),
            ] {
                let mut body = report(&uuid.to_string(), revision, status);
                body["target"] = json!(format!("10.{number}.{}.{}/32", n / 256, n % 256));
                body["severity"] = json!(severity);
                let make = || {
                    let request = self.request(Method::POST, &format!("/api/v1/agent/incidents{path}"));
                    request.bearer_auth(&node.1).header("X-Node-UUID", &node.0).json(&body)
                };
                let (status, answer) = self.until_answered(&mut ledger, make).await;
                assert_eq!(status, 200, "{answer}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            ledger.incidents.insert(uuid);
        }
        ledger
    }

    /// Creates rules and notes with keys, asks some again with the same key, and deletes most rules.
    async fn operator(self, number: u32, board: Value) -> Ledger {
        let mut ledger = Ledger::default();
        let mut parked: Vec<(u32, bool)> = Vec::new();
        for n in 0_u32.. {
            if self.stopped() && parked.is_empty() {
                break;
            }
            // Those of a killed process's key again, from time to time, and all that are left at the end.
            let again = if self.stopped() || parked.len() >= PARKED || n % 16 == 15 { parked.pop() } else { None };
            let (n, note) = match again {
                Some(again) => again,
                None if self.stopped() => break,
                None => (n, n % 2 == 1),
            };
            let name = format!("{}-{number}-{n}", if note { "note" } else { "rule" });
            let key = format!("key-{name}");
            let (path, body) = if note {
                (format!("/api/v1/incidents/{board}/notes"), json!({ "text": name }))
            } else {
                ("/api/v1/firewall-rules".to_owned(), rule(&name))
            };
            let mut id = None;
            match self.once(&mut ledger, &path, &key, &body).await {
                Asked::Parked => {
                    parked.insert(0, (n, note));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
                Asked::Done => ledger.found_done += 1,
                Asked::Answered(first) => {
                    id = first["rule"]["id"].as_i64();
                    if n % 5 == 0
                        && let Asked::Answered(second) = self.once(&mut ledger, &path, &key, &body).await
                    {
                        assert_eq!(first, second, "the same answer");
                        ledger.replayed += 1;
                    }
                }
            }
            if note {
                ledger.notes.insert(name);
                continue;
            }
            let mut deleted = false;
            // A workspace takes 1,000 rules.
            if n % 16 != 0
                && let Some(id) = id
            {
                let path = format!("/api/v1/firewall-rules/{id}");
                let make = || self.request(Method::DELETE, &path).bearer_auth(&self.token);
                let (status, answer) = self.until_answered(&mut ledger, make).await;
                // A delete whose answer was lost is done.
                assert!(matches!(status, 200 | 404), "{answer}");
                deleted = true;
            }
            ledger.rules.insert(name, deleted);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ledger
    }
}

pub(crate) const SETTINGS: [(&str, &str); 1] = [("ALLOW_PRIVATE_DESTINATIONS", "true")];

impl Load {
    /// Begins on a fresh control plane, started with [`SETTINGS`].
    pub(crate) async fn start(process: &Process, data: &std::path::Path, database: &[&str]) -> Self {
        let client = Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        let args = ["token", "create", "--name", "load", "--role", "owner", "--rate-limit", "1000000"];
        let (ok, made) = run(data, &[database, &args].concat());
        assert!(ok, "{made}");
        let token = made.trim().strip_prefix("deploy token: ").unwrap().to_owned();
        let (receiver, hook) = Receiver::start().await;
        let (url, urls) = watch::channel(process.url.clone());
        let (stop, stopped) = watch::channel(false);
        let caller = Caller { client: client.clone(), url: urls, stop: stopped, token: token.clone() };
        let made = async |path: &str, body: Value| -> Value {
            let request = caller.request(Method::POST, path).bearer_auth(&token).json(&body);
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 200, "{path}");
            answer.json().await.unwrap()
        };
        let webhook = json!({
            "kind": "webhook", "name": "load", "min_severity": "low", "settings": { "url": hook },
            "secrets": { "secret": "sesame" },
        });
        let mut workers = JoinSet::new();
        let mut nodes = Vec::new();
        for n in 0..=AGENTS {
            let node = made("/api/deploy", json!({ "name": format!("edge-{n}") })).await;
            let text = |key: &str| node[key].as_str().unwrap().to_owned();
            nodes.push((text("node_uuid"), text("api_key")));
        }
        // An incident that notes are pinned to; nobody is told of it yet.
        let (uuid, key) = nodes.pop().unwrap();
        let board = report(crate::support::UUID, 1, "active");
        let request = caller.request(Method::POST, "/api/v1/agent/incidents").bearer_auth(key);
        let answer = request.header("X-Node-UUID", uuid).json(&board).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let board =
            json_of(&client, &format!("{}/api/v1/incidents", process.url), &token).await["incidents"][0]["id"].clone();
        made("/api/v1/integrations", webhook).await;
        for (n, node) in (0..).zip(nodes) {
            workers.spawn(caller.clone().agent(n, node));
        }
        for n in 0..OPERATORS {
            workers.spawn(caller.clone().operator(n, board.clone()));
        }
        Self { url, token, stop, workers, receiver, client, board }
    }

    /// The program listens elsewhere now.
    pub(crate) fn moved(&self, process: &Process) {
        self.url.send_replace(process.url.clone());
    }

    /// Lets everybody finish what they are about; the program must be running.
    pub(crate) async fn finish(&mut self) -> Ledger {
        self.stop.send_replace(true);
        let mut ledger = Ledger::default();
        while let Some(done) = self.workers.join_next().await {
            ledger.add(done.unwrap());
        }
        ledger
    }

    async fn get(&self, url: &str, path: &str) -> Value {
        json_of(&self.client, &format!("{url}{path}"), &self.token).await
    }

    async fn all(&self, url: &str, path: &str, key: &str) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            let page = self.get(url, &format!("{path}limit=500&offset={}", all.len())).await;
            let rows = page[key].as_array().unwrap_or_else(|| panic!("{path}: {page}")).clone();
            if rows.is_empty() {
                return all;
            }
            all.extend(rows);
        }
    }

    /// Compares what is there with what was acknowledged, when all of the load is done.
    pub(crate) async fn compare(&self, process: &Process, ledger: &Ledger) -> Found {
        let there = Snapshot::of(self, &process.url).await;
        let wanted: BTreeSet<_> =
            ledger.rules.iter().filter(|(_, gone)| !**gone).map(|(name, _)| name.clone()).collect();
        let incidents: BTreeSet<_> = ledger.incidents.iter().map(Uuid::to_string).collect();
        let notes: BTreeSet<_> = there.notes.iter().cloned().collect();
        let lost = wanted.difference(&there.rules).count()
            + ledger.notes.difference(&notes).count()
            + incidents.difference(&there.resolved).count();
        let gone = ledger.rules.values().filter(|gone| **gone).count();
        let twice = there.rules.difference(&wanted).count()
            + (there.notes.len() - notes.len())
            + there.created.abs_diff(ledger.rules.len())
            + there.deleted.abs_diff(gone)
            + there.incidents.abs_diff(incidents.len() + 1);
        Found { lost, twice, intact: there.intact, audited: there.audited }
    }

    /// Waits until everything is delivered: deliveries that are missing, and those that came twice.
    pub(crate) async fn delivered(&self, ledger: &Ledger) -> (usize, usize) {
        let mut last = (0, 0);
        for _ in 0..1_200 {
            let (told, _) = self.receiver.told();
            let expected = ["attack_open", "attack_resolved", "attack_update"];
            last = (0, 0);
            for incident in &ledger.incidents {
                let events = told.get(&incident.to_string()).map_or(&[][..], Vec::as_slice);
                for event in expected {
                    match events.iter().filter(|e| *e == event).count() {
                        0 => last.0 += 1,
                        n => last.1 += n - 1,
                    }
                }
            }
            if last.0 == 0 {
                // What comes late would be too many.
                tokio::time::sleep(Duration::from_millis(500)).await;
                return last;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        last
    }
}

/// What was found at the end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Acknowledged and not there.
    pub(crate) lost: usize,
    /// There more often than asked for, or not asked for at all.
    pub(crate) twice: usize,
    pub(crate) intact: bool,
    pub(crate) audited: u64,
}

/// What a control plane shows.
pub(crate) struct Snapshot {
    pub(crate) rules: BTreeSet<String>,
    pub(crate) notes: Vec<String>,
    pub(crate) incidents: usize,
    pub(crate) resolved: BTreeSet<String>,
    /// Audit records of rules.
    pub(crate) created: usize,
    pub(crate) deleted: usize,
    pub(crate) noted: usize,
    pub(crate) intact: bool,
    pub(crate) audited: u64,
}

impl Snapshot {
    pub(crate) async fn of(load: &Load, url: &str) -> Self {
        let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
        let rules = load.all(url, "/api/v1/firewall-rules?", "rules").await;
        let incidents = load.all(url, "/api/v1/incidents?", "incidents").await;
        let board = load.get(url, &format!("/api/v1/incidents/{}", load.board)).await;
        let audit = async |action: &str| {
            let page = load.get(url, &format!("/api/v1/audit?action={action}&limit=1")).await;
            usize::try_from(page["total"].as_u64().unwrap()).unwrap()
        };
        let verdict = load.get(url, "/api/v1/audit/verify").await;
        let resolved = incidents.iter().filter(|i| i["status"] == "resolved").map(|i| text(i, "uuid"));
        Self {
            rules: rules.iter().map(|row| text(row, "name")).collect(),
            notes: board["incident"]["notes"].as_array().unwrap().iter().map(|note| text(note, "text")).collect(),
            resolved: resolved.collect(),
            incidents: incidents.len(),
            created: audit("rule.create").await,
            deleted: audit("rule.delete").await,
            noted: audit("incident.note").await,
            intact: verdict["intact"] == json!(true),
            audited: verdict["records"].as_u64().unwrap_or_default(),
        }
    }
}

/// Numbers that a test prints, so that it can be run again.
pub(crate) fn random(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// A moment to strike at.
pub(crate) fn moment(random: &mut StdRng) -> Duration {
    Duration::from_millis(random.random_range(100..1_600))
}
