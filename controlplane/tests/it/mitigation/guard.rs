//! What is refused before it is stored.

use controlplane::domain::{Actor, Fact, Intent, NewMitigation};
use serde_json::json;

use super::{ADAPTERS, HISTORY, RULES, contract, end, make, refused, wanted, webhook};
use crate::receiver::Receiver;
use crate::support::Server;

contract! {
    what_the_guard_refuses_is_never_stored,
    a_workspace_has_no_more_rules_than_its_quota,
}

async fn what_the_guard_refuses_is_never_stored(server: Server) {
    let receiver = Receiver::start().await;
    let adapter = webhook(&server, &receiver.url).await;
    for (n, kind) in ["exabgp", "gobgp", "cloudflare", "bird2", "frr", "radware", "f5"].into_iter().enumerate() {
        let body = json!({ "adapter_type": kind, "name": kind, "endpoint": "https://bgp.example" });
        let made = server.made(ADAPTERS, &body).await["adapter"].clone();
        assert_eq!(made["status"], "not_connected", "{kind}");
        let mut body = wanted("203.0.113.5", made["id"].as_i64().unwrap());
        body["intent_type"] = made["capabilities"][0].clone();
        let answer = refused(&server, RULES, &body, 422, "adapter_id").await;
        assert!(answer["error"]["message"].as_str().unwrap().contains("not connected"), "{answer}");
        let tested = server.made(&format!("{ADAPTERS}/{}/test", made["id"]), &json!({})).await;
        assert_eq!((&tested["test"]["success"], &tested["status"]), (&json!(false), &json!("not_connected")));
        assert_eq!(made["id"], adapter + 1 + i64::try_from(n).unwrap());
    }
    let node = server.deploy("edge-1").await;
    server.made("/api/v1/allowlist", &json!({ "ip_address": "203.0.113.80/29" })).await;
    let own = json!({ "ip_address": "203.0.113.200", "scope": "node", "node": node.uuid });
    server.made("/api/v1/allowlist", &own).await;
    for (target, part) in [
        ("203.0.113.81", "is within 203.0.113.80/29"),
        ("203.0.113.80/29", "is allowlisted"),
        ("203.0.113.0/24", "contains 203.0.113"),
        ("203.0.113.200", "is allowlisted"),
        ("0.0.0.0/0", "wider than /8"),
        ("198.0.0.0/7", "wider than /8"),
        ("::/0", "wider than /19"),
        ("2001:c000::/18", "wider than /19"),
        ("127.0.0.1", "host itself"),
        ("::ffff:203.0.113.81", "write it as IPv4"),
        ("here", "must be"),
    ] {
        let answer = refused(&server, RULES, &wanted(target, adapter), 422, "target_ip").await;
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{target}: {answer}");
    }
    refused(&server, RULES, &wanted("203.0.113.5", 9_999), 422, "adapter_id").await;
    refused(&server, RULES, &wanted("192.88.98.1", adapter), 422, "target_ip").await;
    let nothing = json!({ "adapter_type": "webhook", "name": "nothing", "endpoint": receiver.url });
    let nothing = server.made(ADAPTERS, &nothing).await["adapter"]["id"].as_i64().unwrap();
    let answer = refused(&server, RULES, &wanted("203.0.113.5", nothing), 422, "adapter_id").await;
    assert!(answer["error"]["message"].as_str().unwrap().contains("config.prefixes"), "{answer}");
    let mut body = wanted("203.0.113.5", adapter);
    body["ttl"] = json!(31_536_001);
    refused(&server, RULES, &body, 422, "ttl").await;
    let own = json!({ "adapter_type": "webhook", "name": "own", "endpoint": receiver.url, "capabilities": ["scrubbing"],
        "config": { "prefixes": ["198.51.100.0/24"] } });
    let own = server.made(ADAPTERS, &own).await["adapter"]["id"].as_i64().unwrap();
    refused(&server, RULES, &wanted("198.51.100.1", own), 422, "intent_type").await;
    let mut body = wanted("203.0.113.5", own);
    body["intent_type"] = json!("scrubbing");
    refused(&server, RULES, &body, 422, "target_ip").await;
    assert_eq!(server.get(HISTORY).await.1["total"], 0, "nothing of it is stored");
    assert_eq!(server.app.reconcile_due().await.unwrap(), 0);
    assert!(receiver.got().is_empty());

    make(&server, "203.0.113.5", adapter).await;
    let (status, answer) = server.post(RULES, &wanted("203.0.113.5/32", adapter)).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("already_exists")));
    for (path, field) in [("?limit=0", "limit"), ("?limit=501", "limit"), ("?offset=-1", "offset")] {
        for list in [RULES, HISTORY, ADAPTERS, "/api/v1/scrubbing"] {
            let (status, answer) = server.get(&format!("{list}{path}")).await;
            assert_eq!((status, &answer["error"]["details"][0]["field"]), (400, &json!(field)), "{list}{path}");
        }
    }
    for (path, body) in [
        (RULES, json!({ "intent_type": "blackhole", "adapter_id": 1 })),
        (RULES, json!({ "target_ip": "203.0.113.5", "intent_type": "drop", "adapter_id": 1 })),
        (RULES, json!({ "target_ip": "203.0.113.5", "intent_type": "blackhole", "adapter_id": 1, "ttl": -1 })),
        (ADAPTERS, json!({ "adapter_type": "quagga", "name": "a", "endpoint": "https://a" })),
        (ADAPTERS, json!({ "adapter_type": "webhook", "name": "a" })),
    ] {
        assert_eq!(server.post(path, &body).await.0, 400, "{body}");
    }
    for path in [format!("{RULES}/9999/withdraw"), format!("{ADAPTERS}/9999/test")] {
        assert_eq!(server.post(&path, &json!({})).await.0, 404, "{path}");
    }
    assert_eq!(server.delete(&format!("{ADAPTERS}/9999")).await.0, 404);
}

async fn a_workspace_has_no_more_rules_than_its_quota(server: Server) {
    let adapter = webhook(&server, "http://127.0.0.1:9/").await;
    let ws = server.store.first_workspace().await.unwrap();
    let make = async |n: u32| {
        let target = format!("203.0.{}.{}", n / 250, n % 250);
        let new = NewMitigation::parse(&target, Intent::Blackhole, adapter, 0, String::new()).unwrap();
        let fact = Fact::new(server.app.now(), &Actor::System { workspace: ws }, "test", "mitigation");
        server.store.create_mitigation(ws, new, fact).await
    };
    for n in 0..100 {
        make(n).await.unwrap();
    }
    assert!(make(100).await.unwrap_err().to_string().contains("too many new mitigation rules"));
    server.clock.advance(60);
    for n in 100..200 {
        make(n).await.unwrap();
    }
    server.clock.advance(60);
    assert!(make(200).await.unwrap_err().to_string().contains("200 rules already"));
    let (_, listed) = server.get(&format!("{RULES}?limit=1")).await;
    end(&server, listed["rules"][0]["id"].as_i64().unwrap()).await;
    make(200).await.unwrap();
}
