//! The schema of either database, brought up to date by numbered migrations that are part of the program.

use sqlx::migrate::{AppliedMigration, Migrate, MigrateError, Migrator};

use super::Opening;
use crate::store::{Result, StoreError};

/// The migrations of one database.
pub(super) struct Schema(Migrator);

pub(super) static SQLITE: Schema = Schema(sqlx::migrate!("migrations/sqlite"));
pub(super) static POSTGRES: Schema = Schema(sqlx::migrate!("migrations/postgres"));

/// Why a schema cannot be brought up to date.
#[derive(Debug, thiserror::Error)]
enum SchemaError {
    #[error("the database has schema {found}, this program knows {known}: use a newer program, or a backup")]
    Newer { found: i64, known: i64 },
    #[error("migration {0} is not the one that this database had: it belongs to another build of the program")]
    Other(i64),
    #[error("the database has schema {found}, this program has {known}: run `controlplane migrate` first")]
    Older { found: i64, known: i64 },
}

/// Where the driver notes what ran.
const NOTES: &str = "_sqlx_migrations";

impl Schema {
    /// The number of the last migration.
    pub(super) fn version(&self) -> i64 {
        self.0.iter().map(|m| m.version).max().unwrap_or(0)
    }

    /// Makes sure that the schema is this program's.
    ///
    /// # Errors
    /// As [`Self::bring_up_to_date`], and an older schema where nothing may be changed.
    pub(super) async fn prepare(&self, conn: &mut impl Migrate, opening: Opening) -> Result<()> {
        match opening {
            Opening::Migrate => self.bring_up_to_date(conn).await,
            Opening::AsItIs => self.check(conn).await,
        }
    }

    async fn check(&self, conn: &mut impl Migrate) -> Result<()> {
        let known = self.version();
        let applied = match conn.list_applied_migrations(NOTES).await {
            Ok(applied) => applied,
            Err(MigrateError::Execute(source)) => return Err(source.into()),
            Err(other) => return Err(unusable(other)),
        };
        let found = applied.iter().map(|m| m.version).max().unwrap_or(0);
        let same = |m: &AppliedMigration| self.0.iter().any(|o| o.version == m.version && o.checksum == m.checksum);
        match applied.iter().find(|m| !same(m)) {
            _ if found > known => Err(unusable(SchemaError::Newer { found, known })),
            Some(other) => Err(unusable(SchemaError::Other(other.version))),
            None if found < known => Err(unusable(SchemaError::Older { found, known })),
            None => Ok(()),
        }
    }

    /// Runs what is missing, each migration in a transaction of its own.
    ///
    /// # Errors
    /// The database is newer or not ours, or a migration fails.
    pub(super) async fn bring_up_to_date(&self, conn: &mut impl Migrate) -> Result<()> {
        let known = self.version();
        let done = self.0.run_direct(None, conn, false).await;
        match done {
            Ok(()) => Ok(()),
            Err(MigrateError::VersionMissing(found)) if found > known => {
                Err(unusable(SchemaError::Newer { found, known }))
            }
            Err(MigrateError::VersionMissing(number) | MigrateError::VersionMismatch(number)) => {
                Err(unusable(SchemaError::Other(number)))
            }
            // The database's own trouble is told as everywhere else.
            Err(MigrateError::Execute(source)) => Err(source.into()),
            Err(other) => Err(unusable(other)),
        }
    }
}

fn unusable(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Unexpected { what: "its schema cannot be used", source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_databases_have_the_same_migrations() {
        let names =
            |schema: &Schema| schema.0.iter().map(|m| (m.version, m.description.to_string())).collect::<Vec<_>>();
        assert_eq!(names(&SQLITE), names(&POSTGRES));
        let numbers: Vec<_> = SQLITE.0.iter().map(|m| m.version).collect();
        assert_eq!(numbers, (1..=SQLITE.version()).collect::<Vec<_>>(), "without gaps");
    }
}
