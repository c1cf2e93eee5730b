//! How well attacks are told from ordinary traffic, and from each other: captures, generated floods, and scenarios on a
//! simulated clock. No network, no kernel: what the engine decides is a function of what it is given.

mod attacks;
mod benign;
mod clients;
mod day;
mod judge;
mod scenarios;
mod scenes;
mod trial;

use ftagent_lab::captures::Captures;

use super::report::figure;
use super::{Goal, Options};
use judge::{Trial, confusion, delays, failures, percent};

/// What was measured, and the tables that belong to it.
pub struct Measured {
    pub goals: Vec<Goal>,
    /// Confusion tables, and each failure with the engine's own reasons.
    pub text: String,
}

const NO_CAPTURES: &str = "no captures on this machine: FTAGENT_CAPTURES names their folder";

/// Whether a figure of one of these goals is asked for: `D11a` asks for `D11`, not for `D1`.
fn is_asked_for(only: Option<&str>, goals: &[&str]) -> bool {
    let is_of = |only: &str, goal: &str| {
        only.strip_prefix(goal).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    only.is_none_or(|only| goals.iter().any(|goal| is_of(only, goal)))
}

/// Plays everything, or what the goal `only` needs.
///
/// # Errors
/// When a capture cannot be read.
pub fn run_only(options: &Options, only: Option<&str>, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Measured> {
    let mut measured = Measured { goals: Vec::new(), text: String::new() };
    let mut attacks = Vec::new();
    if is_asked_for(only, &["D1", "D2", "D3", "D4", "D6"]) {
        attacks = measured.captures(options, progress)?;
    }
    if is_asked_for(only, &["D5", "D6"]) {
        progress("detection: generated floods");
        let floods = attacks::floods(options.quick);
        measured.show("generated floods", &floods);
        measured.goals.extend(floods_goals(&floods));
        measured.goals.extend(delay_goals(&attacks, &floods));
    }
    if is_asked_for(only, &["D12"]) {
        progress("detection: attacks of known tools, busy good days");
        let (attacks, good) = (scenes::of_attacks(options.quick), scenes::of_good_days(options.quick));
        measured.show("attacks of known tools", &attacks);
        measured.goals.extend(scenes::goals(&attacks, &good));
    }
    if is_asked_for(only, &["D7", "D8", "D9", "D10"]) {
        progress("detection: carpet, pulses, ramp, poison");
        measured.goals.extend(scenarios::run(options.quick));
    }
    if !is_asked_for(only, &["D11"]) {
        return Ok(measured);
    }
    if options.quick {
        measured.goals.extend(day::missing("not measured in a quick run"));
    } else {
        progress("detection: a benign day");
        let (goals, text) = day::run();
        measured.goals.extend(goals);
        measured.text += &text;
    }
    Ok(measured)
}

impl Measured {
    /// The captures of attacks, scans and ordinary traffic, where there are any; the attacks' trials.
    fn captures(&mut self, options: &Options, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Trial>> {
        let Some(captures) = Captures::find()? else {
            progress(NO_CAPTURES);
            self.goals.extend(captures_goals(&[]));
            self.goals.push(scans_goal(&[]));
            self.goals.extend(benign_goals(&[]));
            return Ok(Vec::new());
        };
        progress("detection: attack captures");
        let attacks = attacks::captures(&attacks::read(&captures, "attack")?, options.quick);
        self.show("attack captures", &attacks);
        self.goals.extend(captures_goals(&attacks));
        progress("detection: captures of scans and of ordinary traffic");
        let scans = attacks::captures(&attacks::read(&captures, "scan")?, options.quick);
        self.goals.push(scans_goal(&scans));
        let calm = benign::run(&captures)?;
        self.text += &benign::told(&calm);
        self.goals.extend(benign_goals(&calm));
        Ok(attacks)
    }

    fn show(&mut self, title: &str, trials: &[Trial]) {
        self.text += &confusion(title, trials);
        self.text += &failures(title, trials);
    }
}

fn share(id: &'static str, what: &str, wanted: &str, least: f64, value: Option<f64>, detail: &str) -> Goal {
    let detail = if value.is_none() { NO_CAPTURES } else { detail };
    Goal { value, met: value.map(|v| v >= least), ..Goal::missing(id, what, "%", wanted, detail) }
}

fn captures_goals(trials: &[Trial]) -> Vec<Goal> {
    let sure = percent(trials, Trial::is_sure);
    let detail = format!(
        "{} trials; with confidence >= 0.5 {} %; by sampling 1, 100, 1000: {} %",
        trials.len(),
        sure.map_or_else(|| "-".to_owned(), figure),
        by_sampling(trials)
    );
    vec![
        share("D1", "attack captures: family right", ">= 95 %", 95.0, percent(trials, Trial::is_named_right), &detail),
        share("D2", "attack captures: target right", ">= 100 %", 100.0, percent(trials, Trial::is_target_right), ""),
    ]
}

fn by_sampling(trials: &[Trial]) -> String {
    let of = |one_in: u32| -> Vec<Trial> { trials.iter().filter(|t| t.play.one_in == one_in).cloned().collect() };
    let shares = [1, 100, 1_000].map(|one_in| percent(&of(one_in), Trial::is_named_right));
    shares.map(|share| share.map_or_else(|| "-".to_owned(), figure)).join(", ")
}

fn scans_goal(trials: &[Trial]) -> Goal {
    let loud: Vec<&Trial> = trials.iter().filter(|t| t.found.surest >= 0.5).collect();
    let names: Vec<String> =
        loud.iter().map(|t| format!("{} at {} pps: {:.2}", t.name, t.play.pps, t.found.surest)).collect();
    let value = (!trials.is_empty()).then_some(loud.len() as f64);
    let detail = if trials.is_empty() { NO_CAPTURES.to_owned() } else { names.join("; ") };
    Goal {
        value,
        met: value.map(|v| v == 0.0),
        ..Goal::missing("D3", "port scans: incidents, confidence >= 0.5", "", "= 0", &detail)
    }
}

fn benign_goals(calm: &[benign::Calm]) -> Vec<Goal> {
    let value =
        |count: fn(&benign::Calm) -> usize| (!calm.is_empty()).then(|| calm.iter().map(count).sum::<usize>() as f64);
    let goal = |id, what, value: Option<f64>, detail: &str| Goal {
        value,
        met: value.map(|v| v == 0.0),
        ..Goal::missing(id, what, "", "= 0", if value.is_none() { NO_CAPTURES } else { detail })
    };
    let loud: Vec<&str> = calm.iter().filter(|c| c.sure > 0).map(|c| c.name.as_str()).collect();
    let all = calm.iter().map(|c| c.incidents).sum::<usize>();
    let detail = format!("{} captures, {all} incidents of any confidence {}", calm.len(), loud.join(", "));
    vec![
        goal("D4a", "benign captures: incidents, confidence >= 0.5", value(|c| c.sure), &detail),
        goal("D4b", "benign captures: sources blocked", value(|c| c.blocked), ""),
    ]
}

fn floods_goals(trials: &[Trial]) -> Vec<Goal> {
    let sure = percent(trials, Trial::is_sure);
    let detail = format!(
        "{} trials over IPv4, IPv6 and VLAN; with confidence >= 0.5 {} %; by sampling 1, 100, 1000: {} %",
        trials.len(),
        sure.map_or_else(|| "-".to_owned(), figure),
        by_sampling(trials)
    );
    let named = percent(trials, Trial::is_named_right);
    vec![
        share("D5a", "generated floods: family right", ">= 100 %", 100.0, named, &detail),
        share("D5b", "generated floods: target right", ">= 100 %", 100.0, percent(trials, Trial::is_target_right), ""),
    ]
}

/// Five times the floor: from there on an attack opens at once.
const AT_ONCE_PPS: u64 = 50_000;

fn delay_goals(captures: &[Trial], floods: &[Trial]) -> Vec<Goal> {
    let all = || captures.iter().chain(floods);
    let fast = || all().filter(|t| t.play.pps >= AT_ONCE_PPS);
    let slow = || all().filter(|t| t.play.pps < AT_ONCE_PPS);
    let opened = delays(fast(), |found| found.opened_ms);
    let every = delays(fast().filter(|t| t.play.one_in == 1), |found| found.ruled_ms);
    let rare = delays(fast().filter(|t| t.play.one_in > 1), |found| found.ruled_ms);
    let confirmed = delays(slow(), |found| found.opened_ms);
    let show = |both: [Option<f64>; 2]| both.map(|ms| ms.map_or_else(|| "-".to_owned(), figure)).join("/");
    let detail = format!(
        "p50/p99: first rule {} with every packet sampled, {} with one in 100 and 1000; at twice the floor, which waits \
         for the confirmation, opened {}",
        show(every),
        show(rare),
        show(confirmed)
    );
    let goal = |id, what, value: Option<f64>, wanted, most: f64, detail: &str| Goal {
        value,
        met: value.map(|ms| ms <= most),
        rounds: fast().count() as u32,
        ..Goal::missing(id, what, "ms", wanted, detail)
    };
    vec![
        goal("D6a", "first packet to opening, 6 x floor and more, p50", opened[0], "<= 120 ms", 120.0, &detail),
        goal("D6b", "first packet to opening, 6 x floor and more, p99", opened[1], "<= 250 ms", 250.0, ""),
    ]
}
