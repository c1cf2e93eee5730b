//! Requests to a server on this machine: HTTP/1.1 with one request a connection, which is all that seeding needs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// A server's address, such as `127.0.0.1:8080`, and a token that it knows.
pub(super) struct Client {
    pub(super) address: String,
    pub(super) token: String,
}

/// The head of an answer, and what came of its body.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: String,
    pub(super) body: Vec<u8>,
}

impl Client {
    /// Sends JSON with the token, and reads JSON.
    ///
    /// # Errors
    /// No answer, or another one than 200.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let bearer = format!("Bearer {}", self.token);
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        let answer = self.send("POST", path, &headers, body.to_string().as_bytes())?;
        let text = String::from_utf8_lossy(&answer.body);
        ensure!(answer.status == 200, "POST {path} {body}: {} {text}", answer.status);
        serde_json::from_str(&text).with_context(|| format!("POST {path} answered no JSON"))
    }

    /// Sends a request and reads the answer to its end.
    ///
    /// # Errors
    /// No connection, no answer within ten seconds, or one that is no HTTP.
    pub(super) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
        let mut socket = self.ask(method, path, headers, body)?;
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).with_context(|| format!("{method} {path} was not answered"))?;
        parse(&bytes).with_context(|| format!("{method} {path}"))
    }

    /// Opens a stream, and reads its head and what comes with it.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(super) fn open(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let mut socket = self.ask("GET", path, headers, b"")?;
        let (mut bytes, mut piece) = (Vec::new(), [0; 4_096]);
        while !bytes.windows(4).any(|w| w == b"\r\n\r\n") {
            let length = socket.read(&mut piece).with_context(|| format!("GET {path} was not answered"))?;
            ensure!(length > 0, "GET {path} ended in its head");
            bytes.extend_from_slice(&piece[..length]);
        }
        parse(&bytes).with_context(|| format!("GET {path}"))
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<TcpStream> {
        let mut socket = TcpStream::connect(&self.address).with_context(|| format!("cannot reach {}", self.address))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        socket.write_all(&[head.as_bytes(), body].concat())?;
        Ok(socket)
    }
}

fn parse(bytes: &[u8]) -> Result<Answer> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { bail!("the answer has no head") };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|word| word.parse().ok());
    let content_type = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-type").then(|| value.trim().to_owned())
    });
    Ok(Answer {
        status: status.context("the answer has no status")?,
        content_type: content_type.unwrap_or_default(),
        body: bytes[end + 4..].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let answer = parse(b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\r\nno").expect("an answer");
        assert_eq!((answer.status, answer.content_type.as_str(), &answer.body[..]), (404, "text/plain", &b"no"[..]));
        for junk in [&b""[..], b"HTTP/1.1 200 OK\r\n", b"junk\r\n\r\n"] {
            assert!(parse(junk).is_err());
        }
    }
}
