//! What the daemon says of itself: status, rules with their hits, heartbeat, metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use ftagent_common::abi::stage;
use ftagent_common::api::{Heartbeat, IncidentReport, InterfaceReport, PROTOCOL_VERSION};
use ftagent_common::vocab::{AttachMode, AttackFamily, IncidentStatus, TrafficClass as Class};
use tokio::sync::oneshot;

use super::{Daemon, MetricsCounters};
use crate::clock;
use crate::control::Answer;
use crate::crowdsec::CrowdsecStatus;
use crate::enforce::gate::Gate;
use crate::engine::{InterfaceTraffic, OrderOutcome, RuleId};
use crate::lists::ListStatus;
use crate::metrics::Snapshot;
use crate::status::{self, DatapathReport, LinkReport, RuleStatus, Status};
use crate::xdp::adapt::declares;
use crate::xdp::counters;
use crate::xdp::kernel::Support;

/// How long who gave an order, or waits for the agent to be ready, waits for the disk and nftables.
pub(super) const DISK_PATIENCE: Duration = Duration::from_secs(2);

/// Answers an order that is in force once a restart would know of it, too: whoever kills the agent after the answer loses
/// nothing. A disk that fails or is too slow is said.
pub(super) async fn answer_when_saved(
    detail: String,
    saved: oneshot::Receiver<Option<String>>,
    answer: oneshot::Sender<Answer>,
) {
    let fault = match tokio::time::timeout(DISK_PATIENCE, saved).await {
        Ok(Ok(fault)) => fault,
        Ok(Err(_)) => Some("the agent is stopping".to_owned()),
        Err(_) => Some(format!("the disk or nftables took more than {} s", DISK_PATIENCE.as_secs())),
    };
    let detail = match fault {
        Some(fault) => format!("{detail}; not saved, a restart may lose it: {fault}"),
        None => detail,
    };
    drop(answer.send(Answer::Order { outcome: OrderOutcome::Done { detail } }));
}

impl Daemon {
    /// What the metrics endpoint shows.
    pub(super) fn snapshot(&self) -> Snapshot {
        let view = self.engine.view();
        let mut active: BTreeMap<AttackFamily, u64> = BTreeMap::new();
        let flows = self.flows.status();
        let incidents = view.incidents.iter().chain(&flows.incidents);
        for incident in incidents.filter(|i| i.status == IncidentStatus::Active) {
            *active.entry(incident.family).or_default() += 1;
        }
        let mut rules: BTreeMap<&'static str, u64> = BTreeMap::new();
        for rule in &view.rules {
            *rules.entry(rule.origin.as_str()).or_default() += 1;
        }
        let interfaces = self
            .attached
            .iter()
            .filter_map(|a| Some((a.interface.clone(), counters::interface(&self.datapath.maps, a.slot).ok()?)));
        Snapshot {
            version: env!("CARGO_PKG_VERSION"),
            mode: Some(view.mode),
            interfaces: interfaces.collect(),
            targets: self.datapath.seen.0,
            top_targets: self.busiest.clone(),
            target_sources: if self.config.datapath.sizes.stages & stage::DISTINCT == 0 {
                Vec::new()
            } else {
                view.targets.iter().map(|t| (t.target.addr(), t.distinct_sources)).collect()
            },
            attached: self.interface_reports(),
            traffic: view.interfaces.clone(),
            baseline: view.baseline.clone(),
            lists: self.list_statuses(),
            crowdsec: self.crowdsec_status(),
            access_logs: self.web.logs().to_vec(),
            sites: view.sites.clone(),
            captures: self.captures_status(),
            incidents_active: active.into_iter().collect(),
            incidents_opened: self.opened.iter().map(|(family, count)| (*family, *count)).collect(),
            rules: rules.into_iter().collect(),
            rules_failed: self.rules_failed,
            tools: self.actions.status(),
            maps: self.datapath.occupancy(),
            health: counters::health(&self.datapath.maps).unwrap_or_default(),
            link: self.link_status.as_ref().map(|status| status.borrow().clone()),
            ticks: self.tick_times,
            flow_exporters: flows.listeners.clone(),
        }
    }

    /// Publishes the newest heartbeat; the link sends one every 30 s.
    pub(super) fn beat(&mut self) {
        let Some(link) = &self.link else { return };
        let view = self.engine.view();
        let heartbeat = Heartbeat {
            protocol_version: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: self.kernel.clone(),
            uptime_secs: self.uptime_secs(),
            mode: view.mode,
            interfaces: self.interface_reports(),
            baseline: view.baseline.clone(),
            maps: self.datapath.occupancy(),
            queued: 0,
            queue_dropped: 0,
            threshold_ratio: view.threshold_ratio,
            active_incidents: view.active_incidents + self.flows.status().active_incidents(),
            config_version: view.config_version,
            warnings: self.all_warnings(),
            means: Some(self.host.means()),
        };
        link.heartbeat.send_replace(Some(heartbeat));
    }

    fn interface_reports(&self) -> Vec<InterfaceReport> {
        let devices = self.attachment.devices();
        let serves = |name: &str| devices.iter().find(|d| d.plan.name == name).map(|d| d.serves.clone());
        self.attached.iter().map(|a| status::interface(a, serves(&a.interface).unwrap_or_default())).collect()
    }

    pub(super) fn uptime_secs(&self) -> u64 {
        clock::mono_ns().saturating_sub(self.started_mono_ns) / 1_000_000_000
    }

    pub(super) fn all_warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.clone();
        warnings.extend(self.host.warnings());
        warnings.extend(self.engine.traffic().iter().filter_map(InterfaceTraffic::warning));
        warnings.extend(self.attachment.warning());
        warnings.extend(self.worker.warning());
        let no_rung = self.worker.chosen().filter(|chosen| chosen.rung.is_none());
        warnings.extend(no_rung.map(|chosen| format!("nothing carries the datapath's rules: {}", chosen.text())));
        warnings.extend(self.actions.warnings());
        warnings.extend(self.lists.warnings(clock::mono_ns()));
        warnings.extend(self.crowdsec.warnings());
        if self.config.crowdsec.is_some() && self.attached.iter().any(|a| a.mode == AttachMode::Nftables) {
            warnings
                .push("crowdsec: decisions hold where a program is attached, and nftables alone has none".to_owned());
        }
        warnings.extend(self.web.warnings());
        warnings.extend(self.captures.as_ref().and_then(|captures| captures.fault()));
        warnings.extend(self.flows.status().warnings());
        warnings.extend(self.profiles.warnings());
        for interface in self.attached.iter().filter(|a| a.mode != AttachMode::Native) {
            warnings
                .push(format!("{}: {} instead of native: {}", interface.interface, interface.mode, interface.reason));
        }
        warnings.extend(self.datapath.gate.iter().flat_map(Gate::warnings));
        for map in self.datapath.occupancy() {
            if map.max_entries > 0 && map.entries * 10 >= map.max_entries * 9 {
                warnings.push(format!("map {} is at {} of {} entries", map.name, map.entries, map.max_entries));
            }
        }
        warnings
    }

    pub(super) fn status(&self) -> Result<Status> {
        let flows = self.flows.status();
        let mut view = self.engine.view();
        view.active_incidents += flows.active_incidents();
        view.incidents = self.all_incidents();
        let mut verdicts = BTreeMap::new();
        let mut classes = BTreeMap::new();
        for interface in &self.attached {
            let counted = counters::interface(&self.datapath.maps, interface.slot)?;
            verdicts.insert(interface.interface.clone(), status::verdicts(&counted));
            classes.insert(interface.interface.clone(), status::classes(&counted));
        }
        let health = counters::health(&self.datapath.maps)?;
        let link = self.link_status.as_ref().zip(self.config.control_plane.as_ref());
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            name: self.config.name.clone(),
            uptime_secs: self.uptime_secs(),
            kernel: self.kernel.clone(),
            mode: view.mode,
            ready: true,
            interfaces: self.interface_reports(),
            verdicts,
            classes,
            maps: self.datapath.occupancy(),
            health: health.into_iter().map(|(event, count)| (event.as_str().to_owned(), count)).collect(),
            link: link
                .map(|(status, config)| LinkReport { url: config.urls.join(", "), status: status.borrow().clone() }),
            gate: self.datapath.gate.as_ref().map(|gate| gate.report(clock::mono_ns())),
            tick_us: self.tick,
            lists: self.list_statuses(),
            crowdsec: self.crowdsec_status(),
            http: self.web.report(),
            captures: self.captures_status(),
            datapath: self.datapath_report(),
            flow_exporters: flows.listeners.clone(),
            tools: self.actions.status(),
            means: self.host.means(),
            sessions: self.host.sessions().to_vec(),
            profile: self.profiles.status(),
            warnings: self.all_warnings(),
            engine: view,
        })
    }

    /// The node's own incidents and those that exporters saw, active ones first.
    pub(super) fn all_incidents(&self) -> Vec<IncidentReport> {
        let mut all = self.engine.view().incidents;
        all.extend(self.flows.status().incidents.iter().cloned());
        all.sort_by_key(|report| report.status != IncidentStatus::Active);
        all
    }

    /// The lists with what the kernel counted for each.
    fn list_statuses(&self) -> Vec<ListStatus> {
        let now = clock::now();
        let hits = |rule: u64| {
            let slot = self.datapath.slots.of(RuleId(rule))?;
            counters::rule_hits(&self.datapath.maps, slot).ok()
        };
        let lists = self.lists.status(now.mono_ns).into_iter();
        lists
            .map(|list| {
                let hits = hits(list.rule).unwrap_or_default();
                list.complete(&hits, now)
            })
            .collect()
    }

    /// The decisions with what the kernel counted for them.
    fn crowdsec_status(&self) -> Option<CrowdsecStatus> {
        let status = self.crowdsec.status()?;
        let slot = self.datapath.slots.of(RuleId(status.rule));
        let hits = slot.and_then(|slot| counters::rule_hits(&self.datapath.maps, slot).ok());
        Some(status.complete(&hits.unwrap_or_default()))
    }

    fn datapath_report(&self) -> DatapathReport {
        let lacking = Support::here().missing(declares).iter().map(|entry| entry.lack()).collect();
        DatapathReport { left_out: self.config.datapath.left_out.clone(), lacking, fallback: self.worker.chosen() }
    }

    pub(super) fn rules(&self) -> Vec<RuleStatus> {
        let hits = |id| {
            let slot = self.datapath.slots.of(id)?;
            counters::rule_hits(&self.datapath.maps, slot).ok()
        };
        let rules = self.engine.view().rules.into_iter();
        rules
            .map(|rule| {
                let hits = hits(rule.id).unwrap_or_default();
                RuleStatus {
                    id: rule.id,
                    matches: rule.matches,
                    more_sources: rule.more_sources,
                    verdict: rule.verdict,
                    evaluate: rule.evaluate,
                    origin: rule.origin,
                    point: rule.point,
                    expires_in_secs: rule.expires_in_secs,
                    packets: hits.counter.packets,
                    bytes: hits.counter.bytes,
                    first_hit_mono_ns: (hits.first_ns != 0).then_some(hits.first_ns),
                }
            })
            .collect()
    }

    /// All frames, and the sums of a metrics sample, over all interfaces.
    pub(super) fn sums(&self) -> (u64, MetricsCounters) {
        let mut sums = MetricsCounters::default();
        for interface in &self.attached {
            let Ok(counted) = counters::interface(&self.datapath.maps, interface.slot) else { continue };
            for class in Class::ALL {
                let flow = &counted.classes[class.index()];
                let total = flow.total();
                sums.packets += total.packets;
                sums.bytes += total.bytes;
                sums.dropped += flow.dropped.packets;
                match class {
                    c if c.is_tcp() => sums.tcp += total.packets,
                    c if c.is_udp() => sums.udp += total.packets,
                    Class::Icmp | Class::Icmpv6 => sums.icmp += total.packets,
                    _ => {}
                }
            }
        }
        (sums.packets, sums)
    }
}
