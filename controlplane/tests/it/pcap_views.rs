//! `/packets`, `/analysis` and `/download` of a capture, as the reference prints them.

use reqwest::Method;
use serde_json::{Value, json};

use crate::pcap_files::as_the_agent_writes;
use crate::support::{Node, Server, UUID, checked, report};

async fn upload(server: &Server, node: &Node, id: &str, bytes: &[u8]) -> i64 {
    let request = server.agent(node, Method::POST, &format!("/incidents/{UUID}/pcap"));
    let request = request.header("content-type", "application/octet-stream").header("X-Upload-Id", id);
    let request = request.header("X-Chunk-Index", 0).header("X-Chunk-Total", 1).body(bytes.to_vec());
    let (status, answer) = checked(request).await;
    assert_eq!(status, 200, "{answer}");
    answer["pcap"]["id"].as_i64().unwrap()
}

async fn site() -> (Server, Node) {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    server.report(&node, "/incidents", &report(UUID, 1, "active")).await;
    (server, node)
}

#[tokio::test]
async fn packets_are_listed_in_pages_of_a_hundred() {
    let (server, node) = site().await;
    let id = upload(&server, &node, "a", &as_the_agent_writes(250, 200)).await;
    let get = async |query: &str| server.get(&format!("/api/v1/pcaps/{id}/packets{query}")).await;
    let (status, answer) = get("").await;
    let packets = answer["packets"].as_array().unwrap();
    assert_eq!((status, packets.len(), &answer["total"]), (200, 100, &json!(250)));
    assert_eq!((&answer["truncated"], &answer["errors"]), (&json!(false), &json!([])));
    let expected = json!({
        "number": 1, "time": "2023-11-14T22:13:20Z", "interface": 0, "link_type": "ethernet", "bytes": 1_400,
        "captured_bytes": 142, "src_ip": "198.51.0.0", "dst_ip": "203.0.113.5", "src_port": 53, "dst_port": 40_000,
        "protocol": "udp", "payload_bytes": 100, "ttl": 64, "verdict": "dropped", "reason": "target_rule", "rule": 7,
        "one_in": 4, "left_out": 0
    });
    assert_eq!(packets[0], expected);
    assert_eq!(packets[1]["time"], "2023-11-14T22:13:20.001Z");
    let (_, answer) = get("?limit=1000&offset=200").await;
    let packets = answer["packets"].as_array().unwrap();
    assert_eq!((packets.len(), &packets[0]["number"], &packets[0]["verdict"]), (50, &json!(201), &json!("passed")));
    let (_, answer) = get("?limit=1&offset=9223372036854775807").await;
    assert_eq!((&answer["packets"], &answer["total"]), (&json!([]), &json!(250)));
    for (query, parameter) in [
        ("?limit=0", "limit"),
        ("?limit=1001", "limit"),
        ("?limit=-1", "limit"),
        ("?offset=-1", "offset"),
        ("?limit=x", "limit"),
        ("?offset=9223372036854775808", "offset"),
    ] {
        let (status, answer) = get(query).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid_parameter")), "{query}");
        assert_eq!(answer["error"]["details"][0]["field"], parameter, "{query}: {answer}");
    }
}

#[tokio::test]
async fn an_analysis_has_the_fields_of_the_reference_and_is_remembered() {
    let (server, node) = site().await;
    let id = upload(&server, &node, "a", &as_the_agent_writes(1_001, 800)).await;
    let (status, answer) = server.get(&format!("/api/v1/pcaps/{id}/analysis")).await;
    let a = &answer["analysis"];
    assert_eq!((status, &a["attack_vector"], &a["total_packets"]), (200, &json!("dns_amplification"), &json!(4_004)));
    assert_eq!((&a["unique_sources"], &a["top_source_countries"]), (&json!(1_001), &Value::Null));
    assert_eq!((&a["packets_in_file"], &a["scaled"], &a["duration_secs"]), (&json!(1_001), &json!(true), &json!(1.0)));
    assert_eq!((&a["pps"], &a["bps"]), (&json!(4_004.0), &json!(4_004.0 * 1_400.0 * 8.0)));
    assert_eq!((&a["target"]["ip"], &a["target"]["share"]), (&json!("203.0.113.5"), &json!(1.0)));
    assert_eq!((&a["verdicts"]["dropped"], &a["verdicts"]["passed"]), (&json!(3_200), &json!(804)));
    assert_eq!(a["verdicts"]["reasons"][0], json!({ "reason": "target_rule", "packets": 3_200 }));
    assert_eq!((&a["source_ports"][0]["port"], &a["protocols"][0]["protocol"]), (&json!(53), &json!("udp")));
    assert_eq!(
        a["summary"],
        "DNS amplification; about 4,004 packets, 5,605 kB in 1.0 s: 4,004 packets/s, 44.84 Mbit/s, to 203.0.113.5. They \
         come from 1,001 sources; 198.51.0.0 sends 0.1 %. They go from UDP port 53 (100 %) to 20 ports and more. The \
         node dropped 79.9 % of them, first of all for target_rule."
    );
    // What it recommends is fit to be a rule.
    let action = &a["recommended_actions"][0]["action"];
    assert_eq!(
        (&action["type"], &action["port"], &action["side"]),
        (&json!("xdp_drop_port"), &json!(53), &json!("source"))
    );
    let rule = json!({ "name": "r", "trigger": { "type": "any" }, "action": action });
    server.made("/api/v1/firewall-rules", &rule).await;
    // The file is taken away: what was computed is there, the packets are not.
    let folder = server.folder.path().join("captures/files");
    let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&file, b"another capture, it seems").unwrap();
    assert_eq!(server.get(&format!("/api/v1/pcaps/{id}/analysis")).await.1, answer);
    let (status, packets) = server.get(&format!("/api/v1/pcaps/{id}/packets")).await;
    assert_eq!((status, &packets["total"], &packets["truncated"]), (200, &json!(0), &json!(true)));
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_readers_may_look() {
    let (server, node) = site().await;
    let id = upload(&server, &node, "a", &as_the_agent_writes(10, 0)).await;
    let reader = server.token("readonly").await;
    for view in ["packets", "analysis", "download"] {
        for (path, expected) in [("99", 404), ("x", 400), ("99999999999999999999", 400), ("-1", 404)] {
            assert_eq!(server.get(&format!("/api/v1/pcaps/{path}/{view}")).await.0, expected, "{path} {view}");
        }
        let url = format!("{}/api/v1/pcaps/{id}/{view}", server.url);
        assert_eq!(server.client.get(&url).bearer_auth(&reader).send().await.unwrap().status(), 200, "{view}");
        assert_eq!(server.client.get(&url).send().await.unwrap().status(), 401, "{view}");
    }
}

#[tokio::test]
async fn a_download_answers_ranges_and_tags() {
    let (server, node) = site().await;
    let bytes = as_the_agent_writes(20, 10);
    let id = upload(&server, &node, "a", &bytes).await;
    let get = async |headers: &[(&str, &str)]| {
        let mut request = server.request(Method::GET, &format!("/api/v1/pcaps/{id}/download"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        let headers = answer.headers().clone();
        let text = move |name: &str| headers.get(name).map(|v| v.to_str().unwrap().to_owned());
        (answer.status().as_u16(), text, answer.bytes().await.unwrap())
    };
    let (status, header, body) = get(&[]).await;
    assert_eq!((status, &body[..]), (200, &bytes[..]));
    assert_eq!(header("content-type").as_deref(), Some("application/vnd.tcpdump.pcap"));
    assert_eq!(header("content-disposition").as_deref(), Some("attachment; filename=\"inc_0f9619ff-1.pcapng\""));
    assert_eq!(
        (header("accept-ranges").as_deref(), header("content-length")),
        (Some("bytes"), Some(bytes.len().to_string()))
    );
    let etag = header("etag").unwrap();
    assert!(etag.len() == 66 && etag.starts_with('"'), "{etag}");

    let last = bytes.len() - 1;
    for (range, expected) in [("bytes=0-3", 0..=3), ("bytes=10-", 10..=last), ("bytes=-5", last - 4..=last)] {
        let (status, header, body) = get(&[("range", range)]).await;
        assert_eq!((status, &body[..]), (206, &bytes[expected.clone()]), "{range}");
        let place = format!("bytes {}-{}/{}", expected.start(), expected.end(), bytes.len());
        assert_eq!((header("content-range"), header("etag")), (Some(place), Some(etag.clone())), "{range}");
    }
    let (status, header, body) = get(&[("range", "bytes=999999-")]).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &answer["error"]["code"]), (416, &json!("range_not_satisfiable")));
    assert_eq!(header("content-range"), Some(format!("bytes */{}", bytes.len())));
    assert_eq!(get(&[("range", "bytes=0-1,3-4")]).await.0, 200, "several ranges give the whole");

    for tags in [etag.as_str(), &format!("\"x\", W/{etag}"), "*"] {
        let (status, header, body) = get(&[("if-none-match", tags)]).await;
        assert_eq!((status, body.len(), header("etag")), (304, 0, Some(etag.clone())), "{tags}");
    }
    assert_eq!(get(&[("if-none-match", "\"x\"")]).await.0, 200);
    assert_eq!(get(&[("range", "bytes=0-3"), ("if-range", &etag)]).await.0, 206);
    assert_eq!(get(&[("range", "bytes=0-3"), ("if-range", "\"x\"")]).await.0, 200, "it is another file's range");
}

#[tokio::test]
async fn a_classic_file_is_named_as_one() {
    let (server, node) = site().await;
    let frame = crate::pcap_files::udp([192, 0, 2, 1], 1, [203, 0, 113, 5], 2, b"");
    let file = crate::pcap_files::pcap(crate::pcap_files::Order::Big, true, 1, &[(1, &frame)]);
    let id = upload(&server, &node, "a", &file).await;
    let answer = server.request(Method::GET, &format!("/api/v1/pcaps/{id}/download")).send().await.unwrap();
    assert_eq!(answer.headers()["content-disposition"], "attachment; filename=\"inc_0f9619ff-1.pcap\"");
    assert_eq!(answer.headers()["content-type"], "application/vnd.tcpdump.pcap");
    let (_, answer) = server.get(&format!("/api/v1/pcaps/{id}/analysis")).await;
    assert_eq!(
        (&answer["analysis"]["attack_vector"], &answer["analysis"]["verdicts"]),
        (&json!("unknown"), &Value::Null)
    );
}

#[tokio::test]
async fn captures_are_listed_newest_first_in_pages_of_fifty() {
    let (server, node) = site().await;
    for n in 1..=51 {
        upload(&server, &node, &format!("u{n}"), &as_the_agent_writes(n, 0)).await;
        server.clock.advance(400);
    }
    let ids = async |query: &str| {
        let (status, answer) = server.get(&format!("/api/v1/pcaps{query}")).await;
        assert_eq!((status, &answer["total"]), (200, &json!(51)), "{query}");
        answer["pcaps"].as_array().unwrap().iter().map(|p| p["id"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ids("").await, (2..=51).rev().collect::<Vec<_>>());
    assert_eq!(ids("?limit=1").await, [51]);
    assert_eq!(ids("?limit=100&offset=49").await, [2, 1]);
    for query in ["?limit=0", "?limit=101", "?limit=x", "?offset=-1"] {
        let (status, answer) = server.get(&format!("/api/v1/pcaps{query}")).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid_parameter")), "{query}");
    }
}
