//! Handshakes, bounded: how long one takes, how many are under way, and how many of one address.
//!
//! ```text
//! connection --> a place (bounded, and by address) --> a turn (bounded, and by address) --> handshake --> HTTP
//!                else closed at once                    waited for                      all within the time limit
//! ```
//! A burst of many nodes behind one address waits for its turn; a flood of one address takes its own share alone.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::Extension;
use axum::middleware::AddExtension;
use axum_server::accept::Accept;
use futures_util::future::BoxFuture;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tower::Layer as _;

use crate::http::{Handshakes, Outcome, Peer, address_of};
use crate::pki::fingerprint;

/// Connections that wait for each handshake under way.
const PLACES: usize = 8;
/// The part of turns and places that one address may have.
const SHARE: usize = 4;

/// Shakes hands for a listener.
#[derive(Clone)]
pub struct Acceptor {
    config: watch::Receiver<Arc<ServerConfig>>,
    gate: Arc<Gate>,
    limit: Duration,
    handshakes: Handshakes,
}

impl Acceptor {
    /// With at most so many handshakes under way, each of them within `limit` from the connection on.
    pub fn new(
        config: watch::Receiver<Arc<ServerConfig>>,
        under_way: usize,
        limit: Duration,
        handshakes: Handshakes,
    ) -> Self {
        Self { config, gate: Arc::new(Gate::new(under_way)), limit, handshakes }
    }

    async fn shake(&self, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Peer)> {
        let address = address_of(stream.peer_addr()?.ip());
        // Lines of a stream are short, and each is urgent.
        stream.set_nodelay(true)?;
        let Some(place) = self.gate.enter(address) else {
            self.handshakes.note(Outcome::Refused);
            return Err(io::Error::other("too many handshakes are under way"));
        };
        let handshake = async {
            let _turn = place.turn().await;
            let config = self.config.borrow().clone();
            tokio_rustls::TlsAcceptor::from(config).accept(stream).await
        };
        let Ok(done) = timeout(self.limit, handshake).await else {
            self.handshakes.note(Outcome::TimedOut);
            return Err(io::ErrorKind::TimedOut.into());
        };
        match done {
            Ok(stream) => {
                self.handshakes.note(Outcome::Done);
                let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let peer = Peer { certificate: shown.map(|certificate| fingerprint(certificate)) };
                Ok((stream, peer))
            }
            Err(fault) => {
                self.handshakes.note(Outcome::Failed);
                tracing::debug!(%address, error = %fault, "a handshake failed");
                Err(fault)
            }
        }
    }
}

impl<S: Send + 'static> Accept<TcpStream, S> for Acceptor {
    type Stream = TlsStream<TcpStream>;
    type Service = AddExtension<S, Peer>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let (stream, peer) = this.shake(stream).await?;
            Ok((stream, Extension(peer).layer(service)))
        })
    }
}

/// Who shakes hands.
struct Gate {
    turns: Semaphore,
    places: AtomicUsize,
    under_way: usize,
    addresses: Mutex<HashMap<IpAddr, Weak<Address>>>,
}

struct Address {
    turns: Semaphore,
    places: AtomicUsize,
}

/// A connection that waits or shakes hands.
struct Place {
    gate: Arc<Gate>,
    address: Arc<Address>,
}

impl Gate {
    fn new(under_way: usize) -> Self {
        Self { turns: Semaphore::new(under_way), places: AtomicUsize::new(0), under_way, addresses: Mutex::default() }
    }

    fn share(&self) -> usize {
        self.under_way.div_ceil(SHARE)
    }

    /// A place, unless all of them, or those of the address, are taken.
    fn enter(self: &Arc<Self>, ip: IpAddr) -> Option<Place> {
        let address = self.of(ip);
        // Counted first, so that what is refused is given back in one way.
        let (all, own) = (self.places.fetch_add(1, Ordering::Relaxed), address.places.fetch_add(1, Ordering::Relaxed));
        let place = Place { gate: self.clone(), address };
        (all < self.under_way * PLACES && own < self.share() * PLACES).then_some(place)
    }

    fn of(&self, ip: IpAddr) -> Arc<Address> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if addresses.len() > 2 * self.under_way * PLACES {
            addresses.retain(|_, address| address.strong_count() > 0);
        }
        let known = addresses.entry(ip).or_default();
        known.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Address { turns: Semaphore::new(self.share()), places: AtomicUsize::new(0) });
            *known = Arc::downgrade(&new);
            new
        })
    }
}

impl Place {
    /// Waits for a turn; it ends when what is given back is dropped.
    async fn turn(&self) -> Turn<'_> {
        // The address's first: who waits for that holds up nobody else.
        let own = self.address.turns.acquire().await.expect("it is never closed");
        let all = self.gate.turns.acquire().await.expect("it is never closed");
        Turn { _own: own, _all: all }
    }
}

/// A handshake may go on.
struct Turn<'a> {
    _own: tokio::sync::SemaphorePermit<'a>,
    _all: tokio::sync::SemaphorePermit<'a>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.places.fetch_sub(1, Ordering::Relaxed);
        self.address.places.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_address_takes_its_share_alone_and_gives_it_back() {
        let gate = Arc::new(Gate::new(8));
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let places: Vec<_> = (0..16).map(|_| gate.enter(one).expect("within its share")).collect();
        assert!(gate.enter(one).is_none());
        let turns = (places[0].turn().await, places[1].turn().await);
        assert!(timeout(Duration::from_millis(20), places[2].turn()).await.is_err(), "two of eight turns are its own");
        let elsewhere = gate.enter(other).expect("others have theirs");
        drop(elsewhere.turn().await);
        drop(turns);
        drop(places[2].turn().await);
        drop(places);
        assert_eq!(gate.places.load(Ordering::Relaxed), 1);
        assert!(gate.enter(one).is_some());
        // Strangers' addresses are not kept.
        for n in 0..1_000_u32 {
            drop(gate.enter(IpAddr::from(n.to_be_bytes())));
        }
        assert!(gate.addresses.lock().expect("not poisoned").len() <= 2 * 8 * PLACES + 1);
    }
}
