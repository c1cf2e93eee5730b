//! Access logs and connections beside the loop: one thread that follows files, one look at a time at the sockets.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::Daemon;
use crate::clock;
use crate::engine::Input;
use crate::engine::web::ConnectionReading;
use crate::status::HttpReport;
use crate::weblog::{LogStatus, Reader, Told, Work, connections};
use crate::xdp::counters;

/// What was seen.
pub(super) enum Seen {
    Logs(Told),
    /// The thread that follows the logs ended.
    Silence,
    Connections(Result<Option<ConnectionReading>, String>),
}

/// The thread, the look, and what they said last.
#[derive(Default)]
pub(super) struct Web {
    reader: Option<(Reader, mpsc::Receiver<Told>)>,
    work: Work,
    looks: JoinSet<Result<Option<ConnectionReading>, String>>,
    looked_ns: Option<u64>,
    told: Told,
    report: HttpReport,
    /// Why connections are not seen.
    blind: Option<String>,
    /// Why there is no thread.
    deaf: Option<String>,
}

impl Web {
    /// Waits for what is seen next; giving the wait up loses nothing.
    pub(super) async fn seen(&mut self) -> Seen {
        let told = async {
            match &mut self.reader {
                Some((_, told)) => told.recv().await,
                None => std::future::pending().await,
            }
        };
        let looked = async {
            match self.looks.join_next().await {
                Some(Ok(look)) => look,
                Some(Err(error)) => Err(error.to_string()),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            told = told => told.map_or(Seen::Silence, Seen::Logs),
            look = looked => Seen::Connections(look),
        }
    }

    pub(super) fn logs(&self) -> &[LogStatus] {
        &self.told.logs
    }

    pub(super) fn report(&self) -> HttpReport {
        HttpReport { logs: self.told.logs.clone(), ..self.report.clone() }
    }

    /// What an operator should know.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self
            .told
            .logs
            .iter()
            .filter_map(|log| Some(format!("access log {}: {}", log.path.display(), log.problem.as_ref()?)))
            .collect();
        for log in self.told.logs.iter().filter(|log| log.malformed > 100 && log.malformed * 10 > log.counts.lines) {
            warnings.push(format!(
                "access log {}: {} of {} lines are no requests in the format {}",
                log.path.display(),
                log.malformed,
                log.counts.lines,
                log.format
            ));
        }
        if self.told.too_many {
            warnings.push("access logs: patterns name more files than are followed (64)".to_owned());
        }
        warnings.extend(self.deaf.iter().chain(&self.blind).cloned());
        warnings
    }

    /// Says what changed about files that cannot be read.
    fn note_problems(&self, logs: &[LogStatus]) {
        let before: BTreeMap<_, _> = self.told.logs.iter().map(|log| (&log.path, &log.problem)).collect();
        for log in logs {
            let path = log.path.display();
            match (before.get(&log.path).copied().unwrap_or(&None), &log.problem) {
                (old, Some(problem)) if old.as_ref() != Some(problem) => warn!(%path, %problem, "access log"),
                (Some(_), None) => info!(%path, "access log is read"),
                _ => {}
            }
        }
    }
}

impl Daemon {
    /// Follows the logs of the configuration and begins a look at the connections when one is due.
    pub(super) fn look_at_web(&mut self) {
        let work = Work {
            logs: self.config.access_logs.clone(),
            trusted_proxies: self.config.settings.web.trusted_proxies.clone(),
            first_address: self.host.first_address(&self.config).and_then(|ip| ip.parse().ok()),
        };
        if work != self.web.work {
            self.web.work = work.clone();
            match &self.web.reader {
                Some((reader, _)) => reader.configure(work),
                None if work.logs.is_empty() => {}
                None => match Reader::start(work, clock::mono_ns) {
                    Ok(reader) => self.web.reader = Some(reader),
                    Err(error) => {
                        error!(%error, "access logs are not read");
                        self.web.deaf = Some(format!("access logs are not read: {error}"));
                    }
                },
            }
        }
        let now_ns = clock::mono_ns();
        let http = &self.config.http;
        let due = self.web.looked_ns.is_none_or(|at| at + u64::from(http.look_secs) * 1_000_000_000 <= now_ns);
        if http.enabled && due && self.web.looks.is_empty() {
            self.web.looked_ns = Some(now_ns);
            let (ports, least) = (http.ports.clone(), http.min_connections);
            self.web.looks.spawn_blocking(move || connections::look(&ports, least).map_err(|e| e.to_string()));
        }
        let rules = self.engine.rules_of_web_floods();
        if !rules.is_empty() {
            let hits = rules.into_iter().filter_map(|id| {
                let slot = self.datapath.slots.of(id)?;
                Some((id, counters::rule_hits(&self.datapath.maps, slot).ok()?.counter.packets))
            });
            let hits = hits.collect();
            self.engine.on(Input::Hits(hits), clock::now());
            self.carry_out();
        }
    }

    pub(super) fn on_web(&mut self, seen: Seen) {
        let now = clock::now();
        match seen {
            Seen::Logs(mut told) => {
                self.web.note_problems(&told.logs);
                let batch = std::mem::take(&mut told.batch);
                self.web.told = told;
                self.engine.on(Input::Requests(batch), now);
            }
            Seen::Silence => {
                error!("the thread that follows access logs ended: they are not read any more");
                self.web.deaf = Some("access logs are not read: their thread ended; restart the agent".to_owned());
                self.web.reader = None;
            }
            Seen::Connections(Ok(reading)) => {
                self.web.blind = None;
                self.web.report.connections = reading.as_ref().map(|r| r.connections.len() as u64);
                // Few connections are a look too: what was slow before is gone.
                self.engine.on(Input::Connections(reading.unwrap_or_default()), now);
            }
            Seen::Connections(Err(error)) => {
                let words = format!("connections of web servers are not seen: {error}");
                if self.web.blind.replace(words).is_none() {
                    warn!(%error, "connections of web servers are not seen");
                }
            }
        }
        self.carry_out();
    }
}
