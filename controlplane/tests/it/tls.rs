//! TLS of the real program: certificates in files, their change, old versions, and handshakes that do not come to an end.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::process::{Process, json_of, run};

/// An authority that is not the control plane's.
pub(crate) struct Outside {
    pub(crate) root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Outside {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { root, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key, PEM.
    pub(crate) fn issue(&self, names: &[&str]) -> (String, String) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let made = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        (made.pem(), key.serialize_pem())
    }
}

/// What a client trusts and shows.
pub(crate) fn client(root: &CertificateDer<'static>, shown: Option<(&str, &str)>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    match shown {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    }
}

pub(crate) async fn connect(to: SocketAddr, name: &str, config: ClientConfig) -> Result<TlsStream<TcpStream>, String> {
    let tcp = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|e| e.to_string())
}

/// Sends a request and reads status and body of the answer; the connection stays open.
pub(crate) async fn ask(
    stream: &mut TlsStream<TcpStream>,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Result<(u16, String), String> {
    let length = body.len();
    let json = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: cp\r\n{headers}{json}content-length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut text = Vec::new();
    loop {
        let shown = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = shown.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
            if body.len() >= length.unwrap_or(0_usize) {
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                return Ok((status, body.to_owned()));
            }
        }
        let mut piece = [0; 4_096];
        match timeout(Duration::from_secs(10), stream.read(&mut piece)).await.map_err(|e| e.to_string())? {
            Ok(0) => return Err(format!("it closed after {shown:?}")),
            Ok(length) => text.extend_from_slice(&piece[..length]),
            Err(fault) => return Err(fault.to_string()),
        }
    }
}

/// One request on a connection of its own.
async fn get(to: SocketAddr, name: &str, config: ClientConfig) -> Result<u16, String> {
    let mut stream = connect(to, name, config).await?;
    Ok(ask(&mut stream, "GET", "/api/health", "", "").await?.0)
}

/// The certificate that the server shows.
async fn shown(to: SocketAddr, config: ClientConfig) -> CertificateDer<'static> {
    let stream = connect(to, "localhost", config).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

fn put(folder: &Path, (certificate, key): (&str, &str)) {
    std::fs::write(folder.join("cert.pem"), certificate).unwrap();
    std::fs::write(folder.join("key.pem"), key).unwrap();
    std::fs::set_permissions(folder.join("key.pem"), std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn serve(folder: &Path, more: &[(&str, &str)]) -> Process {
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let files = [("TLS_CERT", cert.to_str().unwrap()), ("TLS_KEY", key.to_str().unwrap())];
    Process::start_with(&folder.join("data"), &[], &[&files, more].concat())
}

async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..400 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it did not happen within 20 s: {what}");
}

#[tokio::test]
async fn certificates_in_files_are_read_again_and_bad_ones_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let outside = Outside::new();
    let (first, first_key) = outside.issue(&["localhost", "127.0.0.1"]);
    put(folder.path(), (&first, &first_key));
    let process = serve(folder.path(), &[]);
    let at = process.address();
    let trusting = || client(&outside.root, None);
    assert_eq!(get(at, "localhost", trusting()).await, Ok(200));
    assert_eq!(get(at, "127.0.0.1", trusting()).await, Ok(200), "an address in the certificate");
    assert!(get(at, "cp.example", trusting()).await.unwrap_err().contains("not valid for name"));
    assert!(get(at, "localhost", client(&Outside::new().root, None)).await.is_err(), "another authority");
    if let Ok(output) = Command::new("openssl")
        .args(["s_client", "-connect", &at.to_string(), "-tls1_2", "-brief"])
        .stdin(Stdio::null())
        .output()
    {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("TLSv1.2"), "openssl: {text}");
    }

    // Somebody reads on while the certificate changes.
    let mut open = connect(at, "localhost", trusting()).await.unwrap();
    assert_eq!(ask(&mut open, "GET", "/api/health", "", "").await.unwrap().0, 200);
    let one = shown(at, trusting()).await;
    let (second, second_key) = outside.issue(&["localhost"]);
    put(folder.path(), (&second, &first_key));
    process.signal(Signal::SIGHUP);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(shown(at, trusting()).await, one, "the key is not the new certificate's: nothing changed");
    put(folder.path(), (&second, &second_key));
    process.signal(Signal::SIGHUP);
    eventually("the new one is shown", async || shown(at, trusting()).await != one).await;
    assert_eq!(ask(&mut open, "GET", "/api/health", "", "").await.unwrap().0, 200, "the connection went on");
    let two = shown(at, trusting()).await;
    let (third, third_key) = outside.issue(&["localhost"]);
    put(folder.path(), (&third, &third_key));
    eventually("a change is noticed without a signal", async || shown(at, trusting()).await != two).await;
}

#[tokio::test]
async fn old_versions_and_open_doors_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let outside = Outside::new();
    let (certificate, key) = outside.issue(&["localhost"]);
    put(folder.path(), (&certificate, &key));
    let process = serve(folder.path(), &[("TLS_MIN_VERSION", "1.3")]);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(outside.root.clone()).unwrap();
    let old = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    assert!(get(process.address(), "localhost", old).await.unwrap_err().contains("ProtocolVersion"));
    assert_eq!(get(process.address(), "localhost", client(&outside.root, None)).await, Ok(200));
    drop(process);

    let data = folder.path().join("data");
    let output = Command::new(env!("CARGO_BIN_EXE_controlplane"))
        .args(["--listen", "0.0.0.0:0", "--data", data.to_str().unwrap(), "serve"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && text.contains("allow_plain_http = true") && text.contains("tls_cert"),
        "{text}"
    );
    std::fs::set_permissions(folder.path().join("key.pem"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let config = folder.path().join("cp.toml");
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&config, format!("tls_cert = {:?}\ntls_key = {:?}\n", cert.display(), key.display())).unwrap();
    for command in ["check-config", "serve"] {
        let (ok, text) = run(&data, &["--config", config.to_str().unwrap(), command]);
        assert!(!ok && text.contains("key.pem") && text.contains("chmod 0600"), "{command}: {text}");
    }
}

#[tokio::test]
async fn tls_stands_beside_plain_http() {
    let folder = tempfile::tempdir().unwrap();
    let outside = Outside::new();
    let (certificate, key) = outside.issue(&["localhost"]);
    put(folder.path(), (&certificate, &key));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let process = serve(folder.path(), &[("TLS_LISTEN", &free.to_string())]);
    assert!(process.url.starts_with("http://"));
    let plain = reqwest::get(format!("{}/api/health", process.url)).await.unwrap();
    assert_eq!(plain.status(), 200);
    eventually("it speaks TLS", async || get(free, "localhost", client(&outside.root, None)).await == Ok(200)).await;
}

/// The number of a line of the metrics.
async fn count(url: &str, outcome: &str) -> u64 {
    let text = reqwest::get(format!("{url}/metrics")).await.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.contains("tls_handshakes") && line.contains(outcome));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

/// Connects from an address of its own.
async fn connect_from(from: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind((IpAddr::from(from), 0).into())?;
    socket.connect(to).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_methods, reason = "it measures time")]
async fn handshakes_that_do_not_end_are_bounded_and_harm_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let outside = Outside::new();
    let (certificate, key) = outside.issue(&["localhost"]);
    put(folder.path(), (&certificate, &key));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings =
        [("TLS_LISTEN", free.to_string()), ("TLS_HANDSHAKES", "8".to_owned()), ("TLS_HANDSHAKE_SECS", "2".to_owned())];
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let process = serve(folder.path(), &settings);
    eventually("it speaks TLS", async || get(free, "localhost", client(&outside.root, None)).await == Ok(200)).await;

    // Half-open: some say nothing, some say the beginning of a hello and no more, some speak no TLS.
    let mut held = Vec::new();
    for n in 0..200 {
        let mut stream = connect_from([127, 0, 0, 9], free).await.unwrap();
        match n % 3 {
            0 => {}
            1 => drop(stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await),
            _ => drop(stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await),
        }
        held.push(stream);
    }
    let begun = std::time::Instant::now();
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let one = std::time::Instant::now();
        let tcp = connect_from([127, 0, 0, 1], free).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let done = TlsConnector::from(Arc::new(client(&outside.root, None))).connect(name, tcp);
        timeout(Duration::from_secs(2), done).await.expect("others take their own share alone").unwrap();
        slowest = slowest.max(one.elapsed());
    }
    println!("10 handshakes beside 200 that hang: {:?}, the slowest {slowest:?}", begun.elapsed());
    // Every one of them is closed by the server, within the limit and what they waited for their turn.
    let begun = std::time::Instant::now();
    for stream in &mut held {
        let mut piece = [0; 512];
        loop {
            match timeout(Duration::from_secs(5), stream.read(&mut piece)).await.expect("it is closed") {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }
    println!("all of them were closed within {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(4));
    let (refused, timed_out) = (count(&process.url, "refused").await, count(&process.url, "timed_out").await);
    println!("refused {refused}, timed out {timed_out}, failed {}", count(&process.url, "failed").await);
    assert!(refused > 100 && timed_out > 0 && refused + timed_out <= 200);
    assert_eq!(get(free, "localhost", client(&outside.root, None)).await, Ok(200));
}

#[tokio::test]
async fn a_signal_ends_streams_and_waits_for_requests() {
    let folder = tempfile::tempdir().unwrap();
    let outside = Outside::new();
    let (certificate, key) = outside.issue(&["localhost"]);
    put(folder.path(), (&certificate, &key));
    let mut process = serve(folder.path(), &[]);
    let token = process.token().unwrap();
    let bearer = format!("authorization: Bearer {token}\r\n");
    let at = process.address();
    let open = async || connect(at, "localhost", client(&outside.root, None)).await.unwrap();
    let mut stream = open().await;
    let (_, node) = ask(&mut stream, "POST", "/api/deploy", &bearer, r#"{"name":"edge-1"}"#).await.unwrap();
    let node: serde_json::Value = serde_json::from_str(&node).unwrap();
    let headers = format!(
        "authorization: Bearer {}\r\nx-node-uuid: {}\r\n",
        node["api_key"].as_str().unwrap(),
        node["node_uuid"].as_str().unwrap()
    );
    let mut agent = open().await;
    let request = format!("GET /api/v1/agent/stream HTTP/1.1\r\nhost: cp\r\n{headers}\r\n");
    agent.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    while !text.contains("\"config\"") {
        let mut piece = [0; 4_096];
        let length = agent.read(&mut piece).await.unwrap();
        text.push_str(&String::from_utf8_lossy(&piece[..length]));
    }
    // A request whose body is still on its way when the signal comes.
    let body = r#"{"name":"late","trigger":{"type":"any"},"action":{"type":"xdp_drop_source"}}"#;
    let length = body.len();
    let head = format!(
        "POST /api/v1/firewall-rules HTTP/1.1\r\nhost: cp\r\n{bearer}content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body.as_bytes()[..20]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    process.signal(Signal::SIGTERM);
    let mut rest = Vec::new();
    timeout(Duration::from_secs(5), agent.read_to_end(&mut rest)).await.expect("the stream ends").unwrap_or(0);
    assert!(String::from_utf8_lossy(&rest).ends_with("0\r\n\r\n"), "by its last chunk, not by a cut");
    stream.write_all(&body.as_bytes()[20..]).await.unwrap();
    let mut answer = vec![0; 4_096];
    let length = timeout(Duration::from_secs(5), stream.read(&mut answer)).await.expect("it is answered").unwrap();
    assert!(String::from_utf8_lossy(&answer[..length]).starts_with("HTTP/1.1 200"), "a request under way is finished");
    drop(stream);
    drop(agent);
    assert!(process.child.wait().unwrap().success());
    let again = Process::start(&folder.path().join("data"), &[]);
    let rules = format!("{}/api/v1/firewall-rules", again.url);
    assert_eq!(json_of(&reqwest::Client::new(), &rules, &token).await["rules"][0]["name"], "late");
}
