//! PostgreSQL, shared by any number of control planes.

use std::fmt::{self, Debug, Formatter};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, PgConnection, PgPool};
use uuid::Uuid;

use super::rows::PREPARED;
use super::transaction::Pools;
use super::{Opening, WAIT, schema};
use crate::store::Result;

/// How to reach the database. What it prints as has no password in it.
#[derive(Clone)]
pub struct PostgresSettings {
    options: Box<PgConnectOptions>,
    connections: u32,
    statement: Duration,
}

impl PostgresSettings {
    /// Settings from `postgres://USER:PASSWORD@HOST:PORT/NAME?sslmode=…`; what is missing comes from `PGHOST` and the
    /// other variables of PostgreSQL, and the password from `PGPASSWORD` or `~/.pgpass`.
    ///
    /// # Errors
    /// What is wrong with the URL, without repeating it.
    pub fn parse(url: &str, connections: u32, statement: Duration) -> Result<Self, String> {
        let options = url.parse::<PgConnectOptions>().map_err(|e| e.to_string())?;
        Ok(Self { options: Box::new(options), connections, statement })
    }

    /// Where it is: host, port and name, without user and password.
    pub fn place(&self) -> String {
        let options = &self.options;
        let host =
            options.get_socket().map_or_else(|| options.get_host().to_owned(), |path| path.display().to_string());
        let name = options.get_database().unwrap_or(options.get_username());
        format!("{host}:{}/{name}", options.get_port())
    }

    fn options(&self, limits: &[(&str, Duration)]) -> PgConnectOptions {
        let limits = limits.iter().map(|(name, limit)| (*name, format!("{}ms", limit.as_millis())));
        (*self.options)
            .clone()
            .application_name("ftagent-controlplane")
            .statement_cache_capacity(PREPARED)
            .options(limits)
    }

    /// Connections without limits of time, for the listener, the lock of the jobs and migrations.
    pub(super) fn patient_pool(&self, most: u32) -> PgPool {
        PgPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(WAIT)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(self.options(&[]))
    }
}

impl Debug for PostgresSettings {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL at {}", self.place())
    }
}

pub(super) async fn open(settings: &PostgresSettings, opening: Opening) -> Result<Pools> {
    let patient = settings.patient_pool(3);
    schema::POSTGRES.prepare(&mut *patient.acquire().await?, opening).await?;
    let limits = [
        ("statement_timeout", settings.statement),
        ("lock_timeout", WAIT),
        ("idle_in_transaction_session_timeout", settings.statement.saturating_mul(2)),
    ];
    let pool = PgPoolOptions::new()
        .max_connections(settings.connections)
        .acquire_timeout(WAIT)
        .after_release(|conn, _| Box::pin(is_sound(conn)))
        .connect_with(settings.options(&limits))
        .await?;
    Ok(Pools::Postgres { pool, patient, patience: settings.statement + WAIT, instance: Uuid::new_v4() })
}

/// Whether a connection can be used again. A server that is gone without a word must not keep its place in the pool.
async fn is_sound(conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
    match tokio::time::timeout(WAIT, conn.ping()).await {
        Ok(answer) => answer.map(|()| true),
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

/// Said where one of two transactions had to give way.
pub(super) const CONTENTION: &str = "another write was in the way";

/// A statement was prepared before a newer program changed a table: the plan must be made anew.
pub(super) const STALE: &str = "0A000";

/// What an SQLSTATE means, if a later try may succeed.
pub(super) fn trouble(code: &str) -> Option<&'static str> {
    Some(match code {
        // The last one: what a row belongs to was deleted meanwhile. The next try finds out.
        "40001" | "40P01" | "23503" => CONTENTION,
        STALE => "its schema has just changed",
        "55P03" => "another write took too long",
        "57014" => "it took too long",
        "25P03" | "25P04" => "the transaction took too long",
        "25006" => "it takes no writes",
        "53100" => "its disk is full",
        "57P01" | "57P02" | "57P03" => "it is restarting",
        "3D000" => "it has no such database",
        _ if code.starts_with("08") => "it cannot be reached",
        _ if code.starts_with("53") => "it has no room for more connections or memory",
        _ if code.starts_with("58") => "its disk cannot be read or written",
        _ if code.starts_with("28") => "it does not let this user in",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_from_what_is_a_defect() {
        for code in ["40001", "40P01", "57P01", "57P03", "08006", "53300", "58030", "55P03", "57014", "28P01"] {
            assert!(trouble(code).is_some(), "{code}");
        }
        for code in ["23505", "42P01", "42601", "22003", "XX000"] {
            assert!(trouble(code).is_none(), "{code}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let url = "postgres://us:sesame@db.example:5433/ftagent";
        let settings = PostgresSettings::parse(url, 4, WAIT).expect("a URL");
        assert_eq!(format!("{settings:?}"), "PostgreSQL at db.example:5433/ftagent");
        let fault = PostgresSettings::parse("postgres://us:sesame@db.example:port/x", 4, WAIT).expect_err("no port");
        assert!(!fault.contains("sesame"), "{fault}");
    }
}
