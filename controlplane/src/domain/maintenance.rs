//! Maintenance windows: while one is open, notifications and automatic actions of the control plane are held.
//!
//! Detection and recording go on. All times are UTC: a window does not move with daylight saving.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::problem::Check;
use super::{Problem, Timestamp};

/// Minutes that a window may last.
const MINUTES: std::ops::RangeInclusive<u32> = 15..=1_440;
/// How far ahead a window may begin: a year.
const MAX_AHEAD_SECS: i64 = 365 * 86_400;
const MINUTE: i64 = 60_000_000;
const DAY: i64 = 1_440 * MINUTE;
const WEEK: i64 = 7 * DAY;
/// The first Monday after the epoch, which was a Thursday.
const FIRST_MONDAY: i64 = 4 * DAY;

/// A day of the week, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Weekday {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

/// When a window is open. Its end does not belong to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Schedule {
    /// Once.
    Once {
        starts_at: Timestamp,
        /// 15 to 1,440.
        #[schema(minimum = 15, maximum = 1_440)]
        minutes: u32,
    },
    /// Every week.
    Weekly {
        weekday: Weekday,
        /// `HH:MM`, UTC.
        #[schema(pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$")]
        start: String,
        /// 15 to 1,440; it may reach into the next day or week.
        #[schema(minimum = 15, maximum = 1_440)]
        minutes: u32,
    },
}

impl Schedule {
    /// Whether the window is open at `now`.
    pub fn is_in_window(&self, now: Timestamp) -> bool {
        self.open_until(now).is_some()
    }

    /// When the window closes that is open at `now`.
    pub fn open_until(&self, now: Timestamp) -> Option<Timestamp> {
        let (since_start, minutes) = match self {
            Self::Once { starts_at, minutes } => (now.micros() - starts_at.micros(), *minutes),
            Self::Weekly { weekday, start, minutes } => {
                let start = i64::from(*weekday as u8) * DAY + minute_of_day(start)? * MINUTE;
                ((now.micros() - FIRST_MONDAY - start).rem_euclid(WEEK), *minutes)
            }
        };
        let length = i64::from(minutes) * MINUTE;
        let open = (0..length).contains(&since_start);
        open.then(|| Timestamp::from_micros(now.micros() - since_start + length))
    }

    fn check(&self, check: &mut Check, now: Timestamp) {
        let (Self::Once { minutes, .. } | Self::Weekly { minutes, .. }) = self;
        check.that(MINUTES.contains(minutes), "schedule.minutes", || {
            format!("must be {} to {}, got {minutes}", MINUTES.start(), MINUTES.end())
        });
        match self {
            Self::Once { starts_at, minutes } => {
                let ends = starts_at.plus_secs(i64::from(*minutes) * 60);
                check.that(ends > now, "schedule.starts_at", || "the window would be over already".to_owned());
                check.that(*starts_at <= now.plus_secs(MAX_AHEAD_SECS), "schedule.starts_at", || {
                    "must be within a year".to_owned()
                });
            }
            Self::Weekly { start, .. } => {
                let readable = minute_of_day(start).is_some();
                check.that(readable, "schedule.start", || "must be HH:MM, 00:00 to 23:59, in UTC".to_owned());
            }
        }
    }
}

/// Minutes since midnight of `HH:MM`.
fn minute_of_day(text: &str) -> Option<i64> {
    let two = |part: &str| {
        (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse::<i64>().ok()).flatten()
    };
    let (hours, minutes) = text.split_once(':')?;
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

/// A window to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewWindow {
    pub name: String,
    /// None: the whole workspace.
    pub node: Option<Uuid>,
    pub schedule: Schedule,
    pub enabled: bool,
}

impl NewWindow {
    /// # Errors
    /// A name of other than 1 to 128 characters, a length of other than 15 minutes to 24 hours, a window that is over
    /// already or more than a year ahead, a start that is no time of day.
    pub fn check(self, now: Timestamp) -> Result<Self, Problem> {
        let mut check = Check::default();
        check.line("name", &self.name, 1, 128);
        self.schedule.check(&mut check, now);
        check.done().map(|()| self)
    }
}

/// What to change of a window; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WindowPatch {
    pub name: Option<String>,
    pub schedule: Option<Schedule>,
    pub enabled: Option<bool>,
}

impl WindowPatch {
    /// The window as it would be afterwards. A schedule that stays may be over already.
    ///
    /// # Errors
    /// As [`NewWindow::check`].
    pub fn applied_to(self, window: &MaintenanceWindow, now: Timestamp) -> Result<NewWindow, Problem> {
        let mut check = Check::default();
        if let Some(name) = &self.name {
            check.line("name", name, 1, 128);
        }
        if let Some(schedule) = &self.schedule {
            schedule.check(&mut check, now);
        }
        check.done()?;
        Ok(NewWindow {
            name: self.name.unwrap_or_else(|| window.name.clone()),
            node: window.node,
            schedule: self.schedule.unwrap_or_else(|| window.schedule.clone()),
            enabled: self.enabled.unwrap_or(window.enabled),
        })
    }
}

/// A window as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct MaintenanceWindow {
    pub id: i64,
    pub name: String,
    /// The node that it holds for; the whole workspace if absent.
    pub node: Option<Uuid>,
    pub schedule: Schedule,
    pub enabled: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl MaintenanceWindow {
    /// When it closes, if it is enabled and open at `now`.
    pub fn open_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.schedule.open_until(now).filter(|_| self.enabled)
    }
}

/// Until when what concerns `node` (or the workspace as a whole, if none) is held at `now`; none if it is not.
///
/// Of several open windows the last one to close counts. Another may open at that very moment: whoever waits asks again.
pub fn held_until(windows: &[MaintenanceWindow], node: Option<Uuid>, now: Timestamp) -> Option<Timestamp> {
    let concerned = windows.iter().filter(|window| window.node.is_none() || window.node == node);
    concerned.filter_map(|window| window.open_until(now)).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn weekly(weekday: Weekday, start: &str, minutes: u32) -> Schedule {
        Schedule::Weekly { weekday, start: start.to_owned(), minutes }
    }

    fn once(starts_at: &str, minutes: u32) -> Schedule {
        Schedule::Once { starts_at: at(starts_at), minutes }
    }

    #[test]
    fn a_window_is_open_from_its_start_to_its_end() {
        // 2026-05-17 is a Sunday, 2026-05-18 a Monday.
        let late = weekly(Weekday::Sunday, "23:30", 60);
        let whole = weekly(Weekday::Sunday, "12:00", 1_440);
        let monday = weekly(Weekday::Monday, "00:00", 15);
        let table = [
            (&late, "2026-05-17T23:29:59.999999Z", None),
            (&late, "2026-05-17T23:30:00Z", Some("2026-05-18T00:30:00Z")),
            (&late, "2026-05-17T23:59:59Z", Some("2026-05-18T00:30:00Z")),
            (&late, "2026-05-18T00:00:00Z", Some("2026-05-18T00:30:00Z")),
            (&late, "2026-05-18T00:29:59.999999Z", Some("2026-05-18T00:30:00Z")),
            (&late, "2026-05-18T00:30:00Z", None),
            (&late, "2026-05-24T23:30:00Z", Some("2026-05-25T00:30:00Z")),
            (&late, "2026-05-16T23:45:00Z", None),
            // Around a new year, the first days of the epoch, and an hour that Europe's clocks leave out.
            (&late, "2023-12-31T23:45:00Z", Some("2024-01-01T00:30:00Z")),
            (&late, "2024-01-01T00:15:00Z", Some("2024-01-01T00:30:00Z")),
            (&late, "1970-01-04T23:45:00Z", Some("1970-01-05T00:30:00Z")),
            (&late, "1970-01-01T00:00:00Z", None),
            (&weekly(Weekday::Sunday, "01:00", 60), "2026-03-29T01:30:00Z", Some("2026-03-29T02:00:00Z")),
            (&weekly(Weekday::Sunday, "01:00", 60), "2026-03-29T02:00:00Z", None),
            (&weekly(Weekday::Thursday, "00:00", 15), "1970-01-01T00:00:00Z", Some("1970-01-01T00:15:00Z")),
            (&weekly(Weekday::Wednesday, "23:50", 30), "1970-01-01T00:05:00Z", Some("1970-01-01T00:20:00Z")),
            (&whole, "2026-05-17T11:59:59Z", None),
            (&whole, "2026-05-18T11:59:59Z", Some("2026-05-18T12:00:00Z")),
            (&whole, "2026-05-18T12:00:00Z", None),
            (&monday, "2026-05-18T00:00:00Z", Some("2026-05-18T00:15:00Z")),
            (&monday, "2026-05-17T23:59:59.999999Z", None),
            (&monday, "2026-05-18T00:15:00Z", None),
            (&once("2026-05-17T10:00:00Z", 15), "2026-05-17T09:59:59.999999Z", None),
            (&once("2026-05-17T10:00:00Z", 15), "2026-05-17T10:00:00Z", Some("2026-05-17T10:15:00Z")),
            (&once("2026-05-17T10:00:00Z", 15), "2026-05-17T10:15:00Z", None),
            (&once("2026-05-17T10:00:00Z", 15), "2026-05-24T10:00:00Z", None),
            // Leap day.
            (&once("2028-02-28T23:30:00Z", 1_440), "2028-02-29T23:29:59Z", Some("2028-02-29T23:30:00Z")),
            (&once("9999-12-31T23:50:00Z", 60), "9999-12-31T23:59:59Z", Some("9999-12-31T23:59:59.999999Z")),
        ];
        for (schedule, now, expected) in table {
            assert_eq!(schedule.open_until(at(now)), expected.map(at), "{schedule:?} at {now}");
            assert_eq!(schedule.is_in_window(at(now)), expected.is_some());
        }
    }

    #[test]
    fn a_weekly_window_is_open_as_long_as_it_says_each_week() {
        for weekday in [Weekday::Monday, Weekday::Wednesday, Weekday::Sunday] {
            for (start, minutes) in [("00:00", 15), ("23:59", 1_440), ("12:34", 61)] {
                let schedule = weekly(weekday, start, minutes);
                let monday = at("2026-05-18T00:00:00Z");
                let open = (0..7 * 1_440).filter(|n| schedule.is_in_window(monday.plus_secs(n * 60))).count();
                assert_eq!(open, minutes as usize, "{schedule:?}");
            }
        }
    }

    #[test]
    fn every_bound_is_named_by_its_field() {
        let now = at("2026-05-17T12:00:00Z");
        let table = [
            (weekly(Weekday::Monday, "00:00", 15), None),
            (weekly(Weekday::Monday, "23:59", 1_440), None),
            (weekly(Weekday::Monday, "00:00", 14), Some("schedule.minutes")),
            (weekly(Weekday::Monday, "00:00", 1_441), Some("schedule.minutes")),
            (weekly(Weekday::Monday, "24:00", 15), Some("schedule.start")),
            (weekly(Weekday::Monday, "12:60", 15), Some("schedule.start")),
            (weekly(Weekday::Monday, "1:00", 15), Some("schedule.start")),
            (weekly(Weekday::Monday, "+1:00", 15), Some("schedule.start")),
            (weekly(Weekday::Monday, "", 15), Some("schedule.start")),
            (once("2026-05-17T11:46:00Z", 15), None),
            (once("2026-05-17T11:45:00Z", 15), Some("schedule.starts_at")),
            (once("2027-05-17T12:00:00Z", 15), None),
            (once("2027-05-17T12:00:01Z", 15), Some("schedule.starts_at")),
            (once("2026-05-17T12:00:00Z", 0), Some("schedule.minutes")),
        ];
        for (schedule, expected) in table {
            let new = NewWindow { name: "w".to_owned(), node: None, schedule: schedule.clone(), enabled: true };
            let refused = new.check(now).err().map(|p| match p {
                Problem::Invalid(fields) => fields[0].field.clone(),
                other => panic!("{other:?}"),
            });
            assert_eq!(refused.as_deref(), expected, "{schedule:?}");
        }
    }

    #[test]
    fn what_is_held_is_what_an_open_window_concerns() {
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let window = |node, minutes, enabled| MaintenanceWindow {
            id: 1,
            name: String::new(),
            node,
            schedule: once("2026-05-17T10:00:00Z", minutes),
            enabled,
            created_at: at("2026-05-17T09:00:00Z"),
            updated_at: at("2026-05-17T09:00:00Z"),
        };
        let now = at("2026-05-17T10:10:00Z");
        let until = |text: &str| Some(at(text));
        let table = [
            ("no window", vec![], Some(one), None),
            ("its own", vec![window(Some(one), 15, true)], Some(one), until("2026-05-17T10:15:00Z")),
            ("another's", vec![window(Some(two), 15, true)], Some(one), None),
            ("a node's is not the workspace's", vec![window(Some(one), 15, true)], None, None),
            ("the workspace's", vec![window(None, 15, true)], Some(one), until("2026-05-17T10:15:00Z")),
            ("the workspace's, for itself", vec![window(None, 15, true)], None, until("2026-05-17T10:15:00Z")),
            ("switched off", vec![window(None, 15, false)], Some(one), None),
            (
                "the last to close",
                vec![window(None, 15, true), window(Some(one), 30, true), window(Some(two), 60, true)],
                Some(one),
                until("2026-05-17T10:30:00Z"),
            ),
        ];
        for (name, windows, node, expected) in table {
            assert_eq!(held_until(&windows, node, now), expected, "{name}");
        }
        assert_eq!(held_until(&[window(None, 15, true)], None, at("2026-05-17T10:15:00Z")), None);
    }
}
