//! What is normal in each hour of the week: PURE.
//!
//! A sliding window knows the last minutes; a week knows that Monday's nine o'clock is no attack, and that nothing of
//! the kind belongs to Sunday's four. Hours are of UTC and looked up with their neighbours: a summer time that moves
//! the clocks, and people who come early, stay within what is known.
//!
//! Only what lies above the free rate is kept (below it a baseline changes no threshold), one byte an hour.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::sample::{PerQuantity, Quantity};

/// Hours in a week.
pub const HOURS: usize = 168;
/// Calm seconds of an hour that are enough to know it.
pub const ENOUGH_SECS: u16 = 900;
/// How many times what an hour was a week before the window's baseline may grow to by itself.
pub const GROWTH: f64 = 4.0;
/// How many times a known hour may grow from one week to the next.
const GROWTH_PER_WEEK: f64 = 2.0;
/// Rows of all targets together: one for each quantity of a target that any hour of the week has above the free rate.
/// 2.7 MiB, and 5.5 MiB of the state file.
pub const MAX_ROWS: usize = 16_384;
/// Six buckets an octave: 2^40 bits/s still fits into a byte, and a rate is right within 13 %.
const PER_OCTAVE: f64 = 6.0;
/// An unset clock says 1970; nothing is older than this program.
const FIRST_YEAR: i32 = 2024;

fn bucket(rate: f64) -> u8 {
    (rate.max(1.0).log2() * PER_OCTAVE).ceil().min(255.0) as u8
}

fn upper_end(bucket: u8) -> f64 {
    if bucket == 0 { 0.0 } else { (f64::from(bucket) / PER_OCTAVE).exp2() }
}

/// An hour of the week; 0 is Monday, 00:00 to 01:00 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hour(u8);

impl Hour {
    /// The hour that `wall` is in; none of a clock that was never set.
    pub fn of(wall: OffsetDateTime) -> Option<Self> {
        let wall = wall.to_offset(time::UtcOffset::UTC);
        (wall.year() >= FIRST_YEAR).then(|| Self(wall.weekday().number_days_from_monday() * 24 + wall.hour()))
    }

    const fn index(self) -> usize {
        self.0 as usize
    }

    /// The hour before, this one and the next.
    fn around(self) -> [usize; 3] {
        [(self.index() + HOURS - 1) % HOURS, self.index(), (self.index() + 1) % HOURS]
    }
}

/// The hour that is being learnt.
#[derive(Clone, Debug)]
struct Lesson {
    hour: Hour,
    secs: u16,
    /// Sparse: quantity, bucket, seconds in it; only above the free rate.
    above: Vec<(u8, u8, u16)>,
}

#[derive(Clone, Debug, PartialEq)]
struct Row {
    quantity: u8,
    /// The bucket of each hour's 99th percentile; 0: not above the free rate.
    hours: Box<[u8; HOURS]>,
}

/// One target's week.
#[derive(Clone, Debug, Default)]
pub struct Week {
    known: [u64; 3],
    rows: Vec<Row>,
    lesson: Option<Lesson>,
    /// Hours since 1970 when something was learnt last.
    touched: i64,
}

/// What survives a restart: all but the hour that was being learnt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WeekState {
    known: [u64; 3],
    /// Quantity, and two hexadecimal digits an hour.
    rows: Vec<(Quantity, String)>,
    touched: i64,
}

impl WeekState {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.known == [0; 3] && self.rows.is_empty()
    }
}

impl Week {
    /// Learns one calm second. `room` is how many rows may still be made, by anybody.
    pub fn observe(
        &mut self,
        rates: &PerQuantity<f64>,
        free: &PerQuantity<f64>,
        wall: OffsetDateTime,
        room: &mut usize,
    ) {
        let Some(hour) = Hour::of(wall) else { return };
        if self.lesson.as_ref().is_none_or(|l| l.hour != hour) {
            let before = self.lesson.replace(Lesson { hour, secs: 0, above: Vec::new() });
            if let Some(lesson) = before.filter(|l| l.secs >= ENOUGH_SECS) {
                self.take_in(&lesson, free, room);
                self.touched = wall.unix_timestamp() / 3_600;
            }
        }
        let Some(lesson) = &mut self.lesson else { return };
        // A clock that stands still teaches no more than an hour.
        if lesson.secs >= 3_600 {
            return;
        }
        lesson.secs += 1;
        for quantity in Quantity::ALL {
            let i = quantity.index();
            if rates[i] <= free[i] {
                continue;
            }
            let (quantity, bucket) = (i as u8, bucket(rates[i]));
            match lesson.above.iter_mut().find(|(q, b, _)| (*q, *b) == (quantity, bucket)) {
                Some((_, _, secs)) => *secs += 1,
                None => lesson.above.push((quantity, bucket, 1)),
            }
        }
    }

    /// Folds an hour that is over into what is known of it.
    fn take_in(&mut self, lesson: &Lesson, free: &PerQuantity<f64>, room: &mut usize) {
        let hour = lesson.hour.index();
        let was_known = self.knows(lesson.hour);
        let mut refused = false;
        for quantity in Quantity::ALL {
            let i = quantity.index();
            let seen = lesson.p99(i as u8);
            let row = self.rows.iter().position(|r| usize::from(r.quantity) == i);
            let row = match row {
                Some(row) => &mut self.rows[row],
                None if seen == 0.0 => continue,
                None if *room == 0 => {
                    refused = true;
                    continue;
                }
                None => {
                    *room -= 1;
                    self.rows.push(Row { quantity: i as u8, hours: Box::new([0; HOURS]) });
                    let last = self.rows.len() - 1;
                    &mut self.rows[last]
                }
            };
            let learnt = if was_known {
                let before = upper_end(row.hours[hour]).max(free[i]);
                let now = seen.max(free[i]);
                f64::midpoint(before, now).min(before * GROWTH_PER_WEEK)
            } else {
                seen
            };
            let falls = was_known && learnt < upper_end(row.hours[hour]);
            row.hours[hour] = match learnt > free[i] * 1.001 {
                // Rounded down on the way down: an hour that lost its traffic would stay a bucket above the free rate.
                true if falls => bucket(learnt * 0.999).min(row.hours[hour] - 1),
                true => bucket(learnt * 0.999),
                false => 0,
            };
        }
        self.rows.retain(|row| {
            let holds = row.hours.iter().any(|b| *b > 0);
            *room += usize::from(!holds);
            holds
        });
        // An hour of which a part could not be kept would look quieter than it is.
        if refused {
            self.known[hour / 64] &= !(1 << (hour % 64));
        } else {
            self.known[hour / 64] |= 1 << (hour % 64);
        }
    }

    fn knows(&self, hour: Hour) -> bool {
        self.known[hour.index() / 64] & 1 << (hour.index() % 64) != 0
    }

    /// What is normal in `hour` by the weeks before; absent while that is not known. 0: not above the free rate.
    pub fn usual(&self, quantity: Quantity, hour: Option<Hour>) -> Option<f64> {
        let hour = hour.filter(|h| self.knows(*h))?;
        let row = self.rows.iter().find(|r| usize::from(r.quantity) == quantity.index());
        let highest = row.and_then(|row| hour.around().map(|h| row.hours[h]).into_iter().max());
        Some(highest.map_or(0.0, upper_end))
    }

    /// An operator says that `rates` are normal in this hour.
    pub fn accept(
        &mut self,
        rates: &PerQuantity<f64>,
        free: &PerQuantity<f64>,
        wall: OffsetDateTime,
        room: &mut usize,
    ) {
        let Some(hour) = Hour::of(wall).filter(|h| self.knows(*h)) else { return };
        let rates = Quantity::ALL.map(|q| rates[q.index()].max(self.usual(q, Some(hour)).unwrap_or(0.0)));
        self.known[hour.index() / 64] &= !(1 << (hour.index() % 64));
        let above = Quantity::ALL.into_iter().filter(|q| rates[q.index()] > free[q.index()]);
        let above = above.map(|q| (q.index() as u8, bucket(rates[q.index()]), 1)).collect();
        self.take_in(&Lesson { hour, secs: 1, above }, free, room);
    }

    /// Hours that are known, 0 to 168.
    pub fn known_hours(&self) -> u32 {
        self.known.iter().map(|k| k.count_ones()).sum()
    }

    /// Rows that count against [`MAX_ROWS`].
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Hours since 1970 when something was learnt last.
    pub const fn touched(&self) -> i64 {
        self.touched
    }

    /// What to save.
    pub fn state(&self) -> WeekState {
        let hex = |row: &Row| row.hours.iter().map(|b| format!("{b:02x}")).collect();
        WeekState {
            known: self.known,
            rows: self.rows.iter().map(|row| (Quantity::ALL[usize::from(row.quantity)], hex(row))).collect(),
            touched: self.touched,
        }
    }

    /// Continues from what was saved; a row that makes no sense is left out.
    pub fn restore(state: &WeekState) -> Self {
        let row = |(quantity, hex): &(Quantity, String)| {
            let digits = hex.as_bytes();
            if !quantity.is_of_packets() || digits.len() != 2 * HOURS {
                return None;
            }
            let mut hours = Box::new([0; HOURS]);
            for (hour, pair) in hours.iter_mut().zip(digits.chunks_exact(2)) {
                *hour = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
            }
            Some(Row { quantity: quantity.index() as u8, hours })
        };
        let mut rows: Vec<Row> = state.rows.iter().filter_map(row).collect();
        rows.sort_by_key(|row| row.quantity);
        rows.dedup_by_key(|row| row.quantity);
        let mut known = state.known;
        known[2] &= (1 << (HOURS - 128)) - 1;
        Self { known, rows, lesson: None, touched: state.touched }
    }
}

impl Lesson {
    /// The rate at or below which 99 % of the seconds lie; 0 if that is not above the free rate.
    fn p99(&self, quantity: u8) -> f64 {
        let mut heads: Vec<(u8, u16)> =
            self.above.iter().filter(|(q, _, _)| *q == quantity).map(|(_, b, n)| (*b, *n)).collect();
        heads.sort_unstable_by(|a, b| b.cmp(a));
        let mut above = self.secs / 100;
        for (bucket, secs) in heads {
            if secs > above {
                return upper_end(bucket);
            }
            above -= secs;
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: PerQuantity<f64> = [1_000.0; Quantity::COUNT];
    const PPS: Quantity = Quantity::Pps;

    /// Monday, 2026-01-05, 00:00 UTC.
    fn monday() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_767_571_200).expect("a time")
    }

    fn at(week: i64, hour: i64, second: i64) -> OffsetDateTime {
        monday() + time::Duration::seconds(week * 604_800 + hour * 3_600 + second)
    }

    /// Lets the 1,000 first seconds of each hour of `weeks` pass.
    fn live(week: &mut Week, weeks: std::ops::Range<i64>, rate: impl Fn(i64, i64, i64) -> f64) {
        let mut room = 100;
        for w in weeks {
            for hour in 0..HOURS as i64 {
                for second in 0..1_000 {
                    week.observe(&[rate(w, hour, second); Quantity::COUNT], &FREE, at(w, hour, second), &mut room);
                }
            }
        }
        // The next hour ends the last one.
        week.observe(&[0.0; Quantity::COUNT], &FREE, at(60, 0, 0), &mut room);
    }

    fn usual(week: &Week, hour: i64) -> Option<f64> {
        week.usual(PPS, Hour::of(at(9, hour, 0)))
    }

    fn near(got: Option<f64>, expected: f64) -> bool {
        got.is_some_and(|got| (got / expected - 1.0).abs() < 0.15)
    }

    #[test]
    fn hours_begin_on_monday_in_utc() {
        assert_eq!(Hour::of(monday()), Some(Hour(0)));
        assert_eq!(Hour::of(monday() - time::Duration::seconds(1)), Some(Hour(167)));
        let east =
            (monday() + time::Duration::hours(9)).to_offset(time::UtcOffset::from_hms(5, 0, 0).expect("an offset"));
        assert_eq!(Hour::of(east), Some(Hour(9)));
        assert_eq!(Hour::of(OffsetDateTime::UNIX_EPOCH), None, "a clock that was never set");
        assert_eq!(Hour(0).around(), [167, 0, 1]);
        assert_eq!(Hour(167).around(), [166, 167, 0]);
    }

    #[test]
    fn each_hour_has_its_own_rate_and_knows_its_neighbours() {
        let mut week = Week::default();
        live(&mut week, 0..1, |_, hour, _| if hour == 33 { 50_000.0 } else { 2_000.0 });
        assert_eq!(week.known_hours(), 168);
        for hour in [32, 33, 34] {
            assert!(near(usual(&week, hour), 50_000.0), "{hour}: {:?}", usual(&week, hour));
        }
        assert!(near(usual(&week, 35), 2_000.0), "{:?}", usual(&week, 35));
        assert_eq!(week.usual(PPS, None), None);
    }

    #[test]
    fn a_second_in_a_hundred_makes_no_hour() {
        let mut week = Week::default();
        live(&mut week, 0..1, |_, _, second| if second % 101 == 0 { 90_000.0 } else { 3_000.0 });
        assert!(near(usual(&week, 5), 3_000.0), "{:?}", usual(&week, 5));
    }

    #[test]
    fn an_hour_seen_too_briefly_is_not_known_and_below_the_free_rate_takes_no_room() {
        let mut week = Week::default();
        let mut room = 100;
        for second in 0..i64::from(ENOUGH_SECS) - 1 {
            week.observe(&[9_000.0; Quantity::COUNT], &FREE, at(0, 3, second), &mut room);
        }
        for second in 0..i64::from(ENOUGH_SECS) {
            week.observe(&[900.0; Quantity::COUNT], &FREE, at(0, 4, second), &mut room);
        }
        week.observe(&[900.0; Quantity::COUNT], &FREE, at(0, 5, 0), &mut room);
        assert_eq!((usual(&week, 3), usual(&week, 4)), (None, Some(0.0)));
        assert_eq!((week.rows(), room), (0, 100));
    }

    #[test]
    fn from_week_to_week_an_hour_at_most_doubles_and_old_ones_fade() {
        let mut week = Week::default();
        live(&mut week, 0..1, |_, _, _| 4_000.0);
        live(&mut week, 1..2, |_, _, _| 400_000.0);
        assert!(near(usual(&week, 50), 8_000.0), "{:?}", usual(&week, 50));
        live(&mut week, 2..12, |_, _, _| 10.0);
        assert_eq!((usual(&week, 50), week.rows()), (Some(0.0), 0), "the row is given back");
    }

    #[test]
    fn without_room_for_all_of_it_an_hour_is_not_known() {
        let mut week = Week::default();
        let mut room = 2;
        for second in 0..1_000 {
            week.observe(&[9_000.0; Quantity::COUNT], &FREE, at(0, 3, second), &mut room);
        }
        week.observe(&[9_000.0; Quantity::COUNT], &FREE, at(0, 4, 0), &mut room);
        assert_eq!((week.rows(), room), (2, 0));
        assert_eq!(usual(&week, 3), None);
    }

    #[test]
    fn a_clock_that_jumps_teaches_nothing_wrong() {
        let mut week = Week::default();
        let mut room = 100;
        for second in 0..2_000 {
            // Every ten minutes the clock is set to another hour.
            week.observe(&[9_000.0; Quantity::COUNT], &FREE, at(0, second / 600 * 7, second % 600), &mut room);
        }
        assert_eq!((week.known_hours(), week.rows()), (0, 0));
        for second in 0..9_000 {
            week.observe(&[9_000.0; Quantity::COUNT], &FREE, OffsetDateTime::UNIX_EPOCH, &mut room);
            week.observe(&[9_000.0; Quantity::COUNT], &FREE, at(0, 3, second % 60), &mut room);
        }
        assert_eq!(week.known_hours(), 0, "the hour is not over");
        week.observe(&[9_000.0; Quantity::COUNT], &FREE, at(0, 4, 0), &mut room);
        assert_eq!(week.known_hours(), 1);
    }

    #[test]
    fn what_an_operator_accepts_holds_in_this_hour_of_the_next_weeks() {
        let mut week = Week::default();
        let mut room = 100;
        live(&mut week, 0..1, |_, _, _| 2_000.0);
        week.accept(&[70_000.0; Quantity::COUNT], &FREE, at(1, 40, 0), &mut room);
        assert!(near(usual(&week, 40), 70_000.0), "{:?}", usual(&week, 40));
        assert!(near(usual(&week, 43), 2_000.0));
        assert_eq!(week.known_hours(), 168);
        let mut fresh = Week::default();
        fresh.accept(&[70_000.0; Quantity::COUNT], &FREE, at(1, 40, 0), &mut room);
        assert_eq!(fresh.known_hours(), 0, "a moment is no hour");
    }

    #[test]
    fn it_survives_a_restart_and_rows_that_make_no_sense_do_not() {
        let mut week = Week::default();
        live(&mut week, 0..1, |_, hour, _| f64::from(hour as i32) * 100.0);
        let state = week.state();
        let text = serde_json::to_string(&state).expect("JSON");
        let mut read: WeekState = serde_json::from_str(&text).expect("what was written");
        assert_eq!(read, state);
        let again = Week::restore(&read);
        assert_eq!((&again.rows, again.known, again.touched), (&week.rows, week.known, week.touched));
        let (good, hex) = (read.rows.len(), read.rows[0].1.clone());
        read.rows.push((Quantity::Pps, hex.clone()));
        read.rows.push((Quantity::SlowConnections, hex.clone()));
        read.rows.push((Quantity::Bps, "zz".repeat(HOURS)));
        read.rows.push((Quantity::Bps, format!("{hex}00")));
        read.known[2] = u64::MAX;
        let again = Week::restore(&read);
        assert_eq!((again.rows(), again.known_hours()), (good, 168));
    }
}
