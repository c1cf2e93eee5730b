//! `tc_police_interface`, in the three ways that a kernel may have it.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::names::InterfaceName;
use super::step::ToolStep;
use super::{Ground, Parameters, is_v6, within};
use crate::api::ParameterError;
use crate::api::preview::{Preview, argv};

/// Where our filters begin among those of the interface: behind those that people number, which begin at 1, and before
/// those that the kernel numbers, which are 49,152 and below it (`tcf_auto_prio`, net/sched/cls_api.c). One of a lower
/// rate comes before one of a higher.
const PREFERENCE: u32 = 30_100;
/// Steps of a doubling of the rate, each a preference.
const STEPS_PER_DOUBLING: u32 = 512;

/// Where filters begin that let pass who is spared: before those.
const FIRST_PREFERENCE: usize = 30_000;
/// The most prefixes that are spared: a filter each.
const MAX_SPARED: usize = 64;
/// Of a program, which looks them up; they are words of its command.
const MAX_SPARED_BY_PROGRAM: usize = 1_024;

/// Characters of a tool's words.
const MAX_WHY: usize = 300;

/// What the names of devices begin with that a rate is made with.
pub(super) const IFB_PREFIX: &str = "fti";

/// How a kernel limits what an interface receives, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PoliceWay {
    /// `act_police` at a filter of `cls_u32`.
    Police,
    /// `act_mirred` to a device `ifb` with `sch_tbf`, which queues as much as the burst.
    Ifb,
    /// A token bucket in a program at a filter of `cls_bpf`.
    Program,
}

impl PoliceWay {
    pub const ALL: [Self; 3] = [Self::Police, Self::Ifb, Self::Program];

    /// What it needs, in an operator's words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Police => "police (cls_u32, act_police)",
            Self::Ifb => "redirect to an ifb with tbf (cls_u32, act_mirred, ifb, sch_tbf)",
            Self::Program => "a token bucket in a program (cls_bpf)",
        }
    }

    /// The most prefixes that it spares.
    fn max_spared(self) -> usize {
        if self == Self::Program { MAX_SPARED_BY_PROGRAM } else { MAX_SPARED }
    }
}

/// What a node found out by trying, in the order of [`PoliceWay::ALL`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoliceMeans {
    /// Those that work. What nothing needs, since one before it works, may not have been tried.
    #[cfg_attr(feature = "openapi", schema(max_items = 3))]
    pub ways: Vec<PoliceWay>,
    /// Those that do not.
    #[cfg_attr(feature = "openapi", schema(max_items = 3))]
    pub lacking: Vec<PoliceLack>,
}

/// Why a way is not open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoliceLack {
    pub way: PoliceWay,
    /// The words of the tool or the kernel.
    pub why: String,
}

impl PoliceMeans {
    /// The best way that spares so many.
    ///
    /// # Errors
    /// Why there is none.
    fn way(&self, spared: usize) -> Result<PoliceWay, String> {
        if let Some(way) = self.ways.iter().find(|way| spared <= way.max_spared()) {
            return Ok(*way);
        }
        if let Some(most) = self.ways.iter().map(|way| way.max_spared()).max() {
            return Err(format!(
                "{spared} prefixes must not be limited, more than the {most} that tc is told to let pass: use XDP, which \
                 spares any number"
            ));
        }
        Err(self.text())
    }

    /// Whether nothing better is wished for.
    pub fn is_best(&self) -> bool {
        self.ways.contains(&PoliceWay::Police)
    }

    /// How an interface is limited, and why not another way.
    pub fn text(&self) -> String {
        let without = self.without();
        match self.ways.first() {
            Some(way) if without.is_empty() => format!("an interface is limited by {}", way.text()),
            Some(way) => {
                format!("an interface is limited by {}, as it cannot be by {}", way.text(), without.join(", nor by "))
            }
            None => format!("this node has no way to limit an interface: {}", without.join("; ")),
        }
    }

    /// Which ways are not open, and why: so many words and no more, whatever a node says.
    fn without(&self) -> Vec<String> {
        let text =
            |lack: &PoliceLack| format!("{} ({})", lack.way.text(), lack.why.chars().take(MAX_WHY).collect::<String>());
        self.lacking.iter().take(PoliceWay::ALL.len()).map(text).collect()
    }
}

/// Drops what an interface receives above a rate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TcPoliceInterface {
    /// 1 to 15 characters.
    #[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^[A-Za-z][A-Za-z0-9_.-]{0,14}$"))]
    pub interface: InterfaceName,
    /// Bits per second, 8,000 to 1,000,000,000,000.
    #[cfg_attr(feature = "openapi", schema(minimum = 8_000, maximum = 1_000_000_000_000_u64))]
    pub bps: u64,
    /// Bytes that may come at once, 2,048 to 4,294,967,295; what comes in ten milliseconds by default.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 2_048, maximum = 4_294_967_295_u64))]
    pub burst_bytes: Option<u32>,
}

/// A filter that takes everything that comes to it.
const EVERYTHING: [&str; 4] = ["match", "u32", "0", "0"];
/// Ends the search: the frame goes on. An action that says so would need another module.
const PASSES: [&str; 2] = ["flowid", "1:1"];

impl TcPoliceInterface {
    /// A hundredth of a second's bytes, within the bounds; less than some packets would let nothing through.
    fn burst(&self) -> u64 {
        self.burst_bytes.map_or_else(|| (self.bps / 800).clamp(65_536, u64::from(u32::MAX)), u64::from)
    }

    /// The place of the filter that limits. Of two on one interface the stricter comes first, since what is redirected
    /// meets no other; what conforms to a policer or a bucket goes on to the next.
    fn preference(&self) -> u32 {
        let bps = self.bps.max(8_000);
        let doublings = bps.ilog2();
        let rest = ((bps - (1 << doublings)) * u64::from(STEPS_PER_DOUBLING)) >> doublings;
        PREFERENCE + (doublings - 8_000_u64.ilog2()) * STEPS_PER_DOUBLING + u32::try_from(rest).unwrap_or(0)
    }

    /// The device of this rate on this interface.
    fn ifb(&self) -> String {
        let what = format!("{} {} {}", self.interface, self.bps, self.burst());
        // FNV-1a of 32 bits.
        let hash = what.bytes().fold(0x811c_9dc5_u32, |hash, b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193));
        format!("{IFB_PREFIX}{hash:08x}")
    }

    /// Lets those pass that are never to be limited, and the questions for the addresses of neighbours.
    fn spare(&self, spared: &[IpNet], shown: &mut Preview) {
        if spared.is_empty() {
            return;
        }
        let interface = self.interface.as_str();
        let mut pass = |place: usize, protocol: &str, matches: &[&str], object: String| {
            let place = (FIRST_PREFERENCE + place).to_string();
            let matches = [&["u32"][..], matches, &PASSES].concat();
            filter(interface, &place, protocol, &matches, format!("{object} passes"), shown);
        };
        pass(0, "arp", &EVERYTHING, "ARP".to_owned());
        // IPv6 asks by ICMPv6, types 133 to 136, of which none comes through a router (RFC 4861, section 7.1).
        let direct = ["match", "u8", "0xff", "0xff", "at", "7", "match", "ip6", "protocol", "58", "0xff"];
        for (at, (kind, mask)) in [("0x84", "0xfc"), ("0x88", "0xff")].into_iter().enumerate() {
            let matches = [direct.as_slice(), &["match", "u8", kind, mask, "at", "40"]].concat();
            pass(MAX_SPARED + 1 + at, "ipv6", &matches, format!("neighbour discovery ({kind}/{mask})"));
        }
        for (at, prefix) in spared.iter().enumerate() {
            let (protocol, word) = if is_v6(prefix) { ("ipv6", "ip6") } else { ("ip", "ip") };
            let source = prefix.to_string();
            pass(at + 1, protocol, &["match", word, "src", &source], format!("what comes from {source}"));
        }
    }

    fn show_by(&self, way: PoliceWay, spared: &[IpNet], shown: &mut Preview) {
        let interface = self.interface.as_str();
        let (place, bps) = (self.preference().to_string(), self.bps.to_string());
        let (rate, burst) = (format!("{bps}bit"), self.burst().to_string());
        let ifb = self.ifb();
        if way == PoliceWay::Ifb {
            show_ifb(&ifb, &rate, &burst, shown);
        }
        clsact(interface, shown);
        match way {
            PoliceWay::Police => {
                self.spare(spared, shown);
                // What conforms meets the filters behind this one.
                let police = ["police", "rate", &rate, "burst", &burst, "conform-exceed", "drop/continue"];
                let matches = [&["u32"][..], &EVERYTHING, &["action"], &police].concat();
                let object = format!("police {rate}, burst {burst} bytes");
                filter(interface, &place, "all", &matches, object, shown);
            }
            PoliceWay::Ifb => {
                self.spare(spared, shown);
                redirect(interface, &place, "all", &ifb, shown);
            }
            PoliceWay::Program => {
                let own = ["ftagent", "tc-bucket", "--interface", interface, "--pref", &place, "--bps", &bps];
                let mut run = argv(&[&own[..], &["--burst-bytes", &burst]].concat());
                for prefix in spared {
                    run.extend(argv(&["--spare", &prefix.to_string()]));
                }
                let undo = argv(&["tc", "filter", "del", "dev", interface, "ingress", "pref", &place]);
                let object = format!(
                    "ingress filter {place} of {interface}: the program ftagent_bucket, {rate}, burst {burst} bytes, ARP, \
                     neighbour discovery and {} prefixes pass",
                    spared.len()
                );
                shown.step(run, undo, object);
            }
        }
    }
}

fn clsact(interface: &str, shown: &mut Preview) {
    let make = argv(&["tc", "qdisc", "add", "dev", interface, "clsact"]);
    let object = format!("qdisc clsact of {interface}, made unless it is there");
    shown.step(make, argv(&["tc", "qdisc", "del", "dev", interface, "clsact"]), object);
}

fn filter(interface: &str, place: &str, protocol: &str, rest: &[&str], object: String, shown: &mut Preview) {
    let add = ["tc", "filter", "add", "dev", interface, "ingress", "pref", place, "protocol", protocol];
    let undo = argv(&["tc", "filter", "del", "dev", interface, "ingress", "pref", place]);
    shown.step(argv(&[&add[..], rest].concat()), undo, format!("ingress filter {place} of {interface}: {object}"));
}

/// A device that lets through what its queue does, which holds no more than may come at once.
fn show_ifb(ifb: &str, rate: &str, burst: &str, shown: &mut Preview) {
    let made = argv(&["ip", "link", "add", "name", ifb, "type", "ifb"]);
    shown.step(made, argv(&["ip", "link", "del", "dev", ifb]), format!("device {ifb}"));
    // Without an address of its own, it asks nobody for anything.
    let up = argv(&["ip", "link", "set", "dev", ifb, "addrgenmode", "none", "up"]);
    shown.step(up, argv(&["ip", "link", "set", "dev", ifb, "down"]), format!("{ifb} is up"));
    let queue = ["tc", "qdisc", "add", "dev", ifb, "root", "tbf", "rate", rate, "burst", burst, "limit", burst];
    let undo = argv(&["tc", "qdisc", "del", "dev", ifb, "root"]);
    shown.step(argv(&queue), undo, format!("qdisc tbf of {ifb}: {rate}, burst and queue {burst} bytes"));
}

fn redirect(interface: &str, place: &str, protocol: &str, ifb: &str, shown: &mut Preview) {
    let mirred = ["action", "mirred", "egress", "redirect", "dev", ifb];
    let matches = [&["u32"][..], &EVERYTHING, &mirred].concat();
    filter(interface, place, protocol, &matches, format!("by way of {ifb}"), shown);
}

/// What is tried to find out whether a kernel has a way: on the loopback, with filters of a protocol that nobody speaks
/// (`ETH_P_802_EX1`), or with a bucket that is never empty.
pub fn police_trial(way: PoliceWay) -> Vec<ToolStep> {
    const NOBODYS: &str = "0x88b5";
    const PLACE: &str = "29999";
    const DEVICE: &str = "fti-trial";
    let mut shown = Preview::default();
    if way == PoliceWay::Ifb {
        show_ifb(DEVICE, "8000bit", "2048", &mut shown);
    }
    clsact("lo", &mut shown);
    if way != PoliceWay::Program {
        let pass = [&["u32"][..], &EVERYTHING, &PASSES].concat();
        filter("lo", "29998", NOBODYS, &pass, String::new(), &mut shown);
    }
    match way {
        PoliceWay::Police => {
            let police = ["police", "rate", "8000bit", "burst", "2048", "conform-exceed", "drop/continue"];
            let matches = [&["u32"][..], &EVERYTHING, &["action"], &police].concat();
            filter("lo", PLACE, NOBODYS, &matches, String::new(), &mut shown);
        }
        PoliceWay::Ifb => redirect("lo", PLACE, NOBODYS, DEVICE, &mut shown),
        PoliceWay::Program => {
            let own = ["ftagent", "tc-bucket", "--interface", "lo", "--pref", PLACE, "--bps", "1000000000000"];
            let run = argv(&[&own[..], &["--burst-bytes", "4294967295", "--spare", "127.0.0.0/8"]].concat());
            let undo = argv(&["tc", "filter", "del", "dev", "lo", "ingress", "pref", PLACE]);
            shown.step(run, undo, String::new());
        }
    }
    shown.steps()
}

impl Parameters for TcPoliceInterface {
    fn kind(&self) -> &'static str {
        "tc_police_interface"
    }

    fn tool(&self) -> &'static str {
        "tc"
    }

    fn check(&self) -> Result<(), ParameterError> {
        within("bps", self.bps, 8_000, 1_000_000_000_000)?;
        within("burst_bytes", self.burst_bytes.map_or(2_048, u64::from), 2_048, u32::MAX.into())
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        let unknown = PoliceMeans { ways: vec![PoliceWay::Police], lacking: Vec::new() };
        let means = on.node.police.as_ref();
        let way = match means.unwrap_or(&unknown).way(on.spared.len()) {
            Ok(way) => way,
            Err(why) => {
                shown.refused = Some(why);
                return;
            }
        };
        self.show_by(way, on.spared, shown);
        shown.warnings.push(format!(
            "everything that {} receives shares the rate: wanted traffic is dropped with the rest. The node lets pass, \
             before that, every prefix that it never blocks: its allowlist, gateways, resolvers, control plane and \
             management sources",
            self.interface
        ));
        shown.warnings.push(match means {
            None => {
                "shown for a kernel that has act_police; a node whose kernel has not redirects to an ifb with tbf, or \
                     else has a program for it: which, the preview of one of its incidents says"
                    .to_owned()
            }
            // Another one may be taken for the number of prefixes that it spares.
            Some(means) if means.ways.first() != Some(&way) => format!("on this node by {}", way.text()),
            Some(means) => format!("on this node {}", means.text()),
        });
        if way == PoliceWay::Ifb {
            shown.warnings.push(format!(
                "what comes above the rate waits in a queue of {} bytes before it is dropped",
                self.burst()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(bps: u64) -> TcPoliceInterface {
        let interface = InterfaceName::try_from("eth0".to_owned()).expect("a name");
        TcPoliceInterface { interface, bps, burst_bytes: None }
    }

    #[test]
    fn a_stricter_rate_comes_first_and_places_are_those_of_filters() {
        let rates = [8_000, 8_191, 8_192, 9_000, 1_000_000, 1_010_000, 999_000_000_000, 1_000_000_000_000];
        let places: Vec<u32> = rates.iter().map(|bps| rate(*bps).preference()).collect();
        assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
        // Behind those of who is spared, and before those that the kernel numbers from 49,152 down.
        assert!(places[0] > (FIRST_PREFERENCE + MAX_SPARED + 2) as u32 && places[7] < 45_000, "{places:?}");
        assert_eq!(rate(0).preference(), rate(8_000).preference());
    }

    #[test]
    fn devices_of_other_rates_and_interfaces_have_other_names() {
        let other = TcPoliceInterface { burst_bytes: Some(4_096), ..rate(8_000) };
        let names = [rate(8_000).ifb(), rate(9_000).ifb(), other.ifb()];
        assert!(names[0] != names[1] && names[0] != names[2] && names[1] != names[2], "{names:?}");
        assert!(names.iter().all(|name| name.len() <= 15 && name.starts_with(IFB_PREFIX)), "{names:?}");
    }

    #[test]
    fn the_best_way_is_taken_that_spares_as_many() {
        let means = |ways: &[PoliceWay]| PoliceMeans { ways: ways.to_vec(), lacking: Vec::new() };
        let all = means(&PoliceWay::ALL);
        assert_eq!(all.way(64), Ok(PoliceWay::Police));
        assert_eq!(all.way(65), Ok(PoliceWay::Program));
        assert_eq!(means(&[PoliceWay::Ifb, PoliceWay::Program]).way(3), Ok(PoliceWay::Ifb));
        assert!(all.way(1_025).is_err_and(|why| why.contains("1024")));
        assert!(means(&[PoliceWay::Ifb]).way(65).is_err_and(|why| why.contains("64")));
        let lacking = vec![PoliceLack { way: PoliceWay::Police, why: "tc is not installed".to_owned() }];
        let none = PoliceMeans { ways: Vec::new(), lacking };
        assert!(none.way(0).is_err_and(|why| why.contains("no way") && why.contains("not installed")));
    }

    #[test]
    fn what_is_tried_meets_no_frame_and_is_undone() {
        for way in PoliceWay::ALL {
            let steps = police_trial(way);
            assert!(steps.iter().all(|step| !step.undo.is_empty() && step.look().is_some()), "{steps:?}");
            let filters: Vec<&ToolStep> = steps.iter().filter(|s| s.run[1] == "filter").collect();
            assert!(filters.iter().all(|s| s.run.contains(&"0x88b5".to_owned())), "{filters:?}");
            assert_eq!(filters.is_empty(), way == PoliceWay::Program);
        }
    }
}
