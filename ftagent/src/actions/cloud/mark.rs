//! The name by which this node knows its own among the objects of many.

use std::path::Path;

use rand::Rng as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::persist::{self, PersistError};

const FILE: &str = "node-mark";

/// The mark of the agent whose journals are in `dir`: made once of `name`, for people, and chance.
///
/// # Errors
/// When it can be neither read nor written: without it our objects could not be told from others.
pub fn node_mark(dir: &Path, name: &str) -> Result<String, PersistError> {
    let path = dir.join(FILE);
    if let Some(bytes) = persist::load(&path)? {
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        if is_mark(&text) {
            return Ok(text);
        }
    }
    let plain: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(32).collect();
    let chance: u64 = StdRng::from_os_rng().random();
    let mark = format!("{}{}{chance:016x}", plain, if plain.is_empty() { "" } else { "-" });
    persist::save(&path, mark.as_bytes())?;
    Ok(mark)
}

fn is_mark(text: &str) -> bool {
    (16..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_differs_from_node_to_node() {
        let [one, two] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mark = node_mark(one.path(), "web 1\u{7}").unwrap();
        assert!(mark.starts_with("web1-") && is_mark(&mark), "{mark}");
        assert_eq!(node_mark(one.path(), "another name").unwrap(), mark);
        assert_ne!(node_mark(two.path(), "web 1").unwrap(), mark);
        std::fs::write(one.path().join(FILE), "not a mark").unwrap();
        assert!(is_mark(&node_mark(one.path(), "").unwrap()));
    }
}
