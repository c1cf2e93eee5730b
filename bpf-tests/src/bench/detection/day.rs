//! A day of honest load: clients by the hour, backups at night, fills of a cache, tests of the line, a flash crowd.

use std::fmt::Write as _;
use std::net::IpAddr;

use ftagent::engine::Settings;
use ftagent::replay::{Kernel, Sampling};

use super::super::Goal;
use super::clients::{Bulk, Clients};
use super::trial::{Diary, MS, SEC, node};

const TICK_NS: u64 = 50 * MS;
const HOUR: u64 = 3_600;
/// Seconds in which a crowd gathers.
const GATHERS: u64 = 60;
/// Packets of bulk data that go together: nothing looks at them one by one.
const IN_A_ROW: u64 = 8;

/// (what, host, begins at second, seconds, packets per second)
const EVENTS: [(&str, usize, u64, u64, u64); 9] = [
    ("backup", 0, 2 * HOUR, 1_200, 25_000),
    ("backup", 1, 3 * HOUR, 900, 25_000),
    ("fill", 2, 6 * HOUR, 60, 43_000),
    ("fill", 2, 9 * HOUR, 60, 43_000),
    ("speed test", 0, 10 * HOUR + 700, 10, 83_000),
    ("quic test", 3, 12 * HOUR, 10, 40_000),
    ("crowd", 1, 14 * HOUR, 600, 25_000),
    ("fill", 3, 17 * HOUR, 90, 43_000),
    ("speed test", 2, 20 * HOUR + 1_800, 10, 83_000),
];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address of this file")
}

/// Share of the busiest hour's load, by the second of the day: least at four in the morning.
fn curve(second: u64) -> f64 {
    let phase = (second as f64 / HOUR as f64 - 16.0) / 24.0 * std::f64::consts::TAU;
    0.65 + 0.35 * phase.cos()
}

/// One of [`EVENTS`] while it lasts.
enum Load {
    Bulk(Bulk),
    Crowd(Box<Clients>),
}

struct Running {
    begins: u64,
    ends: u64,
    pps: u64,
    load: Load,
}

fn load(what: &str, host: IpAddr, seed: u64) -> Load {
    let far = |v4: &str, v6: &str| if host.is_ipv4() { ip(v4) } else { ip(v6) };
    let one = far("198.51.100.20", "2001:db8:77::20");
    match what {
        "backup" => Load::Bulk(Bulk::upload(seed, one, host, 22, 1)),
        "fill" => Load::Bulk(Bulk::download(seed, far("192.0.2.80", "2001:db8:99::80"), host, 443, 6)),
        "speed test" => Load::Bulk(Bulk::upload(seed, one, host, 8_080, 8)),
        "quic test" => Load::Bulk(Bulk::upload(seed, one, host, 443, 4).quic()),
        // Some 40 segments a visit that takes a second or so: 25,000 a second are 800 visits at a time.
        _ => Load::Crowd(Box::new(Clients::arriving(seed, host, 443, 50_000, 800))),
    }
}

/// The day's goals: incidents held to be attacks, and sources blocked; and what the incidents were.
pub(super) fn run() -> (Vec<Goal>, String) {
    let kernel = simulate(24 * HOUR);
    let mut text = String::new();
    let all = &kernel.watch.surest;
    for report in all.values() {
        if text.is_empty() {
            text.push_str("\nincidents of the benign day, each at its surest\n");
        }
        let at = (report.started_at - kernel.at(ftagent::replay::START_NS).wall).whole_seconds();
        _ = writeln!(
            text,
            "  second {at}: {} on {}, confidence {:.2}, {}",
            report.family,
            report.target,
            report.confidence,
            report.explanation.first().map_or("", String::as_str)
        );
        for line in report.explanation.iter().skip(1).take(6).filter(|_| report.confidence >= 0.5) {
            _ = writeln!(text, "      {line}");
        }
    }
    let (sure, blocked) = (kernel.watch.sure().count(), kernel.watch.blocked.len());
    let detail = format!(
        "24 h, {:.0} M packets; {} incidents in all; automatic rules came into force {} times; {} packets dropped",
        (kernel.datapath.passed + kernel.datapath.dropped) as f64 / 1e6,
        all.len(),
        kernel.watch.deployments,
        kernel.datapath.dropped
    );
    let goal = |id, what, value: usize, detail: &str| Goal {
        value: Some(value as f64),
        met: Some(value == 0),
        ..Goal::missing(id, what, "", "= 0", detail)
    };
    (vec![goal("D11a", INCIDENTS, sure, &detail), goal("D11b", BLOCKED, blocked, "")], text)
}

/// The goals where they are not measured.
pub(super) fn missing(why: &str) -> Vec<Goal> {
    vec![Goal::missing("D11a", INCIDENTS, "", "= 0", why), Goal::missing("D11b", BLOCKED, "", "= 0", why)]
}

const INCIDENTS: &str = "benign day: incidents, confidence >= 0.5";
const BLOCKED: &str = "benign day: sources blocked";

fn simulate(seconds: u64) -> Kernel<Diary> {
    let mut kernel = node(Settings::default(), Sampling::Adaptive);
    let hosts = [ip("203.0.113.10"), ip("203.0.113.11"), ip("203.0.113.12"), ip("2001:db8:5::10")];
    let busiest = [350.0, 300.0, 150.0, 200.0];
    let mut clients: Vec<Clients> =
        hosts.iter().zip(1..).map(|(host, seed)| Clients::new(seed * 77, *host, 443, 3_000, 60)).collect();
    let mut running: Vec<Running> = Vec::new();
    let start = kernel.now_ns;
    for second in 0..seconds {
        for (n, (what, host, begins, lasts, pps)) in EVENTS.into_iter().enumerate() {
            if begins == second {
                let load = load(what, hosts[host], 1_000 + n as u64);
                running.push(Running { begins, ends: begins + lasts, pps, load });
            }
        }
        running.retain(|event| event.ends > second);
        for tick in 0..SEC / TICK_NS {
            let ns = start + second * SEC + tick * TICK_NS;
            for (clients, pps) in clients.iter_mut().zip(busiest) {
                let wanted = (pps * curve(second) * TICK_NS as f64 / SEC as f64) as u64;
                send_clients(&mut kernel, clients, wanted, ns);
            }
            for Running { begins, pps, load, .. } in &mut running {
                let wanted = *pps * TICK_NS / SEC;
                match load {
                    Load::Crowd(crowd) => {
                        let gathered = (second - *begins + 1).min(GATHERS);
                        send_clients(&mut kernel, crowd, wanted * gathered / GATHERS, ns);
                    }
                    Load::Bulk(bulk) => {
                        let rows = wanted.div_ceil(IN_A_ROW);
                        for row in 0..rows {
                            let frame = bulk.next().frame();
                            kernel.frames(&frame, frame.len(), IN_A_ROW, ns + row * TICK_NS / rows);
                        }
                    }
                }
            }
        }
    }
    kernel.run_for(60 * SEC);
    kernel
}

fn send_clients(kernel: &mut Kernel<Diary>, clients: &mut Clients, wanted: u64, ns: u64) {
    let mut sent = 0;
    while sent < wanted {
        let (spec, in_a_row) = clients.next();
        let frame = spec.frame();
        kernel.frames(&frame, frame.len(), in_a_row, ns.max(kernel.now_ns));
        sent += in_a_row;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_night_is_quieter_than_the_afternoon() {
        assert!(curve(4 * HOUR) < 0.31 && curve(16 * HOUR) > 0.99);
    }

    #[test]
    fn a_minute_of_clients_is_no_attack() {
        let kernel = simulate(60);
        assert!(kernel.watch.surest.is_empty());
        assert!(kernel.datapath.passed > 10_000, "{}", kernel.datapath.passed);
    }
}
