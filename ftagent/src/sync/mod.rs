//! The link to the control plane: reports up, configuration and commands down.
//!
//! Started by the daemon, which talks to it over bounded channels and never waits for the network.
//!
//! ```text
//! daemon --Outgoing--> intake -> spool (disk) -> uplink  --POST--> control plane
//! daemon <--Incoming-- cache  <----------------- downlink <-GET--- control plane
//! captures on disk, once they have ended ------> captures --POST--> control plane
//! ```
//! All of them go to one server of the control plane, and to the next when that fails; `certificate` keeps the node's
//! client certificate good.
//!
//! The control plane may be away for as long as it likes: reports wait on disk in order, and the last configuration is
//! read from disk at the next start. A message may arrive more than once, never out of order; receivers ignore
//! repeats by revision and id.

mod answer;
mod body;
mod captures;
mod certificate;
mod credentials;
mod downlink;
mod failover;
mod http;
mod identity;
mod outside;
mod servers;
pub mod spool;
mod uplink;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ftagent_common::api::{
    CommandAck, DeployRequest, Heartbeat, IncidentReport, MetricsSample, NodeCommand, NodeConfig, ProfileReport, Trust,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

pub(crate) use self::answer::Backoff;
pub use self::captures::CaptureUploads;
use self::credentials::Deployed;
pub use self::credentials::{Credentials, Secret};
pub use self::http::CallError;
use self::http::Connection;
pub use self::identity::ClientFiles;
use self::identity::Identity;
pub use self::outside::{Outside, Reply};
pub use self::servers::ServerError;
use self::servers::{Route, Servers};
use self::spool::{Limits, Spool, SpoolStatus};
use crate::pcap::upload::UploadsStatus;
use crate::persist::PersistError;

/// Where the control plane is, and who the node is to it.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Such as `https://controlplane.example:8443`; the first is the one to use while it is well.
    pub urls: Vec<String>,
    /// PEM; given, it alone is trusted, not the system's authorities, besides what the control plane says of its own.
    pub ca_file: Option<PathBuf>,
    /// Files with a client certificate; without them the node asks for one.
    pub client: Option<ClientFiles>,
    /// Holds `node.json`, `config.json` and `spool.log`; it exists and is locked by the caller.
    pub state_dir: PathBuf,
    /// Needed until the node is deployed.
    pub deploy_token: Option<Secret>,
    pub deploy: DeployRequest,
    pub limits: Limits,
    pub timing: Timing,
    /// Absent where captures stay at the node.
    pub captures: Option<CaptureUploads>,
    /// The wall clock, for the status alone.
    pub wall: fn() -> OffsetDateTime,
}

/// How often and how long; the defaults are the protocol's.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub heartbeat: Duration,
    /// Samples are sent together this often.
    pub metrics: Duration,
    /// A stream on which nothing came for this long is opened anew.
    pub silence: Duration,
    /// Between two looks where there is no stream.
    pub poll: Duration,
    /// For one request.
    pub request: Duration,
    /// First and longest wait between tries.
    pub backoff: (Duration, Duration),
    /// Between tries that an operator has to make possible.
    pub operator: Duration,
    /// Between two looks at the client certificate; also over how long nodes spread when all are told to renew.
    pub certificate: Duration,
    /// Between two looks at whether the first control plane is well again.
    pub back: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self {
            heartbeat: secs(30),
            metrics: secs(5),
            silence: secs(45),
            poll: secs(15),
            request: secs(10),
            backoff: (Duration::from_millis(500), secs(30)),
            operator: secs(60),
            certificate: secs(60),
            back: secs(30),
        }
    }
}

/// What the daemon has to say.
#[derive(Clone, Debug)]
pub enum Outgoing {
    Incident(Box<IncidentReport>),
    Metrics(MetricsSample),
    Ack(CommandAck),
    Profile(ProfileReport),
}

/// What the daemon gets to hear.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// The newest configuration, whole; the first one may come from the node's own disk.
    Config(Box<NodeConfig>),
    /// May come again until it is acknowledged.
    Command(NodeCommand),
    /// The connection came or went.
    Status(LinkStatus),
}

/// The link, for status and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    pub connected: bool,
    /// Host and port of the control plane that is asked.
    #[serde(default)]
    pub server: String,
    /// When `connected` last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Why it does not work, or last did not.
    pub last_error: Option<String>,
    /// The version of the newest configuration received.
    pub config_version: Option<u64>,
    pub spool: SpoolStatus,
}

/// Why the link cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Persist(#[from] PersistError),
    #[error(
        "{file}: this machine is not a node yet and there is no deploy token; set control_plane.deploy_token_file once, `controlplane token create` makes a token",
        file = .file.display()
    )]
    NoCredentials { file: PathBuf },
}

/// Messages between the daemon and the link; when the link's disk is slow the daemon waits for a place.
const CHANNEL: usize = 256;

/// The running link; dropping it stops its tasks at once, what is on disk stays there.
pub struct Link {
    /// A full channel means the disk is slower than the reports.
    pub outgoing: mpsc::Sender<Outgoing>,
    pub incoming: mpsc::Receiver<Incoming>,
    /// The newest heartbeat is sent; queue depth is filled in by the link.
    pub heartbeat: watch::Sender<Option<Heartbeat>>,
    status: watch::Receiver<LinkStatus>,
    uploads: watch::Receiver<UploadsStatus>,
    shared: Arc<Shared>,
    intake: JoinSet<()>,
    network: JoinSet<()>,
}

/// What the link's tasks have in common.
struct Shared {
    config: LinkConfig,
    servers: Arc<Servers>,
    /// What the newest configuration says of the control plane's authority.
    trust: watch::Sender<Option<Trust>>,
    spool: Mutex<Spool>,
    /// Something new is in the spool, or the control plane is back.
    wake: Notify,
    /// The daemon has no more to say, even if it still holds a sender.
    stop: Notify,
    status: watch::Sender<LinkStatus>,
    uploads: watch::Sender<UploadsStatus>,
    incoming: mpsc::Sender<Incoming>,
}

impl Link {
    /// Opens the queue, gives out the cached configuration and starts the tasks.
    ///
    /// # Errors
    /// A URL, certificate authority or state directory that cannot be used, or a node that has neither key nor token.
    pub async fn start(config: LinkConfig) -> Result<Self, LinkError> {
        let now = (config.wall)();
        let credentials = Credentials::load(&config.state_dir, now.unix_timestamp())?;
        if credentials.is_none() && config.deploy_token.is_none() {
            return Err(LinkError::NoCredentials { file: credentials::file(&config.state_dir) });
        }
        let spool = Spool::open(&config.state_dir, config.limits)?;
        let cached = downlink::load_cache(&config.state_dir, now.unix_timestamp())?;
        let trust = cached.as_ref().and_then(|cache| cache.config.trust.clone());
        let identity = Identity::load(config.client.as_ref(), &config.state_dir, now.unix_timestamp())?;
        let ca_file = config.ca_file.as_deref();
        let servers = Arc::new(Servers::new(&config.urls, ca_file, trust.clone(), &identity, config.wall)?);

        let (incoming_in, incoming) = mpsc::channel(CHANNEL);
        let (outgoing, outgoing_out) = mpsc::channel(CHANNEL);
        let (heartbeat, heartbeat_out) = watch::channel(None);
        let (status_in, status) = watch::channel(LinkStatus {
            connected: false,
            server: servers.name(),
            since: now,
            last_error: None,
            config_version: cached.as_ref().map(|c| c.config.version),
            spool: spool.status(),
        });
        if let Some(cache) = &cached {
            let config = Incoming::Config(Box::new(cache.config.clone()));
            incoming_in.try_send(config).expect("the channel is new and empty");
        }
        let (uploads_in, uploads) = watch::channel(UploadsStatus::default());
        let shared = Arc::new(Shared {
            config,
            servers,
            trust: watch::Sender::new(trust),
            spool: Mutex::new(spool),
            wake: Notify::new(),
            stop: Notify::new(),
            status: status_in,
            uploads: uploads_in,
            incoming: incoming_in,
        });
        let mut intake = JoinSet::new();
        intake.spawn(uplink::intake(Arc::clone(&shared), outgoing_out));
        let mut network = JoinSet::new();
        network.spawn(run(Arc::clone(&shared), credentials, identity, cached, heartbeat_out));
        Ok(Self { outgoing, incoming, heartbeat, status, uploads, shared, intake, network })
    }

    /// The newest status.
    pub fn status(&self) -> watch::Receiver<LinkStatus> {
        self.status.clone()
    }

    /// The newest status of the uploads of captures; nothing where they stay here.
    pub fn uploads(&self) -> Option<UploadsStatus> {
        self.shared.config.captures.is_some().then(|| self.uploads.borrow().clone())
    }

    /// Writes what was handed over to disk, gives the network up to `grace` to deliver it, and stops.
    pub async fn shutdown(self, grace: Duration) {
        let Self { outgoing, mut intake, mut network, shared, status, incoming, .. } = self;
        drop(outgoing);
        drop(incoming);
        shared.stop.notify_one();
        while intake.join_next().await.is_some() {}
        let delivered = async {
            let mut status = status;
            while shared.spool().status().queued > 0 && status.changed().await.is_ok() {}
        };
        // What did not leave in time waits on disk for the next start.
        drop(tokio::time::timeout(grace, delivered).await);
        network.shutdown().await;
    }
}

impl Shared {
    fn spool(&self) -> MutexGuard<'_, Spool> {
        // A panic inside left at worst a message uncounted; what is on disk is consistent by construction.
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on the queue where waiting for the disk holds nobody up, and publishes its status.
    async fn with_spool<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&mut Spool) -> T + Send + 'static) -> T {
        let shared = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let mut spool = shared.spool();
            let result = work(&mut spool);
            let now = spool.status();
            drop(spool);
            shared.status.send_if_modified(|status| std::mem::replace(&mut status.spool, now.clone()) != now);
            result
        });
        done.await.expect("work on the queue does not panic, and the runtime outlives its tasks")
    }

    fn connected(&self) {
        let now = (self.config.wall)();
        let came = self.status.send_if_modified(|status| {
            let came = !status.connected;
            if came {
                (status.connected, status.since) = (true, now);
            }
            let server = self.servers.name();
            let moved = std::mem::replace(&mut status.server, server.clone()) != server;
            came || moved
        });
        if came {
            tracing::info!(server = self.servers.name(), "the control plane is reachable");
            self.tell_status();
            self.wake.notify_one();
        }
    }

    /// Notes why something did not work; `lost` if that was the connection.
    fn trouble(&self, why: &str, lost: bool) {
        let now = (self.config.wall)();
        let (mut is_new, mut went) = (false, false);
        self.status.send_modify(|status| {
            is_new = status.last_error.as_deref() != Some(why);
            went = lost && status.connected;
            status.last_error = Some(why.into());
            if went {
                (status.connected, status.since) = (false, now);
            }
        });
        if is_new || went {
            tracing::warn!(server = self.servers.name(), why, "trouble with the control plane");
            self.tell_status();
        }
    }

    fn tell_status(&self) {
        // A daemon that is behind finds the newest status in the watch channel.
        drop(self.incoming.try_send(Incoming::Status(self.status.borrow().clone())));
    }

    fn backoff(&self) -> Backoff {
        let (base, cap) = self.config.timing.backoff;
        Backoff::new(base, cap, StdRng::from_os_rng())
    }

    fn connection(&self) -> Connection {
        Connection::new(Arc::clone(&self.servers), self.config.timing.request)
    }

    /// Takes what the control plane says of its authority into force.
    fn take_trust(&self, trust: Option<&Trust>) {
        if let Err(error) = self.servers.set_trust(trust) {
            self.trouble(&error.to_string(), false);
        }
        self.trust.send_if_modified(|known| {
            let new = known.as_ref() != trust;
            if new {
                *known = trust.cloned();
            }
            new
        });
    }

    /// Waits for an operator, or until there is another certificate or server to try with than by `route`.
    async fn wait_for_operator(&self, route: Route) {
        let mut routes = self.servers.routes();
        tokio::select! {
            () = tokio::time::sleep(self.config.timing.operator) => {}
            _ = routes.wait_for(|now| *now != route) => {}
        }
    }
}

/// Becomes a node if need be, then keeps both directions going until it is dropped.
async fn run(
    shared: Arc<Shared>,
    credentials: Option<Credentials>,
    identity: Identity,
    cached: Option<downlink::Cache>,
    heartbeat: watch::Receiver<Option<Heartbeat>>,
) {
    let credentials = match credentials {
        Some(credentials) => credentials,
        None => become_a_node(&shared).await,
    };
    let headers = match credentials.headers() {
        Ok(headers) => headers,
        Err(error) => return shared.trouble(&error.to_string(), true),
    };
    let identity = certificate::first(&shared, &headers, identity).await;
    tokio::join!(
        uplink::send_reports(&shared, &headers),
        uplink::send_heartbeats(&shared, &headers, heartbeat),
        downlink::follow(&shared, &headers, cached),
        captures::send_captures(&shared, &headers),
        certificate::keep(&shared, &headers, identity),
        failover::watch_first(&shared),
    );
}

async fn become_a_node(shared: &Arc<Shared>) -> Credentials {
    let mut connection = shared.connection();
    let mut backoff = shared.backoff();
    let Some(token) = &shared.config.deploy_token else { return std::future::pending().await };
    loop {
        let wait = match credentials::deploy(&mut connection, token, &shared.config.deploy).await {
            Ok(Deployed::Yes(credentials)) => {
                save_credentials(shared, &credentials).await;
                tracing::info!(node = %credentials.node_uuid, "deployed as a node");
                return credentials;
            }
            Ok(Deployed::Not { after, why, operator }) => {
                shared.trouble(&why, true);
                let wait = if operator { shared.config.timing.operator } else { backoff.next() };
                after.unwrap_or(wait)
            }
            Err(error) => {
                shared.trouble(&error.to_string(), true);
                shared.config.timing.operator
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// The key is shown once: without the file the node would have to be deployed again, so this waits for the disk.
async fn save_credentials(shared: &Arc<Shared>, credentials: &Credentials) {
    let path = credentials::file(&shared.config.state_dir);
    let mut backoff = shared.backoff();
    while let Err(error) = crate::persist::save_json(&path, credentials) {
        shared.trouble(&format!("the node key cannot be kept: {error}"), false);
        tokio::time::sleep(backoff.next()).await;
    }
}
