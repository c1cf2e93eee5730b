//! The settings of time series that leave: where to, with whose credentials, how much at a time.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
use url::Url;

use super::{ConfigError, RawConfig};
use crate::app::{Series, SeriesLimits};
use crate::domain::parse_url;
use crate::outbound::{Credentials, RemoteWrite};

/// `remote_write_…`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RemoteWriteConfig {
    /// A receiver of Prometheus' remote-write protocol 1.0, `http` or `https`; time series stay here without it.
    #[serde(rename = "remote_write_url", skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub url: Option<Url>,
    /// With `remote_write_password_file`: basic authentication.
    #[serde(rename = "remote_write_user", skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(rename = "remote_write_password_file", skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// A bearer token instead.
    #[serde(rename = "remote_write_token_file", skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Samples that may wait, 10,000 to 100,000,000; 1,000,000 by default. A node has seven a second.
    #[serde(rename = "remote_write_queue_samples")]
    pub queue_samples: u64,
    /// Samples of one request, 100 to 100,000; 10,000 by default.
    #[serde(rename = "remote_write_batch_samples")]
    pub batch_samples: u32,
    /// Whether the database keeps time series as well; true by default, and always without a receiver.
    pub metrics_in_database: bool,
}

impl RemoteWriteConfig {
    pub(super) fn new(raw: &RawConfig) -> Result<Self, ConfigError> {
        let wrong = |message: &str| ConfigError::Value(message.to_owned());
        let url = raw.remote_write_url.as_deref().map(parse).transpose()?;
        let config = Self {
            url,
            user: raw.remote_write_user.clone(),
            password_file: raw.remote_write_password_file.clone(),
            token_file: raw.remote_write_token_file.clone(),
            queue_samples: raw.remote_write_queue_samples.unwrap_or(1_000_000),
            batch_samples: raw.remote_write_batch_samples.unwrap_or(10_000),
            metrics_in_database: raw.metrics_in_database.unwrap_or(true),
        };
        if config.url.is_none() && !config.metrics_in_database {
            return Err(wrong("metrics_in_database: false needs remote_write_url, or nobody would keep them"));
        }
        if config.user.is_some() != config.password_file.is_some() {
            return Err(wrong("remote_write_user and remote_write_password_file: give both or none"));
        }
        if config.user.is_some() && config.token_file.is_some() {
            return Err(wrong("remote_write_token_file: give a token or a user, not both"));
        }
        if config.user.as_deref().is_some_and(|user| user.contains(':')) {
            return Err(wrong("remote_write_user: must not contain a colon"));
        }
        if config.url.is_none() && (config.user.is_some() || config.token_file.is_some()) {
            return Err(wrong("remote_write_url: is missing, and there are credentials for it"));
        }
        if !(10_000..=100_000_000).contains(&config.queue_samples) {
            return Err(wrong("remote_write_queue_samples: must be 10000 to 100000000"));
        }
        if !(100..=100_000).contains(&config.batch_samples) {
            return Err(wrong("remote_write_batch_samples: must be 100 to 100000"));
        }
        Ok(config)
    }

    /// The way out, with the credentials that the files hold; none without a receiver.
    ///
    /// # Errors
    /// A file cannot be read, or holds what no header can.
    pub fn series(&self) -> Result<Option<Series>, ConfigError> {
        let Some(url) = &self.url else { return Ok(None) };
        let credentials = match (&self.user, &self.password_file, &self.token_file) {
            (Some(user), Some(file), _) => Credentials::Basic { user: user.clone(), password: secret(file)? },
            (_, _, Some(file)) => Credentials::Bearer(secret(file)?),
            _ => Credentials::None,
        };
        let write = RemoteWrite::new(url.clone(), credentials);
        let write = write.map_err(|why| ConfigError::Value(format!("remote_write: the credential {why}")))?;
        let limits = SeriesLimits {
            queue: self.queue_samples,
            batch: usize::try_from(self.batch_samples).expect("at most 100,000"),
        };
        Ok(Some(Series::new(write, limits, self.metrics_in_database)))
    }
}

fn parse(text: &str) -> Result<Url, ConfigError> {
    // Whoever configures the server may name a receiver on its own network.
    parse_url(text, true).map_err(|why| ConfigError::Value(format!("remote_write_url: {why}")))
}

fn as_text<S: Serializer>(url: &Option<Url>, serializer: S) -> Result<S::Ok, S::Error> {
    url.as_ref().map(Url::as_str).serialize(serializer)
}

fn secret(path: &Path) -> Result<String, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    Ok(text.trim().to_owned())
}
