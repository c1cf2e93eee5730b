//! PURE: which capture: of which incident, and which part of a long one. File names are made of this alone.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// A capture of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CaptureId {
    pub incident: Uuid,
    /// From 1.
    pub part: u32,
}

impl From<Uuid> for CaptureId {
    fn from(incident: Uuid) -> Self {
        Self { incident, part: 1 }
    }
}

/// `<incident>`, and from the second part on `<incident>-<part>`.
impl fmt::Display for CaptureId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.part == 1 { self.incident.fmt(f) } else { write!(f, "{}-{}", self.incident, self.part) }
    }
}

impl FromStr for CaptureId {
    type Err = ();

    /// Reads what is written, and nothing else that looks alike.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (incident, part) = match text.split_at_checked(36) {
            Some((incident, "")) => (incident, "1"),
            Some((incident, rest)) => (incident, rest.strip_prefix('-').ok_or(())?),
            None => return Err(()),
        };
        let id = Self { incident: Uuid::try_parse(incident).map_err(drop)?, part: part.parse().map_err(drop)? };
        if id.part > 0 && id.to_string() == text { Ok(id) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written_and_no_other() {
        let incident = Uuid::from_u128(0xab);
        for part in [1, 2, 17, u32::MAX] {
            let id = CaptureId { incident, part };
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert_eq!(CaptureId::from(incident).to_string(), incident.to_string());
        for suffix in ["-1", "-0", "-02", "-+2", "-", "-2x", "2", "--2"] {
            assert_eq!(format!("{incident}{suffix}").parse::<CaptureId>(), Err(()), "{suffix}");
        }
        for text in ["", "x", &incident.to_string().to_uppercase(), &incident.simple().to_string()] {
            assert_eq!(text.parse::<CaptureId>(), Err(()), "{text}");
        }
    }
}
