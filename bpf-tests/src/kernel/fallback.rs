//! Rows about the rungs of the fall-back ladder below nftables: the agent carries its rules by traffic control, or by
//! null routes, on real packets, beside what somebody else put there.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::agent::{Running, command, configuration_for, wait_ready};
use super::stage::{BAD_V4, BAD_V6, EDGE_V4, EDGE_V6, Ear, GOOD_V4, Stage, datagram, text};
use super::{Outcome, Tools};

const FRAMES: u64 = 40;
/// A little longer than the agent waits between two looks.
const REPAIRED: Duration = Duration::from_secs(13);

pub(super) fn tc(tools: &Tools) -> Result<Outcome, String> {
    let scene = Scene::new(tools, "tc")?;
    // Nothing is there before, and nothing after.
    let plain = scene.dump()?;
    let mut agent = scene.start()?;
    let status = scene.status()?;
    let fallback = &status["datapath"]["fallback"];
    if fallback["rung"] != "tc" {
        let why = fallback["skipped"][0][1].as_str().unwrap_or_default().to_owned();
        return if scene.dump()? == plain {
            Ok(Outcome::Missing(why))
        } else {
            Err(format!("{why}; and something stays"))
        };
    }
    scene.same("after trying", &plain)?;
    scene.order(&["block", "10.99.0.64/26"])?;
    scene.arrive("a blocked prefix", Who::Bad4, 0)?;
    scene.arrive("another source", Who::Good4, FRAMES)?;
    scene.order(&["unblock", "10.99.0.64/26"])?;
    scene.same("after the last rule", &plain)?;

    // Somebody else has a qdisc and filters there, one of them in our place.
    scene.tool("tc", "qdisc add dev edge0 clsact")?;
    scene.tool("tc", "filter add dev edge0 ingress pref 49002 protocol ip flower src_ip 192.0.2.9 action ok")?;
    scene.tool("tc", "filter add dev edge0 ingress pref 7 protocol all matchall action continue")?;
    let foreign = scene.dump()?;
    scene.order(&["block", "10.99.0.64/26"])?;
    scene.order(&["block", &BAD_V6.to_string()])?;
    scene.arrive("a blocked prefix", Who::Bad4, 0)?;
    scene.arrive("a blocked IPv6 address", Who::Bad6, 0)?;
    scene.order(&["allow", &format!("{BAD_V4}/32")])?;
    scene.arrive("the allowlist inside of a block", Who::Bad4, FRAMES)?;
    scene.order(&["allow", &format!("{BAD_V4}/32"), "--remove"])?;
    scene.arrive("no more allowed", Who::Bad4, 0)?;
    let during = scene.dump()?;
    // Somebody takes one of ours away.
    scene.tool("tc", "filter del dev edge0 ingress pref 49003")?;
    scene.arrive("an IPv6 block that is gone", Who::Bad6, FRAMES)?;
    std::thread::sleep(REPAIRED);
    scene.arrive("a repaired block", Who::Bad6, 0)?;

    let target = EDGE_V4.to_string();
    let port = ["--match", "protocol udp destination-port 9990-10010 whole", "--action", "drop"];
    scene.order(&[&["rules", "add", "--target", &target], &port[..]].concat())?;
    scene.arrive("a range of ports", Who::Other4, 0)?;
    scene.order(&["allow", &format!("{OTHER_V4}/32")])?;
    scene.arrive("the allowlist before a rule of a target", Who::Other4, FRAMES)?;
    scene.order(&["allow", &format!("{OTHER_V4}/32"), "--remove"])?;
    scene.order(&["rules", "delete", "--target", &target, "--match", port[1]])?;
    scene.arrive("no more", Who::Other4, FRAMES)?;
    // As much as in 300 ms, and a burst.
    let bits = scene.limited("80kbps")?;
    let packets = scene.limited("10pps");
    scene.order(&["rules", "add", "--target", &target, "--match", "length 100-200", "--action", "drop"])?;
    let named = scene.status()?["datapath"]["fallback"]["not_in_force"].clone();
    if !named.to_string().contains("lengths") {
        return Err(format!("a rule that cannot be carried is not named: {named}"));
    }

    // A killed agent's filters stay, and its heir has them.
    agent.0.kill().map_err(|e| e.to_string())?;
    agent.0.wait().map_err(|e| e.to_string())?;
    scene.arrive("a dead agent's block", Who::Bad4, 0)?;
    let agent = scene.start()?;
    scene.arrive("an heir's block", Who::Bad4, 0)?;
    scene.same("after a restart", &during)?;
    scene.stop(agent)?;
    scene.same("after the end", &foreign)?;
    scene.arrive("after the end", Who::Bad4, FRAMES)?;

    // And one that is killed, and never comes again.
    let mut agent = scene.start()?;
    scene.arrive("blocked again", Who::Bad4, 0)?;
    agent.0.kill().map_err(|e| e.to_string())?;
    agent.0.wait().map_err(|e| e.to_string())?;
    scene.order(&["detach"])?;
    scene.same("after detaching", &foreign)?;
    scene.tool("tc", "qdisc del dev edge0 clsact")?;
    scene.same("at the end", &plain)?;
    let said = format!("drops, spares, repairs, is taken away; of {FRAMES} frames {bits} passed a limit of bits");
    Ok(match packets {
        Ok(passed) => Outcome::Ok(format!("{said} and {passed} one of packets")),
        Err(why) => Outcome::Degraded(format!("{said}; no limit of packets: {why}")),
    })
}

pub(super) fn null_route(tools: &Tools) -> Result<Outcome, String> {
    let scene = Scene::new(tools, "null_route")?;
    let plain = scene.dump()?;
    let agent = scene.start()?;
    let status = scene.status()?;
    if status["datapath"]["fallback"]["rung"] != "null_route" {
        return Ok(Outcome::Missing(status["datapath"]["fallback"].to_string()));
    }
    scene.order(&["block", "10.99.0.64/26"])?;
    scene.order(&["block", &BAD_V6.to_string()])?;
    scene.arrive("a blocked prefix", Who::Bad4, 0)?;
    scene.arrive("another source", Who::Good4, FRAMES)?;
    scene.order(&["allow", &format!("{BAD_V4}/32")])?;
    scene.arrive("the allowlist inside of a block", Who::Bad4, FRAMES)?;
    let rules = scene.tool("ip", "-6 rule")?;
    if !rules.contains(&format!("from {BAD_V6} blackhole")) {
        return Err(format!("what IPv6 forwards is not dropped: {rules}"));
    }
    scene.stop(agent)?;
    scene.same("after the end", &plain)?;
    Ok(Outcome::Ok("drops IPv4, spares, is taken away".to_owned()))
}

/// Not blocked.
const OTHER_V4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 130);

#[derive(Clone, Copy)]
enum Who {
    Good4,
    Other4,
    Bad4,
    Bad6,
}

struct Scene<'a> {
    tools: &'a Tools,
    ear4: Ear,
    ear6: Ear,
    config: PathBuf,
    // Last: its namespaces and its directory go when nobody is in them any more.
    stage: Stage,
}

impl<'a> Scene<'a> {
    /// An agent without a program, and with this rung alone.
    fn new(tools: &'a Tools, rung: &str) -> Result<Self, String> {
        let stage = Stage::new()?;
        let config = configuration_for(&stage, &["edge0"])?;
        let said = std::fs::read_to_string(&config).map_err(|e| e.to_string())?;
        let said = said
            .replace("name = \"edge0\"\n", "name = \"edge0\"\nattach = \"nftables\"\n")
            .replace("[datapath]\n", &format!("[datapath]\nfallback = [{rung:?}]\n"));
        std::fs::write(&config, said).map_err(|e| e.to_string())?;
        let (ear4, ear6) = (stage.listen(EDGE_V4)?, stage.listen(EDGE_V6)?);
        Ok(Self { tools, ear4, ear6, config, stage })
    }

    fn start(&self) -> Result<Running, String> {
        let log = std::fs::File::create(self.config.with_extension("log")).map_err(|e| e.to_string())?;
        let spawned = || command(self.tools, &self.config, "run").stdout(Stdio::null()).stderr(log).spawn();
        let child = self.stage.edge.run(spawned).map_err(text)?.map_err(|e| e.to_string())?;
        let running = Running(child);
        self.status().map_err(|why| format!("{why}; {}", self.log()))?;
        Ok(running)
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.config.with_extension("log")).unwrap_or_default();
        log.lines().rev().take(4).collect()
    }

    /// Ends the agent as the service does, and waits for it.
    fn stop(&self, mut agent: Running) -> Result<(), String> {
        kill(Pid::from_raw(agent.0.id().cast_signed()), Signal::SIGTERM).map_err(text)?;
        let status = agent.0.wait().map_err(|e| e.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("it ended with {status}; {}", self.log())) }
    }

    fn status(&self) -> Result<Value, String> {
        wait_ready(&self.stage, self.tools, &self.config)
    }

    /// Gives an order. A rule is in the maps at once; what carries it here comes a moment later.
    fn order(&self, words: &[&str]) -> Result<(), String> {
        let [first, rest @ ..] = words else { return Ok(()) };
        let run = || command(self.tools, &self.config, first).args(rest).output();
        let output = self.stage.edge.run(run).map_err(text)?.map_err(|e| e.to_string())?;
        std::thread::sleep(Duration::from_millis(400));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(format!("{words:?}: {}", said.trim())) }
    }

    fn tool(&self, name: &str, arguments: &str) -> Result<String, String> {
        self.stage.run(if name == "tc" { &self.tools.tc } else { &self.tools.ip }, arguments)
    }

    /// How many of [`FRAMES`] arrive.
    fn passed(&self, who: Who) -> Result<u64, String> {
        let (ear, frame) = match who {
            Who::Good4 => (&self.ear4, datagram(GOOD_V4, EDGE_V4)),
            Who::Other4 => (&self.ear4, datagram(OTHER_V4, EDGE_V4)),
            Who::Bad4 => (&self.ear4, datagram(BAD_V4, EDGE_V4)),
            Who::Bad6 => (&self.ear6, datagram(BAD_V6, EDGE_V6)),
        };
        self.stage.send(&frame.payload(&[b'm'; 1_000]).build(), FRAMES)?;
        Ok(ear.heard(FRAMES))
    }

    fn arrive(&self, what: &str, who: Who, expected: u64) -> Result<(), String> {
        let passed = self.passed(who)?;
        if passed == expected {
            return Ok(());
        }
        let filters = self.tool("tc", "-s filter show dev edge0 ingress").unwrap_or_default();
        Err(format!("{what}: {passed} of {FRAMES} frames passed, not {expected}; {filters}; {}", self.log()))
    }

    /// How many frames pass a limit of a clean source.
    fn limited(&self, rate: &str) -> Result<u64, String> {
        let source = OTHER_V4.to_string();
        self.order(&["block", &source, "--rate", rate])?;
        let named = self.status()?["datapath"]["fallback"]["not_in_force"][0].as_str().map(str::to_owned);
        let passed = self.passed(Who::Other4)?;
        self.order(&["unblock", &source])?;
        match named {
            Some(why) if passed == FRAMES => Err(why),
            None if (1..FRAMES).contains(&passed) => Ok(passed),
            named => Err(format!("{passed} of {FRAMES} passed a limit of {rate}, {named:?}")),
        }
    }

    /// All that traffic control and routing have, without counters.
    fn dump(&self) -> Result<String, String> {
        let all = [
            ("tc", "qdisc show dev edge0"),
            ("tc", "filter show dev edge0 ingress"),
            ("tc", "filter show dev edge0 egress"),
            ("ip", "-4 rule"),
            ("ip", "-6 rule"),
            ("ip", "-4 route show table all"),
            ("ip", "-6 route show table all"),
        ];
        all.iter().map(|(name, arguments)| self.tool(name, arguments)).collect()
    }

    fn same(&self, when: &str, expected: &str) -> Result<(), String> {
        let now = self.dump()?;
        if now == expected { Ok(()) } else { Err(format!("{when} not as before: {now}; before: {expected}")) }
    }
}
