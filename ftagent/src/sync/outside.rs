//! Questions to a server that is no control plane: the same bounds, time limits and TLS, and no redirects.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use hyper::header::{HeaderMap, RETRY_AFTER};
use time::OffsetDateTime;

use super::ServerError;
use super::http::{Answer, Call, CallError, Connection};
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
    /// As the server wrote it: seconds or a date.
    pub retry_after: Option<String>,
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
        Ok(reply(answer, self.connection.opened() != opened))
    }

    /// A request that changes something, with a JSON body if there is one. It is sent once: whether it had its effect
    /// where no answer came, only a look can tell.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn change(
        &mut self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: Option<Bytes>,
        max_bytes: usize,
    ) -> Result<Reply, CallError> {
        let opened = self.connection.opened();
        let call = Call { method, path, headers, body };
        let answer = self.connection.call_once(&call, max_bytes).await?;
        Ok(reply(answer, self.connection.opened() != opened))
    }
}

fn reply(answer: Answer, is_new_connection: bool) -> Reply {
    let retry_after = answer.header(RETRY_AFTER).map(str::to_owned);
    Reply { status: answer.status, body: answer.body, retry_after, is_new_connection }
}
