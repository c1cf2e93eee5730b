//! Answers every request with the same page.

use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::message::{header, read_head};
use crate::netns::{Netns, NetnsError};

/// Connections served at once; further ones wait in the listener's queue.
const MAX_CONNECTIONS: usize = 64;
const IDLE: Duration = Duration::from_secs(10);

/// A server inside a namespace; it stops when dropped.
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    accepting: Option<JoinHandle<Result<(), NetnsError>>>,
}

impl Server {
    /// Listens at `address` inside `netns` and answers with a page of `page_len` bytes.
    ///
    /// # Errors
    /// The namespace cannot be entered or the address is taken.
    pub fn start(netns: &Netns, address: SocketAddr, page_len: usize) -> anyhow::Result<Self> {
        let listener = netns.run(|| TcpListener::bind(address))??;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicU64::new(0));
        let page: Arc<[u8]> = (0..page_len).map(|n| b'a' + (n % 26) as u8).collect();
        let (stopping, counter) = (stop.clone(), served.clone());
        let accepting = netns.spawn(move || accept(&listener, &page, &stopping, &counter))?;
        Ok(Self { address, stop, served, accepting: Some(accepting) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests answered so far.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.accepting.take() {
            // A panic in there was printed already, and this is no place to raise it again.
            thread.join().ok();
        }
    }
}

fn accept(listener: &TcpListener, page: &Arc<[u8]>, stop: &Arc<AtomicBool>, served: &Arc<AtomicU64>) {
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        connections.retain(|thread| !thread.is_finished());
        if connections.len() < MAX_CONNECTIONS
            && let Ok((stream, _)) = listener.accept()
        {
            let (page, stop, served) = (page.clone(), stop.clone(), served.clone());
            // A connection that breaks is the client's to notice.
            connections.push(thread::spawn(move || serve(stream, &page, &stop, &served).unwrap_or(())));
        } else {
            thread::sleep(Duration::from_millis(1));
        }
    }
    for thread in connections {
        thread.join().ok();
    }
}

fn serve(stream: TcpStream, page: &[u8], stop: &AtomicBool, served: &AtomicU64) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut idle = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) && idle < IDLE {
        // Only whether there is something: the request itself is then read without a stop check.
        match io::BufRead::fill_buf(&mut reader) {
            Ok([]) => return Ok(()),
            Ok(_) => idle = Duration::ZERO,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                idle += Duration::from_millis(100);
                continue;
            }
            Err(error) => return Err(error),
        }
        let head = read_head(&mut reader)?;
        let close = header(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let connection = if close { "close" } else { "keep-alive" };
        let mut answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n", page.len())
                .into_bytes();
        answer.extend(page);
        writer.write_all(&answer)?;
        served.fetch_add(1, Ordering::Relaxed);
        if close {
            return Ok(());
        }
    }
    Ok(())
}
