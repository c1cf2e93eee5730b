//! Installing packages: with apt-get on Debian and its kin, elsewhere by telling the command.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::process;

/// Distributions by their package manager.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    Debian,
    Fedora,
    Arch,
    Alpine,
    Other,
}

impl Family {
    pub(crate) fn here() -> Self {
        Self::parse(&fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    /// Reads the `ID` and `ID_LIKE` lines of os-release(5).
    fn parse(os_release: &str) -> Self {
        let value = |key: &str| os_release.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        let (id, like) = (value("ID="), value("ID_LIKE="));
        let words = [id, like].map(|words| words.trim_matches('"').to_owned()).join(" ");
        words
            .split_whitespace()
            .find_map(|word| match word {
                "debian" | "ubuntu" => Some(Self::Debian),
                "fedora" | "rhel" | "centos" => Some(Self::Fedora),
                "arch" => Some(Self::Arch),
                "alpine" => Some(Self::Alpine),
                _ => None,
            })
            .unwrap_or(Self::Other)
    }

    fn install_command(self, packages: &[&str]) -> String {
        let packages = packages.join(" ");
        match self {
            Self::Debian => format!("apt-get install -y --no-install-recommends {packages}"),
            Self::Fedora => format!("dnf install -y {packages}"),
            Self::Arch => format!("pacman -S --needed {packages}"),
            Self::Alpine => format!("apk add {packages}"),
            Self::Other => format!("(your package manager) install {packages}"),
        }
    }
}

/// Installs `packages`, or says which command does.
///
/// # Errors
/// When this is no Debian, when we cannot become root, or when apt-get fails.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    install_with(packages, &[])
}

/// Installs `packages` as [`install`] does, with `options` for apt-get.
///
/// # Errors
/// As [`install`].
pub(crate) fn install_with(packages: &[&str], options: &[String]) -> Result<()> {
    let family = Family::here();
    let remedy = format!("as root run `{}`, then this command again", family.install_command(packages));
    if family != Family::Debian || process::find_program("apt-get").is_none() {
        bail!("{} must be installed: {remedy}", packages.join(", "));
    }
    if !process::is_root() && process::find_program("sudo").is_none() {
        bail!("installing {} needs root, and there is no sudo: {remedy}", packages.join(", "));
    }
    // Lists may be fresh enough without the network, so that a failure here is told and decides nothing.
    if options.iter().all(|option| option != "-t")
        && let Err(error) = apt_get("reading apt's package lists", &["update"])
    {
        eprintln!("  {error:#}\n  going on with the package lists that are there");
    }
    let step = format!("installing {}", packages.join(" "));
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let arguments = [&["install", "-y", "--no-install-recommends"], &options[..], packages].concat();
    apt_get(&step, &arguments).with_context(|| remedy)
}

fn apt_get(step: &str, arguments: &[&str]) -> Result<()> {
    // `env` because sudo does not hand our variables on.
    let mut command = process::as_root("env", step)?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]);
    command.args(["-o", "Acquire::http::Timeout=30", "-o", "Acquire::https::Timeout=30"]).args(arguments);
    let took = process::run_long(step, &mut command, None)?;
    eprintln!("  {step}: {} s", took.as_secs());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_known_by_id_or_likeness() {
        let cases = [
            ("ID=debian\nVERSION_ID=\"12\"\n", Family::Debian),
            ("NAME=x\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Family::Debian),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", Family::Fedora),
            ("ID=arch\n", Family::Arch),
            ("ID=alpine\n", Family::Alpine),
            ("ID=void\n", Family::Other),
            ("", Family::Other),
        ];
        for (text, expected) in cases {
            assert_eq!(Family::parse(text), expected, "{text:?}");
        }
    }
}
