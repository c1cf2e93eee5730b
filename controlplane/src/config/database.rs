//! The setting `database`: which one, and how to reach it. What it prints as has no password in it.

use std::fmt::{self, Debug, Display, Formatter};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::store::sql::{Database, PostgresSettings};

/// `sqlite:PATH` or `postgres://USER:PASSWORD@HOST:PORT/NAME`.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    Sqlite(PathBuf),
    /// The whole URL, that PostgreSQL's client can read.
    Postgres(String),
}

impl DatabaseUrl {
    /// Reads the setting.
    ///
    /// # Errors
    /// Another scheme, no path, or a URL that names no database server; the message does not repeat the value.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORMS: &str = "use sqlite:PATH or postgres://USER@HOST/NAME";
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(format!("has no scheme: {FORMS}"));
        };
        match scheme {
            "sqlite" => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                if path.is_empty() || path.contains('?') || path == ":memory:" {
                    return Err("needs the path of a file after sqlite:".to_owned());
                }
                Ok(Self::Sqlite(path.into()))
            }
            "postgres" | "postgresql" => {
                PostgresSettings::parse(text, 1, Duration::from_secs(1))?;
                Ok(Self::Postgres(text.to_owned()))
            }
            // A password can stand before a colon too; a scheme never has other characters than these.
            _ if scheme.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()) && rest.starts_with("//") => {
                Err(format!("{scheme} is no database that the control plane knows: {FORMS}"))
            }
            _ => Err(format!("has an unknown scheme: {FORMS}")),
        }
    }

    /// The file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(path) => Some(path),
            Self::Postgres(_) => None,
        }
    }

    /// What the store opens.
    pub(crate) fn settings(&self, connections: u32, statement: Duration) -> Database {
        match self {
            Self::Sqlite(path) => Database::Sqlite(path.clone()),
            Self::Postgres(url) => Database::Postgres(
                PostgresSettings::parse(url, connections, statement).expect("it could be read when it was set"),
            ),
        }
    }
}

impl Display for DatabaseUrl {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.settings(1, Duration::from_secs(1)) {
            Database::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Database::Postgres(settings) => write!(f, "postgres://{}", settings.place()),
        }
    }
}

impl Debug for DatabaseUrl {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_schemes_are_known_and_passwords_are_not_shown() {
        let table = [
            ("sqlite:/var/lib/x.sqlite", Ok("sqlite:/var/lib/x.sqlite")),
            ("sqlite:///var/lib/x.sqlite", Ok("sqlite:/var/lib/x.sqlite")),
            ("sqlite:x.sqlite", Ok("sqlite:x.sqlite")),
            ("postgres://u:sesame@h/ft", Ok("postgres://h:5432/ft")),
            ("postgresql://u:sesame@[2001:db8::1]:5433/ft?sslmode=require", Ok("postgres://[2001:db8::1]:5433/ft")),
            ("mysql://u:sesame@h/ft", Err("mysql")),
            ("u:sesame@h/ft", Err("scheme")),
            ("controlplane.sqlite", Err("scheme")),
            ("sqlite:", Err("path")),
            ("postgres://u:sesame@h:port/ft", Err("port")),
        ];
        for (text, expected) in table {
            let read = DatabaseUrl::parse(text);
            match (&read, expected) {
                (Ok(url), Ok(shown)) => assert_eq!(url.to_string(), shown, "{text}"),
                (Err(fault), Err(part)) => assert!(fault.contains(part), "{text}: {fault}"),
                _ => panic!("{text}: {read:?}"),
            }
            assert!(!format!("{read:?}").contains("sesame"), "{read:?}");
        }
    }
}
