//! Captures from nodes to operators: chunks, garbage, quotas, what is kept how long, a disk without room.

use std::path::Path;

use controlplane::app::CaptureLimits;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::{Node, Server, UUID, checked, report};

const CHUNK: usize = 2 << 20;

/// A capture of so many bytes, told from others by `seed`.
fn capture(bytes: usize, seed: u8) -> Vec<u8> {
    let mut capture = vec![0x0a, 0x0d, 0x0d, 0x0a, 28, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a];
    capture.extend((0..bytes - capture.len()).map(|n| (n / 7) as u8 ^ seed));
    capture
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn chunk(server: &Server, node: &Node, id: &str, index: usize, whole: &[u8]) -> RequestBuilder {
    let total = whole.len().div_ceil(CHUNK);
    let piece = &whole[index * CHUNK..whole.len().min((index + 1) * CHUNK)];
    raw(server, node, UUID, piece.to_vec())
        .header("X-Upload-Id", id)
        .header("X-Chunk-Index", index)
        .header("X-Chunk-Total", total)
}

fn raw(server: &Server, node: &Node, incident: &str, body: Vec<u8>) -> RequestBuilder {
    let request = server.agent(node, Method::POST, &format!("/incidents/{incident}/pcap"));
    request.header("content-type", "application/octet-stream").body(body)
}

async fn whole(server: &Server, node: &Node, id: &str, bytes: &[u8]) -> (u16, Value) {
    checked(chunk(server, node, id, 0, bytes)).await
}

async fn site(limits: CaptureLimits) -> (Server, Node) {
    let server = Server::start_with(tempfile::tempdir().unwrap(), limits).await;
    let node = server.deploy("edge-1").await;
    server.report(&node, "/incidents", &report(UUID, 1, "active")).await;
    (server, node)
}

fn files(server: &Server) -> (usize, usize) {
    let count = |name: &str| std::fs::read_dir(server.folder.path().join("captures").join(name)).unwrap().count();
    (count("incoming"), count("files"))
}

async fn download(server: &Server, id: i64, range: Option<&str>) -> (u16, Vec<u8>, String) {
    let mut request = server.request(Method::GET, &format!("/api/v1/pcaps/{id}/download"));
    if let Some(range) = range {
        request = request.header("range", range);
    }
    let answer = request.send().await.unwrap();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    (answer.status().as_u16(), answer.bytes().await.unwrap().to_vec(), kind)
}

#[tokio::test]
async fn chunks_in_any_order_and_again_make_one_capture() {
    let (server, node) = site(CaptureLimits::default()).await;
    let bytes = capture(2 * CHUNK + 12_345, 1);
    let (_, answer) = checked(chunk(&server, &node, "up-1", 2, &bytes)).await;
    assert_eq!(
        (&answer["complete"], &answer["received"], &answer["missing"]),
        (&json!(false), &json!([2]), &json!([0, 1]))
    );
    for _ in 0..2 {
        let (status, answer) = checked(chunk(&server, &node, "up-1", 0, &bytes)).await;
        assert_eq!((status, &answer["missing"]), (200, &json!([1])));
    }
    let last = chunk(&server, &node, "up-1", 1, &bytes).header("X-Capture-Sha256", sha256(&bytes));
    let (status, answer) = checked(last.header("X-Capture-Part", 2).header("X-Capture-Packets", 77)).await;
    assert_eq!((status, &answer["complete"]), (200, &json!(true)), "{answer}");
    let pcap = &answer["pcap"];
    assert_eq!((&pcap["bytes"], &pcap["part"], &pcap["packets"]), (&json!(bytes.len()), &json!(2), &json!(77)));
    assert_eq!((&pcap["sha256"], &pcap["node"]), (&json!(sha256(&bytes)), &json!(node.uuid)));
    assert_eq!(files(&server), (0, 1));
    // The answer was lost: the chunk comes again.
    let (status, again) = checked(chunk(&server, &node, "up-1", 1, &bytes)).await;
    assert_eq!((status, &again["complete"], &again["pcap"]["id"]), (200, &json!(true), &pcap["id"]));
    // The node lost its memory: the same bytes under another name, as multipart or not, are the same capture.
    let small = capture(5_000, 2);
    let (_, first) = whole(&server, &node, "up-2", &small).await;
    let (_, second) = whole(&server, &node, "up-3", &small).await;
    assert_eq!(first["pcap"]["id"], second["pcap"]["id"]);
    let (_, listed) = server.get("/api/v1/pcaps").await;
    assert_eq!((&listed["total"], &listed["pcaps"][0]["bytes"]), (&json!(2), &json!(5_000)));
    assert_eq!((&listed["pcaps"][0].get("packets"), &listed["pcaps"][1]["incident"]), (&None, &json!(UUID)));
    let (_, incident) = server.get("/api/v1/incidents/1").await;
    let parts: Vec<_> = incident["incident"]["pcaps"].as_array().unwrap().iter().map(|p| p["part"].clone()).collect();
    assert_eq!(parts, [json!(1), json!(2)]);

    let id = pcap["id"].as_i64().unwrap();
    let (status, got, kind) = download(&server, id, None).await;
    assert_eq!((status, kind.as_str()), (200, "application/vnd.tcpdump.pcap"));
    assert!(got == bytes);
    let (status, got, _) = download(&server, id, Some("bytes=2097150-2097160")).await;
    assert_eq!((status, &got[..]), (206, &bytes[2_097_150..=2_097_160]));
    assert_eq!(download(&server, id, Some("bytes=999999999-")).await.0, 416);
    assert_eq!(server.get("/api/v1/pcaps/99/download").await.0, 404);
    assert_eq!(server.get("/api/v1/pcaps?limit=101").await.0, 400);
    assert_eq!(server.delete(&format!("/api/v1/pcaps/{id}")).await.0, 200);
    assert_eq!((server.delete(&format!("/api/v1/pcaps/{id}")).await.0, files(&server)), (404, (0, 1)));
    let (_, audit) = server.get("/api/v1/audit?object=pcap/1").await;
    let actions: Vec<_> = audit["records"].as_array().unwrap().iter().map(|r| r["action"].clone()).collect();
    assert_eq!(actions, [json!("pcap.delete"), json!("pcap.upload")]);
    assert_eq!(server.delete(&format!("/api/v1/nodes/{}", node.uuid)).await.0, 200);
    assert_eq!(files(&server), (0, 0));
}

#[tokio::test]
async fn a_whole_capture_comes_as_multipart() {
    let (server, node) = site(CaptureLimits::default()).await;
    let post = async |file: &[u8], kind: &str| {
        let head = "--xyz\r\nContent-Disposition: form-data; name=\"pcap\"; filename=\"a.pcap\"\r\n\r\n";
        let body = [head.as_bytes(), file, b"\r\n--xyz--\r\n"].concat();
        let request = server.agent(&node, Method::POST, &format!("/incidents/{UUID}/pcap"));
        checked(request.header("content-type", kind).body(body)).await
    };
    let mut classic = vec![0xd4, 0xc3, 0xb2, 0xa1];
    classic.resize(CHUNK, 0);
    let (status, answer) = post(&classic, "multipart/form-data; boundary=xyz").await;
    assert_eq!((status, &answer["pcap"]["format"], &answer["pcap"]["bytes"]), (200, &json!("pcap"), &json!(CHUNK)));
    assert_eq!(post(&[classic, vec![0]].concat(), "multipart/form-data; boundary=xyz").await.0, 413);
    assert_eq!(post(b"MZ", "multipart/form-data; boundary=xyz").await.0, 422);
    assert_eq!(post(b"MZ", "multipart/form-data; boundary=other").await.0, 422);
    assert_eq!(post(b"MZ", "multipart/form-data").await.0, 415);
    assert_eq!(post(b"MZ", "application/json").await.0, 415);
    // What was refused is no upload that goes on, and leaves no file.
    assert_eq!(files(&server), (0, 1));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_leaves_nothing() {
    let (server, node) = site(CaptureLimits::default()).await;
    let other = server.deploy("edge-2").await;
    let small = capture(5_000, 3);
    let send = async |node: &Node, incident: &str, headers: &[(&str, &str)], body: &[u8]| {
        let mut request = raw(&server, node, incident, body.to_vec());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        checked(request).await
    };
    let good = [("X-Upload-Id", "a"), ("X-Chunk-Index", "0"), ("X-Chunk-Total", "1")];
    let with = |name: &'static str, value: &'static str| {
        let others = good.into_iter().filter(move |(n, _)| *n != name);
        others.chain([(name, value)]).collect::<Vec<_>>()
    };
    for (headers, expected) in [
        (with("X-Upload-Id", "../../etc/passwd"), 422),
        (with("X-Upload-Id", ""), 422),
        (with("X-Chunk-Index", "1"), 422),
        (with("X-Chunk-Index", "-1"), 400),
        (with("X-Chunk-Index", "99999999999"), 400),
        (with("X-Chunk-Total", "0"), 422),
        (with("X-Chunk-Total", "33"), 422),
        (with("X-Chunk-Total", "one"), 400),
        (with("X-Capture-Sha256", "12"), 400),
        (with("X-Capture-Part", "0"), 422),
        (good[..2].to_vec(), 400),
        (good[1..].to_vec(), 400),
    ] {
        assert_eq!(send(&node, UUID, &headers, &small).await.0, expected, "{headers:?}");
    }
    for (name, body, expected) in [
        ("garbage", &b"GIF89a, and more than twenty-four bytes"[..], 422),
        ("nothing", b"", 422),
        ("short", &small[..20], 422),
        ("too large", &vec![0; CHUNK + 1], 413),
    ] {
        assert_eq!(send(&node, UUID, &good, body).await.0, expected, "{name}");
    }
    let foreign = "00000000-0000-4000-8000-000000000000";
    assert_eq!(send(&other, UUID, &good, &small).await.0, 404, "another node's incident");
    assert_eq!(send(&node, foreign, &good, &small).await.0, 404);
    for path in ["..%2f..%2fetc", "%252e%252e", "x"] {
        assert_eq!(send(&node, path, &good, &small).await.0, 400, "{path}");
    }
    // A chunk of 7 bytes and no first one: the garbage shows when all is there.
    let chunked = |index| [("X-Upload-Id", "b"), ("X-Chunk-Index", index), ("X-Chunk-Total", "2")];
    assert_eq!(send(&node, UUID, &chunked("1"), b"garbage").await.0, 200);
    let three = [("X-Upload-Id", "b"), ("X-Chunk-Index", "1"), ("X-Chunk-Total", "3")];
    assert_eq!(send(&node, UUID, &three, b"garbage").await.0, 422, "another total");
    let zeros = "0".repeat(64);
    let wrong_hash = [&chunked("0")[..], &[("X-Capture-Sha256", zeros.as_str())]].concat();
    let (status, answer) = send(&node, UUID, &wrong_hash, &small).await;
    assert_eq!((status, &answer["error"]["details"][0]["field"]), (422, &json!("X-Capture-Sha256")));
    assert_eq!(files(&server), (0, 0));
    assert_eq!(server.get("/api/v1/pcaps").await.1["total"], 0);
    assert_eq!(send(&node, UUID, &good, &small).await.0, 200, "what was refused took no place");
}

#[tokio::test]
async fn ten_captures_an_hour_and_node() {
    let (server, node) = site(CaptureLimits::default()).await;
    for n in 0..10 {
        let (status, _) = whole(&server, &node, &format!("u{n}"), &capture(1_000, n)).await;
        assert_eq!(status, 200, "{n}");
        server.clock.advance(60);
    }
    let bytes = capture(1_000, 99);
    let answer = chunk(&server, &node, "u10", 0, &bytes).send().await.unwrap();
    let header = |name: &str| answer.headers()[name].to_str().unwrap().parse::<u64>().unwrap();
    assert_eq!((answer.status().as_u16(), header("retry-after")), (429, 3_000));
    assert_eq!((header("x-ratelimit-limit"), header("x-ratelimit-remaining")), (10, 0));
    assert_eq!(whole(&server, &node, "u3", &capture(1_000, 3)).await.0, 200, "one that is there is no new one");
    server.clock.advance(3_000);
    assert_eq!(whole(&server, &node, "u10", &bytes).await.0, 200);
    assert_eq!(whole(&server, &node, "u11", &capture(1_000, 100)).await.0, 429);
    let other = server.deploy("edge-2").await;
    let mut theirs = report("1f9619ff-8b86-4011-b42d-00cf4fc964ff", 1, "active");
    theirs["target"] = json!("203.0.113.6/32");
    server.report(&other, "/incidents", &theirs).await;
    let request = raw(&server, &other, "1f9619ff-8b86-4011-b42d-00cf4fc964ff", capture(1_000, 1));
    let request = request.header("X-Upload-Id", "a").header("X-Chunk-Index", 0).header("X-Chunk-Total", 1);
    assert_eq!(checked(request).await.0, 200, "each node has its own");
}

#[tokio::test]
async fn what_is_old_or_too_much_goes() {
    let limits = CaptureLimits { max_bytes: 4 << 20, keep_days: 7, max_disk_bytes: 7 << 20 };
    let (server, node) = site(limits).await;
    let ids = async || {
        let (_, listed) = server.get("/api/v1/pcaps").await;
        listed["pcaps"].as_array().unwrap().iter().map(|p| p["id"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    for n in 0..4 {
        assert_eq!(whole(&server, &node, &format!("u{n}"), &capture(CHUNK, n)).await.0, 200);
    }
    assert_eq!((ids().await, files(&server)), (vec![4, 3, 2], (0, 3)), "by bytes");
    let half = capture(CHUNK + 1, 9);
    assert_eq!(checked(chunk(&server, &node, "half", 0, &half)).await.0, 200);
    assert_eq!(checked(chunk(&server, &node, "half2", 0, &half)).await.0, 503, "no room for uploads under way");
    server.clock.advance(6 * 86_400);
    assert_eq!(whole(&server, &node, "u5", &capture(1_000, 5)).await.0, 200);
    assert_eq!((ids().await, files(&server)), (vec![5, 4, 3, 2], (0, 4)), "the half one stood still for a day");
    server.clock.advance(2 * 86_400);
    assert_eq!(whole(&server, &node, "u6", &capture(1_000, 6)).await.0, 200);
    assert_eq!((ids().await, files(&server)), (vec![6, 5], (0, 2)), "by age");
}

#[tokio::test]
async fn a_fifth_upload_at_the_same_time_ends_the_one_that_stood_still_longest() {
    let (server, node) = site(CaptureLimits::default()).await;
    let bytes = capture(CHUNK + 1, 1);
    for n in 0..5 {
        assert_eq!(checked(chunk(&server, &node, &format!("u{n}"), 0, &bytes)).await.0, 200);
        server.clock.advance(1);
    }
    assert_eq!(files(&server), (4, 0));
    let (_, answer) = checked(chunk(&server, &node, "u0", 1, &bytes)).await;
    assert_eq!(answer["missing"], json!([0]), "it begins anew");
    let (_, answer) = checked(chunk(&server, &node, "u4", 1, &bytes)).await;
    assert_eq!(answer["complete"], json!(true));
}

#[tokio::test]
async fn the_same_chunks_at_the_same_time_make_one_capture() {
    let (server, node) = site(CaptureLimits::default()).await;
    let bytes = capture(CHUNK + 1_000, 1);
    let sending = (0..12).map(|n| {
        let request = chunk(&server, &node, "u", n % 2, &bytes);
        tokio::spawn(async move { checked(request).await })
    });
    let sending: Vec<_> = sending.collect();
    let mut complete = 0;
    for sent in sending {
        let (status, answer) = sent.await.unwrap();
        // Whoever came while the chunks were cleared away comes again.
        assert!(matches!(status, 200 | 503), "{answer}");
        complete += u32::from(answer["complete"] == json!(true));
    }
    assert!(complete > 0);
    let (_, answer) = checked(chunk(&server, &node, "u", 0, &bytes)).await;
    assert_eq!((&answer["complete"], &answer["pcap"]["sha256"]), (&json!(true), &json!(sha256(&bytes))));
    assert_eq!(server.get("/api/v1/pcaps").await.1["total"], 1);
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_nothing() {
    use tokio::io::AsyncWriteExt as _;
    let (server, node) = site(CaptureLimits::default()).await;
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /api/v1/agent/incidents/{UUID}/pcap HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nx-node-uuid: {}\r\n\
         content-type: application/octet-stream\r\nx-upload-id: u\r\nx-chunk-index: 0\r\nx-chunk-total: 1\r\n\
         content-length: 100000\r\n\r\n",
        node.key, node.uuid
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&capture(50_000, 1)).await.unwrap();
    let until = async |wanted| {
        for _ in 0..200 {
            if files(&server) == wanted {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("{:?} instead of {wanted:?}", files(&server));
    };
    until((1, 0)).await;
    drop(stream);
    until((0, 0)).await;
    assert_eq!(whole(&server, &node, "u", &capture(50_000, 1)).await.0, 200);
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing_half() {
    // A small file system of its own, in a namespace of its own: this needs root.
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a_full_disk_is_said_and_leaves_nothing_half: needs root to mount a small tmpfs");
        return;
    }
    let inside = || {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let small = folder.path().join("captures");
        std::fs::create_dir(&small).unwrap();
        mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=5m")).unwrap();
        // Made after the namespace, so that all of its threads live there.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(on_a_small_disk(folder, &small));
        drop(runtime);
        nix::mount::umount(&small).unwrap();
    };
    std::thread::spawn(inside).join().unwrap();
}

async fn on_a_small_disk(folder: tempfile::TempDir, small: &Path) {
    let server = Server::start_with(folder, CaptureLimits::default()).await;
    let node = server.deploy("edge-1").await;
    server.report(&node, "/incidents", &report(UUID, 1, "active")).await;
    let bytes = capture(CHUNK + CHUNK / 2, 1);
    assert_eq!(checked(chunk(&server, &node, "u", 0, &bytes)).await.0, 200);
    // Both chunks have room, and a second time together they have not.
    let (status, answer) = checked(chunk(&server, &node, "u", 1, &bytes)).await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("unavailable")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("full"), "{answer}");
    assert_eq!(files(&server), (1, 0));
    let filler = small.join("filler");
    std::fs::write(&filler, vec![1; 1 << 20]).unwrap();
    let (status, _) = checked(chunk(&server, &node, "v", 0, &bytes)).await;
    assert_eq!((status, files(&server)), (503, (1, 0)), "no half chunk");
    assert_eq!(server.get("/api/v1/incidents").await.1["total"], 1, "everything else goes on");
    std::fs::remove_file(filler).unwrap();
    // Room for one copy of what is there: the last chunk comes again, as its sender never heard that it is kept.
    let options = nix::mount::MsFlags::MS_REMOUNT;
    nix::mount::mount(None::<&str>, small, None::<&str>, options, Some("size=16m")).unwrap();
    let (status, answer) = checked(chunk(&server, &node, "u", 1, &bytes)).await;
    assert_eq!((status, &answer["pcap"]["sha256"]), (200, &json!(sha256(&bytes))), "{answer}");
    assert_eq!(files(&server), (0, 1));
}
