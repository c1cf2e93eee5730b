//! HTTP/1.1 messages as far as the lab needs them (RFC 9112): lengths by `Content-Length`, chunks, or the end.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A header section longer than this is refused, in bytes.
const MAX_HEAD: u64 = 64 << 10;
/// A body longer than this is refused, in bytes.
const MAX_BODY: u64 = 16 << 20;

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("no answer from {peer}")]
    Io {
        peer: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("{peer} does not answer in HTTP/1.1: {what}")]
    Syntax { peer: SocketAddr, what: &'static str },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub body: Vec<u8>,
}

/// Asks once, over a connection of its own. `headers` are whole lines without their ends.
///
/// # Errors
/// The server cannot be reached within `timeout`, or its answer makes no sense.
pub fn get(peer: SocketAddr, path: &str, headers: &[String], timeout: Duration) -> Result<Response, HttpError> {
    let fail = |source| HttpError::Io { peer, source };
    let mut stream = connect(peer, timeout).map_err(fail)?;
    write_request(&mut stream, peer, path, headers, false).map_err(fail)?;
    read_response(&mut BufReader::new(stream), peer)
}

pub(super) fn connect(peer: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&peer, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(super) fn write_request(
    stream: &mut TcpStream,
    peer: SocketAddr,
    path: &str,
    headers: &[String],
    keep_alive: bool,
) -> io::Result<()> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: {peer}\r\nConnection: {connection}\r\n");
    for header in headers {
        request.push_str(header);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())
}

pub(super) fn read_response(reader: &mut impl BufRead, peer: SocketAddr) -> Result<Response, HttpError> {
    let fail = |source| HttpError::Io { peer, source };
    let syntax = |what| HttpError::Syntax { peer, what };
    let head = read_head(reader).map_err(fail)?;
    let status = head.first().and_then(|line| line.strip_prefix("HTTP/1.1 ")).and_then(|rest| rest.get(..3));
    let status = status.and_then(|code| code.parse().ok()).ok_or_else(|| syntax("no status line"))?;
    let mut body = Vec::new();
    if header(&head, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        loop {
            let mut line = String::new();
            reader.by_ref().take(MAX_HEAD).read_line(&mut line).map_err(fail)?;
            let len = u64::from_str_radix(line.trim().split(';').next().unwrap_or(""), 16);
            let len = len.map_err(|_| syntax("a chunk without a length"))?;
            if body.len() as u64 + len > MAX_BODY {
                return Err(syntax("the body is too long"));
            }
            // Every chunk is followed by a line end, the last one by the (empty) trailer section.
            let mut chunk = vec![0; len as usize + 2];
            reader.read_exact(&mut chunk).map_err(fail)?;
            if len == 0 {
                break;
            }
            body.extend(&chunk[..len as usize]);
        }
    } else if let Some(length) = header(&head, "content-length") {
        let length: u64 = length.parse().map_err(|_| syntax("a content length that is no number"))?;
        if length > MAX_BODY {
            return Err(syntax("the body is too long"));
        }
        body.resize(length as usize, 0);
        reader.read_exact(&mut body).map_err(fail)?;
    } else {
        reader.take(MAX_BODY).read_to_end(&mut body).map_err(fail)?;
    }
    Ok(Response { status, body })
}

/// The lines up to the empty one; no lines if the connection ended before the first.
pub(super) fn read_head(reader: &mut impl BufRead) -> io::Result<Vec<String>> {
    let mut limited = reader.take(MAX_HEAD);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if limited.read_line(&mut line)? == 0 {
            return if lines.is_empty() { Ok(lines) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(lines);
        }
        lines.push(line.to_owned());
    }
}

/// The value of a header, by its lower-case name.
pub(super) fn header<'a>(head: &'a [String], name: &str) -> Option<&'a str> {
    head.iter().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(text: &str) -> Result<Response, HttpError> {
        read_response(&mut text.as_bytes(), ([127, 0, 0, 1], 1).into())
    }

    #[test]
    fn bodies_end_by_length_by_chunks_or_with_the_connection() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhellojunk",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x\r\nlo\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nhello",
        ] {
            assert_eq!(response(text).expect(text), Response { status: 200, body: b"hello".to_vec() });
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in [
            "",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 abc\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        ] {
            assert!(response(text).is_err(), "{text:?}");
        }
    }
}
