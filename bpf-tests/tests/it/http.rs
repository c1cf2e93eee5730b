//! Clean traffic through the wire: every request is accounted for.

use std::time::Duration;

use bpf_tests::clock::now;
use bpf_tests::http::{Client, Load, Server, get};
use bpf_tests::meter::{Direction, Meter, Then, XdpCounter};
use bpf_tests::skip_without_root;

use crate::lab::{EDGE_V4, EDGE_V6, Lab};

#[test]
fn clients_with_and_without_keep_alive_are_answered_and_counted() {
    if skip_without_root("clients_with_and_without_keep_alive_are_answered_and_counted") {
        return;
    }
    let lab = Lab::new();
    let server = Server::start(&lab.edge, (EDGE_V4, 80).into(), 8192).expect("a server");
    let load = Load { server: server.address(), rate: 200, keep_alive: true, timeout: Duration::from_secs(2) };
    let kept = Client::start(&lab.wan, load).expect("a client");
    let fresh = Client::start(&lab.wan, Load { keep_alive: false, ..load }).expect("a client");
    std::thread::sleep(Duration::from_millis(700));
    let mut tally = kept.finish().expect("inside");
    tally.merge(fresh.finish().expect("inside"));
    println!("{} answered, p50 {:?}, p99 {:?}", tally.answered, tally.quantile(0.5), tally.quantile(0.99));
    assert_eq!(tally.lost, 0, "{:?}", tally.first_loss);
    assert!(tally.answered > 100, "{}", tally.answered);
    // The server counts an answer after it has sent it.
    let deadline = now() + Duration::from_secs(2);
    while server.served() < tally.answered && now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(server.served(), tally.answered);
}

#[test]
fn a_server_that_is_gone_is_a_loss() {
    if skip_without_root("a_server_that_is_gone_is_a_loss") {
        return;
    }
    let lab = Lab::new();
    let server = Server::start(&lab.edge, (EDGE_V6, 80).into(), 100).expect("a server");
    let address = server.address();
    let page = lab.wan.run(|| get(address, "/", &[], Duration::from_secs(2))).expect("inside").expect("an answer");
    assert_eq!((page.status, page.body.len()), (200, 100));
    drop(server);
    let load = Load { server: address, rate: 50, keep_alive: true, timeout: Duration::from_millis(200) };
    let client = Client::start(&lab.wan, load).expect("a client");
    std::thread::sleep(Duration::from_millis(200));
    let tally = client.finish().expect("inside");
    assert!(tally.lost > 0 && tally.answered == 0, "{tally:?}");
    assert!(tally.first_loss.is_some());
}

#[test]
fn clean_frames_are_counted_exactly_on_both_ends() {
    if skip_without_root("clean_frames_are_counted_exactly_on_both_ends") {
        return;
    }
    let lab = Lab::new();
    let xdp = lab.edge.run(|| XdpCounter::attach("edge0", Then::Pass)).expect("inside").expect("native XDP on veth");
    let left = lab.wan.run(|| Meter::attach("wan0", Direction::Out)).expect("inside").expect("a meter");
    let arrived = lab.edge.run(|| Meter::attach("edge0", Direction::In)).expect("inside").expect("a meter");
    let server = Server::start(&lab.edge, (EDGE_V4, 80).into(), 50_000).expect("a server");
    let load = Load { server: server.address(), rate: 300, keep_alive: false, timeout: Duration::from_secs(2) };
    let client = Client::start(&lab.wan, load).expect("a client");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(client.finish().expect("inside").lost, 0);
    std::thread::sleep(Duration::from_millis(200));
    let counts = left.counts().expect("readable");
    assert!(counts.other > 500 && counts.attack == 0, "{counts:?}");
    assert_eq!(xdp.counts().expect("readable"), counts);
    assert_eq!(arrived.counts().expect("readable"), counts);
}
