//! Configuration: defaults < file < environment < flags; an unknown key is an error that names key and file.

mod database;
mod remote_write;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::app::CaptureLimits;
use crate::cli::Settings;
use crate::http::AUTHENTICATION;
use crate::store::sql::Database;
use crate::tls::{MinVersion, Source};
pub use database::DatabaseUrl;
pub use remote_write::RemoteWriteConfig;

/// What environment variables of ours begin with.
const PREFIX: &str = "FTAGENT_CP_";

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}: {message}")]
    File { path: PathBuf, message: String },
    #[error("{name}: {message}")]
    Variable { name: String, message: String },
    #[error("{0}")]
    Value(String),
}

/// The file's keys; all of them optional.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    listen: Option<SocketAddr>,
    metrics_listen: Option<SocketAddr>,
    data: Option<PathBuf>,
    database: Option<String>,
    database_connections: Option<u32>,
    database_statement_secs: Option<u64>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    tls_names: Option<Vec<String>>,
    tls_listen: Option<Vec<SocketAddr>>,
    tls_min_version: Option<MinVersion>,
    tls_handshakes: Option<u32>,
    tls_handshake_secs: Option<u64>,
    allow_plain_http: Option<bool>,
    require_client_certificates: Option<bool>,
    node_certificate_hours: Option<u32>,
    log: Option<String>,
    log_json: Option<bool>,
    metrics_seconds_hours: Option<i64>,
    metrics_minutes_days: Option<i64>,
    auth_failures_per_minute: Option<u32>,
    pcap_dir: Option<PathBuf>,
    pcap_max_bytes: Option<u64>,
    pcap_keep_days: Option<i64>,
    pcap_max_disk_bytes: Option<u64>,
    secrets_key_file: Option<PathBuf>,
    allow_private_destinations: Option<bool>,
    remote_write_url: Option<String>,
    remote_write_user: Option<String>,
    remote_write_password_file: Option<PathBuf>,
    remote_write_token_file: Option<PathBuf>,
    remote_write_queue_samples: Option<u64>,
    remote_write_batch_samples: Option<u32>,
    metrics_in_database: Option<bool>,
}

/// What is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Address of the API; 127.0.0.1:8080 by default.
    pub listen: SocketAddr,
    /// Address of `/metrics` alone; by default it is served with the API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// Folder of the database and of captures; `/var/lib/ftagent-controlplane` by default.
    pub data: PathBuf,
    /// `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/NAME`; `controlplane.sqlite` in `data` by default.
    pub database: DatabaseUrl,
    /// Connections to PostgreSQL for requests, 2 to 1,000; 16 by default. Up to three more listen, lead and migrate.
    pub database_connections: u32,
    /// Seconds that PostgreSQL may take for one statement, 1 to 600; 15 by default.
    pub database_statement_secs: u64,
    /// Certificate chain and private key, PEM; both or none. Read again at SIGHUP, and when they change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Instead of files: names and addresses of a certificate that the built-in authority makes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls_names: Vec<String>,
    /// Addresses that speak TLS, while `listen` speaks plain HTTP; without them `listen` speaks TLS, if there is a
    /// certificate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls_listen: Vec<SocketAddr>,
    /// The oldest version of TLS, 1.2 or 1.3; 1.2 by default.
    pub tls_min_version: MinVersion,
    /// Handshakes under way at a time, 8 to 65,536; 256 by default.
    pub tls_handshakes: u32,
    /// Seconds for one of them, 1 to 60; 5 by default.
    pub tls_handshake_secs: u64,
    /// Whether `listen` may be plain HTTP on an address that others reach; false by default.
    pub allow_plain_http: bool,
    /// Whether nodes must show a client certificate of the built-in authority; false by default.
    pub require_client_certificates: bool,
    /// Hours that a node's certificate holds, 1 to 8,760; 2,160 by default. It is renewed after two thirds of them.
    pub node_certificate_hours: u32,
    /// Log filter, such as `info` or `controlplane=debug`.
    pub log: String,
    /// Whether logs are JSON.
    pub log_json: bool,
    /// Hours for which node metrics are kept by the second, 1 to 168; 6 by default.
    pub metrics_seconds_hours: i64,
    /// Days for which they are kept by the minute after that, 1 to 3,650; 30 by default.
    pub metrics_minutes_days: i64,
    /// Wrong credentials a minute and address before 429, 1 to 1,000,000; 100 by default.
    pub auth_failures_per_minute: u32,
    /// Folder of uploaded captures; `captures` in `data` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcap_dir: Option<PathBuf>,
    /// Bytes of one capture, 1 to 1,024 MiB; 64 MiB by default.
    pub pcap_max_bytes: u64,
    /// Days for which captures are kept, 1 to 3,650; 30 by default.
    pub pcap_keep_days: i64,
    /// Bytes of all captures, at least `pcap_max_bytes`; 10 GB by default.
    pub pcap_max_disk_bytes: u64,
    /// File with the key that seals secrets of channels, integrations and adapters; `secrets.key` in `data`, made if missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets_key_file: Option<PathBuf>,
    /// Whether channels, integrations and adapters may have addresses that are not public; false by default.
    pub allow_private_destinations: bool,
    /// Time series that leave.
    #[serde(flatten)]
    pub remote_write: RemoteWriteConfig,
}

impl Config {
    /// Puts the sources together. `variables` are the process's; those without our prefix are ignored.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown key, a value out of bounds.
    pub fn load(flags: &Settings, variables: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let mut raw = match &flags.config {
            Some(path) => read(path)?,
            None => RawConfig::default(),
        };
        for (name, value) in variables {
            if let Some(key) = name.strip_prefix(PREFIX)
                && key != "CONFIG"
            {
                raw.set(&name, &key.to_ascii_lowercase(), &value)?;
            }
        }
        let remote_write = RemoteWriteConfig::new(&raw)?;
        let captures = CaptureLimits::default();
        let data = flags.data.clone().or(raw.data).unwrap_or_else(|| "/var/lib/ftagent-controlplane".into());
        let database = match flags.database.as_ref().or(raw.database.as_ref()) {
            Some(text) => DatabaseUrl::parse(text).map_err(|e| ConfigError::Value(format!("database: {e}")))?,
            None => DatabaseUrl::Sqlite(data.join("controlplane.sqlite")),
        };
        if database.file().is_some() && (raw.database_connections.is_some() || raw.database_statement_secs.is_some()) {
            let message = "database_connections, database_statement_secs: are of PostgreSQL, the database is SQLite";
            return Err(ConfigError::Value(message.to_owned()));
        }
        let config = Self {
            listen: flags.listen.or(raw.listen).unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 8_080).into()),
            metrics_listen: raw.metrics_listen,
            data,
            database,
            database_connections: raw.database_connections.unwrap_or(16),
            database_statement_secs: raw.database_statement_secs.unwrap_or(15),
            tls_cert: raw.tls_cert,
            tls_key: raw.tls_key,
            tls_names: raw.tls_names.unwrap_or_default(),
            tls_listen: raw.tls_listen.unwrap_or_default(),
            tls_min_version: raw.tls_min_version.unwrap_or_default(),
            tls_handshakes: raw.tls_handshakes.unwrap_or(256),
            tls_handshake_secs: raw.tls_handshake_secs.unwrap_or(5),
            allow_plain_http: raw.allow_plain_http.unwrap_or(false),
            require_client_certificates: raw.require_client_certificates.unwrap_or(false),
            node_certificate_hours: raw.node_certificate_hours.unwrap_or(2_160),
            log: raw.log.unwrap_or_else(|| "info".to_owned()),
            log_json: raw.log_json.unwrap_or(false),
            metrics_seconds_hours: raw.metrics_seconds_hours.unwrap_or(6),
            metrics_minutes_days: raw.metrics_minutes_days.unwrap_or(30),
            auth_failures_per_minute: raw.auth_failures_per_minute.unwrap_or(AUTHENTICATION),
            pcap_dir: raw.pcap_dir,
            pcap_max_bytes: raw.pcap_max_bytes.unwrap_or(captures.max_bytes),
            pcap_keep_days: raw.pcap_keep_days.unwrap_or(captures.keep_days),
            pcap_max_disk_bytes: raw.pcap_max_disk_bytes.unwrap_or(captures.max_disk_bytes),
            secrets_key_file: raw.secrets_key_file,
            allow_private_destinations: raw.allow_private_destinations.unwrap_or(false),
            remote_write,
        };
        config.check()
    }

    fn check(self) -> Result<Self, ConfigError> {
        let wrong = |message: &str| Err(ConfigError::Value(message.to_owned()));
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return wrong("tls_cert and tls_key: give both or none");
        }
        self.check_tls()?;
        if !(2..=1_000).contains(&self.database_connections) {
            return wrong("database_connections: must be 2 to 1000");
        }
        if !(1..=600).contains(&self.database_statement_secs) {
            return wrong("database_statement_secs: must be 1 to 600");
        }
        if !(1..=168).contains(&self.metrics_seconds_hours) {
            return wrong("metrics_seconds_hours: must be 1 to 168");
        }
        if !(1..=3_650).contains(&self.metrics_minutes_days) {
            return wrong("metrics_minutes_days: must be 1 to 3650");
        }
        if !(1..=1_000_000).contains(&self.auth_failures_per_minute) {
            return wrong("auth_failures_per_minute: must be 1 to 1000000");
        }
        if !(1 << 20..=1 << 30).contains(&self.pcap_max_bytes) {
            return wrong("pcap_max_bytes: must be 1048576 to 1073741824");
        }
        if !(1..=3_650).contains(&self.pcap_keep_days) {
            return wrong("pcap_keep_days: must be 1 to 3650");
        }
        if self.pcap_max_disk_bytes < self.pcap_max_bytes {
            return wrong("pcap_max_disk_bytes: must be at least pcap_max_bytes");
        }
        if self.log.parse::<tracing_subscriber::EnvFilter>().is_err() {
            return wrong("log: must be a filter such as info or controlplane=debug");
        }
        Ok(self)
    }

    fn check_tls(&self) -> Result<(), ConfigError> {
        let wrong = |message: String| Err(ConfigError::Value(message));
        if self.tls_cert.is_some() && !self.tls_names.is_empty() {
            return wrong(
                "tls_names: give names for the built-in authority, or tls_cert and tls_key, not both".to_owned(),
            );
        }
        if self.tls_names.len() > 64 {
            return wrong("tls_names: must be at most 64".to_owned());
        }
        if self.tls_source().is_none() {
            if !self.tls_listen.is_empty() {
                return wrong("tls_listen: needs tls_cert and tls_key, or tls_names".to_owned());
            }
            if self.require_client_certificates {
                let message = "require_client_certificates: needs TLS, by tls_cert and tls_key or by tls_names";
                return wrong(message.to_owned());
            }
        }
        if self.tls_listen.len() > 16 {
            return wrong("tls_listen: must be at most 16 addresses".to_owned());
        }
        if self.listens_plainly() && !self.listen.ip().is_loopback() && !self.allow_plain_http {
            return wrong(format!(
                "listen: tokens and node keys would cross the network in the clear at {}: give tls_cert and tls_key, or \
                 tls_names, for TLS; or listen on 127.0.0.1; or set allow_plain_http = true where the network is trusted",
                self.listen
            ));
        }
        if !(8..=65_536).contains(&self.tls_handshakes) {
            return wrong("tls_handshakes: must be 8 to 65536".to_owned());
        }
        if !(1..=60).contains(&self.tls_handshake_secs) {
            return wrong("tls_handshake_secs: must be 1 to 60".to_owned());
        }
        if !(1..=8_760).contains(&self.node_certificate_hours) {
            return wrong("node_certificate_hours: must be 1 to 8760".to_owned());
        }
        Ok(())
    }

    /// Where the certificate comes from; none without TLS.
    pub fn tls_source(&self) -> Option<Source> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                Some(Source::Files { certificate: certificate.clone(), key: key.clone() })
            }
            _ if !self.tls_names.is_empty() => Some(Source::Authority { names: self.tls_names.clone() }),
            _ => None,
        }
    }

    /// Whether `listen` speaks plain HTTP.
    pub fn listens_plainly(&self) -> bool {
        self.tls_source().is_none() || !self.tls_listen.is_empty()
    }

    /// The addresses that speak TLS.
    pub fn listens_securely(&self) -> Vec<SocketAddr> {
        if self.listens_plainly() { self.tls_listen.clone() } else { vec![self.listen] }
    }

    /// The database, for the store.
    pub fn store(&self) -> Database {
        self.database.settings(self.database_connections, Duration::from_secs(self.database_statement_secs))
    }

    /// The folder of captures.
    pub fn captures(&self) -> PathBuf {
        self.pcap_dir.clone().unwrap_or_else(|| self.data.join("captures"))
    }

    /// The file with the key of secrets.
    pub fn secrets_key(&self) -> PathBuf {
        self.secrets_key_file.clone().unwrap_or_else(|| self.data.join("secrets.key"))
    }

    /// What is taken and kept of them.
    pub const fn capture_limits(&self) -> CaptureLimits {
        CaptureLimits {
            max_bytes: self.pcap_max_bytes,
            keep_days: self.pcap_keep_days,
            max_disk_bytes: self.pcap_max_disk_bytes,
        }
    }
}

/// The words of a list in the environment.
fn listed(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|word| !word.is_empty())
}

fn read(path: &Path) -> Result<RawConfig, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|fault| {
        let shown = fault.to_string();
        // A message shows the line that is wrong: not one with a URL, which can hold a password.
        let message = if shown.contains("://") {
            let line = fault.span().map_or(1, |span| text[..span.start].lines().count().max(1));
            format!("line {line}: {}", fault.message())
        } else {
            shown.trim_end().to_owned()
        };
        ConfigError::File { path: path.to_owned(), message }
    })
}

impl RawConfig {
    /// Sets one key from the environment.
    fn set(&mut self, name: &str, key: &str, value: &str) -> Result<(), ConfigError> {
        fn parsed<T: std::str::FromStr>(name: &str, value: &str, what: &str) -> Result<Option<T>, ConfigError> {
            value.parse().map(Some).map_err(|_| ConfigError::Variable {
                name: name.to_owned(),
                message: format!("must be {what}, got {value:?}"),
            })
        }
        match key {
            "listen" => self.listen = parsed(name, value, "an address with port")?,
            "metrics_listen" => self.metrics_listen = parsed(name, value, "an address with port")?,
            "data" => self.data = Some(value.into()),
            "database" => self.database = Some(value.to_owned()),
            "database_connections" => self.database_connections = parsed(name, value, "a number")?,
            "database_statement_secs" => self.database_statement_secs = parsed(name, value, "a number")?,
            "tls_cert" => self.tls_cert = Some(value.into()),
            "tls_key" => self.tls_key = Some(value.into()),
            "tls_names" => self.tls_names = Some(listed(value).map(str::to_owned).collect()),
            "tls_listen" => {
                let addresses: Result<_, ConfigError> =
                    listed(value).map(|v| parsed(name, v, "addresses with ports, with commas between")).collect();
                self.tls_listen = addresses?;
            }
            "tls_min_version" => self.tls_min_version = parsed(name, value, "1.2 or 1.3")?,
            "tls_handshakes" => self.tls_handshakes = parsed(name, value, "a number")?,
            "tls_handshake_secs" => self.tls_handshake_secs = parsed(name, value, "a number")?,
            "allow_plain_http" => self.allow_plain_http = parsed(name, value, "true or false")?,
            "require_client_certificates" => self.require_client_certificates = parsed(name, value, "true or false")?,
            "node_certificate_hours" => self.node_certificate_hours = parsed(name, value, "a number")?,
            "log" => self.log = Some(value.to_owned()),
            "log_json" => self.log_json = parsed(name, value, "true or false")?,
            "metrics_seconds_hours" => self.metrics_seconds_hours = parsed(name, value, "a number")?,
            "metrics_minutes_days" => self.metrics_minutes_days = parsed(name, value, "a number")?,
            "auth_failures_per_minute" => self.auth_failures_per_minute = parsed(name, value, "a number")?,
            "pcap_dir" => self.pcap_dir = Some(value.into()),
            "pcap_max_bytes" => self.pcap_max_bytes = parsed(name, value, "a number")?,
            "pcap_keep_days" => self.pcap_keep_days = parsed(name, value, "a number")?,
            "pcap_max_disk_bytes" => self.pcap_max_disk_bytes = parsed(name, value, "a number")?,
            "secrets_key_file" => self.secrets_key_file = Some(value.into()),
            "allow_private_destinations" => {
                self.allow_private_destinations = parsed(name, value, "true or false")?;
            }
            "remote_write_url" => self.remote_write_url = Some(value.to_owned()),
            "remote_write_user" => self.remote_write_user = Some(value.to_owned()),
            "remote_write_password_file" => self.remote_write_password_file = Some(value.into()),
            "remote_write_token_file" => self.remote_write_token_file = Some(value.into()),
            "remote_write_queue_samples" => self.remote_write_queue_samples = parsed(name, value, "a number")?,
            "remote_write_batch_samples" => self.remote_write_batch_samples = parsed(name, value, "a number")?,
            "metrics_in_database" => self.metrics_in_database = parsed(name, value, "true or false")?,
            _ => {
                let message = "is no setting of the control plane".to_owned();
                return Err(ConfigError::Variable { name: name.to_owned(), message });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: Option<&str>, variables: &[(&str, &str)], listen: Option<&str>) -> Result<Config, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cp.toml");
        let config = file.map(|text| {
            std::fs::write(&path, text).expect("written");
            path.clone()
        });
        let flags =
            Settings { config, listen: listen.map(|l| l.parse().expect("an address")), data: None, database: None };
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::load(&flags, variables).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_win_over_the_environment_over_the_file_over_defaults() {
        let file = Some("listen = \"127.0.0.1:1\"");
        let variable = [("FTAGENT_CP_LISTEN", "127.0.0.1:2"), ("OTHER", "x")];
        let port = |config: Result<Config, String>| config.map(|c| c.listen.port());
        assert_eq!(port(load(None, &[], None)), Ok(8_080));
        assert_eq!(port(load(file, &[], None)), Ok(1));
        assert_eq!(port(load(file, &variable, None)), Ok(2));
        assert_eq!(port(load(file, &variable, Some("127.0.0.1:3"))), Ok(3));
    }

    #[test]
    fn tls_takes_the_place_of_plain_http_or_stands_beside_it() {
        let files = "tls_cert = \"a.pem\"\ntls_key = \"b.pem\"\n";
        let one = load(Some(&format!("listen = \"0.0.0.0:8443\"\n{files}")), &[], None).expect("accepted");
        assert!(!one.listens_plainly() && one.listens_securely() == vec![one.listen]);
        let variables = [("FTAGENT_CP_TLS_LISTEN", "192.0.2.1:443, [2001:db8::1]:443")];
        let both = load(Some(files), &variables, None).expect("accepted");
        assert!(both.listens_plainly() && both.listen.ip().is_loopback() && both.listens_securely().len() == 2);
        assert!(load(Some("listen = \"0.0.0.0:80\"\nallow_plain_http = true"), &[], None).is_ok());
        let named = load(None, &[("FTAGENT_CP_TLS_NAMES", "cp.example,192.0.2.1")], None).expect("accepted");
        let names = vec!["cp.example".to_owned(), "192.0.2.1".to_owned()];
        assert_eq!(named.tls_source(), Some(Source::Authority { names }));
    }

    /// File, environment, and what the message must name.
    type Wrong<'a> = (Option<&'a str>, &'a [(&'a str, &'a str)], &'a [&'a str]);

    #[test]
    fn what_is_wrong_is_named() {
        let url = "remote_write_url = \"https://p.example/api/v1/write\"\n";
        let users = format!("{url}remote_write_user = \"u\"");
        let both = format!("{users}\nremote_write_password_file = \"p\"\nremote_write_token_file = \"t\"");
        let table: [Wrong<'_>; 27] = [
            (Some("listen = \"0.0.0.0:80\""), &[], &["0.0.0.0:80", "tls_cert", "allow_plain_http = true"]),
            (
                Some("listen = \"192.0.2.1:80\"\ntls_names = [\"a\"]\ntls_listen = [\"192.0.2.1:443\"]"),
                &[],
                &["listen", "clear"],
            ),
            (Some("tls_listen = [\"192.0.2.1:443\"]"), &[], &["tls_listen", "tls_names"]),
            (Some("require_client_certificates = true"), &[], &["require_client_certificates", "tls_cert"]),
            (Some("tls_min_version = \"1.1\""), &[], &["cp.toml", "tls_min_version"]),
            (None, &[("FTAGENT_CP_TLS_MIN_VERSION", "1.1")], &["1.2 or 1.3"]),
            (None, &[("FTAGENT_CP_TLS_HANDSHAKES", "1")], &["tls_handshakes", "65536"]),
            (Some("tls_cert = \"a\"\ntls_key = \"b\"\ntls_names = [\"c\"]"), &[], &["tls_names", "not both"]),
            (Some("colour = 1"), &[], &["cp.toml", "colour"]),
            (Some("listen = \"here\""), &[], &["cp.toml", "listen"]),
            (None, &[("FTAGENT_CP_COLOUR", "1")], &["FTAGENT_CP_COLOUR"]),
            (None, &[("FTAGENT_CP_LISTEN", "here")], &["FTAGENT_CP_LISTEN", "here"]),
            (Some("tls_cert = \"a.pem\""), &[], &["tls_key"]),
            (Some("database = \"mysql://u:sesame@h/x\""), &[], &["database", "mysql"]),
            (Some("\ndatabase = postgres://u:sesame@h/x"), &[], &["cp.toml", "line 2"]),
            (Some("database_connections = 9"), &[], &["database_connections", "SQLite"]),
            (
                None,
                &[("FTAGENT_CP_DATABASE", "postgres://h/x"), ("FTAGENT_CP_DATABASE_STATEMENT_SECS", "0")],
                &["statement_secs"],
            ),
            (Some("metrics_minutes_days = 0"), &[], &["metrics_minutes_days"]),
            (Some("pcap_max_bytes = 1"), &[], &["pcap_max_bytes"]),
            (Some("pcap_max_disk_bytes = 2000000"), &[], &["pcap_max_disk_bytes"]),
            (None, &[("FTAGENT_CP_PCAP_KEEP_DAYS", "0")], &["pcap_keep_days"]),
            (Some("remote_write_url = \"https://u:sesame@h/w\""), &[], &["remote_write_url", "password"]),
            (None, &[("FTAGENT_CP_REMOTE_WRITE_URL", "unix:sesame")], &["remote_write_url"]),
            (Some("metrics_in_database = false"), &[], &["remote_write_url"]),
            (Some(&users), &[], &["remote_write_password_file"]),
            (Some(&both), &[], &["not both"]),
            (Some("remote_write_batch_samples = 1"), &[], &["remote_write_batch_samples"]),
        ];
        for (file, variables, parts) in table {
            let error = load(file, variables, None).expect_err("refused");
            assert!(parts.iter().all(|p| error.contains(p)), "{error}");
            assert!(!error.contains("sesame"), "{error}");
        }
    }
}
