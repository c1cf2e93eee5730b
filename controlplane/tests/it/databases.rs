//! Whole databases: copies, dumps from one kind to the other, schemas of other programs.

use std::path::Path;
use std::time::Duration;

use controlplane::store::sql::dump::{DumpError, Moved};
use controlplane::store::sql::{Database, SqlStore};
use controlplane::store::{Store as _, StoreError};
use reqwest::Client;
use serde_json::{Value, json};

use crate::cluster::{Cluster, raw, settings};
use crate::process::{Process, json_of, run};
use crate::support::{Server, UUID, report, rule};

fn quiet() -> impl FnMut(&str, u64) + Send {
    |_, _| {}
}

async fn export(database: &Database) -> (Vec<u8>, Moved) {
    let store = SqlStore::attach(database).await.unwrap();
    let mut out = Vec::new();
    let moved = store.export(&mut out, &mut quiet()).await.unwrap();
    store.close().await;
    (out, moved)
}

async fn import(database: &Database, dump: &[u8]) -> Result<Moved, DumpError> {
    let store = SqlStore::open(database).await.unwrap();
    let done = store.import(&mut &*dump, &mut quiet()).await;
    store.close().await;
    done
}

/// Something in every table, as far as the API makes it.
async fn fill(server: &Server) {
    let node = server.deploy("edge-1").await;
    let other = server.deploy("edge-ü\u{1f980}").await;
    server.heartbeat(&node, 0.1 + 0.2).await;
    server.report(&node, "/incidents", &report(UUID, 1, "active")).await;
    for n in 0..450 {
        server.made("/api/v1/firewall-rules", &rule(&format!("r{n}"))).await;
    }
    assert_eq!(server.delete("/api/v1/firewall-rules/450").await.0, 200, "the last number, which must not come again");
    server.made("/api/v1/allowlist", &json!({ "ip_address": "198.51.100.0/24", "label": "ours" })).await;
    let note = json!({ "text": "a note\nwith 'quotes', \"more\" and \\" });
    server.made(&format!("/api/v1/incidents/{UUID}/notes"), &note).await;
    let thresholds = json!({ "target_ip": "203.0.113.5", "thresholds": { "pps": 10 } });
    server.made("/api/v1/mitigation/thresholds", &thresholds).await;
    server
        .made(
            &format!("/api/v1/nodes/{}/commands", other.uuid),
            &json!({ "order": { "type": "unblock", "source": "192.0.2.1/32" } }),
        )
        .await;
    let hook = json!({ "adapter_type": "webhook", "name": "hook", "endpoint": "https://bgp.example", "auth_token": "t",
        "config": { "prefixes": ["203.0.113.0/24"] } });
    let adapter = server.made("/api/v1/mitigation/adapters", &hook).await["adapter"]["id"].clone();
    let wanted = json!({ "target_ip": "203.0.113.9", "intent_type": "blackhole", "adapter_id": adapter });
    server.made("/api/v1/mitigation/rules", &wanted).await;
    server.made("/api/v1/mitigation/escalation", &json!({ "dry_run": false })).await;
    let runbook = json!({ "name": "r", "trigger_conditions": {}, "steps": [
        { "action_type": "log", "action_config": { "message": "a" } } ] });
    let runbook = server.made("/api/v1/runbooks", &runbook).await["runbook"]["id"].clone();
    server.made(&format!("/api/v1/runbooks/{runbook}/run"), &json!({})).await;
    let scrubbing = json!({ "name": "s", "provider": "vultr", "credentials": { "api_key": "k" } });
    server.made("/api/v1/scrubbing", &scrubbing).await;
    let indicator = json!({ "value": "192.0.2.7", "confidence": 0.29, "source": "a source" });
    server.made("/api/v1/threat-intel/import", &json!({ "indicators": [indicator] })).await;
    let feed = server.made("/api/v1/workspace/feed-tokens", &json!({ "name": "ids" })).await;
    let rules = server.client.get(format!("{}/api/v1/feeds/suricata.rules?min_confidence=0", server.url));
    assert_eq!(rules.bearer_auth(feed["value"].as_str().unwrap()).send().await.unwrap().status(), 200);
    let weekly = json!({ "type": "weekly", "weekday": "monday", "start": "04:00", "minutes": 60 });
    server.made("/api/v1/maintenance", &json!({ "name": "patches", "node": node.uuid, "schedule": weekly })).await;
    server.made("/api/v1/integrations", &json!({ "kind": "iptables", "name": "blocks" })).await;
    let mut later = report(UUID, 2, "active");
    later["top_sources"][0]["ip"] = json!("192.0.2.9");
    server.report(&node, &format!("/incidents/{UUID}"), &later).await;
    let profile = json!({ "profile_id": "saas", "suite": "ufw", "node_ids": [other.uuid] });
    server.made("/api/v1/attack-profiles/apply", &profile).await;
    let sample = json!({ "at": crate::support::NOW, "pps": u64::MAX, "bps": 2, "dropped_pps": 0, "tcp_pps": 1, "udp_pps": 0, "icmp_pps": 0, "other_pps": 0 });
    server.report(&node, "/metrics", &json!({ "samples": [sample] })).await;
}

#[tokio::test]
async fn a_dump_goes_from_sqlite_to_postgres_and_back_and_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let first = Database::Sqlite(folder.path().join("first.sqlite"));
    let server = Server::start_on(&first, tempfile::tempdir().unwrap(), None, Default::default()).await;
    fill(&server).await;
    let (dump, moved) = export(&first).await;
    assert!(moved.chains.iter().all(|chain| chain.intact && chain.records > 450), "{moved:?}");
    let kinds = String::from_utf8(dump.clone()).unwrap();
    let empty = |table: &str| kinds.contains(&format!("{{\"table\":\"{table}\",")) && !has_rows(&kinds, table);
    for table in
        ["tokens", "nodes", "rules", "incidents", "incident_notes", "commands", "metrics", "audit", "indicators"]
            .into_iter()
            .chain(["feed_tokens", "suricata_sids", "maintenance_windows"])
            .chain(["adapters", "mitigation_rules", "escalation_policies", "scrubbing"])
            .chain(["staged_rules", "profile_applications"])
            .chain(["runbooks", "runbook_executions"])
    {
        assert!(!empty(table), "{table} is empty: it proves nothing");
    }
    let back = Database::Sqlite(folder.path().join("back.sqlite"));
    let Some(cluster) = Cluster::shared() else { return };
    let middle = settings(&cluster.database().await);
    assert_eq!(import(&middle, &dump).await.unwrap(), moved);
    let (again, _) = export(&middle).await;
    assert_eq!(String::from_utf8(again.clone()).unwrap(), kinds);
    assert_eq!(import(&back, &again).await.unwrap(), moved);
    assert_eq!(export(&back).await.0, dump);

    // Life goes on in both, with numbers that were never given away.
    for (database, cluster) in [(middle, Some(cluster)), (back, None)] {
        let mut moved = Server::start_on(&database, tempfile::tempdir().unwrap(), cluster, Default::default()).await;
        assert!(moved.owner.is_empty());
        moved.owner.clone_from(&server.owner);
        assert_eq!(moved.made("/api/v1/firewall-rules", &rule("new")).await["rule"]["id"], json!(451));
        assert_eq!(moved.get("/api/v1/audit/verify").await.1["intact"], json!(true));
        let same = moved.get(&format!("/api/v1/incidents/{UUID}")).await;
        assert_eq!(same, server.get(&format!("/api/v1/incidents/{UUID}")).await);
    }
}

/// Whether a row follows the line of `table`.
fn has_rows(dump: &str, table: &str) -> bool {
    let mut lines = dump.lines().skip_while(|line| !line.starts_with(&format!("{{\"table\":\"{table}\",")));
    lines.nth(1).is_some_and(|line| line.starts_with('['))
}

#[tokio::test]
async fn what_is_no_whole_dump_leaves_the_database_empty() {
    let folder = tempfile::tempdir().unwrap();
    let first = Database::Sqlite(folder.path().join("first.sqlite"));
    let server = Server::start_on(&first, tempfile::tempdir().unwrap(), None, Default::default()).await;
    server.deploy("edge-1").await;
    server.made("/api/v1/firewall-rules", &rule("r")).await;
    let (dump, _) = export(&first).await;
    let text = String::from_utf8(dump.clone()).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let without = |n: usize| {
        let kept: Vec<_> = lines.iter().enumerate().filter(|(i, _)| *i != n).map(|(_, line)| *line).collect();
        kept.join("\n") + "\n"
    };
    let row = lines.iter().position(|line| line.starts_with('[')).unwrap();
    let table = [
        ("nothing", String::new()),
        ("junk", "junk\n".to_owned()),
        ("another format", text.replacen("ftagent-controlplane", "other", 1)),
        ("another schema", text.replacen("\"schema\":", "\"schema\":9", 1)),
        ("cut off", text[..text.len() / 2].to_owned()),
        ("without its end", without(lines.len() - 1)),
        ("without a row", without(row)),
        ("changed", text.replacen("edge-1", "edge-2", 1)),
        ("a table less", text.replacen("{\"table\":\"rules\"", "{\"table\":\"roles\"", 1)),
        ("a row twice", text.replacen(lines[row], &format!("{0}\n{0}", lines[row]), 1)),
    ];
    let mut targets = vec![Database::Sqlite(folder.path().join("target.sqlite"))];
    let cluster = Cluster::shared();
    if let Some(cluster) = &cluster {
        targets.push(settings(&cluster.database().await));
    }
    for target in &targets {
        for (name, dump) in &table {
            let refused = import(target, dump.as_bytes()).await;
            assert!(matches!(refused, Err(DumpError::Line { .. })), "{name}: {refused:?}");
        }
        assert!(import(target, &dump).await.is_ok(), "after all that it is still empty");
        assert!(matches!(import(target, &dump).await, Err(DumpError::NotEmpty("workspaces"))));
    }
}

#[tokio::test]
async fn every_table_and_column_is_in_a_dump() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cp.sqlite");
    let mut all = vec![Database::Sqlite(path.clone())];
    let cluster = Cluster::shared();
    if let Some(cluster) = &cluster {
        all.push(settings(&cluster.database().await));
    }
    for database in &all {
        SqlStore::open(database).await.unwrap().close().await;
        let (dump, _) = export(database).await;
        let mut dumped: Vec<String> = Vec::new();
        for line in dump.split(|b| *b == b'\n').filter(|line| line.starts_with(b"{\"table\"")) {
            let line: Value = serde_json::from_slice(line).unwrap();
            let columns = line["columns"].as_array().unwrap();
            dumped
                .extend(columns.iter().map(|c| format!("{}.{}", line["table"].as_str().unwrap(), c.as_str().unwrap())));
        }
        dumped.sort();
        let query = match database {
            Database::Sqlite(_) => {
                "SELECT m.name || '.' || c.name FROM sqlite_schema m, pragma_table_info(m.name) c
                 WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' AND m.name NOT LIKE '\\_sqlx%' ESCAPE '\\'"
            }
            Database::Postgres(_) => {
                "SELECT table_name || '.' || column_name FROM information_schema.columns
                 WHERE table_schema = 'public' AND table_name NOT LIKE '\\_sqlx%'"
            }
        };
        let mut there: Vec<String> = match database {
            Database::Sqlite(path) => {
                let pool =
                    sqlx::SqlitePool::connect_with(sqlx::sqlite::SqliteConnectOptions::new().filename(path)).await;
                sqlx::query_scalar(query).fetch_all(&pool.unwrap()).await.unwrap()
            }
            Database::Postgres(settings) => {
                let pool = sqlx::PgPool::connect(&format!("postgres://ftagent@{}", settings.place())).await.unwrap();
                sqlx::query_scalar(query).fetch_all(&pool).await.unwrap()
            }
        };
        there.sort();
        assert_eq!(dumped, there, "{database:?}");
    }
}

#[tokio::test]
async fn a_newer_database_is_refused_and_an_older_one_is_not_changed_by_a_copy() {
    let folder = tempfile::tempdir().unwrap();
    let mut all = vec![Database::Sqlite(folder.path().join("cp.sqlite"))];
    let cluster = Cluster::shared();
    if let Some(cluster) = &cluster {
        all.push(settings(&cluster.database().await));
    }
    for database in &all {
        SqlStore::open(database).await.unwrap().close().await;
        let note = match database {
            Database::Sqlite(_) => "x'00'",
            Database::Postgres(_) => "'\\x00'",
        };
        let insert = format!(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'of tomorrow', true, {note}, 0)"
        );
        raw(database, &insert).await.unwrap();
        let said = |fault: StoreError| format!("{:#}", anyhow::Error::from(fault));
        for opened in [SqlStore::open(database).await, SqlStore::attach(database).await] {
            let said = said(opened.err().unwrap());
            assert!(said.contains("schema 9999") && said.contains("newer program"), "{said}");
        }
        raw(database, "DELETE FROM _sqlx_migrations WHERE version > 1").await.unwrap();
        let said = said(SqlStore::attach(database).await.err().unwrap());
        assert!(said.contains("controlplane migrate"), "{said}");
    }
}

async fn writing(process: &Process, token: &str, client: &Client, name: &str) -> u16 {
    let url = format!("{}/api/v1/firewall-rules", process.url);
    client.post(url).bearer_auth(token).json(&rule(name)).send().await.unwrap().status().as_u16()
}

async fn names(process: &Process, token: &str, client: &Client) -> Vec<String> {
    let page = json_of(client, &format!("{}/api/v1/firewall-rules?limit=500", process.url), token).await;
    page["rules"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_restores_to_what_was_acknowledged_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let process = Process::start(&data, &[]);
    let (token, client) = (process.token().unwrap(), Client::new());
    for n in 0..20 {
        assert_eq!(writing(&process, &token, &client, &format!("before-{n}")).await, 200);
    }
    let file = folder.path().join("copy.sqlite");
    let dump = folder.path().join("dump.jsonl");
    let (url, bearer, busy) = (process.url.clone(), token.clone(), client.clone());
    let load = tokio::spawn(async move {
        for n in 0..300 {
            let request = busy
                .post(format!("{url}/api/v1/firewall-rules"))
                .bearer_auth(&bearer)
                .json(&rule(&format!("load-{n}")));
            assert_eq!(request.send().await.unwrap().status(), 200);
        }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let told = |args: &[&str]| run(&data, args);
    let (ok, said) = told(&["backup", file.to_str().unwrap()]);
    assert!(ok && said.contains("bytes"), "{said}");
    let (ok, said) = told(&["export", dump.to_str().unwrap()]);
    assert!(ok && said.contains("intact"), "{said}");
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(&dump), 0o600);
    assert!(!told(&["backup", file.to_str().unwrap()]).0, "it is there already");
    assert!(!told(&["export", dump.to_str().unwrap()]).0, "it is there already");
    load.await.unwrap();

    // Not while the server runs.
    let (ok, said) = told(&["restore", file.to_str().unwrap()]);
    assert!(!ok && said.contains("stop the server"), "{said}");
    assert_eq!(names(&process, &token, &client).await.len(), 320);
    drop(process);
    // Nor from what is no backup: the database stays as it was.
    let junk = folder.path().join("junk");
    std::fs::write(&junk, "no database".repeat(1_000)).unwrap();
    for wrong in [junk.to_str().unwrap(), "/nowhere"] {
        assert!(!told(&["restore", wrong]).0);
    }
    let (ok, said) = told(&["restore", file.to_str().unwrap()]);
    assert!(ok && said.contains("intact"), "{said}");
    assert_eq!(left(&data), ["captures", "controlplane.sqlite", "controlplane.sqlite.replaced", "secrets.key"]);
    let restored = Process::start(&data, &[]);
    assert_eq!(restored.token(), None);
    let there = names(&restored, &token, &client).await;
    assert!((0..20).all(|n| there.contains(&format!("before-{n}"))), "{there:?}");
    assert!(there.len() < 320, "it is of the time of the backup");
    let verdict = json_of(&client, &format!("{}/api/v1/audit/verify", restored.url), &token).await;
    assert_eq!(verdict["intact"], json!(true));
    let audited = json_of(&client, &format!("{}/api/v1/audit?action=rule.create", restored.url), &token).await;
    assert_eq!(audited["total"], json!(there.len()), "each rule with its record");
    drop(restored);

    // A database that is damaged is what a backup is for.
    std::fs::write(data.join("controlplane.sqlite"), "damaged".repeat(9_000)).unwrap();
    let (ok, said) = told(&["restore", file.to_str().unwrap()]);
    assert!(ok, "{said}");
    assert_eq!(names(&Process::start(&data, &[]), &token, &client).await, there);

    // On another machine, of another user, there is not even the folder.
    let fresh = folder.path().join("fresh");
    if nix::unistd::Uid::effective().is_root() {
        std::fs::create_dir(&fresh).unwrap();
        std::os::unix::fs::chown(&fresh, Some(65_534), Some(65_534)).unwrap();
    }
    let (ok, said) = run(&fresh, &["restore", file.to_str().unwrap()]);
    assert!(ok && !said.contains("replaced"), "{said}");
    let owner = |path: &Path| std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path).unwrap());
    assert_eq!(owner(&fresh.join("controlplane.sqlite")), owner(&fresh));
    assert_eq!(mode(&fresh.join("controlplane.sqlite")), 0o600);

    let other = folder.path().join("other");
    let (ok, said) = run(&other, &["import", dump.to_str().unwrap()]);
    assert!(ok && said.contains("rules: ") && said.contains("intact"), "{said}");
    assert!(!run(&other, &["import", dump.to_str().unwrap()]).0, "only into an empty one");
    let imported = Process::start(&other, &[]);
    assert!(names(&imported, &token, &client).await.len() >= there.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_serves_postgres_and_never_shows_its_password() {
    let Some(cluster) = Cluster::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let url = cluster.database().await.replace("ftagent@", "ftagent:sesame@");
    let url = url.as_str();
    let data = folder.path();
    for command in ["check-config", "migrate"] {
        let (ok, said) = run(data, &["--database", url, command]);
        assert!(ok && said.contains("postgres://127.0.0.1") && !said.contains("sesame"), "{said}");
    }
    let process = Process::start(data, &["--database", url]);
    let (token, client) = (process.token().unwrap(), Client::new());
    let second = Process::start(data, &["--database", url]);
    assert_eq!(second.token(), None);
    assert_eq!(writing(&process, &token, &client, "r").await, 200);
    assert_eq!(names(&second, &token, &client).await, ["r"]);
    let (ok, said) = run(data, &["--database", url, "backup", "/nowhere/x"]);
    assert!(!ok && said.contains("pg_dump") && !said.contains("sesame"), "{said}");
    for wrong in [
        "postgres://ftagent:sesame@127.0.0.1:1/x",
        "postgres://ftagent:sesame@127.0.0.1:port/x",
        "oracle://u:sesame@h/x",
    ] {
        let (ok, said) = run(data, &["--database", wrong, "migrate"]);
        assert!(!ok && !said.contains("sesame"), "{said}");
    }
    assert_eq!(left(data), ["captures", "secrets.key"], "nothing of SQLite");
}

fn mode(path: &Path) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777
}

fn left(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
