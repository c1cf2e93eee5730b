use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use super::*;

#[test]
fn connections_are_seen_with_what_came_over_them() {
    for any in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
        let Ok(listener) = TcpListener::bind(any) else {
            println!("skipped {any}: this machine has no such address");
            continue;
        };
        let here = listener.local_addr().expect("bound");
        let to =
            if here.ip().is_unspecified() { std::net::SocketAddr::from(([127, 0, 0, 1], here.port())) } else { here };
        let mut client = TcpStream::connect(to).expect("connects");
        let (mut served, peer) = listener.accept().expect("accepts");
        client.write_all(b"GET / HT").expect("sent");
        served.read_exact(&mut [0; 8]).expect("received");
        let other = TcpListener::bind("127.0.0.1:0").expect("bound");
        let reading = look(&[here.port()], 0).expect("sock_diag").expect("enough");
        let [seen] = reading.connections[..] else { panic!("{any}: {:?}", reading.connections) };
        assert_eq!((seen.port, seen.received, seen.unsent), (here.port(), 8, 0), "{any}");
        assert_eq!(seen.source, to.ip(), "{any}: {peer}");
        let before = seen.acked;
        served.write_all(&[0; 1_000]).expect("sent");
        client.read_exact(&mut [0; 1_000]).expect("received");
        let again = look(&[here.port()], 0).expect("sock_diag").expect("enough").connections[0];
        assert_eq!((again.cookie, again.acked - before), (seen.cookie, 1_000), "{any}");
        assert!(!reading.truncated);
        // Nobody listens there, or nobody asked for it.
        let elsewhere = look(&[1], 0).expect("sock_diag").expect("enough");
        assert!(elsewhere.connections.is_empty());
        drop(other);
    }
}

#[test]
fn a_calm_machine_is_not_looked_at() {
    assert_eq!(look(&[80], u64::MAX).expect("readable"), None);
}
