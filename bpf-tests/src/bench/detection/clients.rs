//! Honest traffic: clients that connect, ask, acknowledge and hang up; senders of bulk data.

use std::net::IpAddr;

use ftagent_lab::floods::{Dice, Spec, real, real_ttl};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const PSH_ACK: u8 = 0x18;
const FIN_ACK: u8 = 0x11;
/// Maximum segment size, time stamps, window scale: 20 bytes; time stamps alone: 12.
const SYN_OPTIONS: usize = 20;
const OPTIONS: usize = 12;

/// Clients of one server, some of whose connections are open at any time.
pub(super) struct Clients {
    dice: Dice,
    server: IpAddr,
    port: u16,
    /// How many different hosts there are.
    population: u64,
    connections: Vec<Connection>,
}

#[derive(Clone, Copy)]
struct Connection {
    src: IpAddr,
    src_port: u16,
    /// Segments sent so far, and all there will be.
    sent: u16,
    all: u16,
}

impl Clients {
    /// Clients whose connections were there before.
    pub(super) fn new(seed: u64, server: IpAddr, port: u16, population: u64, at_once: usize) -> Self {
        let mut clients = Self::arriving(seed, server, port, population, at_once);
        for connection in &mut clients.connections {
            connection.sent = clients.dice.below(u64::from(connection.all)) as u16;
        }
        clients
    }

    /// Clients that all connect anew.
    pub(super) fn arriving(seed: u64, server: IpAddr, port: u16, population: u64, at_once: usize) -> Self {
        let mut clients = Self { dice: Dice(seed | 1), server, port, population, connections: Vec::new() };
        for _ in 0..at_once {
            let connection = clients.connect();
            clients.connections.push(connection);
        }
        clients
    }

    fn connect(&mut self) -> Connection {
        let src = real(&mut self.dice, self.server, self.population);
        let src_port = 32_768 + self.dice.below(28_000) as u16;
        Connection { src, src_port, sent: 0, all: 8 + self.dice.below(60) as u16 }
    }

    /// The next segment of any connection, and how many such in a row.
    pub(super) fn next(&mut self) -> (Spec, u64) {
        let n = self.dice.below(self.connections.len() as u64) as usize;
        let c = self.connections[n];
        let mut s = Spec::new(c.src, self.server, 6);
        (s.ttl, s.src_port, s.dst_port, s.tcp_options) = (real_ttl(c.src), c.src_port, self.port, OPTIONS);
        let mut in_a_row = 1;
        if c.sent == 0 {
            (s.tcp_flags, s.tcp_options) = (SYN, SYN_OPTIONS);
        } else if c.sent + 1 >= c.all {
            s.tcp_flags = FIN_ACK;
        } else if c.sent > 1 && self.dice.below(3) == 0 {
            s.tcp_flags = PSH_ACK;
            s.payload = self.request();
        } else {
            // Answers are acknowledged every other segment, often several times in a row.
            s.tcp_flags = ACK;
            in_a_row = if c.sent > 2 { 1 + self.dice.below(3) } else { 1 };
        }
        if c.sent + 1 >= c.all {
            self.connections[n] = self.connect();
        } else {
            self.connections[n].sent += 1;
        }
        (s, in_a_row)
    }

    /// A TLS record, or a request of HTTP on port 80.
    fn request(&mut self) -> Vec<u8> {
        let len = 80 + self.dice.below(900) as usize;
        let mut payload = if self.port == 80 {
            format!("GET /page/{} HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: ", self.dice.below(500)).into_bytes()
        } else {
            vec![0x17, 3, 3, (len >> 8) as u8, len as u8]
        };
        while payload.len() < len {
            payload.push(self.dice.roll() as u8);
        }
        payload
    }
}

/// A few connections that send as much as the line takes: backups, fills of a cache, tests of the line's speed.
pub(super) struct Bulk {
    dice: Dice,
    sender: IpAddr,
    receiver: IpAddr,
    protocol: u8,
    /// The server's port, and on whose side it is.
    port: u16,
    at_receiver: bool,
    connections: u64,
}

impl Bulk {
    /// Data to a server's port over TCP.
    pub(super) fn upload(seed: u64, sender: IpAddr, receiver: IpAddr, port: u16, connections: u64) -> Self {
        Self { dice: Dice(seed | 1), sender, receiver, protocol: 6, port, at_receiver: true, connections }
    }

    /// Data from a server's port over TCP.
    pub(super) fn download(seed: u64, sender: IpAddr, receiver: IpAddr, port: u16, connections: u64) -> Self {
        Self { at_receiver: false, ..Self::upload(seed, sender, receiver, port, connections) }
    }

    /// The same over QUIC.
    pub(super) fn quic(self) -> Self {
        Self { protocol: 17, ..self }
    }

    /// The next full segment.
    pub(super) fn next(&mut self) -> Spec {
        let mut s = Spec::new(self.sender, self.receiver, self.protocol);
        let ephemeral = 40_000 + self.dice.below(self.connections) as u16;
        (s.src_port, s.dst_port) = if self.at_receiver { (ephemeral, self.port) } else { (self.port, ephemeral) };
        s.ttl = real_ttl(self.sender);
        let len = if self.protocol == 17 {
            1_250
        } else {
            s.tcp_options = OPTIONS;
            s.tcp_flags = if self.dice.below(8) == 0 { PSH_ACK } else { ACK };
            1_448
        };
        // Encrypted: no two alike. The first bytes are all that is looked at.
        s.payload = vec![0; len];
        for byte in s.payload.iter_mut().take(40) {
            *byte = self.dice.roll() as u8;
        }
        if self.protocol == 17 {
            // A short header with the fixed bit (RFC 9000 section 17.3).
            s.payload[0] = 0x40 | (s.payload[0] & 0x3f);
        }
        s
    }
}
