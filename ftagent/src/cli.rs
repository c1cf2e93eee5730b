//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use ipnet::IpNet;
use uuid::Uuid;

use crate::config::DEFAULT_PATH;
use crate::engine::{Matches, words};
use crate::lists::Widest;

/// Detects DDoS attacks and drops them in the kernel.
#[derive(Debug, Parser)]
#[command(version, about, after_help = AFTER_HELP)]
pub struct Cli {
    /// The configuration file.
    #[arg(long, short, global = true, env = "FTAGENT_CONFIG", default_value = DEFAULT_PATH, value_name = "FILE")]
    pub config: PathBuf,

    /// Print JSON: one object, for programs.
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  ftagent check                         is this machine ready, and what would be attached how
  ftagent run                           run in the foreground (the service does this)
  ftagent top                           what is arriving now, and for whom
  ftagent block 198.51.100.7 --ttl 10m  drop one source for ten minutes
  ftagent replay attack.pcap --explain  what the agent would make of a capture, and why
  ftagent lab                           how fast this machine drops packets, by every way it has
  ftagent detach                        remove everything from the kernel

FTAGENT_LOG sets what is logged, such as `info` or `ftagent=debug`.
Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused by the guard.";

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent in the foreground until SIGTERM; enforcement stays attached when it ends.
    Run,
    /// Show what the agent sees and does.
    Status,
    /// Show traffic and attacks live; Ctrl-C ends.
    Top {
        /// Seconds between two pictures, 0.2 to 60.
        #[arg(long, default_value_t = 1.0, value_parser = interval)]
        interval: f64,
        /// End after this many pictures.
        #[arg(long)]
        count: Option<u32>,
    },
    /// Drop (or limit) a source from now on.
    Block {
        /// An address or prefix.
        source: IpNetOrAddr,
        /// How long, such as 90s, 10m, 2h or 1d; until `unblock` if absent.
        #[arg(long, value_parser = duration)]
        ttl: Option<u32>,
        /// Limit instead of drop: packets or bits per second, such as 1000pps or 5Mbps.
        #[arg(long, value_parser = rate)]
        rate: Option<Rate>,
    },
    /// Lift every block and limit of exactly this source.
    Unblock {
        /// The address or prefix as it was blocked.
        source: IpNetOrAddr,
    },
    /// Put a prefix on this node's allowlist: nothing drops it.
    Allow {
        /// An address or prefix.
        prefix: IpNetOrAddr,
        /// Why it is there.
        #[arg(long, default_value = "")]
        label: String,
        /// Take it off instead.
        #[arg(long)]
        remove: bool,
    },
    /// Show the rules in force, where they come from, and what they dropped; add or delete one.
    Rules {
        #[command(subcommand)]
        change: Option<RuleChange>,
    },
    /// Show incidents: active ones first, then those resolved lately.
    Incidents {
        /// Only this one, in full.
        uuid: Option<Uuid>,
        /// End the incident and undo what was done about it.
        #[arg(long, requires = "uuid")]
        resolve: bool,
        /// With --resolve: it was no attack.
        #[arg(long, requires = "resolve")]
        false_positive: bool,
    },
    /// Show the captures of incidents: pcapng files with the verdict of every packet.
    Captures,
    /// Show the attack profile on this node, keep it, or take it back.
    Profile {
        #[command(subcommand)]
        change: Option<ProfileChange>,
    },
    /// Lists of sources.
    Lists {
        #[command(subcommand)]
        command: ListsCommand,
    },
    /// Remove programs, links, maps and the nftables table from the kernel. The agent must not be running.
    Detach,
    /// Tell whether this machine can run the agent, and what would degrade.
    Check,
    /// Check the configuration file and say what it means.
    CheckConfig,
    /// Run a capture through the detection, off-line, and print incidents and what the agent would do.
    ///
    /// The same engine with a simulated clock: nothing of this machine is touched, no privilege is needed, and the same
    /// file gives the same answer. Thresholds, firewall rules and protected prefixes are those of the configuration, if
    /// there is one. Lists of files, reflectors and the TCP gate drop nothing here. Exit status: 0 replayed, with
    /// incidents or without; 1 the file cannot be read, has no packet or is damaged (what came before the damage is
    /// printed); 2 wrong usage.
    Replay(ReplayArguments),
    /// Measure what a dropped packet costs on this machine, and how soon an attack is dropped.
    ///
    /// Builds network namespaces, floods every way to drop packets that is installed here (iptables, ipset, nftables,
    /// tc, XDP, xdp-filter, routes, ftagent) in turn, and prints the cost of each. Then starts an agent in a namespace
    /// and measures the time from the first packet of a flood to the first one dropped. No interface, firewall or
    /// configuration of this machine is touched; both CPUs are busy meanwhile. Needs root.
    Lab(LabArguments),
    /// Limit what an interface receives by a token bucket in a filter of tc, as `tc_police_interface` does where the
    /// kernel has no policer.
    ///
    /// The interface needs `clsact`, or `ingress` (`tc qdisc add dev eth0 clsact`). The filter stays until
    /// `tc filter del dev eth0 ingress pref N`. ARP and IPv6's neighbour discovery pass. No configuration is read.
    TcBucket(TcBucketArguments),
    /// Print a completion script for a shell.
    Completions {
        /// bash, elvish, fish, powershell or zsh.
        shell: clap_complete::Shell,
    },
}

/// The rate of an interface.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct TcBucketArguments {
    /// Its name.
    #[arg(long)]
    pub interface: String,
    /// The filter's place among those of the interface, 1 to 65535: lower ones come first.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub pref: u16,
    /// Bits per second, 8,000 to 1,000,000,000,000.
    #[arg(long, value_parser = clap::value_parser!(u64).range(8_000..=1_000_000_000_000))]
    pub bps: u64,
    /// Bytes that may come at once, at least 2,048.
    #[arg(long, value_parser = clap::value_parser!(u32).range(2_048..))]
    pub burst_bytes: u32,
    /// A source that passes and takes nothing of the rate; may be given again.
    #[arg(long, value_name = "PREFIX")]
    pub spare: Vec<IpNetOrAddr>,
}

/// What becomes of the profile.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum ProfileChange {
    /// Keep what is on trial, as `confirm` of the control plane does.
    Confirm,
    /// Take the profile back now; also where no agent runs.
    Rollback,
}

/// What is replayed, and how.
#[derive(Debug, clap::Args)]
pub struct ReplayArguments {
    /// A pcap or pcapng file: Ethernet, raw IP, Linux cooked, null, or PPP.
    pub file: PathBuf,
    /// Say why: counters, thresholds, and which families were considered.
    #[arg(long)]
    pub explain: bool,
    /// Packets per second, instead of the capture's own times.
    #[arg(long, value_name = "PPS", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub rate: Option<u64>,
    /// Begin the file anew until so many seconds are over.
    #[arg(long, requires = "rate", value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: Option<u64>,
    /// Sample one packet in N; without it as many as the agent would.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub sample: Option<u32>,
    /// A protected address or prefix, instead of the configuration's; may be repeated. Without either every destination
    /// is.
    #[arg(long = "target", value_name = "PREFIX")]
    pub targets: Vec<IpNetOrAddr>,
}

/// What can be done with lists.
#[derive(Debug, Subcommand)]
pub enum ListsCommand {
    /// Load lists as the agent would and say what is loaded, what is skipped, and why. Changes nothing.
    Check {
        /// Text files, or databases with --country or --asn; the lists of the configuration if absent.
        files: Vec<PathBuf>,
        /// Of a MaxMind database: the networks of this country, such as DE; may be repeated.
        #[arg(long = "country", requires = "files", value_parser = country)]
        countries: Vec<String>,
        /// Of a MaxMind database: the networks of this autonomous system, such as 64500; may be repeated.
        #[arg(long = "asn", requires = "files", value_parser = clap::value_parser!(u32).range(1..))]
        asns: Vec<u32>,
        /// The shortest IPv4 prefix that is taken.
        #[arg(long, requires = "files", default_value_t = Widest::default().min_prefix_v4, value_parser = clap::value_parser!(u8).range(1..=32))]
        min_prefix_v4: u8,
        /// The shortest IPv6 prefix that is taken.
        #[arg(long, requires = "files", default_value_t = Widest::default().min_prefix_v6, value_parser = clap::value_parser!(u8).range(1..=128))]
        min_prefix_v6: u8,
    },
}

fn country(text: &str) -> Result<String, String> {
    let is_code = text.len() == 2 && text.bytes().all(|b| b.is_ascii_uppercase());
    if is_code { Ok(text.to_owned()) } else { Err("a country is two capital letters, such as DE".to_owned()) }
}

/// What the lab measures.
#[derive(Debug, clap::Args)]
pub struct LabArguments {
    /// Seconds of flood for each peer and list, over all rounds.
    #[arg(long, default_value_t = 1.0, value_parser = flood_secs)]
    pub seconds: f64,
    /// Rounds of the ladder; every peer has its turn in each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// How many sources are blocked: a ladder for each number, 1 to 1048576.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1_000, 100_000], value_name = "N,N",
          value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub entries: Vec<u32>,
    /// Whether one blocked source sends, or all of them in turn.
    #[arg(long, value_delimiter = ',', default_value = "random", value_name = "KIND,KIND")]
    pub sources: Vec<FloodSources>,
    /// Only these peers; a name that nobody has lists them all.
    #[arg(long, value_delimiter = ',', value_name = "NAME,NAME")]
    pub only: Vec<String>,
    /// Measure the ladder; --ladder=false leaves it out.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub ladder: bool,
    /// Measure the time to the first drop; --latency=false leaves it out.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub latency: bool,
    /// Attacks whose first drop is timed, each on an agent that was just started.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000), value_name = "N")]
    pub runs: u32,
}

/// Where the lab's floods come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FloodSources {
    /// One source.
    Hot,
    /// All of the blocked, in random order.
    Random,
}

fn flood_secs(text: &str) -> Result<f64, String> {
    let secs: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.001..=3_600.0).contains(&secs) { Ok(secs) } else { Err(format!("must be 0.001 to 3600 seconds, got {secs}")) }
}

/// What can be done to the rules of a target.
#[derive(Debug, Subcommand)]
pub enum RuleChange {
    /// Drop, limit, pass, sample or mark what matches on its way to a target.
    Add {
        /// The destination: an address or prefix.
        #[arg(long)]
        target: IpNetOrAddr,
        /// Such as "protocol udp source-port 53 length 512-1500"; also destination-port, ttl, icmp-type, tcp-flags
        /// VALUE/MASK, dscp, source PREFIX, payload HEX, fragment, whole, "any protocol".
        #[arg(long = "match", value_parser = words::parse)]
        matches: Matches,
        /// `drop`, `limit 1000pps`, `limit 5Mbps`, `pass` (no further rule is asked), `sample` (every packet is copied),
        /// or `mark 8` (sets the DSCP).
        #[arg(long, value_parser = rule_action)]
        action: RuleAction,
        /// How long, such as 90s, 10m, 2h or 1d; until it is deleted if absent.
        #[arg(long, value_parser = duration)]
        ttl: Option<u32>,
        /// Count and sample what the rule would do, and do nothing.
        #[arg(long)]
        evaluate: bool,
    },
    /// Delete the rule of a target that matches exactly this, whoever made it.
    Delete {
        #[arg(long)]
        target: IpNetOrAddr,
        #[arg(long = "match", value_parser = words::parse)]
        matches: Matches,
        /// As it was added; not needed.
        #[arg(long, value_parser = rule_action, hide = true)]
        action: Option<RuleAction>,
    },
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    Drop,
    Limit(Rate),
    Pass,
    Sample,
    /// The DSCP, 0 to 63.
    Mark(u8),
}

fn rule_action(text: &str) -> Result<RuleAction, String> {
    match text.split_once(' ') {
        None if text == "drop" => Ok(RuleAction::Drop),
        None if text == "pass" => Ok(RuleAction::Pass),
        None if text == "sample" => Ok(RuleAction::Sample),
        Some(("mark", dscp)) => match dscp.trim().parse() {
            Ok(dscp) if dscp < 64 => Ok(RuleAction::Mark(dscp)),
            _ => Err(format!("{dscp:?} is no DSCP from 0 to 63")),
        },
        Some(("limit", limit)) => rate(limit.trim()).map(RuleAction::Limit),
        _ => {
            Err(format!("{text:?} is no action: write \"drop\", \"limit 1000pps\", \"pass\", \"sample\" or \"mark 8\""))
        }
    }
}

/// A prefix, or an address as a prefix of its full length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpNetOrAddr(pub IpNet);

impl std::str::FromStr for IpNetOrAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.parse::<std::net::IpAddr>().map(IpNet::from).or_else(|_| text.parse::<IpNet>());
        let net = parsed.map_err(|_| {
            format!("{text:?} is neither an address like 198.51.100.7 nor a prefix like 198.51.100.0/24")
        })?;
        if net.trunc() != net {
            return Err(format!("{text} has host bits: did you mean {}?", net.trunc()));
        }
        Ok(Self(net))
    }
}

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    Pps(u64),
    Bps(u64),
}

fn rate(text: &str) -> Result<Rate, String> {
    let error = || format!("{text:?} is no rate: write 1000pps, 20kpps, 5Mbps or 1Gbps");
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?);
    let number: u64 = number.parse().map_err(|_| error())?;
    let (factor, is_packets) = match unit.to_ascii_lowercase().as_str() {
        "pps" => (1, true),
        "kpps" => (1_000, true),
        "mpps" => (1_000_000, true),
        "bps" => (1, false),
        "kbps" => (1_000, false),
        "mbps" => (1_000_000, false),
        "gbps" => (1_000_000_000, false),
        _ => return Err(error()),
    };
    let rate = number.checked_mul(factor).filter(|r| *r > 0).ok_or_else(error)?;
    Ok(if is_packets { Rate::Pps(rate) } else { Rate::Bps(rate) })
}

/// Seconds from text such as `10m`.
fn duration(text: &str) -> Result<u32, String> {
    let error = || format!("{text:?} is no duration: write 90s, 10m, 2h or 1d, at most 365d");
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(error()),
    };
    let secs = number.parse::<u32>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(error)?;
    if (1..=365 * 86_400).contains(&secs) { Ok(secs) } else { Err(error()) }
}

fn interval(text: &str) -> Result<f64, String> {
    let secs: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.2..=60.0).contains(&secs) { Ok(secs) } else { Err(format!("must be 0.2 to 60 seconds, got {secs}")) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_lab_takes_lists_and_switches() {
        let parse = |words: &[&str]| {
            let words = ["ftagent", "lab"].iter().chain(words).copied();
            Cli::try_parse_from(words).map(|cli| match cli.command {
                Command::Lab(arguments) => arguments,
                other => panic!("{other:?} is not the lab"),
            })
        };
        let plain = parse(&[]).expect("everything has a default");
        assert_eq!((plain.seconds, plain.rounds, plain.runs), (1.0, 5, 5));
        assert_eq!((plain.entries, plain.sources), (vec![1, 1_000, 100_000], vec![FloodSources::Random]));
        assert!(plain.ladder && plain.latency && plain.only.is_empty());

        let words = "--seconds 0.5 --rounds 3 --entries 7,1000000 --sources hot,random --only nft-raw,ftagent";
        let given = parse(&words.split(' ').collect::<Vec<_>>()).expect("all of it is right");
        assert_eq!((given.seconds, given.rounds, given.entries), (0.5, 3, vec![7, 1_000_000]));
        assert_eq!(given.sources, [FloodSources::Hot, FloodSources::Random]);
        assert_eq!(given.only, ["nft-raw", "ftagent"]);

        let half = parse(&["--latency=false", "--ladder"]).expect("switches take a value or none");
        assert!(half.ladder && !half.latency);
        for wrong in
            [["--entries", "0"], ["--entries", "2000000"], ["--rounds", "0"], ["--seconds", "0"], ["--sources", "cold"]]
        {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_address_is_a_prefix_of_its_full_length() {
        assert_eq!("198.51.100.7".parse(), Ok(IpNetOrAddr("198.51.100.7/32".parse().expect("a prefix"))));
        assert!("198.51.100.7/24".parse::<IpNetOrAddr>().is_err_and(|e| e.contains("198.51.100.0/24")));
        assert!("example".parse::<IpNetOrAddr>().is_err());
    }

    #[test]
    fn durations_and_rates_are_read_with_their_units() {
        assert_eq!(duration("10m"), Ok(600));
        assert_eq!(duration("90"), Ok(90));
        assert!(duration("0").is_err() && duration("99999d").is_err() && duration("5w").is_err());
        assert_eq!(rate("20kpps"), Ok(Rate::Pps(20_000)));
        assert_eq!(rate("5Mbps"), Ok(Rate::Bps(5_000_000)));
        assert!(rate("5").is_err() && rate("0pps").is_err() && rate("5parsec").is_err());
    }
}
