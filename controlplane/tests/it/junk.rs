//! What a stranger can send, sent to every operation of the document by a caller whom it serves.
//!
//! Nothing of it may be done, answered in another shape, with a status that the document does not have, or by an error
//! of the server.

use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::document::Operation;
use crate::support::checked;
use crate::world::World;

struct Bench {
    world: World,
    feed: String,
    tried: usize,
}

impl Bench {
    async fn make() -> Self {
        let world = World::make().await;
        let made = world.server.made("/api/v1/workspace/feed-tokens", &json!({ "name": "junk" })).await;
        Self { feed: made["value"].as_str().unwrap().to_owned(), world, tried: 0 }
    }

    /// A request by a caller whom the operation serves.
    fn request(&self, operation: &Operation, path: &str) -> RequestBuilder {
        let server = &self.world.server;
        let request = server.client.request(operation.method.clone(), format!("{}{path}", server.url));
        let callers = operation.callers();
        if callers.contains(&"owner") {
            request.bearer_auth(&server.owner)
        } else if callers.contains(&"node") {
            request.bearer_auth(&self.world.node.key).header("X-Node-UUID", &self.world.node.uuid)
        } else if callers.contains(&"feed") {
            request.bearer_auth(&self.feed)
        } else {
            request
        }
    }

    /// The path of what is there.
    fn path(&self, operation: &Operation) -> String {
        operation.path_of(self.world.id(operation).unwrap_or_default())
    }

    /// Sends what must be refused, with one of these statuses.
    async fn refused(&mut self, operation: &Operation, what: &str, request: RequestBuilder, statuses: &[u16]) -> Value {
        // So slowly that no limit answers instead: a node has 5 heartbeats a minute.
        self.world.server.clock.advance(if operation.callers() == ["node"] { 13 } else { 1 });
        let (status, answer) = checked(request).await;
        let name = format!("{} with {what}", operation.name());
        assert!(statuses.contains(&status), "{name}: {status} {answer}");
        assert!(
            operation.value["responses"][status.to_string()].is_object(),
            "{name}: {status} is not in the document"
        );
        assert!(answer.to_string().len() < 4_000, "{name}: the answer repeats what was sent");
        self.tried += 1;
        answer
    }

    /// Sends what may or may not be taken: only the server must hold.
    async fn survived(&mut self, operation: &Operation, what: &str, request: RequestBuilder) {
        self.world.server.clock.advance(if operation.callers() == ["node"] { 13 } else { 1 });
        let name = format!("{} with {what}", operation.name());
        let answer = tokio::time::timeout(Duration::from_secs(20), request.send()).await;
        let answer = answer.unwrap_or_else(|_| panic!("{name}: no answer")).unwrap();
        let status = answer.status().as_u16();
        assert!(status < 500, "{name}: {status}");
        assert!(
            operation.value["responses"][status.to_string()].is_object(),
            "{name}: {status} is not in the document"
        );
        if status >= 400 {
            let text = answer.text().await.unwrap();
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{name}: {text}"));
            assert!(value["ok"] == json!(false) && text.len() < 8_000, "{name}: {text}");
        }
        self.tried += 1;
    }

    async fn end(self, least: usize) {
        println!("{} requests", self.tried);
        assert!(self.tried >= least, "only {} requests", self.tried);
        let (_, verdict) = self.world.server.get("/api/v1/audit/verify").await;
        assert_eq!(verdict["intact"], json!(true));
        assert_eq!(self.world.server.get("/api/ready").await.0, 200);
    }
}

#[tokio::test]
async fn bodies_that_are_no_json_of_ours_are_refused_everywhere() {
    let mut bench = Bench::make().await;
    for operation in bench.world.document.operations() {
        let Some(body) = bench.world.body(&operation) else { continue };
        let path = bench.path(&operation);
        let text = body.to_string();
        let inner = text[1..text.len() - 1].to_owned();
        let more = |field: &str| if inner.is_empty() { format!("{{{field}}}") } else { format!("{{{inner},{field}}}") };
        let deep = |open: &str, close: &str| open.repeat(100_000) + "1" + &close.repeat(100_000);
        let mut bodies: Vec<(&str, Vec<u8>)> = vec![
            ("nothing", vec![]),
            ("half an object", text[..text.len() - 1].into()),
            ("a list", format!("[{text}]").into()),
            ("text", b"\"text\"".into()),
            ("null", b"null".into()),
            ("a number without end", b"1e999999".into()),
            ("NUL bytes", vec![0; 64]),
            ("bytes that are no UTF-8", [b"{\"\xff\xfe\":1,".as_slice(), inner.as_bytes(), b"}"].concat()),
            ("a byte order mark", [b"\xef\xbb\xbf".as_slice(), text.as_bytes()].concat()),
            ("two bodies", format!("{text}{text}").into()),
            ("lists without end", deep("[", "]").into()),
            ("objects without end", deep("{\"a\":", "}").into()),
            ("half a surrogate", more(r#""\ud800":1"#).into()),
        ];
        if let Some((key, value)) = body.as_object().and_then(|o| o.iter().next()) {
            bodies.push(("a key twice", more(&format!("\"{key}\":{value}")).into()));
        }
        for (what, bytes) in bodies {
            let request = bench.request(&operation, &path).header("content-type", "application/json").body(bytes);
            bench.refused(&operation, what, request, &[400]).await;
        }
        for kind in ["text/plain", "application/x-www-form-urlencoded", "application/json5", "multipart/form-data"] {
            let request = bench.request(&operation, &path).header("content-type", kind).body(text.clone());
            bench.refused(&operation, kind, request, &[415]).await;
        }
        let most = if path.contains("/firewall-rules") { 6 * 1_048_576 } else { 1_048_576 };
        let large = format!("{{\"a\":\"{}\"}}", "a".repeat(most + 1));
        let request = bench.request(&operation, &path).header("content-type", "application/json").body(large);
        bench.refused(&operation, "more bytes than it may have", request, &[413]).await;
    }
    bench.end(500).await;
}

#[tokio::test]
async fn every_field_holds_against_hostile_values() {
    let mut bench = Bench::make().await;
    let values = [
        json!("\0"),
        json!("x".repeat(100_000)),
        json!("'; DROP TABLE nodes; --"),
        json!("../../../etc/passwd"),
        json!("=cmd|'/c calc'!A0\r\n\"x\""),
        json!("\u{202e}\u{feff}\u{10ffff}"),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(-0.0),
        json!(1e308),
        json!([[[[]]]]),
        json!({ "": { "\0": null } }),
        Value::Null,
    ];
    for operation in bench.world.document.operations() {
        let Some(body) = bench.world.body(&operation) else { continue };
        let Some(schema) = bench.world.document.body_schema(&operation) else { continue };
        let fields: Vec<String> =
            schema["properties"].as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect();
        for field in fields {
            for value in &values {
                // What is there is not changed: the next field wants it as it is.
                let path =
                    if operation.callers() == ["node"] { bench.path(&operation) } else { operation.path_of_nothing() };
                let mut body = body.clone();
                body[&field] = value.clone();
                let what = format!("{field} = {}", value.to_string().chars().take(40).collect::<String>());
                let request = bench.request(&operation, &path).json(&body);
                bench.survived(&operation, &what, request).await;
            }
        }
    }
    bench.end(1_500).await;
}

#[tokio::test]
async fn ids_that_are_none_lead_nowhere() {
    let mut bench = Bench::make().await;
    let long = "a".repeat(20_000);
    let ids = [
        "%00",
        "%ff%fe",
        "%c0%af",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e%2f",
        "1%27%20OR%201=1",
        "1;DROP%20TABLE%20nodes",
        "1%0d%0aX-Injected:%201",
        "-1",
        "+1",
        "0x1",
        "1e0",
        "99999999999999999999",
        "%EF%BC%91",
        "%3Cscript%3E",
        long.as_str(),
    ];
    for operation in bench.world.document.operations() {
        if operation.collection().is_none() {
            continue;
        }
        for id in ids {
            let mut request = bench.request(&operation, &operation.path_of(id));
            if let Some(body) = bench.world.body(&operation) {
                request = request.json(&body);
            } else if operation.path.ends_with("/pcap") {
                request = request.header("content-type", "application/octet-stream").body(vec![0; 24]);
            }
            // -1 and +1 are numbers; of those there is nothing. An id that is none is refused by its name.
            let answer = bench.refused(&operation, id, request, &[400, 404]).await;
            if answer["error"]["code"] == "invalid_parameter" {
                let name = if operation.path.contains("{uuid}") { "uuid" } else { "id" };
                assert_eq!(answer["error"]["details"][0]["field"], name, "{}: {answer}", operation.name());
            }
        }
    }
    bench.end(600).await;
}

#[tokio::test]
async fn parameters_of_the_query_hold_against_junk() {
    let mut bench = Bench::make().await;
    let junk = ["%00", "%ff", "%27%20OR%201=1", "..%2f..", "1%0d%0a", "99999999999999999999", "-1", "1e400", "NaN"];
    for operation in bench.world.document.operations() {
        let path = bench.path(&operation);
        let known = operation.parameters("query");
        let need = if operation.path.ends_with("/export") { "format=csv&" } else { "" };
        for (name, schema) in &known {
            for value in junk {
                let request = bench.request(&operation, &format!("{path}?{need}{name}={value}"));
                bench.survived(&operation, &format!("{name}={value}"), request).await;
            }
            let text = bench.world.document.sample(schema);
            let text =
                text.as_str().map_or_else(|| text.to_string(), |t| t.replace('x', "192.0.2.1")).replace(':', "%3A");
            let twice = bench.request(&operation, &format!("{path}?{need}{name}={text}&{name}={text}"));
            let answer = bench.refused(&operation, &format!("{name} twice"), twice, &[400]).await;
            assert_eq!(answer["error"]["details"][0]["field"], *name, "{}: {answer}", operation.name());
        }
        if operation.method == Method::GET && !operation.streams() {
            let long = format!("{path}?{need}{}=1", "q".repeat(30_000));
            bench.survived(&operation, "a long query", bench.request(&operation, &long)).await;
            let many = format!("{path}?{need}{}", "a=1&".repeat(5_000));
            bench.survived(&operation, "many parameters", bench.request(&operation, &many)).await;
        }
    }
    bench.end(400).await;
}

#[tokio::test]
async fn headers_hold_against_junk() {
    let mut bench = Bench::make().await;
    let long = "h".repeat(10_000);
    let junk: [&[u8]; 6] = [b"", b"\xff\xfe", b"' OR 1=1", b"99999999999999999999", b"-1", long.as_bytes()];
    for operation in bench.world.document.operations() {
        if operation.streams() {
            continue;
        }
        let path = operation.path_of_nothing();
        let mut names: Vec<String> = operation.parameters("header").into_iter().map(|(name, _)| name).collect();
        names.extend(["Accept", "Content-Type", "If-Match", "Range", "X-Forwarded-For", "X-Junk"].map(str::to_owned));
        for name in names {
            for value in junk {
                let request = bench.request(&operation, &path).header(&name, value);
                bench.survived(&operation, &name, request).await;
            }
        }
        // A credential that is none.
        let server = &bench.world.server;
        if operation.callers() != ["anyone"] {
            for value in junk {
                let request = server.client.request(operation.method.clone(), format!("{}{path}", server.url));
                let value = [b"Bearer ".as_slice(), value].concat();
                let answer = checked(request.header("Authorization", value)).await;
                assert_eq!(answer.0, 401, "{}", operation.name());
                server.clock.advance(1);
            }
        }
    }
    bench.end(2_000).await;
}
