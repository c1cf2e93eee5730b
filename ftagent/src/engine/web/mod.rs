//! Floods of requests and slow attacks: judged by what web servers write and by the kernel's connections, where packet
//! rates say too little.
//!
//! ```text
//! access logs -> RequestBatch -> window -> features -> verdict ─┐
//! sock_diag -> ConnectionReading -> slow ───────────────────────┴-> course: incident, response, end
//! ```
//!
//! The clock of a request is its line's arrival: what a log says of the time is its writer's word.

mod calm;
mod course;
mod input;
mod settings;
mod slow;
mod verdict;
mod window;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Engine;
use super::baseline::{BaselineState, Terms};
use super::detect::{Excess, Threshold, ThresholdOrigin};
use super::input::Now;
use super::sample::{MS, Quantity, SEC};
use super::settings::Detection;
use super::week::Hour;
use calm::{Calm, UsualRate};
pub(super) use course::DEED;
pub use course::Evidence;
pub use input::{Connection, ConnectionReading, Method, RequestBatch, WebRequest};
pub use settings::{WebResponse, WebSettings};
pub use verdict::Finding;
use window::{WINDOW_NS, Window};

/// Sites that are judged by themselves; requests to further ones are counted as untracked.
const MAX_SITES: usize = 64;
/// Once a second each site is judged.
const JUDGE_NS: u64 = SEC;
/// What learning looks at.
const CALM_SPAN_NS: u64 = SEC;

/// What is known of the sites behind access logs, and of connections.
#[derive(Debug, Default)]
pub(super) struct Web {
    sites: BTreeMap<IpAddr, Site>,
    tracker: slow::Tracker,
    judged_ns: u64,
    untracked: u64,
    /// Sites from before a restart, until their logs are read again.
    restored: BTreeMap<IpAddr, WebState>,
}

/// One address that web servers answer at.
#[derive(Debug, Default)]
struct Site {
    window: Window,
    usual: UsualRate,
    calm: Calm,
    over_since: Option<u64>,
    /// Requests per second at the last look.
    rate: f64,
}

/// What survives a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WebState {
    pub target: IpAddr,
    pub usual: BaselineState,
    calm: Calm,
}

/// One site as `status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteView {
    pub target: IpAddr,
    /// Requests per second over the last second.
    pub rps: u64,
    pub threshold: u64,
    /// `static`, `floor`, `baseline` or `hour_of_week`.
    pub origin: String,
    /// Seconds of calm that comparisons rest on.
    pub learnt_secs: u64,
}

impl Engine {
    /// Takes lines of access logs. Empty batches make time pass: the daemon sends one a tick while logs are followed.
    pub(super) fn on_requests(&mut self, batch: &RequestBatch, now: Now) {
        let web = &mut self.web;
        for request in &batch.requests {
            match web.site(request.target) {
                Some(site) => site.window.add(request, now.mono_ns),
                None => web.untracked += 1,
            }
        }
        for (target, lines) in &batch.unread {
            match web.site(*target) {
                Some(site) => site.window.add_unread(*lines, now.mono_ns),
                None => web.untracked += lines,
            }
        }
        if now.mono_ns.saturating_sub(web.judged_ns) >= JUDGE_NS {
            web.judged_ns = now.mono_ns;
            let targets: Vec<IpAddr> = web.sites.keys().copied().collect();
            for target in targets {
                self.judge_site(target, now);
            }
        }
    }

    /// Takes a look at the kernel's connections.
    pub(super) fn on_connections(&mut self, reading: &ConnectionReading, now: Now) {
        let settings = &self.effective.web;
        let judged = self.web.tracker.observe(reading, settings, now.mono_ns);
        for slow in judged {
            let threshold = Threshold { value: slow.threshold.max(1) as f64, origin: ThresholdOrigin::Static };
            let rate = slow.connections as f64;
            let ratio = rate / threshold.value;
            let excess = Excess { quantity: Quantity::SlowConnections, rate, threshold, ratio };
            self.on_finding(slow.target, excess, slow.finding, now);
        }
    }

    fn judge_site(&mut self, target: IpAddr, now: Now) {
        let attacked = self.is_attacked(IpNet::from(target));
        let settings = &self.effective.web;
        let terms = self.request_terms(now);
        let threshold = self.web.threshold(target, settings, &self.effective.detection, self.hour);
        let Some(site) = self.web.sites.get_mut(&target) else { return };
        site.rate = site.window.rate(now.mono_ns);
        let ratio = site.rate / threshold.value;
        let excess = Excess { quantity: Quantity::RequestsPerSec, rate: site.rate, threshold, ratio };
        if ratio <= 1.0 {
            site.over_since = None;
            if !attacked && !site.window.is_idle(now.mono_ns) {
                site.usual.observe(site.rate, &terms);
                site.calm.observe(&site.window.features(now.mono_ns, CALM_SPAN_NS));
            }
            self.on_finding(target, excess, None, now);
            return;
        }
        let since = *site.over_since.get_or_insert(now.mono_ns);
        let over_ns = now.mono_ns.saturating_sub(since);
        if over_ns < u64::from(settings.confirm_ms) * MS {
            return;
        }
        // What came before the flood would water its signs down.
        let span = (over_ns + JUDGE_NS).min(WINDOW_NS);
        let finding = verdict::judge(&site.window.features(now.mono_ns, span), &site.calm, settings);
        self.on_finding(target, excess, Some(finding), now);
    }

    /// An operator says that what a site receives is no attack.
    pub(super) fn accept_requests(&mut self, net: IpNet, now: Now) {
        let terms = self.request_terms(now);
        for (_, site) in self.web.sites.iter_mut().filter(|(ip, _)| net.contains(*ip)) {
            site.usual.accept(site.rate, &terms);
        }
    }

    /// What the usual rates of requests are learnt by.
    fn request_terms(&self, now: Now) -> Terms {
        let free = calm::only(self.effective.web.floor_rps as f64 / self.effective.detection.multiplier);
        Terms { free, ..self.terms(now) }
    }

    pub(super) fn web_states(&self) -> Vec<WebState> {
        let sites = self.web.sites.iter().map(|(target, site)| WebState {
            target: *target,
            usual: site.usual.state(),
            calm: site.calm.clone(),
        });
        sites.chain(self.web.restored.values().cloned()).collect()
    }

    pub(super) fn restore_web(&mut self, states: Vec<WebState>) {
        self.web.restored = states.into_iter().take(MAX_SITES).map(|state| (state.target, state)).collect();
    }

    /// The sites behind access logs, the busiest first.
    pub(super) fn site_views(&self) -> Vec<SiteView> {
        let (settings, detection) = (&self.effective.web, &self.effective.detection);
        let mut views: Vec<SiteView> = self
            .web
            .sites
            .iter()
            .map(|(target, site)| {
                let threshold = self.web.threshold(*target, settings, detection, self.hour);
                SiteView {
                    target: *target,
                    rps: site.rate as u64,
                    threshold: threshold.value as u64,
                    origin: threshold.origin.as_str().to_owned(),
                    learnt_secs: site.calm.learnt_secs,
                }
            })
            .collect();
        views.sort_by_key(|v| std::cmp::Reverse(v.rps));
        views
    }
}

impl Web {
    fn site(&mut self, target: IpAddr) -> Option<&mut Site> {
        if !self.sites.contains_key(&target) && self.sites.len() >= MAX_SITES {
            return None;
        }
        let restored = &mut self.restored;
        Some(self.sites.entry(target).or_insert_with(|| match restored.remove(&target) {
            Some(state) => Site { usual: UsualRate::restore(&state.usual), calm: state.calm, ..Site::default() },
            None => Site::default(),
        }))
    }

    /// The numbers that people set, else the larger of floor and multiplier × baseline.
    fn threshold(
        &self,
        target: IpAddr,
        settings: &WebSettings,
        detection: &Detection,
        hour: Option<Hour>,
    ) -> Threshold {
        if let Some(rps) = settings.static_rps {
            return Threshold { value: rps.max(1) as f64, origin: ThresholdOrigin::Static };
        }
        let floor = settings.floor_rps.max(1) as f64;
        let usual = self.sites.get(&target).map(|site| &site.usual);
        let normal = usual.and_then(|u| u.normal(detection.learning_secs, hour)).unwrap_or(0.0);
        let value = normal * detection.multiplier;
        if value <= floor {
            return Threshold { value: floor, origin: ThresholdOrigin::Floor };
        }
        let by_hour = usual.is_some_and(|u| u.is_by_hour(hour));
        let origin = if by_hour { ThresholdOrigin::HourOfWeek } else { ThresholdOrigin::Baseline };
        Threshold { value, origin }
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
