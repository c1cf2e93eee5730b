//! The escalation policy.

use serde_json::{Value, json};

use super::{contract, refused};
use crate::support::Server;

contract! {
    the_policy_keeps_what_is_not_named,
}

async fn the_policy_keeps_what_is_not_named(server: Server) {
    const PATH: &str = "/api/v1/mitigation/escalation";
    let (_, first) = server.get(PATH).await;
    assert_eq!(
        first["escalation"],
        json!({ "thresholds": {}, "ttl": {}, "baseline_mode": "dynamic",
        "geo_lockdown": null, "dry_run": true, "updated_at": null })
    );
    let body = json!({ "thresholds": { "tier1_bps": 1_000_000, "tier2_bps": 5_000_000 }, "ttl": { "tier1": 300 },
        "baseline_mode": "static", "geo_lockdown": { "countries": ["de", "FR"], "action": "block" }, "dry_run": false });
    let saved = server.made(PATH, &body).await["escalation"].clone();
    assert_eq!(saved["geo_lockdown"], json!({ "countries": ["DE", "FR"], "action": "block" }));
    assert_eq!(saved["updated_at"], crate::support::NOW);
    let changed = server.made(PATH, &json!({ "geo_lockdown": null })).await["escalation"].clone();
    assert_eq!((&changed["geo_lockdown"], &changed["thresholds"]), (&Value::Null, &body["thresholds"]));
    assert_eq!(server.get(PATH).await.1["escalation"], changed);
    for (body, field) in [
        (json!({ "thresholds": { "tier1_bps": 5, "tier2_bps": 4 } }), "thresholds"),
        (json!({ "thresholds": { "tier1_bps": 0 } }), "thresholds.tier1_bps"),
        (json!({ "ttl": { "tier1": 31_536_001 } }), "ttl.tier1"),
        (json!({ "geo_lockdown": { "countries": ["XX"], "action": "block" } }), "geo_lockdown.countries"),
    ] {
        refused(&server, PATH, &body, 422, field).await;
    }
    for body in [json!({ "baseline_mode": "guess" }), json!({ "tiers": 3 }), json!({ "dry_run": "no" })] {
        assert_eq!(server.post(PATH, &body).await.0, 400, "{body}");
    }
    assert_eq!(server.get(PATH).await.1["escalation"], changed, "what was refused changed nothing");
}
