//! Statements over many rows, in a few sizes: a text that is always the same is prepared once.

use std::sync::OnceLock;

/// Rows of one statement: any number of them takes ten statements at most.
const SIZES: [usize; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
/// Statements that a connection keeps prepared: all of these and the others of the program.
pub(super) const PREPARED: usize = 400;
/// The most rows of one statement.
pub(super) const MOST: usize = SIZES[SIZES.len() - 1];

/// A statement for each size.
pub(super) struct Rows {
    /// What stands before, between and after the rows, and the placeholders of one row.
    before: &'static str,
    columns: usize,
    after: &'static str,
    texts: [[OnceLock<String>; SIZES.len()]; 2],
}

impl Rows {
    /// `before ($1, $2), ($3, $4) after`.
    pub(super) const fn new(before: &'static str, columns: usize, after: &'static str) -> Self {
        Self { before, columns, after, texts: [const { [const { OnceLock::new() }; SIZES.len()] }; 2] }
    }

    /// Cuts `rows` to pieces for which there are statements, none larger than what is left.
    pub(super) fn exactly<'a, T>(
        &'static self,
        postgres: bool,
        mut rows: &'a [T],
    ) -> impl Iterator<Item = (&'static str, &'a [T])> {
        std::iter::from_fn(move || {
            let size = SIZES.iter().rposition(|size| *size <= rows.len())?;
            let (some, rest) = rows.split_at(SIZES[size]);
            rows = rest;
            Some((self.text(postgres, size), some))
        })
    }

    /// Cuts `rows` to pieces, and says to which size each must be filled up, by repeating a row.
    pub(super) fn at_least<'a, T>(
        &'static self,
        postgres: bool,
        rows: &'a [T],
    ) -> impl Iterator<Item = (&'static str, &'a [T], usize)> {
        rows.chunks(MOST).map(move |some| {
            let size = SIZES.iter().position(|size| *size >= some.len()).unwrap_or(SIZES.len() - 1);
            (self.text(postgres, size), some, SIZES[size] - some.len())
        })
    }

    /// SQLite looks for the name of each parameter among all of them, unless they have none.
    fn text(&'static self, postgres: bool, size: usize) -> &'static str {
        self.texts[usize::from(postgres)][size].get_or_init(|| {
            let place = |number: usize| if postgres { format!("${number}") } else { "?".to_owned() };
            let row = |n: usize| {
                let places: Vec<_> = (1..=self.columns).map(|c| place(n * self.columns + c)).collect();
                format!("({})", places.join(", "))
            };
            let rows: Vec<_> = (0..SIZES[size]).map(row).collect();
            format!("{} {} {}", self.before, rows.join(", "), self.after)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static PAIRS: Rows = Rows::new("INSERT INTO t VALUES", 2, "RETURNING a");

    #[test]
    fn every_row_is_in_one_statement() {
        for rows in [0, 1, 7, 8, 9, 63, 64, 600, 1_100] {
            let all: Vec<usize> = (0..rows).collect();
            let exactly: Vec<usize> = PAIRS.exactly(true, &all).flat_map(|(_, some)| some.to_vec()).collect();
            assert_eq!(exactly, all);
            for (text, some) in PAIRS.exactly(true, &all) {
                assert!(text.contains(&format!("${})", some.len() * 2)) && text.ends_with("RETURNING a"), "{text}");
            }
            let at_least: Vec<usize> = PAIRS.at_least(true, &all).flat_map(|(_, some, _)| some.to_vec()).collect();
            assert_eq!(at_least, all);
            for (text, some, more) in PAIRS.at_least(true, &all) {
                assert!(text.contains(&format!("${})", (some.len() + more) * 2)), "{text}");
            }
        }
        let first = |postgres| PAIRS.exactly(postgres, &[1]).next().map(|(text, _)| text);
        assert_eq!(first(true), Some("INSERT INTO t VALUES ($1, $2) RETURNING a"));
        assert_eq!(first(false), Some("INSERT INTO t VALUES (?, ?) RETURNING a"));
    }
}
