//! What the running kernel has of what ftagent can use: a table, and questions to the kernel itself.
//!
//! A feature that the kernel lacks is left out when the datapath is loaded and is never a failed load: a constant of
//! the datapath says so, and the verifier deletes the branch that would need it. Distributions carry features back to
//! older kernels, so that the kernel's own answer counts more than its version.

pub(super) mod probe;

use std::fmt;

/// Version of a kernel: major and minor number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// Reads `uname -r`; what is no number counts as 0.
    pub fn parse(release: &str) -> Self {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
        Self(numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The oldest kernel that the datapath was loaded on and tried.
pub const OLDEST: Version = Version(5, 10);

/// What the datapath cannot do without, and the first kernel that has it.
pub const NEEDED: [(&str, Version); 6] = [
    ("constants that the verifier knows", Version(5, 2)),
    ("maps in memory", Version(5, 5)),
    ("batch calls on maps", Version(5, 6)),
    ("ring buffers", Version(5, 8)),
    ("XDP links", Version(5, 9)),
    ("inner maps of different sizes", Version(5, 10)),
];

/// What kernels may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    CompareAndSwap,
    TrieBatches,
    LoadBytes,
    SynCookies,
    TcxLinks,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub feature: Feature,
    /// In the operator's words.
    pub name: &'static str,
    /// The first kernel that has it.
    pub since: Version,
    /// The constant of the datapath that leaves the branch out; none for what user space alone does.
    pub switch: Option<&'static str>,
    /// What is done without it.
    pub instead: &'static str,
}

/// Every feature that is optional. What is not here is needed, and [`OLDEST`] has it.
pub const TABLE: [Entry; 5] = [
    Entry {
        feature: Feature::CompareAndSwap,
        name: "compare-and-swap in BPF",
        since: Version(5, 12),
        switch: Some("HAS_COMPARE_AND_SWAP"),
        instead: "CPUs that use one limit at the same moment may let a few frames more pass",
    },
    Entry {
        feature: Feature::TrieBatches,
        name: "batch calls on prefix maps",
        since: Version(5, 13),
        switch: None,
        instead: "prefixes are read and written one by one, which takes longer for large lists",
    },
    Entry {
        feature: Feature::LoadBytes,
        name: "reading frames in several buffers",
        since: Version(5, 18),
        switch: Some("HAS_LOAD_BYTES"),
        instead: "samples are copied from the frame's first buffer",
    },
    Entry {
        feature: Feature::SynCookies,
        name: "SYN cookies",
        since: Version(6, 0),
        switch: Some("COOKIES"),
        instead: "drop-first is used",
    },
    Entry {
        feature: Feature::TcxLinks,
        name: "tc links",
        since: Version(6, 6),
        switch: None,
        instead: "attach = \"tc\" makes a classic filter, which `tc filter del` can remove",
    },
];

/// What a kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    pub release: String,
    has: [bool; TABLE.len()],
}

/// The values of a switch, with the life that the loader wants.
static OFF_AND_ON: [u32; 2] = [0, 1];

impl Support {
    /// Asks the running kernel; where it does not answer, its version decides.
    pub fn here() -> Self {
        let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
        Self::of(&release.unwrap_or_default(), probe::has)
    }

    /// What a kernel of this release has by its version alone.
    pub fn of_release(release: &str) -> Self {
        Self::of(release, |_| None)
    }

    /// What a kernel of this release has, if `asked` is what it answers.
    fn of(release: &str, asked: impl Fn(Feature) -> Option<bool>) -> Self {
        let version = Version::parse(release);
        let has = TABLE.map(|entry| asked(entry.feature).unwrap_or(version >= entry.since));
        Self { release: release.to_owned(), has }
    }

    pub fn version(&self) -> Version {
        Version::parse(&self.release)
    }

    pub fn has(&self, feature: Feature) -> bool {
        TABLE.iter().zip(self.has).any(|(entry, has)| entry.feature == feature && has)
    }

    /// Why the datapath is not loaded here, if the kernel is too old for it.
    pub fn refusal(&self) -> Option<String> {
        let version = self.version();
        if version >= OLDEST {
            return None;
        }
        let lacking = NEEDED.iter().filter(|(_, since)| version < *since);
        let lacking: Vec<String> = lacking.map(|(name, since)| format!("{name} need {since}")).collect();
        let why = lacking.join(", ");
        Some(format!("kernel {} is too old: ftagent needs {OLDEST} or newer ({why})", self.release))
    }

    /// The constants of the datapath and their values.
    pub fn switches(&self) -> impl Iterator<Item = (&'static str, &'static u32)> {
        TABLE.iter().zip(self.has).filter_map(|(entry, has)| Some((entry.switch?, &OFF_AND_ON[usize::from(has)])))
    }

    /// What this kernel lacks, of what this build uses: a feature whose switch the datapath does not have is none.
    pub fn missing(&self, uses: impl Fn(&str) -> bool) -> Vec<&'static Entry> {
        let lacking = TABLE.iter().zip(self.has).filter(|(_, has)| !has).map(|(entry, _)| entry);
        lacking.filter(|entry| entry.switch.is_none_or(&uses)).collect()
    }
}

impl Entry {
    /// Such as "SYN cookies not available (needs 6.0): drop-first is used".
    pub fn lack(&self) -> String {
        format!("{} not available (needs {}): {}", self.name, self.since, self.instead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_read() {
        let cases = [
            ("5.10.0-46-cloud-amd64", Version(5, 10)),
            ("6.12.95+deb12-cloud-amd64", Version(6, 12)),
            ("6.18.44-fc-v595", Version(6, 18)),
            ("7", Version(7, 0)),
            ("", Version(0, 0)),
        ];
        for (release, expected) in cases {
            assert_eq!(Version::parse(release), expected, "{release}");
        }
    }

    #[test]
    fn every_feature_stands_once_and_in_the_order_of_versions() {
        for pair in TABLE.windows(2) {
            assert!(pair[0].since <= pair[1].since, "{} before {}", pair[0].name, pair[1].name);
        }
        for (n, entry) in TABLE.iter().enumerate() {
            assert!(!TABLE[..n].iter().any(|other| other.feature == entry.feature), "{}", entry.name);
            assert!(entry.since > OLDEST, "{}: every kernel has it", entry.name);
        }
    }

    #[test]
    fn the_version_decides_where_the_kernel_does_not_answer() {
        let lacking = |release: &str| {
            let missing = Support::of_release(release).missing(|_| true);
            missing.iter().map(|entry| entry.feature).collect::<Vec<_>>()
        };
        assert_eq!(lacking("5.10.0").len(), TABLE.len());
        assert_eq!(lacking("5.15.0"), [Feature::LoadBytes, Feature::SynCookies, Feature::TcxLinks]);
        assert_eq!(lacking("6.1.0"), [Feature::TcxLinks]);
        assert!(lacking("6.12.0").is_empty());
    }

    #[test]
    fn a_kernel_that_is_too_old_is_told_what_it_lacks() {
        let refusal = |release: &str| Support::of_release(release).refusal();
        assert_eq!(refusal("5.10.0"), None);
        let words = refusal("5.7.1").expect("too old");
        assert!(
            words.ends_with("(ring buffers need 5.8, XDP links need 5.9, inner maps of different sizes need 5.10)"),
            "{words}"
        );
        assert_eq!(NEEDED.iter().map(|(_, since)| *since).max(), Some(OLDEST), "each older kernel lacks something");
    }

    #[test]
    fn the_kernels_answer_counts_more_than_its_version() {
        let enterprise = Support::of("5.14.0-503.el9", |feature| (feature == Feature::TcxLinks).then_some(true));
        assert!(enterprise.has(Feature::TcxLinks) && !enterprise.has(Feature::SynCookies));
    }

    #[test]
    fn the_manual_has_the_table_as_it_is_here() {
        let manual = include_str!("../../../docs/manual.md");
        for entry in TABLE {
            let line = format!("| {} | {} | {} |", entry.name, entry.since, entry.instead);
            assert!(manual.contains(&line), "docs/manual.md lacks the line\n{line}");
        }
        assert!(manual.contains(&format!("Linux {OLDEST} or newer")), "docs/manual.md names another oldest kernel");
    }

    #[test]
    fn a_switch_that_the_datapath_lacks_is_no_missing_feature() {
        let support = Support::of_release("5.10.0");
        let missing = support.missing(|switch| switch != "COOKIES");
        assert!(missing.iter().all(|entry| entry.feature != Feature::SynCookies));
        let cookies = TABLE.iter().find(|entry| entry.feature == Feature::SynCookies).expect("in the table");
        assert_eq!(cookies.lack(), "SYN cookies not available (needs 6.0): drop-first is used");
        assert!(support.switches().all(|(_, value)| *value == 0));
    }
}
