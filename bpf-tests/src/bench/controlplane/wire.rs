//! HTTP/1.1 as an agent speaks it, with as little work as can be: the simulator has the same two CPUs as the server.
//!
//! One [`Wire`] is one kept connection. Answers have a length (the server's JSON always has) or are chunked (streams).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// What an agent waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer; those of agents and lists are far below.
const MOST: usize = 8 << 20;
/// Connections from one address: a system has some 28,000 ports for them.
const PER_ADDRESS: u32 = 15_000;

/// Where the server is, and how many connections were made to it.
pub(super) struct Place {
    pub(super) server: SocketAddr,
    made: AtomicU32,
}

impl Place {
    pub(super) const fn new(server: SocketAddr) -> Self {
        Self { server, made: AtomicU32::new(0) }
    }

    /// A new connection, from an address of the loopback network that has ports left.
    pub(super) async fn connect(&self) -> io::Result<TcpStream> {
        let number = self.made.fetch_add(1, Ordering::Relaxed) / PER_ADDRESS;
        let [.., low] = number.to_be_bytes();
        let socket = TcpSocket::new_v4()?;
        // Or the kernel looks for a port that nobody has towards anybody, one after the other: seconds of it, with many.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind((IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1 + low % 64)), 0).into())?;
        let stream = timeout(PATIENCE, socket.connect(self.server)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// A kept connection.
#[derive(Default)]
pub(super) struct Wire(Option<TcpStream>);

/// A whole answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Wire {
    /// Sends a request and reads the answer. A kept connection that turns out to be closed is replaced once.
    pub(super) async fn call(&mut self, place: &Place, request: &[u8]) -> io::Result<Answer> {
        let kept = self.0.is_some();
        match timeout(PATIENCE, self.once(place, request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) if kept => timeout(PATIENCE, self.once(place, request)).await.unwrap_or_else(|_| timed_out()),
            Ok(Err(fault)) => Err(fault),
            Err(_) => {
                self.0 = None;
                timed_out()
            }
        }
    }

    async fn once(&mut self, place: &Place, request: &[u8]) -> io::Result<Answer> {
        let mut stream = match self.0.take() {
            Some(stream) => stream,
            None => place.connect().await?,
        };
        stream.write_all(request).await?;
        let mut bytes = Vec::with_capacity(1_024);
        let head = loop {
            if let Some(head) = Head::read(&bytes)? {
                break head;
            }
            more(&mut stream, &mut bytes).await?;
        };
        let Length::Known(length) = head.length else { return Err(io::Error::other("an answer without a length")) };
        while bytes.len() < head.bytes + length {
            more(&mut stream, &mut bytes).await?;
        }
        bytes.drain(..head.bytes);
        if head.kept {
            self.0 = Some(stream);
        }
        Ok(Answer { status: head.status, body: bytes })
    }
}

fn timed_out<T>() -> io::Result<T> {
    Err(io::ErrorKind::TimedOut.into())
}

async fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    if bytes.len() > MOST {
        return Err(io::Error::other("an answer that is too long"));
    }
    match stream.read_buf(bytes).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    Known(usize),
    Chunked,
}

/// The head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) length: Length,
    kept: bool,
    /// Of the head itself.
    pub(super) bytes: usize,
}

impl Head {
    /// The head, once all of it is there.
    pub(super) fn read(bytes: &[u8]) -> io::Result<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
        let wrong = || io::Error::other("an answer that is no HTTP");
        let text = std::str::from_utf8(&bytes[..end]).map_err(|_| wrong())?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        let status = status.ok_or_else(wrong)?;
        let mut head = Self { status, length: Length::Known(0), kept: true, bytes: end + 4 };
        for line in lines {
            let (name, value) = line.split_once(':').ok_or_else(wrong)?;
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                head.length = Length::Known(value.parse().map_err(|_| wrong())?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
                head.length = Length::Chunked;
            } else if name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close") {
                head.kept = false;
            }
        }
        Ok(Some(head))
    }
}

/// Takes the chunks off a body.
#[derive(Default)]
pub(super) struct Chunks {
    /// Of the chunk that is being read; its line feed is outside.
    left: usize,
    /// The line with a chunk's size, as far as it is there.
    line: Vec<u8>,
}

impl Chunks {
    /// Hands the content of `bytes` to `each`, in order; false at the end of the body.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<bool> {
        while let Some(first) = bytes.first() {
            if self.left > 0 {
                let (content, rest) = bytes.split_at(self.left.min(bytes.len()));
                each(content);
                self.left -= content.len();
                bytes = rest;
                continue;
            }
            bytes = &bytes[1..];
            if *first != b'\n' {
                self.line.push(*first);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let size = line.trim_ascii();
            // The line that ends a chunk's content is empty.
            if !size.is_empty() {
                let size = std::str::from_utf8(size).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
                self.left = size.ok_or_else(|| io::Error::other("a chunk without a size"))?;
                if self.left == 0 {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_status_and_length() {
        let head = |text: &str| Head::read(text.as_bytes());
        assert_eq!(head("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n").expect("so far"), None);
        let whole =
            head("HTTP/1.1 429 Too Many\r\nContent-Length: 5\r\nconnection: close\r\n\r\nhello").expect("a head");
        let whole = whole.expect("all of it");
        assert_eq!((whole.status, whole.length, whole.kept, whole.bytes), (429, Length::Known(5), false, 63));
        let stream = head("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").expect("a head").expect("all of it");
        assert_eq!(stream.length, Length::Chunked);
        assert!(head("hello\r\n\r\n").is_err());
    }

    #[test]
    fn chunks_are_put_together_from_any_pieces() {
        let body = b"5\r\nhello\r\n2\r\n, \r\nB\r\nworld\r\n1234\r\n0\r\n\r\n";
        for size in 1..body.len() {
            let (mut chunks, mut content, mut open) = (Chunks::default(), Vec::new(), true);
            for piece in body.chunks(size) {
                open = open && chunks.feed(piece, |part| content.extend_from_slice(part)).expect("chunks");
            }
            assert_eq!(content, b"hello, world\r\n1234", "pieces of {size}");
            assert!(!open);
        }
    }
}
