//! Connections to the kernel's routing tables: one for questions, one that hears of changes.
//!
//! [`crate::host`] asks over [`Routing`]; the daemon waits on [`Changes`] and asks again, since a notice says that
//! something changed and not what is true now.

use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use rtnetlink::proto::Connection;
use rtnetlink::{Handle, MulticastGroup};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

/// Quiet time after a change before it is told: a link that comes up is a dozen notices.
const SETTLE: Duration = Duration::from_millis(200);
/// Changes that never end, as of a routing daemon, are told this often.
const SETTLE_AT_MOST: Duration = Duration::from_secs(2);

/// A connection for requests; its task ends with it.
#[derive(Debug)]
pub struct Routing {
    pub handle: Handle,
    driver: JoinHandle<()>,
}

impl Routing {
    /// Opens a connection in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The socket's, such as too many open files.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, driver: tokio::spawn(connection) })
    }
}

impl Drop for Routing {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

type Notices = futures_util::stream::BoxStream<'static, ()>;

/// Tells that links, addresses or routes changed.
pub struct Changes {
    notices: Notices,
    driver: JoinHandle<()>,
}

impl Changes {
    /// Listens from now on; open it before the first look, so that no change falls in between.
    ///
    /// # Errors
    /// The socket's.
    pub fn subscribe() -> io::Result<Self> {
        let (connection, _, notices): (Connection<_>, _, _) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])?;
        Ok(Self { notices: notices.map(|_| ()).boxed(), driver: tokio::spawn(connection) })
    }

    /// Waits for a change and until changes pause, at most 2 s; false when the kernel closed the connection and the
    /// caller has to subscribe again.
    ///
    /// Dropping the future loses nothing that was not yet told, apart from the pause.
    pub async fn changed(&mut self) -> bool {
        if self.notices.next().await.is_none() {
            return false;
        }
        let latest = Instant::now() + SETTLE_AT_MOST;
        loop {
            let quiet = (Instant::now() + SETTLE).min(latest);
            match timeout_at(quiet, self.notices.next()).await {
                Ok(Some(())) if Instant::now() < latest => {}
                Ok(Some(())) | Err(_) => return true,
                Ok(None) => return true,
            }
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
