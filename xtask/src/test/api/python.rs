//! The fuzzer and the validator of OpenAPI documents: pinned, in a virtual environment of their own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::setup::tools;
use crate::{process, repo};

/// What is installed, and in which version: schemathesis, openapi-spec-validator and what they need.
const REQUIREMENTS: &str = include_str!("requirements.txt");
const LIMIT: Duration = Duration::from_secs(600);

/// Programs of the environment.
pub(super) struct Python {
    folder: PathBuf,
}

impl Python {
    /// The environment, made if it is not there or holds other versions.
    ///
    /// # Errors
    /// No python3 and no way to install it, or packages that cannot be fetched.
    pub(super) fn ensure() -> Result<Self> {
        // Debian's python3 comes without what makes environments.
        if process::capture(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_err() {
            tools::install(&tools::PYTHON.iter().collect::<Vec<_>>())?;
        }
        let python = Self { folder: repo::target().join("api/python") };
        let stamp = python.folder.join("requirements.txt");
        if fs::read_to_string(&stamp).is_ok_and(|there| there == REQUIREMENTS) {
            return Ok(python);
        }
        if python.folder.exists() {
            fs::remove_dir_all(&python.folder).context("cannot remove the old environment")?;
        }
        fs::create_dir_all(&python.folder).with_context(|| format!("cannot make {}", python.folder.display()))?;
        let made = process::run_long(
            "making a Python environment",
            Command::new("python3").args(["-m", "venv"]).arg(&python.folder),
            Some(LIMIT),
        );
        made.context("python3 cannot make an environment")?;
        let wanted = python.folder.join("wanted.txt");
        fs::write(&wanted, REQUIREMENTS)?;
        let mut pip = python.program("pip");
        pip.args(["install", "--quiet", "--no-input", "--disable-pip-version-check", "--requirement"]).arg(&wanted);
        let took = process::run_long("installing schemathesis", &mut pip, Some(LIMIT))?;
        eprintln!("  installing schemathesis: {} s", took.as_secs());
        fs::rename(&wanted, &stamp)?;
        Ok(python)
    }

    pub(super) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.folder.join("bin").join(name));
        // Its answers are read by us, and its caches belong to nobody's home.
        command.env("NO_COLOR", "1").env("PYTHONDONTWRITEBYTECODE", "1").current_dir(&self.folder);
        command
    }
}
