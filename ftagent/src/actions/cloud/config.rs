//! `[cloud.…]` of the configuration: where the key of each provider is, and where its API.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ftagent_common::api::{CLOUDFLARE_API, DIGITALOCEAN_API, VULTR_API};
use hyper::Uri;
use serde::Deserialize;

use crate::secret_file;
use crate::sync::Secret;

const GRAMMAR: &str =
    "must be 16 to 256 letters, digits or signs without spaces, on one line: what the provider showed";

/// One provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudConfig {
    /// Read anew for every piece of work.
    pub token_file: PathBuf,
    pub api_url: String,
    /// PEM; trusted in place of the system's authorities.
    pub ca_certificate: Option<PathBuf>,
    /// For each whole answer.
    pub timeout: Duration,
}

impl CloudConfig {
    /// The key, as it is in the file now.
    ///
    /// # Errors
    /// What is wrong with the file. Never what is in it.
    pub(super) fn token(&self) -> Result<Secret, String> {
        secret_file::read_key(&self.token_file, GRAMMAR)
    }
}

/// All providers that have a key on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clouds {
    pub cloudflare: Option<CloudConfig>,
    pub digitalocean: Option<CloudConfig>,
    pub vultr: Option<CloudConfig>,
}

impl Clouds {
    /// That of a tool, as [`ftagent_common::api::Action::tool`] names it.
    pub fn of(&self, tool: &str) -> Option<&CloudConfig> {
        match tool {
            "cloudflare" => self.cloudflare.as_ref(),
            "digitalocean" => self.digitalocean.as_ref(),
            "vultr" => self.vultr.as_ref(),
            _ => None,
        }
    }
}

impl Clouds {
    /// Why keys cannot be used as they are now. No reason to refuse a configuration: what needs none of them goes on.
    pub fn faults(&self) -> Vec<String> {
        let all = [("cloudflare", &self.cloudflare), ("digitalocean", &self.digitalocean), ("vultr", &self.vultr)];
        let keys = all.into_iter().filter_map(|(name, config)| Some((name, config.as_ref()?.token())));
        keys.filter_map(|(name, key)| Some(format!("cloud.{name}.token_file: {}", key.err()?))).collect()
    }
}

/// The section as people write it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawClouds {
    cloudflare: Option<RawCloud>,
    digitalocean: Option<RawCloud>,
    vultr: Option<RawCloud>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCloud {
    token_file: PathBuf,
    api_url: Option<String>,
    ca_certificate: Option<PathBuf>,
    #[serde(default = "timeout_secs")]
    timeout_secs: u64,
}

const fn timeout_secs() -> u64 {
    10
}

/// Checks the section.
///
/// # Errors
/// The first key that is wrong, and what is wrong with it.
pub fn check_clouds(raw: &RawClouds) -> Result<Clouds, (String, String)> {
    Ok(Clouds {
        cloudflare: check("cloudflare", raw.cloudflare.as_ref(), CLOUDFLARE_API)?,
        digitalocean: check("digitalocean", raw.digitalocean.as_ref(), DIGITALOCEAN_API)?,
        vultr: check("vultr", raw.vultr.as_ref(), VULTR_API)?,
    })
}

fn check(name: &str, raw: Option<&RawCloud>, official: &str) -> Result<Option<CloudConfig>, (String, String)> {
    let Some(raw) = raw else { return Ok(None) };
    let wrong = |key: &str, why: String| (format!("cloud.{name}.{key}"), why);
    let api_url = raw.api_url.as_deref().unwrap_or(official).trim_end_matches('/').to_owned();
    check_url(&api_url).map_err(|why| wrong("api_url", why))?;
    if !(1..=60).contains(&raw.timeout_secs) {
        return Err(wrong("timeout_secs", format!("must be 1 to 60, got {}", raw.timeout_secs)));
    }
    if !raw.token_file.is_absolute() {
        return Err(wrong("token_file", format!("must be an absolute path, got {}", raw.token_file.display())));
    }
    if let Some(path) = raw.ca_certificate.as_deref().filter(|path| !Path::is_absolute(path)) {
        return Err(wrong("ca_certificate", format!("must be an absolute path, got {}", path.display())));
    }
    Ok(Some(CloudConfig {
        token_file: raw.token_file.clone(),
        api_url,
        ca_certificate: raw.ca_certificate.clone(),
        timeout: Duration::from_secs(raw.timeout_secs),
    }))
}

/// A key goes there: never in clear but to this machine itself.
fn check_url(url: &str) -> Result<(), String> {
    let uri: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
    let host = uri.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) || uri.query().is_some() {
        return Err(format!("must be a URL without user and query, got {url}"));
    }
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if is_loopback => Ok(()),
        _ => Err(format!("must begin with https://, or with http:// for an address of this machine, got {url}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn parse(text: &str) -> Result<Clouds, String> {
        let raw: RawClouds = toml::from_str(text).map_err(|e| e.to_string())?;
        check_clouds(&raw).map_err(|(key, why)| format!("{key}: {why}"))
    }

    #[test]
    fn keys_are_named_by_files_that_others_cannot_read_and_sent_in_clear_to_nobody_else() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().display();
        std::fs::write(file.path(), "0123456789abcdefABCDEF\n").expect("room");
        let mode = |mode| std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("ours");
        mode(0o600);
        let token = format!("token_file = \"{path}\"");
        let full = parse(&format!("[cloudflare]\n{token}\n[vultr]\n{token}\napi_url = \"http://127.0.0.1:1/v2/\""));
        let full = full.expect("a section");
        assert_eq!(full.of("cloudflare").expect("one").api_url, CLOUDFLARE_API);
        assert_eq!(full.of("vultr").expect("one").api_url, "http://127.0.0.1:1/v2");
        assert!(full.of("digitalocean").is_none() && full.of("iptables").is_none());
        assert!(!format!("{full:?}").contains("abcdef"), "{full:?}");
        assert_eq!(parse("").expect("nothing"), Clouds::default());
        let table = [
            ("[aws]\n", "aws"),
            ("[vultr]\n", "token_file"),
            ("[vultr]\ntoken_file = \"key\"", "cloud.vultr.token_file: must be an absolute path"),
            ("[vultr]\nTOKEN\ntoken = \"x\"", "token"),
            ("[vultr]\nTOKEN\ntimeout_secs = 0", "cloud.vultr.timeout_secs: must be 1 to 60, got 0"),
            ("[vultr]\nTOKEN\nca_certificate = \"a.pem\"", "cloud.vultr.ca_certificate: must be an absolute path"),
            ("[vultr]\nTOKEN\napi_url = \"http://api.example\"", "cloud.vultr.api_url: must begin with https://"),
            ("[vultr]\nTOKEN\napi_url = \"http://127.0.0.1.example\"", "must begin with https://"),
            ("[vultr]\nTOKEN\napi_url = \"https://u:p@api.example\"", "without user"),
            ("[vultr]\nTOKEN\napi_url = \"https://api.example/?a=b\"", "without user and query"),
            ("[vultr]\nTOKEN\napi_url = \"ftp://localhost\"", "must begin with https://"),
        ];
        for (text, expected) in table {
            let got = parse(&text.replace("TOKEN", &token));
            assert!(got.as_ref().is_err_and(|e| e.contains(expected)), "{text}: {got:?} lacks {expected:?}");
        }
        let faults = |text: &str| parse(text).expect("what is wrong with a key is no fault of the file").faults();
        assert_eq!(faults(&format!("[vultr]\n{token}")), Vec::<String>::new());
        let nowhere = faults("[vultr]\ntoken_file = \"/nowhere/key\"");
        assert!(nowhere[0].starts_with("cloud.vultr.token_file: /nowhere/key: No such file"), "{nowhere:?}");
        mode(0o640);
        let open = faults(&format!("[vultr]\n{token}"));
        assert!(open[0].contains("chmod 0600") && !open[0].contains("abcdef"), "{open:?}");
        mode(0o600);
        std::fs::write(file.path(), "two words\nsecretsecretsecret").expect("room");
        let words = faults(&format!("[vultr]\n{token}"));
        assert!(words[0].contains("without spaces") && !words[0].contains("secretsecret"), "{words:?}");
    }
}
