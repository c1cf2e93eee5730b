//! Our chains of iptables and ip6tables: found by name and comment, put and taken in one transaction of each family.

use ftagent_common::api::{PROFILE_CHAINS, Step};

use super::tools::Tools;

/// What shows a family's rules, and what loads them.
pub(super) const FAMILIES: [(&str, &str); 2] =
    [("iptables-save", "iptables-restore"), ("ip6tables-save", "ip6tables-restore")];

/// What of ours a family has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ours {
    pub(super) chains: Vec<String>,
    /// Of our chains, in order.
    pub(super) rules: Vec<String>,
    /// What leads into them, as `-A` added it.
    pub(super) jumps: Vec<String>,
}

impl Ours {
    /// Picks what is ours out of a dump.
    pub(super) fn read(dump: &str) -> Self {
        let mut ours = Self::default();
        let mut in_filter = false;
        for line in dump.lines() {
            if let Some(table) = line.strip_prefix('*') {
                in_filter = table == "filter";
            } else if in_filter {
                ours.take(line);
            }
        }
        ours
    }

    fn take(&mut self, line: &str) {
        let is_ours = |name: &str| PROFILE_CHAINS.iter().any(|(_, _, chain)| *chain == name);
        if let Some(chain) = line.strip_prefix(':').and_then(|l| l.split(' ').next()).filter(|c| is_ours(c)) {
            self.chains.push(chain.to_owned());
        } else if let Some(rest) = line.strip_prefix("-A ") {
            let words: Vec<&str> = rest.split(' ').collect();
            if words.first().is_some_and(|chain| is_ours(chain)) {
                self.rules.push(line.to_owned());
            } else if words.windows(2).any(|w| w == ["--comment", "ftagent"])
                && words.windows(2).any(|w| w[0] == "-j" && is_ours(w[1]))
            {
                self.jumps.push(rest.to_owned());
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// To compare with what was there before.
    pub(super) fn text(&self) -> String {
        let all = self.chains.iter().chain(&self.rules).chain(&self.jumps);
        all.map(|line| format!("{line}\n")).collect()
    }

    /// Takes all of it away.
    fn taking(&self) -> String {
        let lines = |verb: &str, of: &[String]| of.iter().map(|line| format!("{verb} {line}\n")).collect::<String>();
        let (jumps, chains) = (lines("-D", &self.jumps), &self.chains);
        format!("*filter\n{jumps}{}{}COMMIT\n", lines("-F", chains), lines("-X", chains))
    }

    /// `input` for a family that has this already: nothing leads into our chains twice.
    fn replacing(&self, input: &str) -> String {
        let jumps: String = self.jumps.iter().map(|jump| format!("-D {jump}\n")).collect();
        match input.find("\n-I ") {
            Some(at) => format!("{}\n{jumps}{}", &input[..at], &input[at + 1..]),
            None => input.to_owned(),
        }
    }
}

/// A family's rules.
pub(super) fn dump(tools: &mut Tools, save: &str) -> Result<String, String> {
    tools.ask(&[save, "-t", "filter"]).map_err(|error| error.to_string())
}

/// What of ours both families have.
pub(super) fn look(tools: &mut Tools) -> Result<[Ours; 2], String> {
    let [four, six] = FAMILIES.map(|(save, _)| dump(tools, save).map(|dump| Ours::read(&dump)));
    Ok([four?, six?])
}

/// Both families, to compare.
pub(super) fn text(ours: &[Ours; 2]) -> String {
    format!("IPv4\n{}IPv6\n{}", ours[0].text(), ours[1].text())
}

/// Loads what the steps for `iptables-restore` say, in place of what is there.
pub(super) fn put<'a>(tools: &mut Tools, steps: impl Iterator<Item = &'a Step>) -> Result<(), String> {
    let steps: Vec<&Step> = steps.collect();
    for (save, restore) in FAMILIES {
        for step in steps.iter().filter(|step| step.command.first().is_some_and(|word| word == restore)) {
            let ours = Ours::read(&dump(tools, save)?);
            tools.run(&step.command, &ours.replacing(&step.input)).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// Takes away what is there of ours.
pub(super) fn take(tools: &mut Tools) -> Result<(), String> {
    for (save, restore) in FAMILIES {
        let ours = Ours::read(&dump(tools, save)?);
        if !ours.is_empty() {
            let command = [restore, "--wait=5", "--noflush"].map(str::to_owned);
            tools.run(&command, &ours.taking()).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ftagent_common::api::{CustomRule, Kept, Suite, compile};

    use super::*;

    const DUMP: &str = "# made\n*nat\n:FTAGENT-PROFILE - [0:0]\nCOMMIT\n*filter\n:INPUT ACCEPT [12:34]\n\
        :FTAGENT-PROFILE - [0:0]\n:mine - [0:0]\n-A INPUT -m comment --comment ftagent -j FTAGENT-PROFILE\n\
        -A INPUT -m comment --comment ftagent -j DROP\n-A INPUT -j mine\n-A FTAGENT-PROFILE -i lo -j RETURN\n\
        -A FTAGENT-PROFILE -p udp -j DROP\n-A mine -j DROP\nCOMMIT\n";

    #[test]
    fn what_is_ours_is_known_by_its_chain_and_comment() {
        let ours = Ours::read(DUMP);
        assert_eq!(ours.chains, ["FTAGENT-PROFILE"]);
        assert_eq!(ours.jumps, ["INPUT -m comment --comment ftagent -j FTAGENT-PROFILE"]);
        assert_eq!(ours.rules.len(), 2);
        assert!(Ours::read("*filter\n-A INPUT -j DROP\nCOMMIT\n").is_empty());
    }

    #[test]
    fn in_the_common_case_that_is_run_which_was_shown() {
        let own = CustomRule { cmd: "iptables -A INPUT -p udp -j DROP".to_owned(), title: "mine".to_owned() };
        let compiled = compile(Suite::Iptables, &[], &[own], &Kept::default()).expect("compiled");
        let step = &compiled.steps[0];
        assert_eq!(Ours::default().replacing(&step.input), step.input, "nothing was there");
        assert_eq!(Ours::read(DUMP).taking(), step.undo_input);
        let again = Ours::read(DUMP).replacing(&step.input);
        let (delete, insert) =
            (again.find("\n-D INPUT").expect("deleted"), again.find("\n-I INPUT").expect("inserted"));
        assert!(delete < insert, "{again}");
        assert_eq!(again.replace("-D INPUT -m comment --comment ftagent -j FTAGENT-PROFILE\n", ""), step.input);
    }
}
