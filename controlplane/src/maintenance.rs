//! What the command line does with a whole database: copies of it, and dumps from one kind to another.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::config::Config;
use crate::server;
use crate::store::Store as _;
use crate::store::sql::dump::Chain;
use crate::store::sql::{SqlStore, restore as put_back};

/// Opens a database that a server may be using.
async fn attach(config: &Config) -> Result<SqlStore> {
    if let Some(path) = config.database.file()
        && !path.exists()
    {
        bail!("there is no database {}", path.display());
    }
    SqlStore::attach(&config.store()).await.with_context(|| format!("cannot open the database {}", config.database))
}

/// Copies an SQLite database while the server works.
///
/// # Errors
/// The database is PostgreSQL, the file exists or cannot be written.
pub async fn backup(config: &Config, file: &Path) -> Result<()> {
    let store = attach(config).await?;
    let done = store.backup(file).await;
    store.close().await;
    println!("{} bytes of {} are in {}", done?, config.database, file.display());
    captures_stay(config);
    Ok(())
}

/// Puts a copy into the place of the SQLite database.
///
/// # Errors
/// The database is PostgreSQL, the copy is not sound, the server runs.
pub async fn restore(config: &Config, file: &Path) -> Result<()> {
    let Some(path) = config.database.file() else {
        bail!("PostgreSQL is restored by its own programs, as psql and pg_restore, or with import");
    };
    server::make_data_folder(config)?;
    let kept = path.exists();
    let chains = put_back(file, path).await?;
    println!("{} is what {} holds", path.display(), file.display());
    if kept {
        println!("what it was is in {}.replaced", path.display());
    }
    show(&chains);
    Ok(())
}

/// Writes everything in the database to a file.
///
/// # Errors
/// The database cannot be read, the file exists or cannot be written.
pub async fn export(config: &Config, file: &Path) -> Result<()> {
    if file.exists() {
        bail!("{} is there already", file.display());
    }
    let partial = PathBuf::from(format!("{}.partial", file.display()));
    let written = || format!("cannot write {}", partial.display());
    let store = attach(config).await?;
    let mut options = OpenOptions::new();
    let target = options.write(true).create(true).truncate(true).mode(0o600).open(&partial).with_context(written)?;
    let mut out = BufWriter::new(target);
    let done = store.export(&mut out, &mut |table, rows| eprintln!("{table}: {rows}")).await;
    store.close().await;
    let moved = done?;
    out.into_inner().map_err(|e| e.into_error()).and_then(|file| file.sync_all()).with_context(written)?;
    std::fs::rename(&partial, file).with_context(written)?;
    println!("{} rows of {} are in {}", moved.rows, config.database, file.display());
    show(&moved.chains);
    captures_stay(config);
    Ok(())
}

/// Takes a dump into the configured database, made if missing.
///
/// # Errors
/// The database is not empty, the file is not whole: nothing was taken.
pub async fn import(config: &Config, file: &Path) -> Result<()> {
    let source = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let store = server::open_store(config).await?;
    let done = store.import(&mut BufReader::new(source), &mut |table, rows| eprintln!("{table}: {rows}")).await;
    store.close().await;
    let moved = done.with_context(|| format!("nothing was taken from {}", file.display()))?;
    println!("{} rows of {} are in {}", moved.rows, file.display(), config.database);
    show(&moved.chains);
    captures_stay(config);
    Ok(())
}

fn show(chains: &[Chain]) {
    for chain in chains {
        let verdict = if chain.intact { "intact" } else { "BROKEN after these" };
        println!("audit chain of workspace {}: {} records, {verdict}", chain.workspace, chain.records);
    }
}

fn captures_stay(config: &Config) {
    println!("captures are not in it: copy the folder {} too", config.captures().display());
}
