//! The iptables integration over HTTP: staged, approved, rejected.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Server, UUID, checked, report};

async fn integrated(settings: Value) -> (Server, crate::support::Node) {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let body = json!({ "kind": "iptables", "name": "blocks", "settings": settings });
    let made = server.made("/api/v1/integrations", &body).await;
    assert_eq!(made["integration"]["status"], "configured", "{made}");
    (server, node)
}

#[tokio::test]
async fn a_staged_rule_shows_its_commands_and_an_approval_reaches_the_node() {
    let (server, node) = integrated(json!({})).await;
    server.report(&node, "/incidents", &report(UUID, 1, "active")).await;
    let (_, listed) = server.get("/api/v1/firewall-rules/staged?status=pending").await;
    assert_eq!(listed["total"], 1, "{listed}");
    let staged = &listed["staged"][0];
    assert_eq!((&staged["incident"], &staged["node"]), (&json!(UUID), &json!(node.uuid)));
    assert_eq!(
        staged["preview"]["do"],
        json!([[
            "iptables",
            "-w",
            "5",
            "-I",
            "INPUT",
            "-s",
            "198.51.100.7/32",
            "-m",
            "comment",
            "--comment",
            "ftagent",
            "-j",
            "DROP"
        ]])
    );
    let approve =
        server.request(Method::POST, "/api/v1/firewall-rules/staged/1/approve").header("Idempotency-Key", "a");
    let (status, approved) = checked(approve.try_clone().unwrap()).await;
    assert_eq!((status, &approved["staged"]["status"]), (200, &json!("approved")), "{approved}");
    assert_eq!(checked(approve).await, (200, approved.clone()), "the same key gives the same answer");
    let (status, again) = checked(server.request(Method::POST, "/api/v1/firewall-rules/staged/1/approve")).await;
    assert_eq!((status, &again["error"]["code"]), (409, &json!("already_exists")));
    assert!(again["error"]["message"].as_str().unwrap().contains("already exists"), "{again}");

    let (_, commands) = checked(server.agent(&node, Method::GET, "/commands")).await;
    let command = &commands["commands"][0];
    assert_eq!((&command["order"]["type"], &command["order"]["incident"]), (&json!("apply"), &json!(UUID)));
    assert_eq!(command["order"]["action"]["sources"], json!(["198.51.100.7/32"]));
    let ack = json!({ "command_id": command["command_id"], "status": "applied", "output": "done" });
    server.report(&node, "/commands/ack", &ack).await;
    let (_, shown) = server.get("/api/v1/firewall-rules/staged/1").await;
    assert_eq!(shown["staged"]["status"], "applied");
    let (_, audit) = server.get("/api/v1/audit?object=staged/1").await;
    let actions: Vec<_> = audit["records"].as_array().unwrap().iter().map(|r| r["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["staged.approve", "staged.create"]);
}

#[tokio::test]
async fn rejections_ends_and_wrong_words_are_answered() {
    let (server, node) = integrated(json!({ "approve_within_minutes": 1 })).await;
    server.report(&node, "/incidents", &report(UUID, 1, "active")).await;
    let (_, rejected) = checked(server.request(Method::POST, "/api/v1/firewall-rules/staged/1/reject")).await;
    assert_eq!(rejected["staged"]["status"], "rejected");
    assert_eq!(server.get("/api/v1/firewall-rules/staged?status=nope").await.0, 400);
    assert_eq!(server.get("/api/v1/firewall-rules/staged?limit=501").await.0, 400);
    assert_eq!(server.get("/api/v1/firewall-rules/staged/9").await.0, 404);
    assert_eq!(checked(server.request(Method::POST, "/api/v1/firewall-rules/staged/9/approve")).await.0, 404);

    // An agent that does not understand such orders gets none.
    let body = json!({ "protocol_version": 1, "agent_version": "0.1.0", "mode": "enforce" });
    server.report(&node, "/heartbeat", &body).await;
    let mut second = report("1f9619ff-8b86-4011-b42d-00cf4fc964ff", 1, "active");
    second["target"] = json!("203.0.113.6/32");
    server.report(&node, "/incidents", &second).await;
    let approve = || checked(server.request(Method::POST, "/api/v1/firewall-rules/staged/2/approve"));
    let (status, refused) = approve().await;
    assert_eq!((status, &refused["error"]["details"][0]["field"]), (422, &json!("node")), "{refused}");
    assert_eq!(server.get("/api/v1/audit?action=staged.approve").await.1["records"][0]["result"], "refused");
    let body = json!({ "protocol_version": 2, "agent_version": "0.2.0", "mode": "enforce" });
    server.report(&node, "/heartbeat", &body).await;
    server.clock.advance(60);
    assert_eq!(approve().await.0, 409, "too late");

    for settings in [json!({ "auto_apply": "yes" }), json!({ "ttl_secs": 1 }), json!({ "colour": true })] {
        let body = json!({ "kind": "iptables", "name": "more", "settings": settings });
        assert_eq!(server.post("/api/v1/integrations", &body).await.0, 422, "{body}");
    }
    assert_eq!(server.post("/api/v1/integrations/1/test", &json!({})).await.0, 422, "nothing is sent");
}

#[tokio::test]
async fn orders_by_hand_are_checked_like_rules() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    server.made("/api/v1/allowlist", &json!({ "ip_address": "198.51.100.0/24" })).await;
    let path = format!("/api/v1/nodes/{}/commands", node.uuid);
    let order = |action: Value, ttl: u32| json!({ "order": { "type": "apply", "action": action, "incident": UUID, "undo_at_resolve": true, "ttl_secs": ttl } });
    let drop = |source: &str| json!({ "type": "iptables_drop_source", "sources": [source] });
    for (body, field) in [
        (order(drop("192.0.2.1/32"), 0), "order.ttl_secs"),
        (order(drop("198.51.100.7/32"), 60), "order.action.sources"),
        (order(json!({ "type": "iptables_drop_source" }), 60), "order.action.sources"),
        (order(json!({ "type": "iptables_drop_port", "protocol": "udp", "port": 0 }), 60), "order.action.port"),
    ] {
        let (status, answer) = server.post(&path, &body).await;
        assert_eq!((status, &answer["error"]["details"][0]["field"]), (422, &json!(field)), "{answer}");
    }
    server.made(&path, &order(drop("192.0.2.1/32"), 60)).await;
}
