//! Scrubbing integrations.

use serde_json::json;

use super::{contract, refused};
use crate::support::Server;

contract! {
    scrubbing_is_kept_and_never_pretended,
}

async fn scrubbing_is_kept_and_never_pretended(server: Server) {
    const PATH: &str = "/api/v1/scrubbing";
    let table: [(&str, &[&str]); 8] = [
        ("cloudflare_magic_transit", &["account_id", "api_token"]),
        ("ovh_mitigation", &["application_key", "application_secret", "consumer_key"]),
        ("hetzner_mitigation", &["user", "password"]),
        ("cloudflare_waf", &["zone_id", "api_token"]),
        ("digitalocean", &["api_token"]),
        ("vultr", &["api_key"]),
        ("aws_shield", &["access_key_id", "secret_access_key", "region"]),
        ("linode", &["api_token"]),
    ];
    for (provider, names) in table {
        let credentials: serde_json::Map<_, _> = names.iter().map(|n| ((*n).to_owned(), json!("sesame"))).collect();
        let mut body = json!({ "name": provider, "provider": provider, "credentials": credentials,
            "prefixes": ["203.0.113.0/24"] });
        let made = server.made(PATH, &body).await["integration"].clone();
        assert_eq!((&made["status"], &made["has_credentials"]), (&json!("not_connected"), &json!(true)));
        assert_eq!(server.post(PATH, &body).await.0, 409);
        body["credentials"] = json!({});
        body["name"] = json!("other");
        assert_eq!(server.post(PATH, &body).await.0, 422);
        let one = format!("{PATH}/{}", made["id"]);
        let (_, status) = server.get(&format!("{one}/status")).await;
        assert_eq!((&status["status"], &status["diverting"]), (&json!("not_connected"), &json!(false)));
        assert_eq!(status["provider"], provider);
        let tested = server.made(&format!("{one}/test"), &json!({})).await;
        assert_eq!(tested["test"]["success"], false);
        for action in ["announce", "withdraw"] {
            let answer = refused(&server, &format!("{one}/{action}"), &json!({}), 422, "provider").await;
            assert!(answer["error"]["message"].as_str().unwrap().contains("not connected"), "{answer}");
        }
        let patched = server.patch(&one, &json!({ "prefixes": [], "credentials": credentials })).await;
        assert_eq!((patched.0, &patched.1["integration"]["prefixes"]), (200, &json!([])));
        assert_eq!(server.patch(&one, &json!({ "credentials": { "other": "sesame" } })).await.0, 422);
        assert_eq!(server.patch(&one, &json!({ "name": "" })).await.0, 422);
    }
    let (_, listed) = server.get(PATH).await;
    assert_eq!(listed["total"], 8);
    let (_, audit) = server.get("/api/v1/audit?limit=500").await;
    assert!(!listed.to_string().contains("sesame") && !audit.to_string().contains("sesame"));
    let one = format!("{PATH}/{}", listed["integrations"][0]["id"]);
    assert_eq!(server.delete(&one).await.0, 200);
    assert_eq!(server.delete(&one).await.0, 404);
    assert_eq!(server.get(&format!("{one}/status")).await.0, 404);
    assert_eq!(server.post(PATH, &json!({ "name": "a", "provider": "akamai", "credentials": {} })).await.0, 400);
}
