//! Questions to a server that is no control plane: the same bounds, time limits and TLS, and no redirects.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use hyper::header::HeaderMap;
use time::OffsetDateTime;

use super::ServerError;
use super::http::{Call, CallError, Connection};
use super::identity::Identity;
use super::servers::Servers;

/// One server, with a connection that is kept between questions.
pub struct Outside {
    connection: Connection,
    host: (String, u16),
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: Bytes,
    /// The connection was opened for this question: the server may be another one than before, or have forgotten us.
    pub is_new_connection: bool,
}

impl Outside {
    /// The server of `url`; `limit` is for each whole answer. With `ca_file` that authority alone is trusted.
    ///
    /// # Errors
    /// The URL is none of a server, or the authorities cannot be read.
    pub fn new(
        url: &str,
        ca_file: Option<&Path>,
        limit: Duration,
        wall: fn() -> OffsetDateTime,
    ) -> Result<Self, ServerError> {
        let servers = Arc::new(Servers::new(&[url.to_owned()], ca_file, None, &Identity::None, wall)?);
        let (host, port) = servers.server(0).address();
        let host = (host.to_owned(), port);
        Ok(Self { connection: Connection::new(servers, limit), host })
    }

    /// Host or address, and port.
    pub fn host(&self) -> (&str, u16) {
        (&self.host.0, self.host.1)
    }

    /// GET of `path`, which begins with `/`; at most `max_bytes` are taken.
    ///
    /// # Errors
    /// Whatever keeps a whole answer from arriving. One with a status of an error is an answer.
    pub async fn read(&mut self, path: &str, headers: &HeaderMap, max_bytes: usize) -> Result<Reply, CallError> {
        let opened = self.connection.opened();
        let call = Call { method: Method::GET, path, headers, body: None };
        let answer = self.connection.call(&call, max_bytes).await?;
        let is_new_connection = self.connection.opened() != opened;
        Ok(Reply { status: answer.status, body: answer.body, is_new_connection })
    }
}
