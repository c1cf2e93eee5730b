//! The published reference, line by line on the real router, and the table of what was tried.
//!
//! What the document does not have is `missing` in the table: it cannot claim more than there is.

mod rows;

use std::fmt::Write as _;
use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use self::rows::{Parameter, Row};
use crate::document::Operation;
use crate::pcap_files::as_the_agent_writes;
use crate::support::{UUID, checked};
use crate::world::World;

const TABLE: &str = "../docs/api-coverage.md";
/// With this variable the table is written instead of compared.
const WRITE: &str = "FTAGENT_WRITE_TABLES";

#[tokio::test]
async fn every_row_of_the_reference_holds() {
    let mut bench = Bench { world: World::make().await, number: 0, spare: Vec::new() };
    let mut table = String::from(
        "# Coverage of the REST reference\n\n\
         Each operation and parameter of the reference, and what `every_row_of_the_reference_holds` \
         (`controlplane/tests/it/reference/`) tried on the real router, on SQLite and on PostgreSQL.\n\
         A row whose operation is not built is `missing`.\n\
         The test writes this table with `FTAGENT_WRITE_TABLES=1` and compares it without.\n\n\
         | Operation | Parameter | Type | Default | Tried |\n| --- | --- | --- | --- | --- |\n",
    );
    let (mut there, mut missing) = (0, 0);
    for row in Row::read_all() {
        let operation = bench.world.document.operation(&row.method, &row.path);
        let Some(operation) = operation else {
            missing += 1 + row.parameters.len();
            writeln!(table, "| `{} {}` | | | | **missing** |", row.method, row.path).unwrap();
            for parameter in &row.parameters {
                writeln!(table, "| | {} | **missing** |", described(parameter)).unwrap();
            }
            continue;
        };
        there += 1 + row.parameters.len();
        if let Some((count, what)) = &row.fill {
            bench.fill(*count, what).await;
        }
        // The operation itself comes last: it may be the end of what its path names.
        let mut lines = String::new();
        for parameter in &row.parameters {
            let tried = bench.parameter(&row, &operation, parameter).await;
            writeln!(lines, "| | {} | {tried} |", described(parameter)).unwrap();
        }
        let tried = bench.operation(&row, &operation).await;
        writeln!(table, "| `{} {}` | | | | {tried} |", row.method, row.path).unwrap();
        table.push_str(&lines);
    }
    writeln!(table, "\n{there} rows hold, {missing} are missing.").unwrap();
    println!("{there} rows hold, {missing} are missing");
    compare(&table);
}

fn described(parameter: &Parameter) -> String {
    let Parameter { place, name, kind_text, required, default, .. } = parameter;
    let default = match default {
        Some(value) => format!("`{value}`"),
        None if *required => "required".to_owned(),
        None => String::new(),
    };
    format!("{place} `{name}` | {} | {default}", kind_text.replace('|', ", "))
}

fn compare(table: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(TABLE);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(file, table).unwrap();
        return;
    }
    let written = std::fs::read_to_string(file).unwrap_or_default();
    assert!(
        written == table,
        "docs/api-coverage.md is not what was tried: {WRITE}=1 cargo test -p controlplane --test it -- reference"
    );
}

struct Bench {
    world: World,
    number: u32,
    /// Nodes that no call named yet.
    spare: Vec<String>,
}

impl Bench {
    fn filled(&mut self, text: &str) -> Value {
        self.number += 1;
        assert!(self.number < 65_000);
        let (high, low) = (self.number / 250, self.number % 250);
        let spare = if text.contains("$spare") { self.spare.pop().expect("fill more nodes") } else { String::new() };
        let text = text.replace("$spare", &spare);
        let adapter = self.world.ids.get("/api/v1/mitigation/adapters").cloned().unwrap_or_default();
        let text = text.replace("198.51.100.$n", &format!("198.18.{high}.{low}"));
        let text = text.replace("203.0.113.$n", &format!("198.19.{high}.{low}"));
        let text = text.replace("$node", &self.world.node.uuid).replace("$adapter", &adapter);
        serde_json::from_str(&text.replace("$n", &self.number.to_string())).unwrap()
    }

    /// A good body, none where the operation takes none.
    fn example(&mut self, row: &Row) -> Option<Value> {
        row.example.as_deref().map(|text| self.filled(text))
    }

    async fn send(&mut self, operation: &Operation, query: &str, body: Option<&Value>) -> (u16, Value) {
        // A thousand requests a minute are a token's, and ten captures an hour a node's.
        self.world.server.clock.advance(1);
        let id = self.world.id(operation).map(str::to_owned).unwrap_or_default();
        let path = format!("{}{query}", operation.path_of(&id));
        let request = self.world.server.request(operation.method.clone(), &path);
        checked(match body {
            Some(body) => request.json(body),
            None => request,
        })
        .await
    }

    async fn fill(&mut self, count: usize, what: &str) {
        match what {
            "captures" => {
                for n in 0..count {
                    self.capture(&format!("c{n}"), 2 + u32::try_from(n).unwrap()).await;
                    self.world.server.clock.advance(400);
                }
            }
            "packets" => {
                let id = self.capture("packets", u32::try_from(count).unwrap()).await;
                self.world.ids.insert("/api/v1/pcaps".to_owned(), id);
            }
            "nodes" => {
                for n in 0..count {
                    self.spare.push(self.world.server.deploy(&format!("spare-{n}")).await.uuid);
                }
            }
            path => {
                let rows = Row::read_all();
                let row = rows.iter().find(|r| r.method == "POST" && r.path == path).unwrap();
                let operation = self.world.document.operation("post", path).unwrap();
                for _ in 0..count {
                    let body = self.example(row);
                    let (status, answer) = self.send(&operation, "", body.as_ref()).await;
                    assert_eq!(status, 200, "{path}: {answer}");
                }
            }
        }
    }

    async fn capture(&mut self, upload: &str, packets: u32) -> String {
        let (server, node) = (&self.world.server, &self.world.node);
        let request = server.agent(node, Method::POST, &format!("/incidents/{UUID}/pcap"));
        let request = request.header("content-type", "application/octet-stream").header("X-Upload-Id", upload);
        let request = request.header("X-Chunk-Index", 0).header("X-Chunk-Total", 1);
        let (status, kept) = checked(request.body(as_the_agent_writes(packets, 1))).await;
        assert_eq!(status, 200, "{kept}");
        kept["pcap"]["id"].to_string()
    }

    /// The good call, what its answer holds, and an id that is none.
    async fn operation(&mut self, row: &Row, operation: &Operation) -> String {
        let name = operation.name();
        let mut tried = Vec::new();
        let body = self.example(row);
        if operation.collection().is_some() {
            for (id, status) in [("9999", 404), ("00000000-0000-4000-8000-000000000000", 404), ("x'%20OR%201=1", 400)] {
                let uuid = id.len() > 20;
                if operation.path.contains("{uuid}") != uuid && status == 404 {
                    continue;
                }
                let request = self.world.server.request(operation.method.clone(), &operation.path_of(id));
                let request = body.iter().fold(request, |request, body| request.json(body));
                let (got, answer) = checked(request).await;
                assert_eq!(got, status, "{name} {id}: {answer}");
            }
            tried.push("unknown id 404, wrong id 400".to_owned());
        }
        if let Some(content) = &row.content {
            let id = self.world.id(operation).unwrap().to_owned();
            let answer = self.world.server.request(Method::GET, &operation.path_of(&id)).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{name}");
            assert_eq!(answer.headers()["content-type"].to_str().unwrap(), content, "{name}");
            tried.push(format!("answers 200, `{content}`"));
            return tried.join("; ");
        }
        let (status, answer) = self.send(operation, "", body.as_ref()).await;
        assert!(row.statuses.contains(&status), "{name}: {status} {answer}");
        let statuses: Vec<_> = row.statuses.iter().map(u16::to_string).collect();
        let mut said = format!("answers {}", statuses.join(" or "));
        for (pointer, value) in &row.answers {
            let there = answer.pointer(pointer).unwrap_or_else(|| panic!("{name} lacks {pointer}: {answer}"));
            if let Some(value) = value {
                assert_eq!(there, value, "{name} {pointer}");
            }
        }
        if !row.answers.is_empty() {
            let pointers: Vec<_> =
                row.answers.iter().map(|(p, _)| format!("`{}`", &p[1..].replace('/', "."))).collect();
            said = format!("{said} with {}", pointers.join(", "));
        }
        tried.push(said);
        tried.join("; ")
    }

    async fn parameter(&mut self, row: &Row, operation: &Operation, parameter: &Parameter) -> String {
        let mut tried = Vec::new();
        if parameter.place == "query" {
            self.query_default(row, operation, parameter, &mut tried).await;
        } else {
            self.body_default(row, operation, parameter, &mut tried).await;
        }
        let (good, bad) = parameter.values();
        for value in &good {
            let (status, answer) = self.with(row, operation, parameter, value).await;
            assert!(!refused(status, &answer, parameter), "{} {value}: {answer}", parameter.name);
        }
        for value in &bad {
            let (status, answer) = self.with(row, operation, parameter, value).await;
            let name = format!("{} {} {value}", operation.name(), parameter.name);
            assert!(refused(status, &answer, parameter), "{name}: {status} {answer}");
        }
        let shown = |values: &[Value]| {
            let texts = values.iter().map(|v| match v.as_str() {
                Some(text) if text.len() > 40 => format!("{} characters", text.len()),
                _ => format!("`{v}`"),
            });
            texts.collect::<Vec<_>>().join(" ")
        };
        if !good.is_empty() {
            tried.push(format!("taken: {}", shown(&good)));
        }
        tried.push(format!("refused by name: {}", shown(&bad)));
        tried.join("; ").replace('|', "\\|")
    }

    async fn with(&mut self, row: &Row, operation: &Operation, parameter: &Parameter, value: &Value) -> (u16, Value) {
        if parameter.place == "query" {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            return self.send(operation, &format!("?{}={text}", parameter.name), None).await;
        }
        let mut body = self.example(row).unwrap();
        set(&mut body, &parameter.name, Some(value.clone()));
        self.send(operation, "", Some(&body)).await
    }

    async fn query_default(
        &mut self,
        row: &Row,
        operation: &Operation,
        parameter: &Parameter,
        tried: &mut Vec<String>,
    ) {
        let Some(default) = parameter.default.as_ref().and_then(Value::as_u64) else { return };
        let list = row.answers[0].0.as_str();
        let (_, absent) = self.send(operation, "", None).await;
        let length = |answer: &Value| answer.pointer(list).and_then(Value::as_array).unwrap().len() as u64;
        let total = absent["total"].as_u64().unwrap();
        if parameter.name == "limit" {
            assert!(total > default, "{}: {total} are too few to see the default", operation.name());
            assert_eq!(length(&absent), default, "{}", operation.name());
            let rows::Kind::Integer(_, Some(max)) = parameter.kind else { panic!("a limit has bounds") };
            let max = u64::try_from(max).unwrap();
            let (_, most) = self.send(operation, &format!("?limit={max}"), None).await;
            assert_eq!(length(&most), total.min(max), "{}", operation.name());
        } else {
            let (_, first) = self.send(operation, "?offset=0", None).await;
            assert_eq!(first.pointer(list), absent.pointer(list));
            let (_, second) = self.send(operation, "?offset=1&limit=1", None).await;
            assert_eq!(second.pointer(list).unwrap()[0], absent.pointer(list).unwrap()[1]);
        }
        tried.push("absent: the default".to_owned());
    }

    async fn body_default(&mut self, row: &Row, operation: &Operation, parameter: &Parameter, tried: &mut Vec<String>) {
        let mut body = self.example(row).unwrap();
        set(&mut body, &parameter.name, None);
        let (status, answer) = self.send(operation, "", Some(&body)).await;
        let name = format!("{} without {}", operation.name(), parameter.name);
        if parameter.required {
            assert!(refused(status, &answer, parameter), "{name}: {status} {answer}");
            tried.push("absent: refused by name".to_owned());
            return;
        }
        assert_eq!(status, 200, "{name}: {answer}");
        match (&parameter.default, &parameter.at) {
            (Some(default), Some(at)) => {
                assert_eq!(answer.pointer(at), Some(default), "{name}: {answer}");
                tried.push("absent: the default".to_owned());
            }
            _ => tried.push("absent: taken".to_owned()),
        }
    }
}

/// Whether the answer refuses the request because of this parameter, or of what it lies in.
fn refused(status: u16, answer: &Value, parameter: &Parameter) -> bool {
    let details = answer["error"]["details"].as_array().into_iter().flatten();
    let named = details.filter_map(|d| d["field"].as_str()).any(|field| {
        let field = field.replace('[', ".").replace(']', "");
        let within =
            |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|r| r.is_empty() || r.starts_with('.'));
        within(&field, &parameter.name) || within(&parameter.name, &field)
    });
    let code = &answer["error"]["code"];
    named
        && ((status, code) == (400, &json!("invalid_parameter")) || (status, code) == (422, &json!("validation_error")))
}

/// Sets a field of a body, or takes it away.
fn set(body: &mut Value, name: &str, value: Option<Value>) {
    let (last, parents) = match name.rsplit_once('.') {
        Some((parents, last)) => (last, parents),
        None => (name, ""),
    };
    let mut place = body;
    for part in parents.split('.').filter(|p| !p.is_empty()) {
        place = match part.parse::<usize>() {
            Ok(index) => &mut place[index],
            Err(_) => &mut place[part],
        };
    }
    let object = place.as_object_mut().unwrap();
    match value {
        Some(value) => object.insert(last.to_owned(), value),
        None => object.remove(last),
    };
}
