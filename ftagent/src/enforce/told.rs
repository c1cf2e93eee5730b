//! What a rung has told of its rules, so that it tells changes alone.

use std::collections::BTreeMap;

use crate::engine::{EnforceResult, Rule, RuleId};

/// What became of each rule that a rung should carry.
pub(super) type Outcome = BTreeMap<RuleId, (Rule, Result<(), String>)>;

/// What is in force and what is not, as it was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    in_force: BTreeMap<RuleId, Rule>,
    failing: BTreeMap<RuleId, String>,
    /// Why what should have ended goes on.
    staying: BTreeMap<RuleId, String>,
}

impl Told {
    /// The rules that are not in force although they should be, and why.
    pub(super) fn failing(&self) -> &BTreeMap<RuleId, String> {
        &self.failing
    }

    /// Takes what became of every rule, and of the removal of those that are not among them, and returns what is new.
    pub(super) fn take(&mut self, now: Outcome, removal: Result<(), String>, at_mono_ns: u64) -> Vec<EnforceResult> {
        let mut results = Vec::new();
        let mut tell = |rule, installed, result| results.push(EnforceResult { rule, installed, result, at_mono_ns });
        let ended: Vec<RuleId> = self.in_force.keys().filter(|id| !now.contains_key(id)).copied().collect();
        self.failing.retain(|id, _| now.contains_key(id));
        for (id, (rule, result)) in now {
            match result {
                Ok(()) => {
                    self.failing.remove(&id);
                    if self.in_force.get(&id) != Some(&rule) {
                        self.in_force.insert(id, rule);
                        tell(id, true, Ok(()));
                    }
                }
                Err(why) => {
                    self.in_force.remove(&id);
                    if self.failing.insert(id, why.clone()).as_ref() != Some(&why) {
                        tell(id, true, Err(why));
                    }
                }
            }
        }
        self.staying.retain(|id, _| ended.contains(id));
        for id in ended {
            // A removal that failed is tried again with every look.
            let is_news = match &removal {
                Ok(()) => {
                    self.staying.remove(&id);
                    self.in_force.remove(&id);
                    true
                }
                Err(why) => self.staying.insert(id, why.clone()).as_ref() != Some(why),
            };
            if is_news {
                tell(id, false, removal.clone());
            }
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Matches, Origin, Point, Verdict};

    fn outcome(rules: &[(u64, Result<(), &str>)]) -> Outcome {
        let rule = |id| Rule {
            id: RuleId(id),
            matches: Matches::default(),
            verdict: Verdict::Drop,
            point: Point::Datapath,
            origin: Origin::Operator,
            expires_at_ns: None,
            evaluate: false,
        };
        rules.iter().map(|(id, result)| (RuleId(*id), (rule(*id), result.map_err(str::to_owned)))).collect()
    }

    #[test]
    fn changes_alone_are_told() {
        let mut told = Told::default();
        let mut take = |rules: &[(u64, Result<(), &str>)], removal: Result<(), String>| {
            let results = told.take(outcome(rules), removal, 7);
            results.into_iter().map(|r| (r.rule.0, r.installed, r.result.is_ok())).collect::<Vec<_>>()
        };
        assert_eq!(take(&[(1, Ok(())), (2, Err("no"))], Ok(())), [(1, true, true), (2, true, false)]);
        assert_eq!(take(&[(1, Ok(())), (2, Err("no"))], Ok(())), []);
        assert_eq!(take(&[(1, Ok(())), (2, Err("another"))], Ok(())), [(2, true, false)]);
        assert_eq!(take(&[(1, Err("gone")), (2, Ok(()))], Ok(())), [(1, true, false), (2, true, true)]);
        assert_eq!(take(&[], Err("busy".to_owned())), [(2, false, false)]);
        assert_eq!(take(&[], Err("busy".to_owned())), [], "it is known");
        assert_eq!(take(&[], Err("gone".to_owned())), [(2, false, false)]);
        assert_eq!(take(&[], Ok(())), [(2, false, true)]);
        assert_eq!(take(&[], Ok(())), []);
    }
}
