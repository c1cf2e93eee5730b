//! The field's words as small enums; every name is spelled here and nowhere else.
//!
//! `as_str` gives the spelling used on the wire, in the database and in the logs; `from_str` is its inverse.

/// Declares an enum whose variants have one spelling each, with `ALL`, `as_str`, `FromStr`, `Display` and serde.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:tt),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "api", derive(serde::Serialize, serde::Deserialize))]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum $name {
            $($(#[$vmeta])* #[cfg_attr(feature = "api", serde(rename = $word))] $variant),+
        }

        impl $name {
            /// Every word, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The one spelling of this word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl core::str::FromStr for $name {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word { $($word => Ok(Self::$variant),)+ _ => Err(UnknownWord) }
            }
        }
    };
}

/// The word is not part of the vocabulary it was looked up in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownWord;

impl core::fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("unknown word")
    }
}

#[cfg(feature = "api")]
impl std::error::Error for UnknownWord {}

words! {
    /// What kind of attack an incident is.
    AttackFamily {
        UdpFlood = "udp_flood",
        SynFlood = "syn_flood",
        AckFlood = "ack_flood",
        RstFlood = "rst_flood",
        SynAckFlood = "syn_ack_flood",
        /// Mixed or odd TCP flags; the incident's subtype names them.
        TcpFlood = "tcp_flood",
        IcmpFlood = "icmp_flood",
        /// Queries to port 53.
        DnsFlood = "dns_flood",
        HttpFlood = "http_flood",
        FragmentFlood = "fragment_flood",
        GreFlood = "gre_flood",
        /// Any other IP protocol.
        ProtocolFlood = "protocol_flood",
        MultiVector = "multi_vector",
        Unknown = "unknown",
        DnsAmplification = "dns_amplification",
        NtpAmplification = "ntp_amplification",
        MemcachedAmplification = "memcached_amplification",
        SsdpAmplification = "ssdp_amplification",
        CldapAmplification = "cldap_amplification",
        ChargenAmplification = "chargen_amplification",
        SnmpAmplification = "snmp_amplification",
        RpcbindAmplification = "rpcbind_amplification",
        WsdAmplification = "wsd_amplification",
        MdnsAmplification = "mdns_amplification",
        TftpAmplification = "tftp_amplification",
        NetbiosAmplification = "netbios_amplification",
        QotdAmplification = "qotd_amplification",
        Ripv1Amplification = "ripv1_amplification",
        OpenvpnAmplification = "openvpn_amplification",
        ArdAmplification = "ard_amplification",
        IsakmpAmplification = "isakmp_amplification",
        UbntAmplification = "ubnt_amplification",
        DvrAmplification = "dvr_amplification",
        CoapAmplification = "coap_amplification",
        /// A reflector port of no named service.
        UdpAmplification = "udp_amplification",
    }
}

words! {
    /// The six groups a firewall rule's trigger can name instead of one family.
    TriggerGroup {
        Udp = "udp",
        Syn = "syn",
        Http = "http",
        Icmp = "icmp",
        Dns = "dns",
        MultiVector = "multi",
    }
}

words! {
    /// How bad an incident is: peak over threshold below 1, from 1, from 2, from 5.
    Severity {
        Low = "low",
        Medium = "medium",
        High = "high",
        Critical = "critical",
    }
}

words! {
    /// Where an incident stands.
    IncidentStatus {
        Active = "active",
        Resolved = "resolved",
        FalsePositive = "false_positive",
    }
}

words! {
    /// How a node is, as the control plane sees it.
    NodeStatus {
        Online = "online",
        Offline = "offline",
        /// It has an active incident.
        Attack = "attack",
        /// Above 70 % of a threshold.
        Elevated = "elevated",
    }
}

words! {
    /// What the whole datapath does with a verdict to drop.
    Mode {
        /// Verdicts are carried out.
        Enforce = "enforce",
        /// Drops are counted and sampled, but the frame passes.
        Evaluate = "evaluate",
        /// Frames are counted; no rule is asked.
        Bypass = "bypass",
    }
}

words! {
    /// How frames reach the datapath on one interface, best first.
    AttachMode {
        /// XDP in the driver.
        Native = "native",
        /// XDP on the socket buffer, for drivers without XDP.
        Generic = "generic",
        /// A tc classifier with the same core.
        Tc = "tc",
        /// No program could be attached: nftables alone enforces.
        Nftables = "nftables",
    }
}

words! {
    /// The class that per-target counters and policers keep apart.
    TrafficClass {
        TcpSyn = "tcp_syn",
        TcpSynAck = "tcp_syn_ack",
        TcpAck = "tcp_ack",
        TcpRst = "tcp_rst",
        TcpFin = "tcp_fin",
        /// Flag sets that no TCP sends: none at all, SYN with FIN, FIN with URG and PSH.
        TcpOdd = "tcp_odd",
        Udp = "udp",
        /// UDP to port 53.
        DnsQuery = "dns_query",
        /// UDP from a port that reflectors answer from.
        Reflector = "reflector",
        Icmp = "icmp",
        Icmpv6 = "icmpv6",
        Gre = "gre",
        Esp = "esp",
        OtherIp = "other_ip",
        /// Any part of a fragmented datagram, the first included.
        Fragment = "fragment",
        /// ARP and everything else that is not IP.
        NotIp = "not_ip",
    }
}

impl TrafficClass {
    /// How many classes there are; the length of the per-target arrays.
    pub const COUNT: usize = 16;

    /// The index into the per-target arrays.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether the class is one of TCP's.
    pub const fn is_tcp(self) -> bool {
        (self as usize) <= Self::TcpOdd as usize
    }

    /// Whether the class is one of UDP's.
    pub const fn is_udp(self) -> bool {
        matches!(self, Self::Udp | Self::DnsQuery | Self::Reflector)
    }
}

impl AttackFamily {
    /// The trigger group the family belongs to, or none for `unknown` and the protocols outside the six groups.
    pub const fn group(self) -> Option<TriggerGroup> {
        use AttackFamily as F;
        Some(match self {
            F::SynFlood | F::SynAckFlood | F::AckFlood | F::RstFlood | F::TcpFlood => TriggerGroup::Syn,
            F::HttpFlood => TriggerGroup::Http,
            F::IcmpFlood => TriggerGroup::Icmp,
            F::DnsFlood | F::DnsAmplification => TriggerGroup::Dns,
            F::MultiVector => TriggerGroup::MultiVector,
            F::GreFlood | F::ProtocolFlood | F::FragmentFlood | F::Unknown => return None,
            _ => TriggerGroup::Udp,
        })
    }

    /// Whether sources are reflectors that answer to forged requests.
    pub const fn is_amplification(self) -> bool {
        (self as u8) >= Self::DnsAmplification as u8
    }
}

impl TriggerGroup {
    /// Whether a trigger on this group matches `family`.
    pub fn contains(self, family: AttackFamily) -> bool {
        family.group() == Some(self)
    }
}

impl Severity {
    /// The severity of a peak that is `ratio` times its threshold.
    pub const fn from_ratio(ratio: f64) -> Self {
        if ratio >= 5.0 {
            Self::Critical
        } else if ratio >= 2.0 {
            Self::High
        } else if ratio >= 1.0 {
            Self::Medium
        } else {
            Self::Low
        }
    }

    /// One step worse; critical stays critical.
    pub const fn raised(self) -> Self {
        match self {
            Self::Low => Self::Medium,
            Self::Medium => Self::High,
            Self::High | Self::Critical => Self::Critical,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_reads_back_as_itself() {
        for family in AttackFamily::ALL {
            assert_eq!(family.as_str().parse(), Ok(*family));
        }
        for severity in Severity::ALL {
            assert_eq!(severity.as_str().parse(), Ok(*severity));
        }
        assert_eq!("UDP_FLOOD".parse::<AttackFamily>(), Err(UnknownWord));
    }

    #[test]
    fn there_are_as_many_classes_as_array_slots() {
        assert_eq!(TrafficClass::ALL.len(), TrafficClass::COUNT);
        assert_eq!(TrafficClass::NotIp.index(), TrafficClass::COUNT - 1);
    }

    #[test]
    fn severity_follows_the_ratio_of_peak_to_threshold() {
        let table = [(0.9, Severity::Low), (1.0, Severity::Medium), (2.0, Severity::High), (5.0, Severity::Critical)];
        for (ratio, expected) in table {
            assert_eq!(Severity::from_ratio(ratio), expected, "ratio {ratio}");
        }
        assert_eq!(Severity::Critical.raised(), Severity::Critical);
    }

    #[test]
    fn a_group_matches_every_family_in_it_and_no_other() {
        assert!(TriggerGroup::Udp.contains(AttackFamily::NtpAmplification));
        assert!(TriggerGroup::Dns.contains(AttackFamily::DnsAmplification));
        assert!(!TriggerGroup::Udp.contains(AttackFamily::DnsAmplification));
        assert!(!TriggerGroup::Syn.contains(AttackFamily::Unknown));
    }
}
