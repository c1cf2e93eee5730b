//! Debian packages of any suite, by apt-get with a state of its own below the target folder.
//!
//! The mirror is the one that this machine's own sources name, so that no host stands in this repository; signatures
//! are checked with this machine's own keys.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process;

/// Package lists are some 10 MB a suite, kernels 20 to 40 MB.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// The package lists of one suite, or of several.
pub(crate) struct Archive {
    folder: PathBuf,
}

/// A package as its lists describe it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Package {
    pub(crate) version: String,
    /// Names alone, without versions and alternatives.
    pub(crate) depends: Vec<String>,
}

impl Archive {
    /// Reads the lists of `suites`; those whose name ends in `-security` come from the source of security updates, and
    /// are left out where the machine knows none.
    pub(crate) fn open(folder: &Path, suites: &[&str]) -> Result<Self> {
        let targets = process::capture(Command::new("apt-get").args(["indextargets", "--format", TARGET]))
            .context("the packages of kernels come by apt-get")?;
        let sources = sources(&targets, suites)?;
        for name in ["lists/partial", "cache/archives/partial"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        fs::write(folder.join("sources.list"), sources)?;
        let archive = Self { folder: folder.to_owned() };
        let step = format!("reading the package lists of {}", suites.join(" and "));
        process::run_long(&step, archive.command("apt-get").args(["-q", "update"]), Some(LIMIT))?;
        Ok(archive)
    }

    /// The newest version of a package.
    pub(crate) fn package(&self, name: &str) -> Result<Package> {
        let text = process::capture(self.command("apt-cache").args(["show", "--no-all-versions", name]))?;
        Package::parse(&text).with_context(|| format!("apt-cache says nothing of {name}"))
    }

    /// Downloads `packages` and unpacks them into `to`; nothing is installed.
    pub(crate) fn unpack(&self, packages: &[String], to: &Path) -> Result<()> {
        let downloads = self.folder.join("packages");
        fs::create_dir_all(&downloads)?;
        let mut download = self.command("apt-get");
        download.current_dir(&downloads).args(["-q", "download"]).args(packages);
        let step = format!("downloading {}", packages.join(" "));
        let took = process::run_long(&step, &mut download, Some(LIMIT))?;
        eprintln!("  {step}: {} s", took.as_secs());
        for entry in fs::read_dir(&downloads)?.flatten() {
            process::run(Command::new("dpkg-deb").arg("-x").arg(entry.path()).arg(to))?;
            // What is unpacked is kept; the packages would take the same room again.
            fs::remove_file(entry.path())?;
        }
        Ok(())
    }

    /// Options that keep apt to this archive.
    pub(crate) fn options(&self) -> Vec<String> {
        let folder = self.folder.display();
        let set = [
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={folder}/lists"),
            format!("Dir::Cache={folder}/cache"),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // Old suites are not signed anew every week; a kernel that is only emulated may be an old one.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "Acquire::http::Timeout=30".to_owned(),
            "Acquire::https::Timeout=30".to_owned(),
        ];
        set.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.options());
        if process::is_root() && program == "apt-get" {
            // The user that apt would become cannot write into our folder.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        command
    }
}

/// What apt knows of each list: where it comes from, and whose it is.
const TARGET: &str = "$(REPO_URI) $(ORIGIN) $(LABEL) $(SIGNED_BY)";

/// The lines of sources.list for `suites`, from the mirrors among `targets`.
fn sources(targets: &str, suites: &[&str]) -> Result<String> {
    let mirror = |label: &str| {
        targets.lines().find_map(|line| {
            let mut words = line.split(' ');
            let (uri, origin, of) = (words.next()?, words.next()?, words.next()?);
            // A variable that apt does not know stays as it is.
            let key = words.next().filter(|key| key.starts_with('/'));
            (origin == "Debian" && of == label).then_some((uri, key))
        })
    };
    let mut text = String::new();
    for suite in suites {
        let label = if suite.ends_with("-security") { "Debian-Security" } else { "Debian" };
        let Some((uri, key)) = mirror(label) else {
            if label == "Debian" {
                bail!("this machine's package sources name no mirror of Debian, whose kernels these are");
            }
            continue;
        };
        let key = key.map(|key| format!(" signed-by={key}")).unwrap_or_default();
        text.push_str(&format!("deb [arch=amd64{key}] {uri} {suite} main\n"));
    }
    Ok(text)
}

impl Package {
    /// Reads the first paragraph of `apt-cache show`.
    fn parse(text: &str) -> Option<Self> {
        let paragraph = text.split("\n\n").next()?;
        let value = |key: &str| paragraph.lines().find_map(|line| line.strip_prefix(key));
        let depends = value("Depends: ").unwrap_or_default();
        let names = depends.split(", ").filter_map(|one| one.split([' ', '|', ':']).next());
        let depends = names.filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Some(Self { version: value("Version: ")?.to_owned(), depends })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str = "http://mirror.example/apt/ Else Else $(SIGNED_BY)\n\
        http://mirror.example/debian/ Debian Debian $(SIGNED_BY)\n\
        http://mirror.example/security/ Debian Debian-Security /usr/share/keyrings/a.gpg\n";

    #[test]
    fn suites_come_from_the_mirrors_that_the_machine_has() {
        let text = sources(TARGETS, &["bullseye", "bullseye-security"]).expect("a mirror");
        assert_eq!(
            text,
            "deb [arch=amd64] http://mirror.example/debian/ bullseye main\n\
             deb [arch=amd64 signed-by=/usr/share/keyrings/a.gpg] http://mirror.example/security/ bullseye-security main\n"
        );
        let without = TARGETS.lines().take(2).collect::<Vec<_>>().join("\n");
        let text = sources(&without, &["bullseye", "bullseye-security"]).expect("a mirror");
        assert_eq!(text.lines().count(), 1, "security updates are left out: {text}");
        let error = sources("http://mirror.example/ Ubuntu Ubuntu -\n", &["sid"]).expect_err("no mirror");
        assert!(error.to_string().contains("no mirror of Debian"), "{error}");
    }

    #[test]
    fn names_of_dependencies_come_without_versions_and_alternatives() {
        let text = "Package: a\nVersion: 6.12.95-1~bpo12+1\nDepends: b (= 1), c | d, e:any\n\nPackage: a\nVersion: 1\n";
        let expected =
            Package { version: "6.12.95-1~bpo12+1".into(), depends: ["b", "c", "e"].map(str::to_owned).to_vec() };
        assert_eq!(Package::parse(text), Some(expected));
        assert_eq!(Package::parse("N: Unable to locate package a\n"), None);
    }
}
