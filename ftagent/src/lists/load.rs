//! A look at one list's file, and the list if there is something new. Reads files: for threads that may wait.

use std::sync::Arc;

use ipnet::IpNet;

use super::file::{self, FileError, Stamp};
use super::mmdb::{self, MmdbError};
use super::prune::{Bounds as _, note_spared, prune};
use super::report::Report;
use super::text::{self, TooMany};
use super::{ListConfig, ListSource, LoadedList, Spared};

/// The largest text file: 4 million lines of 64 bytes.
const MAX_TEXT_BYTES: u64 = 256 << 20;
/// The largest database; those with cities have some 100 MB.
const MAX_MMDB_BYTES: u64 = 512 << 20;
/// A file that was written to so lately may be written to still.
const SETTLE_NS: i128 = 2_000_000_000;

/// What a look at a file found.
#[derive(Debug)]
pub enum Look {
    /// Nothing new.
    Same,
    /// Something new that is perhaps not complete: another look in a moment.
    Settling,
    Loaded(Arc<LoadedList>),
}

/// Why there is no new list.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}: {source}")]
    TooMany { path: String, source: TooMany },
    #[error("{path}: {source}")]
    Mmdb { path: String, source: MmdbError },
    #[error("the thread that loaded the list ended before it was done: {0}")]
    Thread(String),
    /// A page with an error message instead of a list, for example.
    #[error("{path}: not one prefix in {} lines, {} of them skipped", report.lines, report.skipped())]
    NoPrefix { path: String, report: Box<Report> },
}

/// Loads `list` unless its file is `known` already. `wall_ns`: nanoseconds since 1970.
///
/// # Errors
/// Whatever keeps the list from being loaded as a whole.
pub fn look(list: &ListConfig, known: Option<&Stamp>, spared: &[Spared], wall_ns: i128) -> Result<Look, LoadError> {
    let stamp = Stamp::at(list.source.path())?;
    if known == Some(&stamp) {
        return Ok(Look::Same);
    }
    // A file from the future is old: a clock was wrong once, and waiting would last until then.
    if (0..SETTLE_NS).contains(&(wall_ns - stamp.modified_ns)) {
        return Ok(Look::Settling);
    }
    Ok(Look::Loaded(Arc::new(load(list, spared)?)))
}

/// Loads `list` now.
///
/// # Errors
/// As [`look`].
pub(super) fn load(list: &ListConfig, spared: &[Spared]) -> Result<LoadedList, LoadError> {
    let path = || list.source.path().display().to_string();
    let mut report = Report::default();
    let (mut entries, stamp) = match &list.source {
        ListSource::Text(at) => {
            let (bytes, stamp) = file::read(at, MAX_TEXT_BYTES)?;
            let entries = text::parse(&bytes, list.widest, &mut report);
            (entries.map_err(|source| LoadError::TooMany { path: path(), source })?, stamp)
        }
        ListSource::Mmdb { path: at, pick } => {
            let (bytes, stamp) = file::read(at, MAX_MMDB_BYTES)?;
            let entries = mmdb::parse(&bytes, pick, list.widest, &mut report);
            (entries.map_err(|source| LoadError::Mmdb { path: path(), source })?, stamp)
        }
    };
    prune(&mut entries.v4, &mut report);
    prune(&mut entries.v6, &mut report);
    for spared in spared {
        match spared.prefix {
            IpNet::V4(net) => note_spared(&entries.v4, net.first(), net.last(), spared, &mut report),
            IpNet::V6(net) => note_spared(&entries.v6, net.first(), net.last(), spared, &mut report),
        }
    }
    report.v4 = entries.v4.len() as u64;
    report.v6 = entries.v6.len() as u64;
    let list_is_blank = matches!(list.source, ListSource::Text(_)) && report.skipped() == 0;
    if report.v4 + report.v6 == 0 && !list_is_blank {
        return Err(LoadError::NoPrefix { path: path(), report: Box::new(report) });
    }
    Ok(LoadedList { v4: entries.v4, v6: entries.v6, report, stamp })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::lists::mmdb::testing::{Database, Value};
    use crate::lists::{ListAction, Pick, Widest};

    fn text_list(path: &Path) -> ListConfig {
        ListConfig {
            name: "drop".to_owned(),
            source: ListSource::Text(path.to_owned()),
            action: ListAction::Block,
            refresh_secs: 60,
            widest: Widest::default(),
        }
    }

    fn written(text: &[u8]) -> (tempfile::NamedTempFile, ListConfig) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("room");
        let list = text_list(file.path());
        (file, list)
    }

    fn at(list: &ListConfig, after_ns: i128) -> i128 {
        Stamp::at(list.source.path()).expect("there").modified_ns + after_ns
    }

    #[test]
    fn a_list_is_loaded_once_until_it_changes() {
        let (file, list) = written(b"198.51.100.7\n2001:db8::/32\n198.51.100.0/24\n");
        let loaded = match look(&list, None, &[], at(&list, SETTLE_NS)) {
            Ok(Look::Loaded(loaded)) => loaded,
            other => panic!("{other:?}"),
        };
        assert_eq!((loaded.v4.len(), loaded.v6.len(), loaded.report.covered), (1, 1, 1));
        assert!(matches!(look(&list, Some(&loaded.stamp), &[], at(&list, SETTLE_NS)), Ok(Look::Same)));
        std::fs::write(file.path(), "198.51.100.8\n").expect("room");
        let again = look(&list, Some(&loaded.stamp), &[], at(&list, SETTLE_NS));
        assert!(matches!(again, Ok(Look::Loaded(list)) if list.len() == 1));
    }

    #[test]
    fn a_file_that_was_just_written_is_left_alone_for_a_moment() {
        let (_file, list) = written(b"198.51.100.7\n");
        for (after_ns, settles) in [(0, true), (SETTLE_NS - 1, true), (SETTLE_NS, false), (-1_000_000_000, false)] {
            let found = look(&list, None, &[], at(&list, after_ns)).expect("a list");
            assert_eq!(matches!(found, Look::Settling), settles, "{after_ns} ns after");
        }
    }

    #[test]
    fn a_page_instead_of_a_list_is_an_error_and_comments_alone_are_a_list() {
        let (_file, page) = written(b"<html>\n<body>502 Bad Gateway</body>\n</html>\n");
        let error = load(&page, &[]).expect_err("no prefix");
        assert!(error.to_string().ends_with("not one prefix in 3 lines, 3 of them skipped"), "{error}");
        let (_file, blank) = written(b"# nothing today\n");
        assert!(load(&blank, &[]).expect("blank").is_empty());
        let (_file, empty) = written(b"");
        assert!(matches!(load(&empty, &[]), Err(LoadError::File(FileError::Empty { .. }))));
    }

    #[test]
    fn what_the_node_trusts_is_said() {
        let (_file, list) = written(b"198.51.100.0/24\n203.0.113.0/24\n2001:db8::/32\n");
        let spared = ["198.51.100.7/32", "2001:db8::1/128", "192.0.2.0/24"]
            .map(|prefix| Spared { prefix: prefix.parse().expect(prefix), why: "allowlist" });
        let report = load(&list, &spared).expect("a list").report;
        assert_eq!((report.spared, report.spared_first.len()), (2, 2));
        assert!(report.text().contains("198.51.100.0/24 overlaps 198.51.100.7/32 (allowlist)"), "{}", report.text());
    }

    #[test]
    fn a_database_is_a_list() {
        let country = Value::map([("country", Value::map([("iso_code", Value::text("AA"))]))]);
        let bytes = Database::v6("Test-Country").with("198.51.100.0/24", &country).bytes();
        let (_file, mut list) = written(&bytes);
        let pick = |code: &str| Pick { countries: [code.to_owned()].into(), ..Pick::default() };
        list.source = ListSource::Mmdb { path: list.source.path().to_owned(), pick: pick("AA") };
        let loaded = load(&list, &[]).expect("a country");
        assert_eq!((loaded.len(), loaded.report.lines), (1, 1));
        list.source = ListSource::Mmdb { path: list.source.path().to_owned(), pick: pick("ZZ") };
        assert!(matches!(load(&list, &[]), Err(LoadError::NoPrefix { .. })));
    }
}
