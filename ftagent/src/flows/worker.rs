//! The sockets of exporters and the thread that reads them: beside the daemon's loop, so that no flood of datagrams and
//! no template delays a tick of the datapath.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;

use ftagent_common::api::{CommandAck, IncidentReport, NodeCommand, NodeConfig};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use super::{Flows, FlowsStatus, ListenerConfig, Outcome, Said, SavedExporters};
use crate::clock;
use crate::control::Answer;
use crate::engine::sample::{MS, SEC};
use crate::engine::{OperatorOrder, OrderOutcome, Settings};
use crate::persist::{self, Loaded, PersistError};

/// Between two looks of the engines; exporters are no faster than a second.
const TICK_NS: u64 = 100 * MS;
const SAVE_NS: u64 = 30 * SEC;
/// Datagrams that are read from one socket before the others have their turn.
const BATCH: usize = 256;
/// The longest datagram that UDP can carry.
const MAX_DATAGRAM: usize = 65_535;
/// What waits in the kernel while the thread is busy.
const RECEIVE_BYTES: usize = 4 << 20;
/// Orders and events that may wait.
const ORDERS: usize = 64;
const EVENTS: usize = 1_024;

/// What the thread is told.
#[derive(Debug)]
pub enum FlowOrder {
    Settings(Box<Settings>),
    Remote(Box<NodeConfig>),
    /// An operator's word about an incident of an exporter.
    Resolve {
        incident: Uuid,
        false_positive: bool,
        answer: oneshot::Sender<Answer>,
    },
    /// The control plane's.
    Command {
        incident: Uuid,
        command: NodeCommand,
    },
}

/// What the thread tells.
#[derive(Debug)]
pub enum Event {
    Report(Box<IncidentReport>),
    Ack(CommandAck),
}

/// Why a socket cannot be there.
#[derive(Debug, thiserror::Error)]
#[error("flow_exporter: cannot listen on {address}: {source}; choose another address, or stop who has it")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// The bound sockets and what is known.
pub struct Worker {
    sockets: Vec<UdpSocket>,
    flows: Flows,
    path: PathBuf,
    boot: String,
    orders: mpsc::Receiver<FlowOrder>,
    events: mpsc::Sender<Event>,
    status: watch::Sender<Arc<FlowsStatus>>,
}

/// The daemon's end.
pub struct WorkerHandle {
    pub orders: mpsc::Sender<FlowOrder>,
    pub events: mpsc::Receiver<Event>,
    pub status: watch::Receiver<Arc<FlowsStatus>>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Saved {
    boot: String,
    exporters: SavedExporters,
}

impl Worker {
    /// Binds the sockets, and takes up what `path` has of the time before.
    ///
    /// # Errors
    /// Names the address that cannot be listened on, or the file that cannot be read.
    pub fn bind(
        listeners: Vec<ListenerConfig>,
        settings: &Settings,
        path: PathBuf,
        boot: String,
    ) -> anyhow::Result<(Self, WorkerHandle)> {
        let mut sockets = Vec::with_capacity(listeners.len());
        for listener in &listeners {
            let address = listener.listen;
            sockets.push(socket(address).map_err(|source| ListenError { address, source })?);
            info!(%address, protocol = listener.protocol.as_str(), "flow exporters");
        }
        let now = clock::now();
        let saved = load(&path, now.wall.unix_timestamp())?;
        let same_boot = saved.as_ref().is_some_and(|saved| saved.boot == boot);
        let exporters = saved.map(|saved| saved.exporters).unwrap_or_default();
        let flows = Flows::new(listeners, settings, exporters, same_boot, now);
        let (order_sender, orders) = mpsc::channel(ORDERS);
        let (events, event_receiver) = mpsc::channel(EVENTS);
        let (status, status_receiver) = watch::channel(Arc::new(flows.status(now)));
        let handle = WorkerHandle { orders: order_sender, events: event_receiver, status: status_receiver };
        Ok((Self { sockets, flows, path, boot, orders, events, status }, handle))
    }

    /// Reads until nobody can give orders any more.
    pub fn run(mut self) {
        let mut buffer = vec![0; MAX_DATAGRAM];
        let (mut tick_ns, mut second_ns) = (clock::mono_ns(), clock::mono_ns());
        let mut save_ns = tick_ns + SAVE_NS;
        loop {
            self.wait(tick_ns);
            for listener in 0..self.sockets.len() {
                self.read(listener, &mut buffer);
            }
            if !self.obey() {
                break;
            }
            let now = clock::now();
            if now.mono_ns >= tick_ns {
                tick_ns = now.mono_ns + TICK_NS;
                let outcome = self.flows.on_tick(now);
                self.tell(outcome);
            }
            if now.mono_ns >= second_ns {
                second_ns = now.mono_ns + SEC;
                self.on_second();
            }
            if now.mono_ns >= save_ns {
                save_ns = now.mono_ns + SAVE_NS;
                self.save();
            }
        }
        self.save();
    }

    /// Waits for a datagram, at most until the next tick.
    fn wait(&self, tick_ns: u64) {
        let left = tick_ns.saturating_sub(clock::mono_ns()) / MS;
        let timeout = PollTimeout::from(u8::try_from(left.clamp(1, 100)).unwrap_or(100));
        let mut fds: Vec<PollFd<'_>> =
            self.sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        // A signal ends the wait early, and that is all.
        if let Err(error) = poll(&mut fds, timeout) {
            debug!(%error, "poll");
        }
    }

    fn read(&mut self, listener: usize, buffer: &mut [u8]) {
        let Some(socket) = self.sockets.get(listener) else { return };
        let now = clock::now();
        for _ in 0..BATCH {
            match socket.recv_from(buffer) {
                Ok((len, from)) => self.flows.on_datagram(listener, from.ip(), &buffer[..len], now),
                // Nothing is there; an answer of the network to something we never sent does not matter.
                Err(_) => break,
            }
        }
    }

    /// Carries out what was ordered; whether anybody can still order.
    fn obey(&mut self) -> bool {
        loop {
            let order = match self.orders.try_recv() {
                Ok(order) => order,
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            };
            let now = clock::now();
            let outcome = match order {
                FlowOrder::Settings(settings) => self.flows.on_settings(&settings, now),
                FlowOrder::Remote(config) => self.flows.on_remote(*config, now),
                FlowOrder::Command { incident, command } => self.flows.on_command(incident, &command, now),
                FlowOrder::Resolve { incident, false_positive, answer } => {
                    let order = OperatorOrder::Resolve { incident, false_positive };
                    let mut outcome = self.flows.on_order(incident, &order, now);
                    let answered = answer_of(&mut outcome);
                    // Whoever asked may have gone.
                    drop(answer.send(answered));
                    outcome
                }
            };
            self.tell(outcome);
        }
    }

    fn on_second(&mut self) {
        let now = clock::now();
        for (exporter, is_silent) in self.flows.changes_of_silence(now) {
            if is_silent {
                warn!(%exporter, "flow exporter is silent: nothing is seen of its traffic");
            } else {
                info!(%exporter, "flow exporter speaks again");
            }
        }
        self.status.send_replace(Arc::new(self.flows.status(now)));
    }

    fn tell(&self, outcome: Outcome) {
        for said in outcome.said {
            let event = match said {
                Said::Report(report) => Event::Report(report),
                Said::Ack(ack) => Event::Ack(ack),
                Said::Answer(_) => continue,
            };
            if let Err(error) = self.events.try_send(event) {
                error!(%error, "a report of a flow exporter is lost: the daemon does not take it");
            }
        }
    }

    fn save(&self) {
        let saved = Saved { boot: self.boot.clone(), exporters: self.flows.state() };
        if let Err(error) = persist::save_json(&self.path, &saved) {
            warn!(%error, "what is normal for flow exporters is not saved");
        }
    }
}

fn answer_of(outcome: &mut Outcome) -> Answer {
    let at = outcome.said.iter().position(|said| matches!(said, Said::Answer(_)));
    match at.map(|at| outcome.said.swap_remove(at)) {
        Some(Said::Answer(outcome)) => Answer::Order { outcome },
        _ => Answer::Order { outcome: OrderOutcome::Refused { why: "no exporter has this incident".to_owned() } },
    }
}

fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    // Without room in the kernel a burst is lost; with less than asked for it is only lost sooner.
    if let Err(error) = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BYTES) {
        info!(%error, %address, "the receive buffer stays as it is");
    }
    Ok(socket)
}

fn load(path: &std::path::Path, unix_secs: i64) -> Result<Option<Saved>, PersistError> {
    Ok(match persist::load_json::<Saved>(path, unix_secs)? {
        Loaded::There(saved) => Some(saved),
        Loaded::Missing => None,
        Loaded::Corrupt { moved_to, why } => {
            warn!(path = %path.display(), %why, moved_to = %moved_to.display(), "flow exporters are learnt anew");
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::super::testing::{ethernet_udp, sflow, sflow_sample};
    use super::*;
    use crate::flows::config::Protocol;

    fn listener(listen: SocketAddr) -> ListenerConfig {
        ListenerConfig {
            listen,
            protocol: Protocol::Auto,
            exporters: vec![IpAddr::from([127, 0, 0, 1]).into()],
            sampling_rate: 1,
            prefixes: vec!["203.0.113.0/24".parse().expect("a prefix")],
            input_interfaces: Vec::new(),
            egress: false,
            active_timeout_secs: 1_800,
            silent_secs: 30,
        }
    }

    #[test]
    fn datagrams_over_loopback_are_counted_and_what_is_known_is_saved_at_the_end() {
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        // A port that was free a moment ago.
        let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("flows.json");
        let settings = Settings::default();
        let bind = || Worker::bind(vec![listener(free)], &settings, path.clone(), "boot".to_owned());
        let (worker, handle) = bind().expect("bound");
        assert!(bind().is_err_and(|e| e.to_string().contains(&free.to_string())), "the address is named");
        let thread = std::thread::spawn(move || worker.run());
        let frame = ethernet_udp([198, 51, 100, 9], [203, 0, 113, 5], 53, 40_000, 100);
        for sequence in 0..20 {
            sender.send_to(&sflow(sequence, &[sflow_sample(10, 3, 4, &frame, 146)]), free).expect("sent");
        }
        let counted = || handle.status.borrow().listeners[0].exporters.first().map_or(0, |e| e.counts.counted);
        for _ in 0..100 {
            if counted() == 20 {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(counted(), 20);
        let (answer, mut answered) = oneshot::channel();
        let order = FlowOrder::Resolve { incident: Uuid::nil(), false_positive: false, answer };
        handle.orders.try_send(order).expect("room");
        for _ in 0..100 {
            match answered.try_recv() {
                Ok(Answer::Order { outcome: OrderOutcome::Refused { why } }) => {
                    assert!(why.contains("no exporter"), "{why}");
                    break;
                }
                Ok(other) => panic!("{other:?}"),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        drop(handle);
        thread.join().expect("no panic");
        let saved = load(&path, 0).expect("readable").expect("saved");
        assert_eq!((saved.boot.as_str(), saved.exporters.len()), ("boot", 1));
    }
}
