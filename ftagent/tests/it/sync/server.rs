//! A control plane that misbehaves on purpose: HTTP/1.1 by hand over TCP or TLS.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) path: String,
    /// Lower-case names.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Value,
    /// How it was answered; 0 for anything but a whole answer.
    pub(super) status: u16,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    Json(u16, Value),
    With(u16, Vec<(&'static str, String)>, String),
    /// Says nothing.
    Hang,
    /// Closes without a word.
    Close,
    /// Writes these bytes as they are and closes.
    Raw(Vec<u8>),
    /// Opens a stream of these pieces, then goes on holding it open or closes it.
    Stream {
        pieces: Vec<String>,
        hold: bool,
    },
}

type Script = Arc<Mutex<dyn FnMut(&Seen) -> Reply + Send>>;

pub(super) struct Server {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(script: impl FnMut(&Seen) -> Reply + Send + 'static) -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap(), None, script).await
    }

    pub(super) async fn start_on(
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        script: impl FnMut(&Seen) -> Reply + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port on loopback");
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let script: Script = Arc::new(Mutex::new(script));
        let task = tokio::spawn(accept(listener, tls, Arc::clone(&seen), script));
        Self { address, seen, task }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Requests below `path` that were answered with 200.
    pub(super) fn accepted(&self, path: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|s| s.status == 200 && s.path.starts_with(path)).collect()
    }

    /// Closes the port and every connection.
    pub(super) async fn stop(self) {
        self.task.abort();
        drop(self.task.await);
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, seen: Arc<Mutex<Vec<Seen>>>, script: Script) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let (seen, script, tls) = (Arc::clone(&seen), Arc::clone(&script), tls.clone());
        connections.spawn(async move {
            match tls {
                None => serve(tcp, &seen, &script).await,
                Some(tls) => match tls.accept(tcp).await {
                    Ok(stream) => serve(stream, &seen, &script).await,
                    Err(_) => None,
                },
            }
        });
    }
}

async fn serve(mut io: impl AsyncRead + AsyncWrite + Unpin, seen: &Mutex<Vec<Seen>>, script: &Script) -> Option<()> {
    loop {
        let mut request = read_request(&mut io).await?;
        let reply = (script.lock().unwrap())(&request);
        request.status = match &reply {
            Reply::Json(status, _) | Reply::With(status, ..) => *status,
            _ => 0,
        };
        // Noted before the answer, so that a test that sees the effect sees the request too.
        seen.lock().unwrap().push(request);
        match reply {
            Reply::Json(status, body) => write_answer(&mut io, status, &[], &body.to_string()).await?,
            Reply::With(status, headers, body) => write_answer(&mut io, status, &headers, &body).await?,
            Reply::Hang => tokio::time::sleep(Duration::from_secs(60)).await,
            Reply::Close => return None,
            Reply::Raw(bytes) => {
                io.write_all(&bytes).await.ok()?;
                io.shutdown().await.ok()?;
                return None;
            }
            Reply::Stream { pieces, hold } => {
                let head =
                    "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
                io.write_all(head.as_bytes()).await.ok()?;
                for piece in pieces {
                    io.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await.ok()?;
                    io.flush().await.ok()?;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                if hold {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
                return None;
            }
        }
    }
}

async fn read_request(io: &mut (impl AsyncRead + Unpin)) -> Option<Seen> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
        let mut piece = [0; 4_096];
        let n = io.read(&mut piece).await.ok().filter(|&n| n > 0)?;
        bytes.extend(&piece[..n]);
    };
    let head = String::from_utf8(bytes[..end].to_vec()).expect("a text head");
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ').map(ToOwned::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers: Vec<(String, String)> =
        lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_lowercase(), v.to_owned())).collect();
    let length = headers.iter().find(|(n, _)| n == "content-length").map_or(0, |(_, v)| v.parse().unwrap());
    let mut body = bytes.split_off(end);
    let mut rest = vec![0; length - body.len().min(length)];
    io.read_exact(&mut rest).await.ok()?;
    body.extend(rest);
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Some(Seen { method, path, headers, body, status: 0 })
}

async fn write_answer(
    io: &mut (impl AsyncWrite + Unpin),
    status: u16,
    headers: &[(&'static str, String)],
    body: &str,
) -> Option<()> {
    let mut answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        answer += &format!("{name}: {value}\r\n");
    }
    answer += "\r\n";
    if status != 304 {
        answer += body;
    }
    io.write_all(answer.as_bytes()).await.ok()?;
    io.flush().await.ok()
}
