//! When a destination that fails is left alone, and when it is tried again.
//!
//! ```text
//!            5 failures in a row                  its time is over
//!  closed ------------------------> open ----------------------------> half open: one delivery
//!     ^                              ^                                        |
//!     |                              +------- it fails: twice the time -------+
//!     +----------------------------------------- it succeeds -----------------+
//! ```

use serde::Serialize;

use super::Timestamp;

/// Failures in a row that open a circuit.
const OPENS_AFTER: u32 = 5;
/// How long it stays open at first, seconds.
const FIRST_SECS: i64 = 30;
/// How long at most.
const LONGEST_SECS: i64 = 600;

/// The circuit of one destination, as it is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Circuit {
    /// In a row.
    pub failures: u32,
    pub open_until: Option<Timestamp>,
}

/// What a circuit lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CircuitState {
    /// Deliveries go out.
    Closed,
    /// Nothing goes out.
    Open,
    /// One delivery goes out; what becomes of it closes or opens the circuit.
    HalfOpen,
}

impl Circuit {
    pub fn state(&self, now: Timestamp) -> CircuitState {
        match self.open_until {
            None => CircuitState::Closed,
            Some(until) if now < until => CircuitState::Open,
            Some(_) => CircuitState::HalfOpen,
        }
    }

    /// How many deliveries may be under way at a time: one only while it is not known that the destination is well.
    pub fn width(&self, now: Timestamp, most: u32) -> u32 {
        match self.state(now) {
            CircuitState::Open => 0,
            CircuitState::HalfOpen => 1,
            CircuitState::Closed if self.failures > 0 => 1,
            CircuitState::Closed => most,
        }
    }

    pub fn after_success(self) -> Self {
        Self::default()
    }

    pub fn after_failure(self, now: Timestamp) -> Self {
        let failures = self.failures.saturating_add(1);
        let open_until = (failures >= OPENS_AFTER).then(|| {
            let doublings = (failures - OPENS_AFTER).min(10);
            now.plus_secs((FIRST_SECS << doublings).min(LONGEST_SECS))
        });
        Self { failures, open_until }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_secs(NOW + secs)
    }

    #[test]
    fn every_state_lets_through_what_it_says() {
        let circuit = |failures, open: Option<i64>| Circuit { failures, open_until: open.map(at) };
        let table = [
            ("well", circuit(0, None), CircuitState::Closed, 8),
            ("one failure", circuit(1, None), CircuitState::Closed, 1),
            ("open", circuit(5, Some(1)), CircuitState::Open, 0),
            ("over in this moment", circuit(5, Some(0)), CircuitState::HalfOpen, 1),
            ("long over", circuit(9, Some(-500)), CircuitState::HalfOpen, 1),
        ];
        for (name, circuit, state, width) in table {
            assert_eq!((circuit.state(at(0)), circuit.width(at(0), 8)), (state, width), "{name}");
        }
    }

    #[test]
    fn failures_open_it_for_longer_each_time_and_a_success_closes_it() {
        let mut circuit = Circuit::default();
        let mut open = Vec::new();
        for _ in 0..12 {
            circuit = circuit.after_failure(at(0));
            open.push(circuit.open_until.map(|until| until.secs() - NOW));
        }
        let expected = [None, None, None, None, Some(30), Some(60), Some(120), Some(240), Some(480)];
        assert_eq!(open[..9], expected);
        assert!(open[9..].iter().all(|secs| *secs == Some(600)));
        assert_eq!(circuit.after_success(), Circuit::default());
        let worn = Circuit { failures: u32::MAX, open_until: None };
        assert_eq!(worn.after_failure(at(0)).open_until, Some(at(600)));
    }
}
