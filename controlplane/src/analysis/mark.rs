//! What the agent wrote about a packet: `drop: blocked_source rule 7, 1 in 32` as a comment, and the options
//! `epb_verdict` and `epb_dropcount` for programs.

use ftagent_common::abi::Reason;

use super::input::Order;

/// Options of packets.
const COMMENT: u16 = 1;
const DROP_COUNT: u16 = 4;
const VERDICT: u16 = 7;
/// The longest comment that is shown, in characters.
const MAX_COMMENT: usize = 256;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PacketVerdict {
    Passed,
    Dropped,
    /// It passed, and would not have in mode `enforce`.
    WouldDrop,
    /// Dropped, and answered with a cookie.
    Answered,
}

/// The words about one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) verdict: Option<PacketVerdict>,
    pub(super) reason: Option<Reason>,
    pub(super) rule: Option<u64>,
    /// Of how many frames it is a sample, from 1.
    pub(super) one_in: u32,
    /// Samples before it that were not written.
    pub(super) missed: u64,
    /// A comment that is not the agent's.
    pub(super) comment: Option<String>,
    /// The comment is the agent's.
    is_ours: bool,
}

impl Default for Mark {
    fn default() -> Self {
        Self { verdict: None, reason: None, rule: None, one_in: 1, missed: 0, comment: None, is_ours: false }
    }
}

impl Mark {
    /// Reads one option of a packet.
    pub(super) fn option(&mut self, order: Order, code: u16, value: &[u8]) {
        match (code, value.len()) {
            (COMMENT, _) if !self.is_ours => self.comment(value),
            (DROP_COUNT, 8) => self.missed = order.u64(value, 0),
            // The comment says more: whether it would have been dropped.
            (VERDICT, 9) if !self.is_ours => self.verdict = verdict(value[0], order.u64(value, 1)),
            _ => {}
        }
    }

    fn comment(&mut self, value: &[u8]) {
        let text = String::from_utf8_lossy(value);
        if let Some((verdict, reason, rule, one_in)) = words(&text) {
            (self.verdict, self.reason, self.rule, self.one_in) = (Some(verdict), reason, rule, one_in);
            self.is_ours = true;
            self.comment = None;
        } else if self.comment.is_none() {
            let shown = text.chars().map(|c| if c.is_control() { ' ' } else { c });
            self.comment = Some(shown.take(MAX_COMMENT).collect());
        }
    }

    /// How many frames the packet stands for: those of its sample, and of the samples before it that were left out.
    pub(super) const fn weight(&self) -> u64 {
        (self.one_in as u64).saturating_mul(self.missed.saturating_add(1))
    }
}

/// Of XDP (2) the number is an `enum xdp_action`, of tc (1) a `TC_ACT_…`.
fn verdict(kind: u8, action: u64) -> Option<PacketVerdict> {
    match (kind, action) {
        (2, 1) | (1, 2) => Some(PacketVerdict::Dropped),
        (2, 2) | (1, 0 | u64::MAX) => Some(PacketVerdict::Passed),
        (2, 3) => Some(PacketVerdict::Answered),
        _ => None,
    }
}

/// Reads the agent's comment. A reason that is not known here is one of a newer agent, and left out.
fn words(text: &str) -> Option<(PacketVerdict, Option<Reason>, Option<u64>, u32)> {
    let (verdict, rest) = text.split_once(": ")?;
    let verdict = match verdict {
        "pass" => PacketVerdict::Passed,
        "drop" => PacketVerdict::Dropped,
        "pass, would drop" => PacketVerdict::WouldDrop,
        "drop, answered" => PacketVerdict::Answered,
        _ => return None,
    };
    let (reason, one_in) = rest.rsplit_once(", 1 in ")?;
    let one_in = one_in.parse().ok().filter(|n| *n > 0)?;
    let (reason, rule) = match reason.split_once(" rule ") {
        // "no longer known": the rule was gone when the packet was written.
        Some((reason, rule)) => (reason, rule.parse().ok()),
        None => (reason, None),
    };
    Some((verdict, Reason::ALL.iter().find(|r| r.as_str() == reason).copied(), rule, one_in))
}

#[cfg(test)]
mod tests {
    use super::*;
    use PacketVerdict::{Answered, Dropped, Passed, WouldDrop};

    #[test]
    fn the_agents_words_are_read() {
        for (text, expected) in [
            ("drop: blocked_source rule 7, 1 in 32", Some((Dropped, Some(Reason::BlockedSource), Some(7), 32))),
            ("pass: clean, 1 in 4", Some((Passed, Some(Reason::Clean), None, 4))),
            ("drop, answered: syn_cookie, 1 in 1", Some((Answered, Some(Reason::SynCookie), None, 1))),
            (
                "pass, would drop: target_rule rule no longer known, 1 in 4096",
                Some((WouldDrop, Some(Reason::TargetRule), None, 4_096)),
            ),
            ("drop: from_the_future, 1 in 2", Some((Dropped, None, None, 2))),
            ("drop: clean, 1 in 0", None),
            ("drop: clean, 1 in 99999999999", None),
            ("drop: clean", None),
            ("a comment of somebody", None),
            ("", None),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
    }

    #[test]
    fn the_comment_says_more_than_the_verdicts_number() {
        let mut mark = Mark::default();
        mark.option(Order::Little, COMMENT, b"a comment\nof somebody");
        mark.option(Order::Little, COMMENT, b"pass, would drop: target_rule, 1 in 8");
        mark.option(Order::Little, VERDICT, &[2, 2, 0, 0, 0, 0, 0, 0, 0]);
        mark.option(Order::Little, DROP_COUNT, &[3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((mark.verdict, mark.weight(), &mark.comment), (Some(WouldDrop), 32, &None));
        let mut others = Mark::default();
        others.option(Order::Big, VERDICT, &[2, 0, 0, 0, 0, 0, 0, 0, 1]);
        others.option(Order::Big, COMMENT, "ünd\u{7}".repeat(400).as_bytes());
        assert_eq!((others.verdict, others.weight()), (Some(Dropped), 1));
        assert_eq!(others.comment.map(|c| (c.chars().count(), c.contains('\u{7}'))), Some((256, false)));
    }

    #[test]
    fn weights_do_not_overflow() {
        let mark = Mark { one_in: u32::MAX, missed: u64::MAX, ..Mark::default() };
        assert_eq!(mark.weight(), u64::MAX);
    }
}
