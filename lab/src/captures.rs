//! The real captures and what is known of them, where a machine has them.

use std::env;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

/// What the folder's `labels.json` says of one capture.
#[derive(Clone, Debug, Deserialize)]
pub struct Label {
    /// Path inside the folder.
    pub file: String,
    /// `attack`, `scan`, `benign` or `hostile`.
    pub class: String,
    pub family: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub also_acceptable: Vec<String>,
    /// Addresses under attack; some captures have words here instead.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub expected_targets: Vec<String>,
    pub packets: u64,
    /// `one_way` or `two_way`.
    pub direction: String,
}

impl Label {
    /// The targets that are addresses.
    pub fn targets(&self) -> Vec<IpAddr> {
        self.expected_targets.iter().filter_map(|target| target.parse().ok()).collect()
    }
}

/// A folder of captures.
#[derive(Clone, Debug)]
pub struct Captures {
    folder: PathBuf,
    pub labels: Vec<Label>,
}

#[derive(Deserialize)]
struct Labels {
    captures: Vec<Label>,
}

impl Captures {
    /// Finds the folder named by `FTAGENT_CAPTURES`, else the one beside the repository; `None` if there is none.
    ///
    /// # Errors
    /// The variable names a folder without readable labels, or the labels are damaged.
    pub fn find() -> anyhow::Result<Option<Self>> {
        let named = env::var_os("FTAGENT_CAPTURES").map(PathBuf::from);
        let must_be_there = named.is_some();
        let folder = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures/dev"));
        let path = folder.join("labels.json");
        if !must_be_there && !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let labels: Labels = serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
        Ok(Some(Self { folder, labels: labels.captures }))
    }

    /// Where a capture lies.
    pub fn path(&self, label: &Label) -> PathBuf {
        self.folder.join(&label.file)
    }

    /// The captures of one class, in the order of the labels.
    pub fn class<'a>(&'a self, class: &'a str) -> impl Iterator<Item = &'a Label> {
        self.labels.iter().filter(move |label| label.class == class)
    }
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default())
}
