//! Files with a key in them: who may read them, and how large they are.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::sync::Secret;

/// Whether a text can be a key.
pub(crate) fn is_key(text: &str) -> bool {
    (16..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// The key in the file at `path`, which nobody but its owner may read; `grammar` says what a key looks like.
pub(crate) fn read_key(path: &Path, grammar: &str) -> Result<Secret, String> {
    let shown = path.display();
    if !path.is_absolute() {
        return Err(format!("must be an absolute path, got {shown}"));
    }
    let metadata = std::fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?;
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    if mode & 0o077 != 0 {
        return Err(format!("{shown}: others may read or write it (mode {mode:04o}): chmod 0600"));
    }
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return Err(format!("{shown}: belongs to user {owner}: chown root"));
    }
    if metadata.len() > 4_096 {
        return Err(format!("{shown}: {} bytes are no API key", metadata.len()));
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?;
    let key = text.trim();
    if is_key(key) { Ok(Secret::new(key)) } else { Err(format!("{shown}: the key {grammar}")) }
}
