//! Wiring: store, application, jobs, listeners, and how all of it ends.
//!
//! ```text
//! SIGHUP         --> certificate files are read again
//! SIGTERM/SIGINT --> draining = true --> streams and events end, listeners take no more, open requests finish
//!                                    --> jobs end --> the database closes
//! ```

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum_server::Handle;
use axum_server::accept::NoDelayAcceptor;
use hyper_util::rt::TokioTimer;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::app::{App, Captures, Retention, Sending, Vault};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::domain::Secret;
use crate::http::{Context, Handshakes, metrics_router, router};
use crate::jobs;
use crate::outbound::Outbound;
use crate::store::Store;
use crate::store::files::CaptureFiles;
use crate::store::sql::SqlStore;
use crate::tls::{Acceptor, Pair, Source, Tls};

/// How long open requests may take to finish.
const DRAIN: Duration = Duration::from_secs(10);
/// How often the outbox is looked at for what other processes wrote and what is due again.
const OUTBOX_LOOK: Duration = Duration::from_secs(1);
/// How long a connection may take to send the head of a request, and be idle before it: longer than the 30 s between two
/// heartbeats, whose connection would be made anew each time otherwise.
const HEAD_TIME: Duration = Duration::from_secs(35);
/// How often a connection of HTTP/2 is asked whether it lives.
const ALIVE_TIME: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted: a whole fleet comes back when a server starts again.
const BACKLOG: u32 = 4_096;

/// Opens the application on the configured database, made if missing.
///
/// # Errors
/// The folder cannot be made, the database or the key of secrets cannot be opened.
pub async fn open(config: &Config) -> Result<Arc<App>> {
    let store = open_store(config).await?;
    let folder = config.captures();
    let files = CaptureFiles::open(&folder)
        .with_context(|| format!("cannot use the folder of captures {}", folder.display()))?;
    let captures = Captures::new(files, config.capture_limits());
    let vault = Vault::from_file(&config.secrets_key())?;
    let sending = Sending::new(vault, Outbound::new(config.allow_private_destinations), OUTBOX_LOOK);
    let app = App::new(Arc::new(store) as Arc<dyn Store>, Arc::new(SystemClock), captures, sending);
    let app = app.with_node_certificates_of(i64::from(config.node_certificate_hours) * 3_600);
    Ok(Arc::new(match config.remote_write.series()? {
        Some(series) => app.with_series(series),
        None => app,
    }))
}

pub(crate) fn make_data_folder(config: &Config) -> Result<()> {
    let folder = &config.data;
    if folder.is_dir() {
        return Ok(());
    }
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("cannot make the data folder {}", folder.display()))
}

/// Opens the configured database, made if missing.
///
/// # Errors
/// As [`open`].
pub(crate) async fn open_store(config: &Config) -> Result<SqlStore> {
    make_data_folder(config)?;
    if let Some(path) = config.database.file() {
        reserve(path)?;
    }
    SqlStore::open(&config.store()).await.with_context(|| format!("cannot open the database {}", config.database))
}

/// Makes the file of an SQLite database, if there is none.
fn reserve(path: &Path) -> Result<()> {
    // SQLite gives its files the mode of the first one: hashes and incidents are nobody else's to read.
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write the database {}", path.display()))?;
    Ok(())
}

/// Serves until a signal ends it.
///
/// # Errors
/// The database or a certificate cannot be opened, an address is taken.
pub async fn serve(config: &Config, token_file: Option<&Path>) -> Result<()> {
    let files = raise_file_limit();
    let plain = if config.listens_plainly() { Some(bind(config.listen)?) } else { None };
    let secure = config.listens_securely().into_iter().map(bind).collect::<Result<Vec<_>>>()?;
    let metrics_listener = config.metrics_listen.map(bind).transpose()?;
    check_files(config)?;
    let app = open(config).await?;
    announce_owner(&app, token_file).await?;
    let tls = match config.tls_source() {
        Some(source) => Some(Tls::open(app.clone(), source, config.tls_min_version).await?),
        None => None,
    };
    app.start_captures().await?;
    app.take_over().await?;

    let (drain, draining) = watch::channel(false);
    let context = Context::new(app.clone(), config.auth_failures_per_minute, draining.clone())
        .requiring_certificates(config.require_client_certificates);
    let api = router(context.clone(), metrics_listener.is_none());
    let retention =
        Retention { seconds_hours: config.metrics_seconds_hours, minutes_days: config.metrics_minutes_days };
    let jobs = tokio::spawn(jobs::run(app.clone(), retention, draining.clone()));

    let relay = tokio::spawn(app.clone().relay(draining.clone()));
    let executing = tokio::spawn(app.clone().execute(draining.clone()));
    let reconciling = tokio::spawn(app.clone().reconcile(draining.clone()));
    let outbox = tokio::spawn(app.clone().deliver(draining.clone()));
    let series = tokio::spawn(app.clone().send_series(draining.clone()));

    let handle = Handle::new();
    let mut addresses = Vec::new();
    let mut listening = Vec::new();
    if let Some(listener) = plain {
        addresses.push(format!("http://{}", listener.local_addr()?));
        listening.push(listen(listener, api.clone(), handle.clone())?);
    }
    let (again, hangups) = mpsc::channel(1);
    let follow = match tls {
        Some(tls) => {
            let handshakes = context.handshakes();
            for listener in secure {
                addresses.push(format!("https://{}", listener.local_addr()?));
                let acceptor = acceptor(config, &tls, handshakes.clone());
                listening.push(listen_securely(listener, acceptor, api.clone(), handle.clone())?);
            }
            Some(tokio::spawn(tls.follow(hangups, draining.clone())))
        }
        None => None,
    };
    if let Some(listener) = metrics_listener {
        listening.push(listen(listener, metrics_router(context), handle.clone())?);
    }
    if let Some(files) = files {
        info!(files, "connections are bounded by the limit of open files");
    }
    // Signals are taken before anybody is told that the server is there.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut stdout = std::io::stdout();
    // At once: whoever waits for the first line may read no further.
    let lines: String = addresses.iter().map(|address| format!("listening on {address}\n")).collect();
    stdout.write_all(lines.as_bytes())?;
    stdout.flush()?;
    if let Err(fault) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        warn!(error = %fault, "the service manager could not be told that the server is ready");
    }
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // One word that waits is as good as two.
            _ = hangup.recv() => drop(again.try_send(())),
        }
    }
    info!("draining");
    if let Err(fault) = sd_notify::notify(&[sd_notify::NotifyState::Stopping]) {
        warn!(error = %fault, "the service manager could not be told that the server stops");
    }
    drain.send_replace(true);
    handle.graceful_shutdown(Some(DRAIN));
    for listener in listening {
        listener.await.context("a listener's task panicked")?.context("a listener failed")?;
    }
    if let Some(follow) = follow {
        follow.await.context("the task of TLS panicked")?;
    }
    jobs.await.context("the jobs' task panicked")?;
    relay.await.context("the relay's task panicked")?;
    executing.await.context("the task of runbooks panicked")?;
    reconciling.await.context("the task of mitigation rules panicked")?;
    outbox.await.context("the outbox's task panicked")?;
    series.await.context("the task of time series panicked")?;
    app.close().await;
    info!("stopped");
    Ok(())
}

type Listening = tokio::task::JoinHandle<std::io::Result<()>>;

fn listen(listener: TcpListener, router: Router, handle: Handle<SocketAddr>) -> Result<Listening> {
    // Without delay: what is pushed must not wait for the acknowledgement of what was pushed before.
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let mut server = axum_server::from_tcp(listener)?.acceptor(NoDelayAcceptor::new()).handle(handle);
    patience(server.http_builder());
    Ok(tokio::spawn(server.serve(service)))
}

fn listen_securely(
    listener: TcpListener,
    acceptor: Acceptor,
    router: Router,
    handle: Handle<SocketAddr>,
) -> Result<Listening> {
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let mut server = axum_server::from_tcp(listener)?.handle(handle).acceptor(acceptor);
    patience(server.http_builder());
    Ok(tokio::spawn(server.serve(service)))
}

/// How long callers may take.
fn patience(builder: &mut hyper_util::server::conn::auto::Builder<hyper_util::rt::TokioExecutor>) {
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(ALIVE_TIME));
}

fn acceptor(config: &Config, tls: &Tls, handshakes: Handshakes) -> Acceptor {
    let under_way = usize::try_from(config.tls_handshakes).unwrap_or(usize::MAX);
    Acceptor::new(tls.config(), under_way, Duration::from_secs(config.tls_handshake_secs), handshakes)
}

/// Reads the certificate, if it is in files, so that what is wrong is said before anything is made.
///
/// # Errors
/// It cannot be used.
pub fn check_files(config: &Config) -> Result<()> {
    if let Some(Source::Files { certificate, key }) = config.tls_source() {
        Pair::read(&certificate, &key)?;
    }
    Ok(())
}

fn bind(address: SocketAddr) -> Result<TcpListener> {
    let bound = || -> std::io::Result<TcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)?.into_std()
    };
    bound().with_context(|| format!("cannot listen on {address}"))
}

/// Takes as many open files as the system gives, for each connection is one; how many those are.
fn raise_file_limit() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    if soft >= hard {
        return Some(soft);
    }
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => Some(hard),
        Err(fault) => {
            warn!(soft, hard, error = %fault, "the limit of open files cannot be raised");
            Some(soft)
        }
    }
}

/// Makes the first workspace and shows its owner's token, or says how to make another.
///
/// # Errors
/// The database cannot be written, or the token not shown.
pub async fn announce_owner(app: &App, token_file: Option<&Path>) -> Result<()> {
    let token = app.bootstrap().await?;
    let mut stdout = std::io::stdout();
    let Some(token) = token else {
        writeln!(stdout, "tokens exist; to make another: controlplane token create --name NAME --role owner")?;
        return Ok(());
    };
    // Shown first: if the file cannot be written, the only copy is not lost.
    writeln!(stdout, "deploy token: {}", token.reveal())?;
    stdout.flush()?;
    if let Some(path) = token_file {
        write_secret(path, &token).with_context(|| format!("cannot write the token to {}", path.display()))?;
    }
    Ok(())
}

fn write_secret(path: &Path, token: &Secret) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // A file that was there before keeps its own mode otherwise.
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    writeln!(file, "{}", token.reveal())?;
    file.sync_all()
}
