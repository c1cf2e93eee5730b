//! P8: clean traffic, one request after the other over one TCP connection, beside a flood on the other CPU.
//!
//! ```text
//!   wan                         edge                  CPU
//!   client ── wan0 ──────────── edge0 ── server       first
//!   generator ── wan1 ───────── edge1                 second
//! ```
//! What leaves a veth device is received on the CPU that sent it, so that the first CPU does all the work of clean
//! traffic, the agent's program included, and the second all the work of the flood.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use ftagent::xdp::counters;
use ftagent_common::abi::Reason;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::daemon::Daemon;
use crate::bench::live::cpus;
use crate::bench::under_test::{Floor, Wires, net};
use crate::bench::{Goal, Options, stats};
use crate::clock::now;
use crate::generator::{Bounds, Generator, Pace, Vary};
use crate::ladder::{ADDRESS, MAC};
use crate::meter::{Then, XdpCounter};
use crate::packet::PacketBuilder;

/// Bytes of a small page's request and of its answer.
const REQUEST: usize = 128;
const ANSWER: usize = 1_024;
const TIMEOUT: Duration = Duration::from_secs(5);
/// Where the flood comes from, which the agent is told to block.
const FLOOD: &str = "45.0.0.0/8";
/// The address of `edge1`.
const FLOODED: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 1);
/// Between two turns, and until a flood runs at its full rate.
const RISE: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

const IDLE: (&str, &str, &str) = ("P8a", "clean requests with an idle agent", ">= 98 %");
const FLOODED_TOO: (&str, &str, &str) = ("P8b", "clean requests while the other CPU drops a flood", ">= 90 %");

/// Requests per second, and frames per second that the flood brought meanwhile.
struct Rates {
    requests: Vec<f64>,
    flood: Vec<f64>,
}

pub(super) fn run(options: &Options) -> anyhow::Result<Vec<Goal>> {
    let missing =
        |why: &str| [IDLE, FLOODED_TOO].map(|(id, what, goal)| Goal::missing(id, what, "%", goal, why)).to_vec();
    let cpus = cpus()?;
    let &[first, second, ..] = cpus.as_slice() else { return Ok(missing("this machine has one CPU")) };
    let bare = Floor::apart(Wires::new(2)?, 1)?;
    let passing = Wires::new(1)?;
    let _pass = passing.edge.run(|| XdpCounter::attach("edge0", Then::Pass))??;
    let guarded = Wires::new(2)?;
    let mut daemon = match Daemon::start(&guarded) {
        Ok(daemon) => daemon,
        Err(error) => return Ok(missing(&format!("{error:#}"))),
    };
    daemon.tell(&["block", FLOOD])?;
    let maps = daemon.maps()?;
    let blocked =
        || -> anyhow::Result<u64> { Ok(counters::interface(&maps, 1)?.reasons[Reason::BlockedPrefix.index()].packets) };

    let time = Duration::from_millis(if options.quick { 200 } else { 500 });
    let [mut without, mut pass, mut idle, mut beside, mut floor] = [const { Rates::new() }; 5];
    let mut frames = 0;
    for round in 0..options.rounds {
        // Nobody always follows the same neighbour.
        for turn in 0..5 {
            match (turn + round) % 5 {
                0 => without.requests.push(requests(&bare.wires, first, time)?),
                1 => pass.requests.push(requests(&passing, first, time)?),
                2 => idle.requests.push(requests(&guarded, first, time)?),
                3 => {
                    let (rate, flood) = beside_flood(&bare.wires, [first, second], time)?;
                    floor.requests.push(rate);
                    floor.flood.push(flood.per_sec);
                }
                _ => {
                    let before = blocked()?;
                    let (rate, flood) = beside_flood(&guarded, [first, second], time)?;
                    let dropped = blocked()? - before;
                    ensure!(dropped >= flood.frames, "{dropped} of {} frames of the flood were dropped", flood.frames);
                    frames += dropped;
                    beside.requests.push(rate);
                    beside.flood.push(flood.per_sec);
                }
            }
        }
    }
    daemon.end()?;
    Ok(judged([&without, &pass, &idle, &floor, &beside], frames))
}

impl Rates {
    const fn new() -> Self {
        Self { requests: Vec::new(), flood: Vec::new() }
    }

    /// Percent of the rates of the same rounds.
    fn of(&self, other: &Self) -> Vec<f64> {
        self.requests.iter().zip(&other.requests).map(|(a, b)| a / b * 100.0).collect()
    }
}

fn judged([without, pass, idle, floor, beside]: [&Rates; 5], frames: u64) -> Vec<Goal> {
    let middle = |values: &[f64]| stats::median(values).unwrap_or(0.0);
    let goal =
        |(id, what, goal): (&'static str, &str, &str), shares: &[f64], least: f64, peer: String, detail: &str| {
            let median = stats::median(shares);
            Goal {
                value: median,
                met: median.map(|share| share >= least),
                minimum: stats::minimum(shares),
                median,
                rounds: shares.len() as u32,
                peer: Some(peer),
                ..Goal::missing(id, what, "%", goal, detail)
            }
        };
    let bare_pass = middle(&pass.of(without));
    let bare_flood = middle(&floor.of(without));
    vec![
        goal(
            IDLE,
            &idle.of(without),
            98.0,
            format!("a bare XDP_PASS {bare_pass:.1} %"),
            &format!(
                "{:.0} requests a second without an agent, {:.0} with it; any XDP program makes a veth device copy what \
                 sockets send, which a network card's driver does not: against a bare XDP_PASS it is {:.1} %",
                middle(&without.requests),
                middle(&idle.requests),
                middle(&idle.of(pass))
            ),
        ),
        goal(
            FLOODED_TOO,
            &beside.of(without),
            90.0,
            format!("a bare XDP_DROP, no agent {bare_flood:.1} %"),
            &format!(
                "{:.2} Mpps dropped on the other CPU with the generator on it ({frames} frames in all), {:.2} Mpps by a bare \
                 XDP_DROP; against the idle rate without an agent; against the same flood dropped without an agent it is \
                 {:.1} %: what two CPUs take from each other is in both",
                middle(&beside.flood) / 1e6,
                middle(&floor.flood) / 1e6,
                middle(&beside.of(floor))
            ),
        ),
    ]
}

/// Requests per second over the first wire, client and server on one CPU.
fn requests(wires: &Wires, cpu: usize, time: Duration) -> anyhow::Result<f64> {
    // What the turn before left to do is done, and a flood, if there is one, is at its full rate.
    thread::sleep(RISE);
    let listener = wires.edge.run(|| TcpListener::bind((ADDRESS, 0)))??;
    let address = listener.local_addr()?;
    let mut client = wires.wan.run(|| TcpStream::connect_timeout(&address, TIMEOUT))?.context("no connection")?;
    let (mut server, _) = listener.accept()?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
    }
    thread::scope(|scope| {
        let serving = scope.spawn(move || -> anyhow::Result<()> {
            stay_on(cpu)?;
            let (mut request, answer) = ([0; REQUEST], [b'a'; ANSWER]);
            // The client's end of the connection is the end of the loop.
            while server.read_exact(&mut request).is_ok() {
                server.write_all(&answer)?;
            }
            Ok(())
        });
        let asking = scope.spawn(move || -> anyhow::Result<f64> {
            stay_on(cpu)?;
            let (request, mut answer) = ([b'q'; REQUEST], [0; ANSWER]);
            let began = now();
            let mut count = 0u32;
            while began.elapsed() < time {
                client.write_all(&request)?;
                client.read_exact(&mut answer).context("an answer did not come")?;
                count += 1;
            }
            Ok(f64::from(count) / began.elapsed().as_secs_f64())
        });
        let rate = asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        serving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(rate)
    })
}

/// What a flood brought.
struct Flooded {
    frames: u64,
    per_sec: f64,
}

/// The same while the second wire is flooded from the second CPU.
fn beside_flood(wires: &Wires, [first, second]: [usize; 2], time: Duration) -> anyhow::Result<(f64, Flooded)> {
    let frame = PacketBuilder::v4([45, 1, 2, 3], FLOODED).macs([2, 0, 0, 0, 0, 2], MAC).udp(4_000, 4_242);
    let vary = Vary { sources: Some(net(FLOOD)), ..Vary::default() };
    let mut generator = Generator::load(&frame.payload(&[0; 18]).build(), &vary, 7)?;
    let device = wires.pairs.get(1).context("two wires")?.1.index;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            wires.wan.run(|| -> anyhow::Result<Flooded> {
                stay_on(second)?;
                let bounds = Bounds { stop: Some(&stop), ..Bounds::new(u64::MAX, LONGEST) };
                let sent = generator.send(device, Pace::Full, bounds)?;
                let per_sec = sent.arrived() as f64 / (sent.last - sent.first).as_secs_f64();
                Ok(Flooded { frames: sent.arrived(), per_sec })
            })
        });
        let rate = requests(wires, first, time);
        stop.store(true, Ordering::Relaxed);
        let flood = flooding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
        Ok((rate?, flood))
    })
}

/// Keeps the calling thread on one CPU.
fn stay_on(cpu: usize) -> anyhow::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only).context("cannot stay on one CPU")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_taken_of_the_rate_without_an_agent_in_the_same_round() {
        let rates = |requests: &[f64]| Rates { requests: requests.to_vec(), flood: vec![3e6] };
        let without = rates(&[100.0, 200.0]);
        let goals =
            judged([&without, &rates(&[99.0, 198.0]), &rates(&[97.0, 196.0]), &without, &rates(&[95.0, 180.0])], 9);
        let said: Vec<_> = goals.iter().map(|g| (g.id, g.value, g.met)).collect();
        assert_eq!(said, [("P8a", Some(97.5), Some(false)), ("P8b", Some(92.5), Some(true))]);
        assert_eq!(goals[0].peer.as_deref(), Some("a bare XDP_PASS 99.0 %"));
    }
}
