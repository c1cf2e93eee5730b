//! A running agent's captures reach a running control plane, the first part of a long attack while it goes on.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bpf_tests::bpffs::LabDir;
use bpf_tests::skip_without_root;
use serde_json::Value;

use crate::agent::{Agent, flood, program};
use crate::lab::Lab;

/// Ends with its guard.
struct ControlPlane(Child);

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

const ADDRESS: &str = "127.0.0.1:8080";

/// Every frame is sampled, so that a part has several chunks.
const SETTINGS: &str = "[detection]\nhold_down_ms = 1500\nfloor_pps = 1000\n\
     [datapath]\nsamples_per_sec = 100000\nsample_buffer_bytes = 16777216\n\
     [pcap]\nmax_packets = 1000000\npart_seconds = 10\nmax_parts = 2\nupload_bytes_per_second = 4194304\n";

fn start_control_plane(program: &Path, lab: &Lab, dir: &Path) -> ControlPlane {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", lab.edge.path().display())).arg(program);
    command
        .args(["serve", "--listen", ADDRESS, "--data"])
        .arg(dir.join("cp"))
        .arg("--token-file")
        .arg(dir.join("token"));
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    ControlPlane(child.expect("it starts"))
}

/// What the control plane answers to an operator; nothing while it is not there.
fn ask(lab: &Lab, dir: &Path, path: &str) -> Option<Value> {
    let token = std::fs::read_to_string(dir.join("token")).ok()?;
    let token = token.trim();
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n");
    let answer = lab.edge.run(move || {
        let mut stream = TcpStream::connect(ADDRESS).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    });
    let answer = answer.expect("the namespace is there")?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).ok()
}

#[test]
fn captures_reach_the_control_plane_while_the_attack_goes_on_and_after_it() {
    if skip_without_root("captures_reach_the_control_plane_while_the_attack_goes_on_and_after_it") {
        return;
    }
    let (Some(ftagent), Some(controlplane)) =
        (program("FTAGENT_BIN", "ftagent"), program("CONTROLPLANE_BIN", "controlplane"))
    else {
        return;
    };
    let lab = Lab::new();
    let dir = LabDir::create("upload").expect("a directory");
    let _control_plane = start_control_plane(&controlplane, &lab, dir.path());
    let token = dir.path().join("token");
    let link = format!("[control_plane]\nurl = \"http://{ADDRESS}\"\ndeploy_token_file = {:?}\n", token.display());
    let mut agent = Agent::new(ftagent, dir.path(), &lab.edge, &link);
    // The harness writes a [detection] of its own.
    let text = std::fs::read_to_string(&agent.config).expect("a configuration");
    let text = text.replace("[detection]\nhold_down_ms = 1500\n", SETTINGS);
    std::fs::write(&agent.config, text).expect("a configuration");
    agent.wait("a control plane", Duration::from_secs(20), || ask(&lab, dir.path(), "/api/v1/pcaps").is_some());
    agent.start();

    let flood = flood(&lab, 4_000, Duration::from_secs(20));
    let pcaps = || ask(&lab, dir.path(), "/api/v1/pcaps").expect("an answer");
    agent.wait("the first part there", Duration::from_secs(30), || pcaps()["total"] == 1);
    let active = agent.ask("status").expect("an answer")["engine"]["active_incidents"].clone();
    assert_eq!(active, 1, "the attack goes on");
    flood.join().expect("no panic").expect("sent");
    agent.wait("the second part there", Duration::from_secs(30), || pcaps()["total"] == 2);

    let status = agent.ask("captures").expect("an answer");
    let captures = status["captures"]["captures"].as_array().expect("a list");
    let incident = captures[0]["incident"].as_str().expect("an id");
    let folder = Path::new(status["captures"]["dir"].as_str().expect("a directory"));
    let listed = pcaps();
    for (part, kept) in [(1, &listed["pcaps"][1]), (2, &listed["pcaps"][0])] {
        let capture = &captures[part - 1];
        assert_eq!((kept["part"].as_u64(), kept["incident"].as_str()), (Some(part as u64), Some(incident)));
        assert_eq!((&kept["packets"], &kept["bytes"]), (&capture["packets"], &capture["bytes"]));
        let suffix = if part == 1 { String::new() } else { format!("-{part}") };
        let here = std::fs::read(folder.join(format!("{incident}{suffix}.pcapng"))).expect("it stays");
        let there = dir.path().join("cp/captures/files").join(kept["sha256"].as_str().expect("a hash"));
        assert!(here == std::fs::read(there).expect("it is there"), "the same bytes");
        println!("part {part}: {} packets, {} bytes, {}", kept["packets"], kept["bytes"], capture["ended"]);
        assert!(part > 1 || here.len() > 3 << 20, "more than one chunk");
    }
    assert_eq!((captures[0]["ended"].as_str(), captures[1]["ended"].as_str()), (Some("continued"), Some("resolved")));
    let text = agent.run(&["captures"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    println!("{text}");
    assert!(text.contains("uploads: 2 at the control plane, 0 refused, 0 waiting"), "{text}");
}
