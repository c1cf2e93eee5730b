//! What too many requests are: a pure function from a window's features and calm times to a named, explained finding.
//!
//! Too many requests alone are a crowd until something says otherwise: signs of the whole, each with its weight, make
//! the confidence; and a source is accused by what it did itself, never by the company that it keeps.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::calm::Calm;
use super::settings::WebSettings;
use super::window::{Features, Tally};

/// Confidence of a crowd without any sign.
const CROWD: f64 = 0.3;
/// And what all signs together can add.
const SIGNS: f64 = 0.65;
/// A share that lies this much above that of calm times is a sign.
const ABOVE: f64 = 0.4;
/// A source of which so much is alike does nothing else.
const WHOLLY: f64 = 0.8;
/// Fewest requests that show a pattern of a source that does not ask often.
const PATTERN: u64 = 5;
/// Different user agents behind which there are several people.
const SEVERAL: u32 = 8;
/// Times a regular's rate that are not its habit any more.
const HABIT: f64 = 3.0;
/// Search engines ask more often than people, up to this many times `source_rps`.
const CRAWLER: f64 = 5.0;
/// Sources of a finding.
const MAX_ACCUSED: usize = 1_000;
const MAX_SPARED: usize = 10;
pub(super) const TOP: usize = 10;

/// What is going on at one site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    pub subtype: String,
    /// 0 to 1.
    pub confidence: f64,
    /// Why, in words with numbers.
    pub reasons: Vec<String>,
    /// Who does it, heaviest first.
    pub accused: Vec<IpNet>,
    /// Who might, and why nothing is done about it.
    pub spared: Vec<(IpNet, String)>,
    /// The busiest sources: requests per second, or slow connections, and their share.
    pub top: Vec<(IpAddr, f64, f64)>,
    pub sources: u64,
}

/// The part of calm times that a comparison needs; assumed where it was not learnt.
struct Usual {
    errors: f64,
    posts: f64,
    busting: f64,
    cancelled: f64,
}

/// What `features`, whose rate is above the threshold, are.
pub(super) fn judge(features: &Features, calm: &Calm, settings: &WebSettings) -> Finding {
    let f = features;
    let usual = if calm.is_learnt() {
        Usual { errors: calm.errors, posts: calm.posts, busting: calm.busting, cancelled: calm.cancelled }
    } else {
        Usual { errors: 0.1, posts: 0.2, busting: 0.2, cancelled: 0.05 }
    };
    let share = |part| f.sum.share(part);
    let above = |now: f64, before: f64| now >= before + ABOVE;
    let kinds = Kinds {
        busting: above(f.busting, usual.busting),
        resets: above(share(f.sum.resets), usual.cancelled),
        cancelled: above(share(f.sum.cancelled), usual.cancelled),
        errors: above(share(f.sum.errors), usual.errors),
        posts: above(share(f.sum.posts), usual.posts),
    };
    let (accused, spared, covered) = accuse(f, calm, &kinds, settings);

    let mut signs = Signs { left: 1.0, certain: if calm.is_learnt() { 1.0 } else { 0.8 }, reasons: Vec::new() };
    signs.reasons.push(format!(
        "{} requests in {:.0} s of {} sources, {} paths (entropy {:.1} bits), {} user agents (entropy {:.1} bits), \
         {:.0} % POST, {:.0} % client errors, {:.0} % server errors, {:.0} % given up, {} bytes a request{}",
        f.sum.requests,
        f.secs,
        f.sources.len(),
        f.paths.distinct,
        f.paths.entropy,
        f.agents.distinct,
        f.agents.entropy,
        share(f.sum.posts) * 100.0,
        share(f.sum.errors) * 100.0,
        share(f.sum.failures) * 100.0,
        share(f.sum.cancelled) * 100.0,
        f.sum.bytes / f.sum.requests.max(1),
        match f.sum.millis.checked_div(f.sum.timed) {
            Some(ms) => format!(", {ms} ms each"),
            None => String::new(),
        },
    ));
    if f.unread > 0 {
        signs.reasons.push(format!("{} further lines were counted and not read", f.unread));
    }
    let rapid = kinds.resets || kinds.cancelled && covered >= 0.5;
    if covered >= 0.5 && f.sum.requests > 0 {
        let each = f.per_sec(f.sum.requests) * covered / accused.len().max(1) as f64;
        let why =
            format!("{} sources send {:.0} % of it, {each:.0} requests a second each", accused.len(), covered * 100.0);
        signs.add(if covered >= WHOLLY { 0.8 } else { 0.6 }, why);
    }
    if kinds.busting {
        let why = format!(
            "{:.0} % of the requests have a query string that no other has, usually {:.0} %: no cache can answer them",
            f.busting * 100.0,
            usual.busting * 100.0
        );
        signs.add(0.7, why);
    }
    if rapid {
        let why = format!(
            "{:.0} % of the requests are given up by their clients, usually {:.0} %: HTTP/2 rapid reset looks like this",
            share(f.sum.cancelled) * 100.0,
            usual.cancelled * 100.0
        );
        signs.add(0.7, why);
    }
    if kinds.errors {
        let words = (share(f.sum.errors) * 100.0, usual.errors * 100.0);
        signs.add(0.3, format!("{:.0} % ask for what there is not, usually {:.0} %", words.0, words.1));
    }
    if kinds.posts {
        let words = (share(f.sum.posts) * 100.0, usual.posts * 100.0);
        signs.add(0.3, format!("{:.0} % are POST, usually {:.0} %", words.0, words.1));
    }
    if f.nameless >= 0.5 && f.nameless >= calm.nameless + ABOVE {
        signs.add(0.4, format!("{:.0} % have no user agent", f.nameless * 100.0));
    }
    if calm.is_learnt() && f.agents.top >= 0.9 && calm.top_agent <= 0.6 && f.sources.len() >= 20 {
        let why = format!(
            "one user agent has {:.0} % of the requests, usually {:.0} %",
            f.agents.top * 100.0,
            calm.top_agent * 100.0
        );
        signs.add(0.35, why);
    }
    let assets = share(f.sum.assets);
    if calm.is_learnt() && f.paths.top >= 0.8 && calm.assets >= 0.1 && assets < calm.assets / 4.0 {
        let why = format!(
            "{:.0} % ask for one path, and nobody for the pictures and scripts of it ({:.0} %, usually {:.0} %)",
            f.paths.top * 100.0,
            assets * 100.0,
            calm.assets * 100.0
        );
        signs.add(0.35, why);
    }
    let nothing = signs.left >= 1.0;
    let subtype = if nothing {
        signs.reasons.push("many clients, and nothing unusual in what they ask: a crowd looks like this".to_owned());
        "flash_crowd"
    } else if rapid {
        "rapid_reset"
    } else if kinds.busting {
        "cache_busting"
    } else if share(f.sum.posts) >= 0.5 {
        "post_flood"
    } else {
        "get_flood"
    };
    let confidence = CROWD + SIGNS * (1.0 - signs.left);
    Finding {
        subtype: subtype.to_owned(),
        confidence: (confidence * 100.0).round() / 100.0,
        reasons: signs.reasons,
        accused,
        spared,
        top: f.sources.iter().take(TOP).map(|(ip, t)| (*ip, f.per_sec(t.requests), share(t.requests))).collect(),
        sources: f.sources.len() as u64,
    }
}

/// Independent signs: what is left is the chance that all of them are wrong.
struct Signs {
    left: f64,
    /// How far signs count where calm times are not known.
    certain: f64,
    reasons: Vec<String>,
}

impl Signs {
    fn add(&mut self, weight: f64, why: String) {
        self.left *= 1.0 - weight * self.certain;
        self.reasons.push(why);
    }
}

/// What the whole shows far more of than in calm times.
struct Kinds {
    busting: bool,
    resets: bool,
    cancelled: bool,
    errors: bool,
    posts: bool,
}

/// Why one source is accused.
fn charge(t: &Tally, rps: f64, heavy: f64, kinds: &Kinds) -> Option<bool> {
    let wholly = |part: u64| t.share(part) >= WHOLLY;
    // What a cache could not answer: nearly every query another one, as far as 64 bits tell.
    let varied = u64::from(t.queries.count()) >= t.requests.min(40) * 7 / 10;
    let pattern =
        t.requests >= PATTERN && (kinds.busting && wholly(t.queried) && varied || kinds.resets && wholly(t.resets));
    if pattern {
        return Some(true);
    }
    (rps >= heavy).then_some(false)
}

type Judged = (Vec<IpNet>, Vec<(IpNet, String)>, f64);

/// The sources that do it, those that are left alone, and the share of the requests that the former send.
fn accuse(f: &Features, calm: &Calm, kinds: &Kinds, settings: &WebSettings) -> Judged {
    let floor = settings.source_rps as f64;
    // Attackers are alike: who asks far less than the heavy ones is another kind of client.
    let typical = {
        let heavy = || f.sources.iter().map(|(_, t)| t.requests).take_while(|n| f.per_sec(*n) >= floor);
        let (total, mut sum) = (heavy().sum::<u64>(), 0);
        let middle = heavy().find(|n| {
            sum += n;
            sum * 2 >= total
        });
        middle.map_or(0.0, |n| f.per_sec(n))
    };
    let heavy = floor.max(typical / 4.0);
    let (mut accused, mut spared, mut covered) = (Vec::new(), Vec::new(), 0);
    for (ip, t) in &f.sources {
        let rps = f.per_sec(t.requests);
        let Some(is_pattern) = charge(t, rps, heavy, kinds) else { continue };
        let net = prefix(*ip);
        if let Some(why) = friend(*ip, t, rps, is_pattern, calm, settings) {
            if spared.len() < MAX_SPARED {
                spared.push((net, why));
            }
            continue;
        }
        covered += t.requests;
        if accused.len() < MAX_ACCUSED {
            accused.push(net);
        }
    }
    (accused, spared, f.sum.share(covered))
}

/// Why a source that asks much is left alone, if it is.
fn friend(ip: IpAddr, t: &Tally, rps: f64, pattern: bool, calm: &Calm, settings: &WebSettings) -> Option<String> {
    let asks = format!("asks {rps:.0} times a second");
    if t.proxied > 0 {
        return Some(format!("{asks} through a trusted proxy: a block here would not meet it"));
    }
    if settings.is_proxy(ip) {
        return Some(format!("{asks} as a trusted proxy: a block would hit everybody behind it"));
    }
    if ip.is_loopback() || ip.is_unspecified() {
        return Some(format!("{asks} from this machine: a proxy before the server? then name it in trusted_proxies"));
    }
    if let Some(usual) = calm.regulars.get(&ip).filter(|usual| rps <= **usual * HABIT) {
        return Some(format!("{asks} and always did ({usual:.0} times)"));
    }
    if t.share(t.crawler) >= WHOLLY && rps < settings.source_rps as f64 * CRAWLER {
        return Some(format!("{asks} and says that it is a search engine: block it by hand if it is none"));
    }
    // Behind one address with many people there are many programs that ask for many things.
    let people = t.agents.count() >= SEVERAL && t.paths.count() >= SEVERAL && !pattern;
    people.then(|| {
        format!(
            "{asks} with {} user agents for {} paths: several people behind one address, or a proxy that \
             trusted_proxies should name",
            t.agents.count(),
            t.paths.count()
        )
    })
}

/// The prefix of a window's source.
pub(super) fn prefix(ip: IpAddr) -> IpNet {
    match ip {
        IpAddr::V4(_) => IpNet::from(ip),
        IpAddr::V6(_) => IpNet::new(ip, 64).expect("64 is a length of IPv6").trunc(),
    }
}
