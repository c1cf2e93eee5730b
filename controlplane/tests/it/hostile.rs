//! Everything a stranger can send.

use controlplane::store::sql::Database;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Server, checked, rule};

#[tokio::test]
async fn bodies_that_cannot_be_read_are_refused_by_name() {
    let server = Server::start().await;
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let table: [(&str, &str, u16); 19] = [
        ("nothing", "", 400),
        ("no JSON", "{", 400),
        ("text", "hello", 400),
        ("a list", "[]", 400),
        ("a list of fields", r#" ["r",{"type":"any"},{"type":"xdp_drop_source"},{"type":"all"},5,true]"#, 400),
        ("null", "null", 400),
        ("NUL bytes", "\0\0\0", 400),
        ("trailing", r#"{"name":"r","trigger":{"type":"any"},"action":{"type":"xdp_drop_source"}} {}"#, 400),
        ("deep", &deep, 400),
        ("missing field", r#"{"name":"r"}"#, 400),
        ("unknown field", r#"{"name":"r","colour":1}"#, 400),
        ("twice", r#"{"name":"r","name":"s"}"#, 400),
        ("wrong type", r#"{"name":1}"#, 400),
        (
            "huge number",
            r#"{"name":"r","trigger":{"type":"any"},"action":{"type":"xdp_drop_source"},"cooldown_minutes":1e400}"#,
            400,
        ),
        (
            "big number",
            r#"{"name":"r","trigger":{"type":"any"},"action":{"type":"xdp_drop_source"},"cooldown_minutes":99999999999999999999}"#,
            400,
        ),
        (
            "negative",
            r#"{"name":"r","trigger":{"type":"any"},"action":{"type":"xdp_drop_source"},"cooldown_minutes":-1}"#,
            400,
        ),
        ("NUL in a name", r#"{"name":"a\u0000b","trigger":{"type":"any"},"action":{"type":"xdp_drop_source"}}"#, 422),
        ("half a surrogate", r#"{"name":"\ud800","trigger":{"type":"any"},"action":{"type":"xdp_drop_source"}}"#, 400),
        ("unknown action", r#"{"name":"r","trigger":{"type":"any"},"action":{"type":"rm_rf"}}"#, 400),
    ];
    for (name, body, expected) in table {
        let request = server.request(Method::POST, "/api/v1/firewall-rules").header("content-type", "application/json");
        let (status, answer) = checked(request.body(body.to_owned())).await;
        assert_eq!(status, expected, "{name}: {answer}");
        assert!(answer.to_string().len() < 2_000, "{name}: the answer repeats what was sent");
    }
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""] {
        let request = server.request(Method::POST, "/api/v1/firewall-rules").header("content-type", content_type);
        let (status, answer) = checked(request.body(rule("r").to_string())).await;
        assert_eq!((status, &answer["error"]["code"]), (415, &json!("unsupported_media_type")), "{content_type}");
    }
    assert_eq!(server.get("/api/v1/firewall-rules").await.1["total"], 0);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_however_it_is_sent() {
    let server = Server::start().await;
    // Rules may name many sources; nothing else is as long.
    for (path, mebibytes) in
        [("/api/v1/allowlist", 2), ("/api/v1/firewall-rules", 7), ("/api/v1/firewall-rules/preview", 7)]
    {
        let body = vec![b' '; mebibytes * 1_048_576];
        let request = || server.request(Method::POST, path).header("content-type", "application/json");
        let (status, answer) = checked(request().body(body.clone())).await;
        assert_eq!((status, &answer["error"]["code"]), (413, &json!("payload_too_large")), "{path}");
        let keyed = request().header("Idempotency-Key", "large").body(body.clone());
        assert_eq!(checked(keyed).await.0, 413, "{path}");
        let chunks = futures_util::stream::iter(
            body.chunks(65_536).map(|c| Ok::<_, std::io::Error>(c.to_vec())).collect::<Vec<_>>(),
        );
        let streamed = reqwest::Body::wrap_stream(chunks);
        assert_eq!(checked(request().body(streamed)).await.0, 413, "{path}");
    }
    assert_eq!(server.get("/api/v1/firewall-rules").await.0, 200);
}

#[tokio::test]
async fn junk_in_paths_and_filters_finds_nothing_and_breaks_nothing() {
    let server = Server::start().await;
    server.made("/api/v1/firewall-rules", &rule("r")).await;
    for path in [
        "/api/v1/firewall-rules/1%27%20OR%201=1",
        "/api/v1/firewall-rules/99999999999999999999",
        "/api/v1/firewall-rules/%00",
        "/api/v1/firewall-rules/%ff%fe",
        "/api/v1/firewall-rules/..%2f..%2fetc%2fpasswd",
        "/api/v1/nodes/not-a-uuid",
        "/api/v1/nodes/%c0%af",
        "/api/v1/allowlist?node=%27;DROP%20TABLE%20allowlist",
        "/api/v1/nodes?status=%00",
        "/api/v1/audit?from=%ff",
    ] {
        let (status, answer) = server.get(path).await;
        assert_eq!(status, 400, "{path}: {answer}");
    }
    let long = format!("/api/v1/firewall-rules/{}", "a".repeat(20_000));
    assert_eq!(server.get(&long).await.0, 400);
    for filter in ["actor=%25", "actor=_", "object=rule/%25", "action=%27%20OR%20%271%27=%271", "action=%00"] {
        let (status, answer) = server.get(&format!("/api/v1/audit?{filter}")).await;
        assert_eq!((status, &answer["total"]), (200, &json!(0)), "{filter}");
    }
    assert_eq!(server.get("/api/v1/firewall-rules").await.1["total"], 1);
}

#[tokio::test]
async fn a_locked_database_answers_503_and_the_retry_succeeds() {
    let server = Server::start().await;
    let (mut file, mut row) = (None, None);
    match &server.database {
        Database::Sqlite(path) => {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
            let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
            file = Some(pool.begin_with("BEGIN EXCLUSIVE").await.unwrap());
        }
        Database::Postgres(settings) => {
            let pool = sqlx::PgPool::connect(&format!("postgres://ftagent@{}", settings.place())).await.unwrap();
            let mut lock = pool.begin().await.unwrap();
            sqlx::query("SELECT id FROM workspaces FOR UPDATE").execute(&mut *lock).await.unwrap();
            row = Some(lock);
        }
    }
    let (status, answer) = server.post("/api/v1/firewall-rules", &rule("r")).await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("unavailable")), "{answer}");
    assert_eq!(server.get("/api/v1/firewall-rules").await.0, 200, "reads go on");
    if let Some(lock) = file.take() {
        lock.rollback().await.unwrap();
    }
    if let Some(lock) = row.take() {
        lock.rollback().await.unwrap();
    }
    assert_eq!(server.post("/api/v1/firewall-rules", &rule("r")).await.0, 200);
    assert_eq!(server.get("/api/v1/audit?action=rule.create").await.1["total"], 1);
}

#[tokio::test]
async fn half_requests_leave_the_server_serving() {
    let server = Server::start().await;
    let address = server.url.trim_start_matches("http://").to_owned();
    let head = format!("POST /api/v1/firewall-rules HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n", server.owner);
    for bytes in [
        "GET".to_owned(),
        "\0\0\0\0\r\n\r\n".to_owned(),
        "GET /%%% HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        format!("{head}content-type: application/json\r\ncontent-length: 100\r\n\r\n{{\"name\":"),
        format!("{head}content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
        format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5_000)),
    ] {
        let mut socket = tokio::net::TcpStream::connect(&address).await.unwrap();
        socket.write_all(bytes.as_bytes()).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // The peer may reset what it does not want to read.
        drop(socket.read_to_end(&mut answer).await);
        let text = String::from_utf8_lossy(&answer);
        assert!(!text.contains(" 200 ") && !text.contains(" 500 "), "{text}");
    }
    assert_eq!(server.get("/api/v1/firewall-rules").await.1["total"], 0);
}
