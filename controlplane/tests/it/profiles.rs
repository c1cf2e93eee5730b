//! Attack profiles over HTTP.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Server, checked};

const APPLY: &str = "/api/v1/attack-profiles/apply";
const PREVIEW: &str = "/api/v1/attack-profiles/preview";

#[tokio::test]
async fn the_eleven_profiles_are_shown_in_neutral_words_and_in_each_suites() {
    let server = Server::start().await;
    let (_, listed) = server.get("/api/v1/attack-profiles").await;
    let ids: Vec<_> =
        listed["profiles"].as_array().unwrap().iter().map(|p| p["profile_id"].as_str().unwrap()).collect();
    let expected = [
        "game_server",
        "hosting_provider",
        "isp",
        "saas",
        "ecommerce",
        "fintech",
        "small_operator",
        "msp",
        "edge_node",
        "router",
        "game_studio",
    ];
    assert_eq!((ids, &listed["total"]), (expected.to_vec(), &json!(11)));
    let (_, shown) = server.get("/api/v1/attack-profiles/fintech").await;
    assert!(shown["profile"]["rules"][0]["reason"].is_string(), "{shown}");
    assert_eq!(server.get("/api/v1/attack-profiles/bank").await.0, 404);
    for suite in ["iptables", "nftables", "ufw", "firewalld"] {
        let body =
            json!({ "profile_id": "saas", "suite": suite, "keep": { "ports": [2222], "sources": ["192.0.2.0/24"] } });
        let compiled = server.made(PREVIEW, &body).await["compiled"].clone();
        assert!(compiled["steps"].to_string().contains("2222"), "{compiled}");
        assert!(compiled["rules"].to_string().contains("192.0.2.0/24"), "{compiled}");
    }
    let refused = [
        (json!({ "profile_id": "bank", "suite": "ufw" }), 400),
        (json!({ "profile_id": "saas", "suite": "pf" }), 400),
        (json!({ "profile_id": "saas", "suite": "ufw", "keep": { "sources": ["0.0.0.0/0"] } }), 422),
        (json!({ "profile_id": "saas", "suite": "iptables", "rules": [{ "cmd": "iptables -F", "title": "t" }] }), 422),
    ];
    for (body, expected) in refused {
        let (status, answer) = server.post(PREVIEW, &body).await;
        assert_eq!(status, expected, "{body}: {answer}");
    }
    assert_eq!(server.get("/api/v1/attack-profiles/applications").await.1["total"], 0, "nothing is stored");
}

#[tokio::test]
async fn a_profile_is_applied_as_the_reference_prints_it_and_says_what_the_node_said() {
    let server = Server::start().await;
    let (one, two) = (server.deploy("edge-1").await, server.deploy("edge-2").await);
    let keep = json!({ "ports": [22, 2222], "sources": ["192.0.2.0/24"] });
    let body =
        json!({ "profile_id": "game_server", "suite": "nftables", "node_ids": [one.uuid, two.uuid], "keep": keep });
    let applied = server.made(APPLY, &body).await;
    assert_eq!(
        (&applied["applied_to"], &applied["profile"], &applied["suite"]),
        (&json!(2), &json!("game_server"), &json!("nftables"))
    );
    assert_eq!(applied["applications"][0]["status"], "pending");
    let all = json!({ "profile_id": "saas", "suite": "ufw", "node_ids": ["all"] });
    let (status, again) = server.post(APPLY, &all).await;
    assert_eq!((status, &again["error"]["code"]), (409, &json!("already_exists")));
    assert!(again["error"]["message"].as_str().unwrap().contains("already exists"), "{again}");

    let acknowledge = async |node: &crate::support::Node, status: &str, error: &str| {
        let (_, commands) = checked(server.agent(node, Method::GET, "/commands")).await;
        let command = commands["commands"][0].clone();
        let ack = json!({ "command_id": command["command_id"], "status": status, "error": error });
        server.report(node, "/commands/ack", &ack).await;
        command["order"].clone()
    };
    let order = acknowledge(&one, "applied", "").await;
    assert_eq!((&order["type"], &order["confirm_secs"]), (&json!("apply_profile"), &json!(120)));
    assert_eq!((&order["keep"], &order["profile"]), (&keep, &json!("game_server")));
    acknowledge(&two, "failed", "unsupported: this agent does not apply attack profiles").await;
    let of = async |node: &str| {
        let (_, listed) = server.get(&format!("/api/v1/attack-profiles/applications?node={node}")).await;
        listed["applications"][0].clone()
    };
    let (first, second) = (of(&one.uuid).await, of(&two.uuid).await);
    assert_eq!((&first["status"], &second["status"]), (&json!("trial"), &json!("failed")));
    assert!(second["error"].as_str().unwrap().contains("unsupported"));

    let path =
        |application: &Value, verb: &str| format!("/api/v1/attack-profiles/applications/{}{verb}", application["id"]);
    assert_eq!(checked(server.request(Method::POST, &path(&second, "/confirm"))).await.0, 409);
    let (status, confirmed) = checked(server.request(Method::POST, &path(&first, "/confirm"))).await;
    assert_eq!((status, &confirmed["application"]["status"]), (200, &json!("confirming")));
    acknowledge(&one, "applied", "").await;
    assert_eq!(server.get(&path(&first, "")).await.1["application"]["status"], "confirmed");
    let stranger = json!({ "application": first["uuid"], "state": "rolled_back", "reason": "by hand" });
    let (status, _) = checked(server.agent(&two, Method::POST, "/profiles").json(&stranger)).await;
    assert_eq!(status, 404, "another node's");
    let (_, back) = checked(server.request(Method::POST, &path(&first, "/rollback"))).await;
    assert_eq!(back["application"]["status"], "rolling_back");
    let order = acknowledge(&one, "applied", "").await;
    assert_eq!(order["type"], "roll_back_profile");
    assert_eq!(server.get(&path(&first, "")).await.1["application"]["status"], "rolled_back");

    let body = json!({ "profile_id": "saas", "suite": "nftables", "node_ids": [one.uuid] });
    let third = server.made(APPLY, &body).await["applications"][0].clone();
    acknowledge(&one, "applied", "").await;
    let lapsed = json!({ "application": third["uuid"], "state": "lapsed", "reason": "lapsed: it was stopped" });
    server.report(&one, "/profiles", &lapsed).await;
    server.report(&one, "/profiles", &lapsed).await;
    let (_, seen) = server.get(&path(&third, "")).await;
    let seen = &seen["application"];
    assert_eq!((&seen["status"], &seen["error"]), (&json!("lapsed"), &json!("lapsed: it was stopped")));
    let (_, audit) = server.get("/api/v1/audit").await;
    let actions: Vec<_> = audit["records"].as_array().unwrap().iter().map(|r| r["action"].as_str().unwrap()).collect();
    let expected = [("profile.apply", 2), ("profile.confirm", 1), ("profile.roll_back", 1), ("profile.report", 1)];
    for (action, times) in expected {
        assert_eq!(actions.iter().filter(|a| **a == action).count(), times, "{action} in {actions:?}");
    }
}

#[tokio::test]
async fn wrong_calls_are_refused_whole() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let ids = json!([node.uuid]);
    let body = |ids: &Value, more: Value| {
        let mut body = json!({ "profile_id": "saas", "suite": "iptables", "node_ids": ids });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (body, field) in [
        (body(&json!([]), json!({})), "node_ids"),
        (body(&json!(["all", node.uuid]), json!({})), "node_ids"),
        (body(&json!(["00000000-0000-4000-8000-000000000000"]), json!({})), "node_ids"),
        (body(&ids, json!({ "confirm_secs": 29 })), "confirm_secs"),
        (body(&ids, json!({ "keep": { "sources": ["::/0"] } })), "keep.sources"),
        (body(&ids, json!({ "rules": [{ "cmd": "iptables -P INPUT DROP", "title": "t" }] })), "rules[0].cmd"),
        (body(&ids, json!({ "rules": [{ "cmd": "reboot", "title": "t" }] })), "rules[0].cmd"),
    ] {
        let (status, answer) = server.post(APPLY, &body).await;
        assert_eq!((status, &answer["error"]["details"][0]["field"]), (422, &json!(field)), "{answer}");
    }
    let old = json!({ "protocol_version": 1, "agent_version": "0.1.0", "mode": "enforce" });
    server.report(&node, "/heartbeat", &old).await;
    assert_eq!(server.post(APPLY, &body(&ids, json!({}))).await.0, 422, "its agent does not understand it");
    let direct = json!({ "order": { "type": "roll_back_profile", "application": node.uuid } });
    assert_eq!(server.post(&format!("/api/v1/nodes/{}/commands", node.uuid), &direct).await.0, 422);
    assert_eq!(server.get("/api/v1/attack-profiles/applications").await.1["total"], 0);
    assert_eq!(checked(server.agent(&node, Method::GET, "/commands")).await.1["commands"], json!([]));
}
