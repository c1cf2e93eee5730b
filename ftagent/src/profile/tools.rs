//! The only way of profiles to programs and files: tests stand between.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::run::{self, RunError};
use crate::persist;

/// iptables and nft answer in milliseconds unless somebody holds their lock; ufw and firewalld are Python.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of a file of a firewall that gets a block.
const FILE_BYTES: u64 = 4 << 20;

/// Called before and after everything that leaves a trace, with what it is.
pub type Hook = Box<dyn FnMut(&str) + Send>;

/// Programs and files.
#[derive(Default)]
pub struct Tools {
    /// Absent but in tests that end the process there.
    pub hook: Option<Hook>,
}

impl Tools {
    /// Tells the hook that something was, or is about to be done.
    pub(super) fn at(&mut self, place: &str) {
        if let Some(hook) = &mut self.hook {
            hook(place);
        }
    }

    /// Runs a program that changes nothing.
    pub(super) fn ask(&mut self, words: &[&str]) -> Result<String, RunError> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        run::run(&words, "", PATIENCE)
    }

    /// Runs a program that changes something.
    pub(super) fn run(&mut self, words: &[String], input: &str) -> Result<String, RunError> {
        let place = words.first().cloned().unwrap_or_default();
        self.at(&place);
        let done = run::run(words, input, PATIENCE);
        self.at(&place);
        done
    }

    /// Reads a file of a firewall.
    pub(super) fn read(&self, path: &str) -> Result<String, String> {
        let fail = |error: io::Error| format!("{path}: {error}");
        let size = fs::metadata(path).map_err(fail)?.len();
        if size > FILE_BYTES {
            return Err(format!("{path} has {size} bytes: it is not touched"));
        }
        fs::read_to_string(path).map_err(fail)
    }

    /// Replaces a file of a firewall whole, with the owner and the rights that it has.
    pub(super) fn write(&mut self, path: &str, text: &str) -> Result<(), String> {
        self.at(path);
        let done = replace(Path::new(path), text).map_err(|error| {
            let hint = if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
                "; add its folder to ReadWritePaths of the service"
            } else {
                ""
            };
            format!("{path} cannot be written: {error}{hint}")
        });
        self.at(path);
        done
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    // A link stays a link.
    let path = fs::canonicalize(path)?;
    let known = fs::metadata(&path)?;
    let mut name = path.as_os_str().to_owned();
    name.push(".ftagent-new");
    let temporary = PathBuf::from(name);
    let write = |file: &mut File| {
        file.write_all(text.as_bytes())?;
        file.set_permissions(known.permissions())?;
        file.sync_all()
    };
    let mut options = OpenOptions::new();
    let written = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary).and_then(|mut file| {
        write(&mut file)?;
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (known.uid(), known.gid()) {
            chown(&temporary, Some(known.uid()), Some(known.gid()))?;
        }
        fs::rename(&temporary, &path)
    });
    if let Err(error) = written {
        // That the rest of it goes is not certain.
        drop(fs::remove_file(&temporary));
        return Err(error);
    }
    persist::sync_parent(&path).map_err(io::Error::other)
}
