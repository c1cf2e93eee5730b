//! Frames that come while something is exchanged: the listed must not pass, the others must.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::{ALWAYS_LISTED, NEVER_LISTED};
use crate::bench::Goal;
use crate::bench::under_test::{UnderTest, net};
use crate::generator::{Bounds, Generator, Pace, Sent, Vary};
use crate::ladder::{ADDRESS, MAC};
use crate::meter::{ATTACK_MAC, Direction, Meter};
use crate::packet::PacketBuilder;

/// Of each kind, a second.
const RATE: u64 = 50_000;
const LONGEST: Duration = Duration::from_secs(60);
/// Before the first and after the last exchange.
const AROUND: Duration = Duration::from_millis(50);

/// What became of the frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Frames from listed sources.
    listed: u64,
    /// Of these, how many passed.
    leaked: u64,
    /// Frames from sources on no list.
    others: u64,
    /// Of these, how many were dropped.
    lost: u64,
    /// Frames of either kind that never reached the program: at most as many of the others may be missing for that.
    overflowed: u64,
}

impl AddAssign for Counted {
    fn add_assign(&mut self, more: Self) {
        self.listed += more.listed;
        self.leaked += more.leaked;
        self.others += more.others;
        self.lost += more.lost;
        self.overflowed += more.overflowed;
    }
}

impl Counted {
    /// P11c.
    pub(super) fn goal(&self, exchanges: u32) -> Goal {
        let wrong = self.leaked + self.lost;
        let is_tried = self.listed > 0 && self.others > 0;
        Goal {
            value: is_tried.then_some(wrong as f64),
            met: is_tried.then_some(wrong == 0),
            rounds: exchanges,
            ..Goal::missing(
                "P11c",
                "frames misjudged while rules and lists are exchanged",
                "frames",
                "0",
                &format!(
                    "{exchanges} exchanges; {} of {} frames from sources that are always listed passed, {} of {} from sources \
                     that never are were dropped; {} frames of either did not fit the device's ring and count as none",
                    self.leaked, self.listed, self.lost, self.others, self.overflowed
                ),
            )
        }
    }
}

/// Sends frames of both kinds over the first wire while `work` exchanges something.
pub(super) fn during(under_test: &UnderTest, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Counted> {
    let wires = &under_test.wires;
    let device = wires.pairs[0].1.index;
    let meter = wires.edge.run(|| Meter::attach("edge0", Direction::In))??;
    let stop = AtomicBool::new(false);
    let send = |mac: [u8; 6], prefix: &'static str, seed: u64| -> anyhow::Result<Sent> {
        let frame = PacketBuilder::v4([24, 0, 0, 1], ADDRESS).macs(mac, MAC).udp(4_000, 4_242).payload(&[0; 18]);
        let vary = Vary { sources: Some(net(prefix)), ..Vary::default() };
        let mut generator = Generator::load(&frame.build(), &vary, seed)?;
        let bounds = Bounds { stop: Some(&stop), ..Bounds::new(u64::MAX, LONGEST) };
        Ok(wires.wan.run(|| generator.send(device, Pace::PerSecond(RATE), bounds))??)
    };
    let before = meter.counts()?;
    let (listed, others, outcome) = thread::scope(|scope| {
        let listed = scope.spawn(|| send(ATTACK_MAC, ALWAYS_LISTED, 1));
        let others = scope.spawn(|| send([2, 0, 0, 0, 0, 2], NEVER_LISTED, 2));
        thread::sleep(AROUND);
        let outcome = work();
        thread::sleep(AROUND);
        stop.store(true, Ordering::Relaxed);
        let joined = |sent: thread::ScopedJoinHandle<'_, anyhow::Result<Sent>>| {
            sent.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        (joined(listed), joined(others), outcome)
    });
    outcome?;
    let (listed, others) = (listed?, others?);
    thread::sleep(AROUND);
    let arrived = meter.counts()? - before;
    // The device says how many did not fit its peer's ring, not whose they were.
    let overflowed = listed.ring_dropped.max(others.ring_dropped);
    Ok(Counted {
        listed: listed.frames,
        leaked: arrived.attack,
        others: others.frames,
        lost: others.frames.saturating_sub(arrived.other + overflowed),
        overflowed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_misjudged_frame_is_a_goal_not_met() {
        let mut all = Counted { listed: 10, others: 10, ..Counted::default() };
        assert_eq!(all.goal(2).met, Some(true));
        all += Counted { listed: 10, leaked: 1, others: 10, ..Counted::default() };
        assert_eq!((all.goal(4).met, all.goal(4).value), (Some(false), Some(1.0)));
        assert_eq!(Counted::default().goal(2).met, None, "nothing was sent");
    }
}
