//! `[crowdsec]` of the configuration.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{CrowdsecConfig, Filter, Key, MAX_DECISIONS};
use crate::lists::ListAction;
use crate::secret_file::{self, is_key};
use crate::sync::Secret;

/// The section as people write it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawCrowdsec {
    url: String,
    api_key: Option<Secret>,
    api_key_file: Option<PathBuf>,
    ca_certificate: Option<PathBuf>,
    #[serde(default = "poll_secs")]
    poll_secs: u32,
    #[serde(default = "scopes")]
    scopes: Vec<String>,
    #[serde(default)]
    origins: Vec<String>,
    #[serde(default)]
    scenarios_containing: Vec<String>,
    #[serde(default)]
    scenarios_not_containing: Vec<String>,
    #[serde(default = "max_decisions")]
    max_decisions: u32,
    #[serde(default)]
    action: ListAction,
}

const fn poll_secs() -> u32 {
    10
}

const fn max_decisions() -> u32 {
    200_000
}

fn scopes() -> Vec<String> {
    vec!["ip".to_owned(), "range".to_owned()]
}

/// Checks the section, if there is one.
///
/// # Errors
/// The first key that is wrong, and what is wrong with it.
pub fn check_crowdsec(raw: Option<&RawCrowdsec>) -> Result<Option<CrowdsecConfig>, (&'static str, String)> {
    let Some(raw) = raw else { return Ok(None) };
    if !raw.url.starts_with("http://") && !raw.url.starts_with("https://") {
        return Err(("crowdsec.url", "must begin with http:// or https://, such as http://127.0.0.1:8080".to_owned()));
    }
    let key = match (&raw.api_key, &raw.api_key_file) {
        (Some(key), None) => Key::Inline(key.clone()),
        (None, Some(path)) => {
            read_key(path).map_err(|why| ("crowdsec.api_key_file", why))?;
            Key::File(path.clone())
        }
        (None, None) => {
            let how = "give api_key_file, with what `cscli bouncers add NAME` printed in it";
            return Err(("crowdsec.api_key", how.to_owned()));
        }
        (Some(_), Some(_)) => return Err(("crowdsec.api_key", "give api_key or api_key_file, not both".to_owned())),
    };
    if let Key::Inline(key) = &key
        && !is_key(key.expose())
    {
        return Err(("crowdsec.api_key", NO_KEY.to_owned()));
    }
    within("crowdsec.poll_secs", raw.poll_secs, 1, 3_600)?;
    within("crowdsec.max_decisions", raw.max_decisions, 1, MAX_DECISIONS)?;
    let has = |scope: &str| raw.scopes.iter().any(|named| named.eq_ignore_ascii_case(scope));
    if raw.scopes.is_empty() || raw.scopes.iter().any(|s| !["ip", "range"].contains(&s.to_ascii_lowercase().as_str())) {
        let what = "must be \"ip\", \"range\" or both: the kernel knows addresses and prefixes";
        return Err(("crowdsec.scopes", what.to_owned()));
    }
    for (key, words) in [
        ("crowdsec.origins", &raw.origins),
        ("crowdsec.scenarios_containing", &raw.scenarios_containing),
        ("crowdsec.scenarios_not_containing", &raw.scenarios_not_containing),
    ] {
        if words.len() > 64 || words.iter().any(|word| word.is_empty() || word.len() > 128) {
            return Err((key, "must be at most 64 words of 1 to 128 bytes".to_owned()));
        }
    }
    Ok(Some(CrowdsecConfig {
        url: raw.url.trim_end_matches('/').to_owned(),
        key,
        ca_certificate: raw.ca_certificate.clone(),
        poll_secs: raw.poll_secs,
        filter: Filter {
            addresses: has("ip"),
            ranges: has("range"),
            origins: raw.origins.clone(),
            scenarios_containing: raw.scenarios_containing.clone(),
            scenarios_not_containing: raw.scenarios_not_containing.clone(),
        },
        max_decisions: raw.max_decisions,
        action: raw.action,
    }))
}

const NO_KEY: &str =
    "must be 16 to 256 letters, digits or signs without spaces: what `cscli bouncers add NAME` printed";

/// The key in the file at `path`.
pub(super) fn read_key(path: &Path) -> Result<Secret, String> {
    secret_file::read_key(path, NO_KEY)
}

fn within(key: &'static str, value: u32, low: u32, high: u32) -> Result<(), (&'static str, String)> {
    if (low..=high).contains(&value) { Ok(()) } else { Err((key, format!("must be {low} to {high}, got {value}"))) }
}

impl CrowdsecConfig {
    /// Whether the key crosses a network as it is.
    pub fn is_in_clear(&self) -> bool {
        let Some(rest) = self.url.strip_prefix("http://") else { return false };
        let host = rest.split('/').next().unwrap_or_default();
        let bare = match host.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        bare != "localhost" && !bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// For people: what is read from where. Never the key.
    pub fn text(&self) -> String {
        let scopes = match (self.filter.addresses, self.filter.ranges) {
            (true, true) => "addresses and ranges",
            (true, false) => "addresses",
            _ => "ranges",
        };
        let some = |what: &str, words: &[String]| {
            if words.is_empty() { String::new() } else { format!(", {what} {}", words.join(", ")) }
        };
        format!(
            "{} every {} s: {scopes}, at most {}{}{}{}; action {}{}",
            self.url,
            self.poll_secs,
            self.max_decisions,
            some("of origin", &self.filter.origins),
            some("scenarios with", &self.filter.scenarios_containing),
            some("scenarios without", &self.filter.scenarios_not_containing),
            self.action.as_str(),
            if self.is_in_clear() { "; the API key crosses the network in clear: use https" } else { "" },
        )
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn parse(text: &str) -> Result<CrowdsecConfig, String> {
        let raw: RawCrowdsec = toml::from_str(text).map_err(|e| e.to_string())?;
        check_crowdsec(Some(&raw)).map(|c| c.expect("there is one")).map_err(|(key, why)| format!("{key}: {why}"))
    }

    #[test]
    fn a_url_and_a_key_are_enough() {
        let config = parse(&format!("url = \"http://127.0.0.1:8080/\"\napi_key = \"{KEY}\"\n")).expect("valid");
        assert_eq!(
            (config.url.as_str(), config.poll_secs, config.max_decisions),
            ("http://127.0.0.1:8080", 10, 200_000)
        );
        assert!(config.filter.addresses && config.filter.ranges && config.action == ListAction::Block);
        let shown = format!("{config:?} {}", config.text());
        assert!(!shown.contains(&KEY[..8]), "the key shows itself: {shown}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let key = format!("api_key = \"{KEY}\"");
        let url = "url = \"http://127.0.0.1:8080\"";
        for (text, expected) in [
            (format!("url = \"127.0.0.1:8080\"\n{key}"), "crowdsec.url: must begin with http://"),
            (url.to_owned(), "crowdsec.api_key: give api_key_file"),
            (format!("{url}\n{key}\napi_key_file = \"/x\""), "not both"),
            (format!("{url}\napi_key = \"short\""), "crowdsec.api_key: must be 16 to 256"),
            (format!("{url}\napi_key = \"with a space in it 0123\""), "crowdsec.api_key: must be 16"),
            (format!("{url}\napi_key_file = \"key\""), "crowdsec.api_key_file: must be an absolute path"),
            (format!("{url}\napi_key_file = \"/nowhere/key\""), "/nowhere/key: No such file"),
            (format!("{url}\n{key}\npoll_secs = 0"), "crowdsec.poll_secs: must be 1 to 3600, got 0"),
            (format!("{url}\n{key}\nmax_decisions = 500001"), "crowdsec.max_decisions: must be 1 to 500000"),
            (format!("{url}\n{key}\nscopes = []"), "crowdsec.scopes: must be"),
            (format!("{url}\n{key}\nscopes = [\"ip\", \"country\"]"), "crowdsec.scopes: must be"),
            (format!("{url}\n{key}\norigins = [\"\"]"), "crowdsec.origins: must be"),
            (format!("{url}\n{key}\naction = \"allow\""), "allow"),
            (format!("{url}\n{key}\ncolour = 1"), "colour"),
        ] {
            let got = parse(&text);
            assert!(got.as_ref().is_err_and(|e| e.contains(expected)), "{text}: {got:?} lacks {expected:?}");
        }
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), format!("{KEY}\n")).expect("room");
        for (mode, is_taken) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("ours");
            assert_eq!(read_key(file.path()).is_ok(), is_taken, "{mode:o}");
        }
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).expect("ours");
        std::fs::write(file.path(), "two words of a key\n").expect("room");
        assert!(read_key(file.path()).is_err_and(|why| why.contains("cscli bouncers add")));
    }

    #[test]
    fn a_key_in_clear_is_said() {
        for (url, in_clear) in [
            ("http://127.0.0.1:8080", false),
            ("http://[::1]:8080/lapi", false),
            ("http://localhost", false),
            ("https://lapi.example", false),
            ("http://lapi.example:8080", true),
            ("http://192.0.2.1", true),
        ] {
            let config = parse(&format!("url = \"{url}\"\napi_key = \"{KEY}\"")).expect(url);
            assert_eq!(config.is_in_clear(), in_clear, "{url}");
            assert_eq!(config.text().contains("in clear"), in_clear, "{url}");
        }
    }
}
