//! What the engine shows of itself, for `ftagent status`, `top`, `rules` and `incidents`.

use ftagent_common::api::{AllowEntry, BaselineReport, IncidentReport};
use ftagent_common::vocab::Mode;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Engine;
use super::baseline::Baseline;
use super::detect;
use super::rules::{Matches, Origin, Point, RuleId, Verdict};
use super::sample::{OPEN_WINDOW_NS, Quantity, SEC, SMOOTH_WINDOW_NS};
use super::silence::InterfaceTraffic;
use super::task::{Task, TaskView};

/// Targets in a view.
const MAX_TARGETS: usize = 100;

/// The engine at one moment. Rates are packets or bits per second over the last second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineView {
    pub mode: Mode,
    pub totals: Totals,
    /// Busiest first.
    pub targets: Vec<TargetView>,
    /// Active ones first, then those resolved lately.
    pub incidents: Vec<IncidentReport>,
    pub rules: Vec<RuleView>,
    /// Actions of other tools in force, wanted or being undone.
    #[serde(default)]
    pub actions: Vec<TaskView>,
    pub allow: Vec<AllowEntry>,
    pub baseline: BaselineReport,
    /// Which interfaces see traffic.
    #[serde(default)]
    pub interfaces: Vec<InterfaceTraffic>,
    /// Highest rate over threshold of any target.
    pub threshold_ratio: f64,
    pub active_incidents: u32,
    /// Rules that the guard refused since the start.
    pub refusals: u64,
    /// Targets of the newest reading that are not watched because there are too many.
    pub untracked_targets: u64,
    pub config_version: u64,
    /// Sites with access logs, busiest first.
    #[serde(default)]
    pub sites: Vec<super::web::SiteView>,
    /// Set when a safety list could not be read and nothing automated acts.
    #[serde(default)]
    pub unreadable: Option<String>,
}

/// Everything towards protected targets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    pub pps: u64,
    pub bps: u64,
    pub passed_pps: u64,
    pub dropped_pps: u64,
    pub tcp_pps: u64,
    pub udp_pps: u64,
    pub icmp_pps: u64,
    pub other_pps: u64,
}

/// One target's rates, what is normal, and what would be an attack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetView {
    pub target: IpNet,
    pub pps: u64,
    pub bps: u64,
    pub passed_pps: u64,
    pub dropped_pps: u64,
    /// Distinct sources in about a second, as the kernel estimates them over all packets that no block or list dropped;
    /// the standard error is 10 %.
    #[serde(default)]
    pub distinct_sources: u64,
    /// The quantity that is nearest to or furthest above its threshold.
    pub quantity: String,
    pub rate: u64,
    pub threshold: u64,
    /// `host`, `static`, `floor`, `baseline` or `hour_of_week`.
    pub origin: String,
    pub ratio: f64,
    pub baseline: u64,
    /// The fast average over the slow one.
    pub trend: f64,
    pub learning: bool,
    pub learnt_secs: u64,
    pub under_attack: bool,
}

/// One rule that should be in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleView {
    pub id: RuleId,
    pub matches: Matches,
    pub verdict: Verdict,
    pub evaluate: bool,
    pub point: Point,
    pub origin: Origin,
    /// Seconds until it ends by itself.
    pub expires_in_secs: Option<u64>,
    /// Sources of it beside that of `matches`.
    #[serde(default)]
    pub more_sources: usize,
}

impl Engine {
    /// The engine at this moment.
    pub fn view(&self) -> EngineView {
        let rates = self.total.rates(SMOOTH_WINDOW_NS);
        let passed = self.total.passed_rates(SMOOTH_WINDOW_NS);
        let of = |q: Quantity| rates[q.index()] as u64;
        let pps = of(Quantity::Pps);
        let passed_pps = passed[Quantity::Pps.index()] as u64;
        let named = of(Quantity::TcpPps) + of(Quantity::UdpPps) + of(Quantity::IcmpPps);
        let totals = Totals {
            pps,
            bps: of(Quantity::Bps),
            passed_pps,
            dropped_pps: pps.saturating_sub(passed_pps),
            tcp_pps: of(Quantity::TcpPps),
            udp_pps: of(Quantity::UdpPps),
            icmp_pps: of(Quantity::IcmpPps),
            other_pps: pps.saturating_sub(named),
        };
        let mut targets: Vec<TargetView> =
            self.targets.keys().filter_map(|ip| self.target_view(IpNet::from(*ip))).collect();
        targets.sort_by_key(|t| std::cmp::Reverse(t.pps));
        targets.truncate(MAX_TARGETS);
        let active = self.incidents.values().filter(|i| i.is_active());
        let mut incidents: Vec<IncidentReport> = active.map(super::Incident::snapshot).collect();
        let active_incidents = u32::try_from(incidents.len()).unwrap_or(u32::MAX);
        incidents.extend(self.incidents.values().filter(|i| !i.is_active()).map(super::Incident::snapshot));
        incidents.extend(self.recent.iter().rev().cloned());
        EngineView {
            mode: self.effective.mode,
            totals,
            threshold_ratio: self.highest_ratio(),
            targets,
            incidents,
            rules: self
                .rules
                .values()
                .map(|r| RuleView {
                    id: r.id,
                    matches: Matches { sources: Vec::new(), ..r.matches.clone() },
                    more_sources: r.matches.sources.len(),
                    verdict: r.verdict,
                    evaluate: r.evaluate,
                    point: r.point,
                    origin: r.origin.clone(),
                    expires_in_secs: r.expires_at_ns.map(|end| end.saturating_sub(self.now_ns) / SEC),
                })
                .collect(),
            actions: self.tasks.values().map(Task::view).collect(),
            allow: self.allow.clone(),
            baseline: self.baseline_report(),
            interfaces: self.traffic(),
            active_incidents,
            refusals: self.refusals,
            untracked_targets: self.untracked,
            config_version: self.remote.as_ref().map_or(0, |r| r.version),
            sites: self.site_views(),
            unreadable: self.effective.guard.unreadable.clone(),
        }
    }

    /// Which interfaces see traffic.
    pub fn traffic(&self) -> Vec<InterfaceTraffic> {
        self.silence.view(self.effective.detection.silent_secs, self.now_ns)
    }

    fn baseline_report(&self) -> BaselineReport {
        let learning_secs = self.effective.detection.learning_secs;
        let baselines = || self.targets.values().filter_map(|t| t.baseline.as_ref());
        let normal = |q: Quantity| baselines().map(|b| b.normal(q, self.hour)).sum::<f64>() as u64;
        let learning = || baselines().filter(|b| b.is_learning(learning_secs));
        let left = |b: &Baseline| u64::from(learning_secs).saturating_sub(b.learnt_secs());
        let targets = baselines().count();
        BaselineReport {
            learning: learning().count() == targets,
            learnt_secs: baselines().map(Baseline::learnt_secs).max().unwrap_or(0),
            pps: normal(Quantity::Pps),
            bps: normal(Quantity::Bps),
            targets: u32::try_from(targets).unwrap_or(u32::MAX),
            learning_targets: u32::try_from(learning().count()).unwrap_or(u32::MAX),
            learning_left_secs: learning().map(left).max(),
            known_hours: baselines().map(|b| b.week().known_hours()).max().unwrap_or(0),
        }
    }

    /// Highest rate over threshold of any target, 0 without traffic.
    fn highest_ratio(&self) -> f64 {
        let ratios = self.targets.iter().filter(|(_, t)| !t.meter.is_idle()).filter_map(|(ip, t)| {
            detect::excess(&t.meter.rates(SMOOTH_WINDOW_NS), &self.thresholds_of(IpNet::from(*ip))).map(|e| e.ratio)
        });
        ratios.fold(0.0, f64::max)
    }

    fn target_view(&self, net: IpNet) -> Option<TargetView> {
        let meter = self.meter(net).filter(|m| !m.is_idle())?;
        let rates = meter.rates(SMOOTH_WINDOW_NS);
        let passed = meter.passed_rates(SMOOTH_WINDOW_NS)[Quantity::Pps.index()] as u64;
        let worst = detect::excess(&meter.rates(OPEN_WINDOW_NS), &self.thresholds_of(net));
        let baseline = self.baseline(net);
        let quantity = worst.map_or(Quantity::Pps, |w| w.quantity);
        let pps = rates[Quantity::Pps.index()] as u64;
        Some(TargetView {
            target: net,
            pps,
            bps: rates[Quantity::Bps.index()] as u64,
            passed_pps: passed,
            dropped_pps: pps.saturating_sub(passed),
            distinct_sources: self.targets.get(&net.addr()).map_or(0, |t| t.distinct.estimate(t.last(), self.now_ns)),
            quantity: quantity.as_str().to_owned(),
            rate: worst.map_or(0, |w| w.rate as u64),
            threshold: worst.map_or(0, |w| w.threshold.value as u64),
            origin: worst.map_or_else(String::new, |w| w.threshold.origin.as_str().to_owned()),
            ratio: worst.map_or(0.0, |w| w.ratio),
            baseline: baseline.map_or(0, |b| b.normal(quantity, self.hour) as u64),
            trend: baseline.map_or(1.0, |b| b.trend(quantity)),
            learning: baseline.is_none_or(|b| b.is_learning(self.effective.detection.learning_secs)),
            learnt_secs: baseline.map_or(0, Baseline::learnt_secs),
            under_attack: self.is_attacked(net),
        })
    }
}
