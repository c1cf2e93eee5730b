//! Wrong credentials, and how tokens end.

use reqwest::Method;
use serde_json::json;

use crate::support::{Server, checked, rule};

#[tokio::test]
async fn wrong_credentials_are_refused_and_counted() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let url = format!("{}/api/v1/nodes", server.url);
    let other = "0".repeat(64);
    for value in
        ["", "Bearer", "Basic abc", "Bearer short", &format!("Bearer {other}"), &format!("Token {}", server.owner)]
    {
        let (status, answer) = checked(server.client.get(&url).header("Authorization", value)).await;
        assert_eq!((status, &answer["error"]["code"]), (401, &json!("invalid_credentials")), "{value}");
    }
    let agent = format!("{}/api/v1/agent/config", server.url);
    for (key, uuid) in [(&server.owner, &node.uuid), (&node.key, &other), (&other, &node.uuid)] {
        let request = server.client.get(&agent).bearer_auth(key).header("X-Node-UUID", uuid.as_str());
        assert_eq!(checked(request).await.0, 401);
    }
    // Nine failures so far; 91 more fill the window, and only wrong credentials feel it.
    for _ in 0..91 {
        assert_eq!(checked(server.client.get(&url)).await.0, 401);
    }
    assert_eq!(checked(server.client.get(&url)).await.0, 429);
    assert_eq!(checked(server.client.get(&url).bearer_auth(&other)).await.0, 429);
    assert_eq!(server.get("/api/v1/nodes").await.0, 200);
    server.clock.advance(60);
    assert_eq!(checked(server.client.get(&url)).await.0, 401);
}

#[tokio::test]
async fn a_node_key_reads_its_own_node_and_nothing_else() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let other = server.deploy("edge-2").await;
    let status = async |path: &str| {
        let request = server.client.get(format!("{}/api/v1{path}", server.url)).bearer_auth(&node.key);
        checked(request.header("X-Node-UUID", &node.uuid)).await.0
    };
    assert_eq!(status(&format!("/nodes/{}", node.uuid)).await, 200);
    assert_eq!(status(&format!("/nodes/{}/metrics", node.uuid)).await, 200);
    assert_eq!(status(&format!("/nodes/{}", other.uuid)).await, 403);
    assert_eq!(status("/nodes").await, 403);
    assert_eq!(status("/incidents").await, 403);
}

#[tokio::test]
async fn a_token_ends_by_revocation_or_by_its_time() {
    let server = Server::start().await;
    let url = format!("{}/api/v1/nodes", server.url);
    let body = json!({ "name": "t", "role": "admin", "expires_at": "2026-05-12T15:00:00Z", "rate_limit": 3 });
    let made = server.made("/api/v1/workspace/tokens", &body).await;
    let value = made["value"].as_str().unwrap();
    let status = async || checked(server.client.get(&url).bearer_auth(value)).await;
    for _ in 0..3 {
        assert_eq!(status().await.0, 200);
    }
    assert_eq!(status().await.0, 429, "its own limit");
    server.clock.advance(1_800);
    let (code, answer) = status().await;
    assert_eq!((code, &answer["error"]["code"]), (401, &json!("token_expired")));

    let short = server.token("admin").await;
    let (_, listed) = server.get("/api/v1/workspace/tokens?limit=1").await;
    assert!(!listed.to_string().contains(&short));
    assert_eq!(server.delete(&format!("/api/v1/workspace/tokens/{}", listed["tokens"][0]["id"])).await.0, 200);
    assert_eq!(checked(server.client.get(&url).bearer_auth(&short)).await.0, 401);
    let (status, answer) = server.delete("/api/v1/workspace/tokens/1").await;
    assert_eq!((status, &answer["error"]["code"]), (403, &json!("forbidden")), "the last owner stays");
    assert_eq!(server.get("/api/v1/nodes").await.0, 200);
}

#[tokio::test]
async fn a_token_has_a_thousand_requests_a_minute() {
    let server = Server::start().await;
    for _ in 0..1_000 {
        let answer = server.request(Method::GET, "/api/v1/allowlist").send().await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    assert_eq!(server.post("/api/v1/firewall-rules", &rule("r")).await.0, 429);
    server.clock.advance(60);
    assert_eq!(server.post("/api/v1/firewall-rules", &rule("r")).await.0, 200);
}
