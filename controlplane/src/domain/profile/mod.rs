//! Attack profiles: the eleven, and their trial on nodes.

use std::sync::LazyLock;

use ftagent_common::api::{Compiled, CustomRule, Kept, Order, ProfileRule, ProfileState, Suite, compile};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::problem::Check;
use super::{Problem, Timestamp};

/// The most nodes of one call.
const MAX_NODES: usize = 10_000;
/// Management ports and trusted sources of one call.
const MAX_KEPT: usize = 15;

macro_rules! profiles {
    ($($id:ident = $word:tt,)+) => {
        /// The kinds of sites that there are profiles for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum ProfileId {
            $(#[serde(rename = $word)] $id),+
        }

        impl ProfileId {
            pub const ALL: &'static [Self] = &[$(Self::$id),+];

            /// The spelling on the wire and in the database.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$id => $word),+ }
            }

            /// The file that tells it.
            const fn text(self) -> &'static str {
                match self { $(Self::$id => include_str!(concat!("profiles/", $word, ".toml"))),+ }
            }
        }
    };
}

profiles! {
    GameServer = "game_server",
    HostingProvider = "hosting_provider",
    Isp = "isp",
    Saas = "saas",
    Ecommerce = "ecommerce",
    Fintech = "fintech",
    SmallOperator = "small_operator",
    Msp = "msp",
    EdgeNode = "edge_node",
    Router = "router",
    GameStudio = "game_studio",
}

impl ProfileId {
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|id| id.as_str() == word)
    }

    /// What the profile says.
    pub fn profile(self) -> &'static Profile {
        static PROFILES: LazyLock<Vec<Profile>> = LazyLock::new(|| {
            let read = |id: &ProfileId| {
                let told: Told = toml::from_str(id.text()).expect("a test reads every file");
                Profile { profile_id: *id, title: told.title, summary: told.summary, rules: told.rules }
            };
            ProfileId::ALL.iter().map(read).collect()
        });
        &PROFILES[self as usize]
    }
}

/// A profile's file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    title: String,
    summary: String,
    rules: Vec<ProfileRule>,
}

/// A profile, in neutral words.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Profile {
    pub profile_id: ProfileId,
    pub title: String,
    /// What it is for, in a sentence.
    pub summary: String,
    pub rules: Vec<ProfileRule>,
}

/// Compiles a profile and the operator's own rules.
///
/// # Errors
/// An own rule that is not one rule in the suite's words; too many ports or sources to keep.
pub fn compile_profile(id: ProfileId, suite: Suite, own: &[CustomRule], kept: &Kept) -> Result<Compiled, Problem> {
    let mut check = Check::default();
    check.that(kept.ports.len() <= MAX_KEPT && !kept.ports.contains(&0), "keep.ports", || {
        format!("must be at most {MAX_KEPT} ports, none of them 0")
    });
    let everybody = kept.sources.iter().any(|s| s.prefix_len() == 0);
    check.that(kept.sources.len() <= MAX_KEPT && !everybody, "keep.sources", || {
        format!("must be at most {MAX_KEPT} prefixes, none of them everybody")
    });
    check.done()?;
    compile(suite, &id.profile().rules, own, kept).map_err(|e| Problem::field(e.field, e.message))
}

/// A wish to put a profile in force.
#[derive(Clone, Debug, PartialEq)]
pub struct NewApplication {
    pub profile: ProfileId,
    pub suite: Suite,
    /// None: every node of the workspace.
    pub nodes: Option<Vec<Uuid>>,
    pub custom: Vec<CustomRule>,
    pub keep: Kept,
    pub confirm_secs: u32,
}

impl NewApplication {
    /// # Errors
    /// `node_ids` that are neither `["all"]` nor 1 to 10,000 different uuids, a time to confirm of other than 30 to 3,600
    /// seconds, an own rule that is not one rule.
    pub fn parse(
        profile: ProfileId,
        suite: Suite,
        node_ids: &[String],
        custom: Vec<CustomRule>,
        confirm_secs: u32,
    ) -> Result<Self, Problem> {
        let mut check = Check::default();
        check.that((30..=3_600).contains(&confirm_secs), "confirm_secs", || {
            format!("must be 30 to 3600 seconds, got {confirm_secs}")
        });
        let all = node_ids == ["all"];
        let mut nodes: Vec<Uuid> = node_ids.iter().filter_map(|id| id.parse().ok()).collect();
        check.that(all || nodes.len() == node_ids.len() && (1..=MAX_NODES).contains(&nodes.len()), "node_ids", || {
            format!("must be [\"all\"] or 1 to {MAX_NODES} uuids of nodes")
        });
        nodes.sort_unstable();
        nodes.dedup();
        check.done()?;
        let keep = Kept::default();
        compile_profile(profile, suite, &custom, &keep)?;
        Ok(Self { profile, suite, nodes: (!all).then_some(nodes), custom, keep, confirm_secs })
    }

    /// With other ports and sources to keep than SSH's.
    ///
    /// # Errors
    /// Too many of them, or everybody.
    pub fn keeping(self, keep: Kept) -> Result<Self, Problem> {
        compile_profile(self.profile, self.suite, &self.custom, &keep)?;
        Ok(Self { keep, ..self })
    }

    /// The order of one node's application.
    pub fn order(&self, application: Uuid) -> Order {
        Order::ApplyProfile {
            application,
            profile: self.profile.as_str().to_owned(),
            suite: self.suite,
            rules: self.profile.profile().rules.clone(),
            custom: self.custom.clone(),
            keep: self.keep.clone(),
            confirm_secs: self.confirm_secs,
        }
    }
}

/// Where an application stands, as the node acknowledged and told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApplicationStatus {
    /// The node has not answered.
    Pending,
    /// It is in force until the time to confirm is over.
    Trial,
    /// Nobody confirmed it in time: the node takes it back by itself.
    Lapsed,
    /// It was confirmed; the node has not answered.
    Confirming,
    Confirmed,
    /// It was taken back; the node has not answered.
    RollingBack,
    RolledBack,
    /// The node could not do what it was told last, or did not answer within a day: see `error`.
    Failed,
}

/// What an operator decided on an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Confirm,
    RollBack,
}

/// A node's last word on an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    None,
    Applied(Timestamp),
    Failed,
}

impl ApplicationStatus {
    /// Where an application stands when the node said `first` to applying it and something to the operator's decision,
    /// and `told` what became of it without an order.
    pub fn of(
        first: Word,
        decision: Option<(Verdict, Word)>,
        told: Option<ProfileState>,
        confirm_secs: u32,
        now: Timestamp,
    ) -> Self {
        match (told, decision) {
            (Some(ProfileState::Lapsed), _) => return Self::Lapsed,
            (Some(ProfileState::RolledBack), _) => return Self::RolledBack,
            (Some(ProfileState::Confirmed), None | Some((Verdict::Confirm, _))) => return Self::Confirmed,
            (None, _) | (Some(ProfileState::Confirmed), Some((Verdict::RollBack, _))) => {}
        }
        match (first, decision) {
            (_, Some((_, Word::Failed))) | (Word::Failed, None | Some((Verdict::Confirm, _))) => Self::Failed,
            (_, Some((Verdict::RollBack, Word::Applied(_)))) => Self::RolledBack,
            (_, Some((Verdict::RollBack, Word::None))) => Self::RollingBack,
            (_, Some((Verdict::Confirm, Word::Applied(_)))) => Self::Confirmed,
            (_, Some((Verdict::Confirm, Word::None))) => Self::Confirming,
            (Word::None, None) => Self::Pending,
            (Word::Applied(at), None) if at.plus_secs(confirm_secs.into()) <= now => Self::Lapsed,
            (Word::Applied(_), None) => Self::Trial,
        }
    }

    /// Whether `verdict` can still be given.
    pub const fn takes(self, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Confirm => matches!(self, Self::Trial),
            Verdict::RollBack => matches!(self, Self::Pending | Self::Trial | Self::Confirming | Self::Confirmed),
        }
    }

    /// Whether the node has, or may have, the rules in force: then no other profile can be applied to it.
    pub const fn is_open(self) -> bool {
        !matches!(self, Self::Lapsed | Self::RolledBack | Self::Failed)
    }

    /// The spelling on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Trial => "trial",
            Self::Lapsed => "lapsed",
            Self::Confirming => "confirming",
            Self::Confirmed => "confirmed",
            Self::RollingBack => "rolling_back",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
        }
    }
}

/// A profile on one node.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Application {
    pub id: i64,
    pub uuid: Uuid,
    pub node: Uuid,
    pub profile: ProfileId,
    pub suite: Suite,
    pub custom: Vec<CustomRule>,
    pub status: ApplicationStatus,
    /// Seconds from when it is in force until the node takes it back unless it is confirmed.
    pub confirm_secs: u32,
    pub created_at: Timestamp,
    pub decided_at: Option<Timestamp>,
    /// The node's words, if it could not do what it was told or did something by itself.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_compiles_for_every_suite_and_says_why() {
        for id in ProfileId::ALL {
            let profile = id.profile();
            assert_eq!((profile.profile_id, ProfileId::from_word(id.as_str())), (*id, Some(*id)));
            assert!(profile.rules.len() >= 8, "{id:?}");
            for rule in &profile.rules {
                assert!(rule.title.len() > 3 && rule.reason.ends_with('.'), "{id:?} {rule:?}");
            }
            for suite in Suite::ALL {
                let compiled = compile_profile(*id, suite, &[], &Kept::default()).expect("compiled");
                assert!(compiled.rules.len() > profile.rules.len(), "{id:?} {suite:?}");
                assert!(compiled.rules.iter().all(|r| !r.lines.is_empty()), "{id:?} {suite:?}");
            }
        }
    }

    #[test]
    fn an_application_stands_where_node_and_operator_left_it() {
        use ApplicationStatus::{Confirmed, Confirming, Failed, Lapsed, Pending, RolledBack, RollingBack, Trial};
        let at = Timestamp::from_secs(1_000);
        let (none, applied, failed) = (Word::None, Word::Applied(at), Word::Failed);
        let (confirm, back) = (Verdict::Confirm, Verdict::RollBack);
        for (first, decision, secs, expected) in [
            (none, None, 1_000, Pending),
            (applied, None, 1_059, Trial),
            (applied, None, 1_060, Lapsed),
            (failed, None, 1_000, Failed),
            (applied, Some((confirm, none)), 9_000, Confirming),
            (applied, Some((confirm, applied)), 9_000, Confirmed),
            (applied, Some((confirm, failed)), 9_000, Failed),
            (applied, Some((back, none)), 9_000, RollingBack),
            (none, Some((back, applied)), 9_000, RolledBack),
            (failed, Some((back, applied)), 9_000, RolledBack),
            (applied, Some((back, failed)), 9_000, Failed),
        ] {
            let got = ApplicationStatus::of(first, decision, None, 60, Timestamp::from_secs(secs));
            assert_eq!(got, expected, "{first:?} {decision:?}");
        }
        // The node's own word counts, but for an order that came after it.
        for (decision, told, expected) in [
            (None, ProfileState::Confirmed, Confirmed),
            (Some((confirm, failed)), ProfileState::Confirmed, Confirmed),
            (Some((back, none)), ProfileState::Confirmed, RollingBack),
            (None, ProfileState::Lapsed, Lapsed),
            (Some((confirm, failed)), ProfileState::Lapsed, Lapsed),
            (Some((back, failed)), ProfileState::RolledBack, RolledBack),
        ] {
            let got = ApplicationStatus::of(applied, decision, Some(told), 60, Timestamp::from_secs(9_000));
            assert_eq!(got, expected, "{decision:?} {told:?}");
        }
        assert!(Trial.takes(confirm) && !Pending.takes(confirm) && !Lapsed.takes(confirm));
        assert!(Confirmed.takes(back) && !RolledBack.takes(back) && !RollingBack.takes(back));
    }

    #[test]
    fn node_ids_are_all_or_uuids() {
        let parse = |ids: &[&str], secs| {
            let ids: Vec<_> = ids.iter().map(|id| (*id).to_owned()).collect();
            NewApplication::parse(ProfileId::Saas, Suite::Ufw, &ids, vec![], secs)
        };
        let node = "0f9619ff-8b86-4011-b42d-00cf4fc964ff";
        assert_eq!(parse(&["all"], 60).expect("all").nodes, None);
        assert_eq!(parse(&[node, node], 60).expect("one").nodes.map(|n| n.len()), Some(1));
        for (ids, secs) in [(&[][..], 60), (&["all", node], 60), (&["x"], 60), (&["all"], 29), (&["all"], 3_601)] {
            assert!(parse(ids, secs).is_err(), "{ids:?} {secs}");
        }
    }
}
