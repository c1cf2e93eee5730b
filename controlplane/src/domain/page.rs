//! One page of a list, newest first.

use super::Problem;

/// Which part of a list is wanted, within the list's bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    pub limit: u32,
    pub offset: u64,
}

impl Page {
    /// A page of `limit` (or `default`) entries, at most `max`.
    ///
    /// # Errors
    /// A limit outside 1 to `max`, or an offset beyond what the database can count: refused, not silently cut.
    pub fn new(limit: Option<i64>, offset: Option<i64>, default: u32, max: u32) -> Result<Self, Problem> {
        let limit = match limit {
            None => default,
            Some(wanted) => u32::try_from(wanted)
                .ok()
                .filter(|l| (1..=max).contains(l))
                .ok_or_else(|| Problem::parameter("limit", format!("must be 1 to {max}, got {wanted}")))?,
        };
        let offset = match offset {
            None => 0,
            Some(wanted) => u64::try_from(wanted)
                .map_err(|_| Problem::parameter("offset", format!("must not be negative, got {wanted}")))?,
        };
        Ok(Self { limit, offset })
    }
}

/// A page's entries and how many there are in all.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed<T> {
    pub entries: Vec<T>,
    pub total: u64,
}

impl<T> Listed<T> {
    /// The same page with every entry turned into something else.
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Listed<U> {
        Listed { entries: self.entries.into_iter().map(f).collect(), total: self.total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_out_of_bounds_is_refused_not_cut() {
        let table = [
            (None, None, Some(100)),
            (Some(1), Some(0), Some(1)),
            (Some(500), None, Some(500)),
            (Some(0), None, None),
            (Some(501), None, None),
            (Some(-1), None, None),
            (Some(i64::MAX), None, None),
            (None, Some(-1), None),
        ];
        for (limit, offset, expected) in table {
            assert_eq!(Page::new(limit, offset, 100, 500).ok().map(|p| p.limit), expected, "{limit:?} {offset:?}");
        }
    }
}
