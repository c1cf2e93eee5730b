//! Why a frame met its verdict: the index of its counter, and the one place that says pass or drop.

macro_rules! reasons {
    ($($(#[$meta:meta])* $variant:ident = $word:literal $verdict:ident),+ $(,)?) => {
        /// Why a frame met its verdict. Every frame has exactly one, so that the counters' sum is the frames seen.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[$meta])* $variant),+ }

        impl Reason {
            /// Every reason in counter order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The spelling in status, metrics and captures.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// Whether the frame goes no further while the mode is `enforce`.
            pub const fn is_drop(self) -> bool {
                match self { $(Self::$variant => reasons!(@$verdict)),+ }
            }
        }
    };
    (@pass) => { false };
    (@drop) => { true };
}

reasons! {
    /// Judged by every stage, and nothing was against it.
    Clean = "clean" pass,
    /// ARP, LLDP and other frames that are not IP.
    NotIp = "not_ip" pass,
    /// A management source on a management port, the control plane or the gateway.
    FailSafe = "fail_safe" pass,
    /// On the allowlist.
    Allowlisted = "allowlisted" pass,
    /// The mode is `bypass`.
    Bypassed = "bypassed" pass,
    /// Malformed, and the configuration lets such frames pass.
    MalformedPassed = "malformed_passed" pass,
    /// Headers cut off, contradictory, or over the parser's budget.
    Malformed = "malformed" drop,
    /// A first fragment made to hide its transport header.
    TinyFragment = "tiny_fragment" drop,
    /// More frames that are not IP than their policer lets through.
    NotIpLimit = "not_ip_limit" drop,
    /// A source address that no packet on a wire can have.
    MartianSource = "martian_source" drop,
    /// Source and destination address are the same.
    Land = "land" drop,
    /// TCP or UDP from or to port 0.
    PortZero = "port_zero" drop,
    /// TCP flags that no stack sends.
    ImpossibleFlags = "impossible_flags" drop,
    /// A UDP length that contradicts the datagram.
    BadLength = "bad_length" drop,
    /// The source address is blocked.
    BlockedSource = "blocked_source" drop,
    /// A prefix with the source in it is blocked.
    BlockedPrefix = "blocked_prefix" drop,
    /// The source is on a list that was loaded from a file.
    Listed = "listed" drop,
    /// A rule let it pass before the other rules were asked.
    RulePassed = "rule_passed" pass,
    /// A rule of the target dropped it.
    TargetRule = "target_rule" drop,
    /// Over a rate limit of the target.
    TargetLimit = "target_limit" drop,
    /// Over the rate limit of its source.
    SourceLimit = "source_limit" drop,
    /// An answer from a reflector's port, or to an echo request, that nobody asked for.
    Reflection = "reflection" drop,
    /// A TCP segment of no connection, towards a target behind the gate.
    UnsolicitedTcp = "unsolicited_tcp" drop,
    /// A first SYN towards a target behind the gate: an honest client repeats it.
    SynGate = "syn_gate" drop,
    /// A SYN that was answered with a cookie and went no further.
    SynCookie = "syn_cookie" drop,
}

impl Reason {
    /// Slots per interface in the counter map; more than there are reasons, so that adding one keeps the layout.
    pub const SLOTS: usize = 32;

    /// The index of the reason's counter.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }
}

const _: () = assert!(Reason::ALL.len() <= Reason::SLOTS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_the_positions_in_the_list() {
        for (position, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), position, "{}", reason.as_str());
        }
    }

    #[test]
    fn spellings_are_unique() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
