//! What nodes ask, answered many at a time: versions, configurations, commands.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ftagent_common::api::{NodeCommand, NodeConfig, Trust};
use uuid::Uuid;

use super::rows::Rows;
use super::transaction::{On, Pools};
use super::{Query, Tx, allowlist, amount, authorities, json, maybe_at, or_missing, rules, sql, thresholds, uuid};
use crate::domain::{
    AllowlistEntry, Problem, Rule, RuleScope, SharedConfig, Threshold, Timestamp, VersionedConfig, WorkspaceId,
};
use crate::store::{Look, Looked, Result, Seen, Wanted};

/// Questions of one look.
pub(super) const MOST: usize = 1_024;
/// A change is on its way to nodes through these.
pub(super) const PACE: Duration = Duration::from_millis(5);
/// Commands that one look gives out; the next one goes on.
const COMMANDS: usize = 10_000;

static PLACES: Rows = Rows::new(
    "SELECT n.id, n.uuid, n.workspace_id, n.renew_before, n.config_version AS own, w.config_version AS shared,
            w.config_revision AS revision
     FROM nodes n JOIN workspaces w ON w.id = n.workspace_id WHERE n.uuid IN (VALUES",
    1,
    ")",
);

static SHARED: Rows = Rows::new(
    "SELECT id, config_version AS shared, config_revision AS revision FROM workspaces WHERE id IN (VALUES",
    1,
    ")",
);

/// Both databases call the columns of VALUES so.
static PENDING: Rows = Rows::new(
    "SELECT c.node_id, c.id, c.uuid, c.order_json FROM (VALUES",
    2,
    ") AS asked JOIN commands c ON c.node_id = asked.column1 AND c.id > asked.column2
     WHERE c.status = 'pending' ORDER BY c.id LIMIT 10000",
);

/// Where a node's rows are.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) id: i64,
    pub(super) workspace: WorkspaceId,
    /// Of the configuration that it should have.
    pub(super) version: u64,
    /// Of everything that nodes of its workspace should do.
    revision: u64,
    seen: Seen,
}

impl Place {
    fn of(seen: Seen, shared: u64, revision: u64) -> Self {
        Self { id: seen.id, workspace: seen.workspace, version: seen.version + shared, revision, seen }
    }
}

/// The nodes among `wanted` that there are.
pub(super) async fn places<'a>(on: impl Into<On<'a>>, wanted: &[Uuid]) -> Result<HashMap<Uuid, Place>> {
    let mut on = on.into();
    let mut places = HashMap::with_capacity(wanted.len());
    for (text, some, more) in PLACES.at_least(on.is_postgres(), wanted) {
        let all = some.iter().chain(some.last().into_iter().cycle().take(more));
        let query = all.fold(sql(text), |query, node| query.bind(node.to_string()));
        for row in query.all(on.again()).await? {
            let workspace = WorkspaceId(row.try_get("workspace_id")?);
            let (version, renew_before) = (amount(&row, "own")?, maybe_at(&row, "renew_before")?);
            let seen = Seen { id: row.try_get("id")?, workspace, version, renew_before };
            let place = Place::of(seen, amount(&row, "shared")?, amount(&row, "revision")?);
            places.insert(uuid(&row, "uuid")?, place);
        }
    }
    Ok(places)
}

/// Nodes, each with what is known to hold of it.
type Asked = BTreeMap<Uuid, Option<Seen>>;

/// The nodes among those asked for that there are; of those that were seen, only what they share is read.
async fn places_of<'a>(on: impl Into<On<'a>>, asked: &Asked) -> Result<HashMap<Uuid, Place>> {
    let mut on = on.into();
    let unseen: Vec<Uuid> = asked.iter().filter(|(_, seen)| seen.is_none()).map(|(node, _)| *node).collect();
    let mut found = places(on.again(), &unseen).await?;
    let seen = || asked.iter().filter_map(|(node, seen)| Some((*node, (*seen)?)));
    let workspaces: BTreeSet<i64> = seen().map(|(_, seen)| seen.workspace.0).collect();
    let workspaces: Vec<i64> = workspaces.into_iter().collect();
    let mut shared = HashMap::with_capacity(workspaces.len());
    for (text, some, more) in SHARED.at_least(on.is_postgres(), &workspaces) {
        let all = some.iter().chain(some.last().into_iter().cycle().take(more));
        for row in all.fold(sql(text), |query, ws| query.bind(*ws)).all(on.again()).await? {
            shared.insert(row.try_get::<i64>("id")?, (amount(&row, "shared")?, amount(&row, "revision")?));
        }
    }
    found.extend(seen().filter_map(|(node, seen)| {
        let (version, revision) = shared.get(&seen.workspace.0)?;
        Some((node, Place::of(seen, *version, *revision)))
    }));
    Ok(found)
}

/// Answers the questions, each on its own.
pub(super) async fn look(pools: Pools, read: Arc<Read>, questions: Vec<Look>) -> Result<Vec<Result<Looked>>> {
    let answers = answer(&pools, &read, &questions).await;
    if answers.is_err() {
        read.forget();
    }
    answers
}

async fn answer(pools: &Pools, read: &Read, questions: &[Look]) -> Result<Vec<Result<Looked>>> {
    let asked = asked(questions);
    let known = places_of(pools, &asked).await?;
    let commands = pending(pools, questions, &known).await?;
    let changed: Asked =
        questions.iter().filter(|q| needs_config(q, &known)).map(|q| (q.node, asked[&q.node])).collect();
    let configs = if changed.is_empty() { HashMap::new() } else { configs(pools, read, &changed, &known).await? };
    Ok(questions
        .iter()
        .map(|question| {
            let config = configs.get(&question.node).filter(|_| question.config != Wanted::No).cloned();
            let place = known.get(&question.node).ok_or(Problem::NotFound("node"))?;
            let version = config.as_ref().map_or(place.version, |config| config.version);
            let config = config.filter(|config| question.config != Wanted::Unless(config.version));
            let commands = commands.get(&(question.node, question.commands_after)).cloned().unwrap_or_default();
            Ok(Looked { version, config, commands, seen: place.seen })
        })
        .collect())
}

/// Whom the questions are about. Where one does not know of its node what another does, nothing is known; of two that
/// do, the later holds.
fn asked(questions: &[Look]) -> Asked {
    let mut asked = Asked::new();
    for Look { node, seen, .. } in questions {
        let have = asked.entry(*node).or_insert(*seen);
        *have = have.zip(*seen).map(|(a, b)| if b.version > a.version { b } else { a });
    }
    asked
}

fn needs_config(question: &Look, known: &HashMap<Uuid, Place>) -> bool {
    let Some(place) = known.get(&question.node) else { return false };
    match question.config {
        Wanted::No => false,
        Wanted::Unless(version) => version != place.version,
        Wanted::Always => true,
    }
}

/// By node and by what was asked: two streams of one node can be at different places.
type Commands = HashMap<(Uuid, Option<i64>), Vec<(i64, NodeCommand)>>;

async fn pending(pools: &Pools, questions: &[Look], known: &HashMap<Uuid, Place>) -> Result<Commands> {
    // By node, from where the one that has least goes on.
    let mut asked: HashMap<i64, (Uuid, i64)> = HashMap::new();
    for question in questions {
        if let (Some(after), Some(place)) = (question.commands_after, known.get(&question.node)) {
            let (_, least) = asked.entry(place.id).or_insert((question.node, after));
            *least = after.min(*least);
        }
    }
    let mut pending = Commands::new();
    if asked.is_empty() {
        return Ok(pending);
    }
    let mut found: HashMap<Uuid, Vec<(i64, NodeCommand)>> = HashMap::new();
    let rows: Vec<(i64, i64)> = asked.iter().map(|(id, (_, after))| (*id, *after)).collect();
    for (text, some, more) in PENDING.at_least(pools.is_postgres(), &rows) {
        // No node has the number 0.
        let all = some.iter().chain(std::iter::repeat_n(&(0, 0), more));
        let query: Query = all.fold(sql(text), |query, (id, after)| query.bind(*id).bind(*after));
        let rows = query.all(pools).await?;
        debug_assert!(rows.len() <= COMMANDS);
        for row in rows {
            let Some((node, _)) = asked.get(&row.try_get("node_id")?) else { continue };
            let command = NodeCommand { command_id: uuid(&row, "uuid")?, order: json(&row, "order_json")? };
            found.entry(*node).or_default().push((row.try_get("id")?, command));
        }
    }
    for question in questions {
        if let (Some(after), Some(found)) = (question.commands_after, found.get(&question.node)) {
            let new = found.iter().filter(|(id, _)| *id > after).cloned().collect();
            pending.insert((question.node, Some(after)), new);
        }
    }
    Ok(pending)
}

type Configs = HashMap<Uuid, VersionedConfig>;

/// The whole configurations, each of one moment.
async fn configs(pools: &Pools, read: &Read, nodes: &Asked, known: &HashMap<Uuid, Place>) -> Result<Configs> {
    let mut configs = Configs::with_capacity(nodes.len());
    let mut unread = Asked::new();
    for (node, seen) in nodes {
        match known.get(node).and_then(|place| read.config_of(*node, place)) {
            Some(config) => drop(configs.insert(*node, config)),
            None => drop(unread.insert(*node, *seen)),
        }
    }
    if unread.is_empty() {
        return Ok(configs);
    }
    let mut tx = pools.read().await?;
    let mut known: Vec<(Uuid, Place)> = places_of(&mut tx, &unread).await?.into_iter().collect();
    // So that each workspace is read once, however many there are.
    known.sort_by_key(|(_, place)| place.workspace.0);
    for (node, place) in known {
        if read.config_of(node, &place).is_none() {
            let workspace = Workspace::read(&mut tx, place.workspace).await?;
            read.keep(place.workspace, place.revision, workspace);
        }
        configs.extend(read.config_of(node, &place).map(|config| (node, config)));
    }
    Ok(configs)
}

/// What was read of workspaces, each at a revision: while that is the same, it need not be read again.
#[derive(Default)]
pub(super) struct Read(Mutex<HashMap<i64, (u64, Workspace)>>);

impl Read {
    /// Of more workspaces nothing is kept.
    const WORKSPACES: usize = 16;

    fn all(&self) -> MutexGuard<'_, HashMap<i64, (u64, Workspace)>> {
        // Every change of it is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None where it was not read at this revision.
    fn config_of(&self, node: Uuid, place: &Place) -> Option<VersionedConfig> {
        let mut all = self.all();
        let (_, workspace) = all.get_mut(&place.workspace.0).filter(|(revision, _)| *revision == place.revision)?;
        Some(VersionedConfig { version: place.version, shared: workspace.config_of(node, place.seen.renew_before) })
    }

    fn keep(&self, ws: WorkspaceId, revision: u64, workspace: Workspace) {
        let mut all = self.all();
        if all.len() >= Self::WORKSPACES && !all.contains_key(&ws.0) {
            all.clear();
        }
        all.insert(ws.0, (revision, workspace));
    }

    /// What comes back after a fault may be an older copy of the database, whose revisions mean something else.
    fn forget(&self) {
        self.all().clear();
    }
}

/// Everything that a workspace's nodes should do.
struct Workspace {
    rules: Vec<Rule>,
    allowlist: Vec<AllowlistEntry>,
    thresholds: Vec<Threshold>,
    detection: ftagent_common::api::DetectionOverrides,
    /// Nodes that a rule or an entry names.
    named: HashSet<Uuid>,
    /// Whom they trust; the same for all, but for when their certificates count as old.
    trust: Option<Trust>,
    /// Of all others, by when their certificates count as old: an authority asks all of them at once.
    common: BTreeMap<Option<Timestamp>, Arc<SharedConfig>>,
}

impl Workspace {
    async fn read(tx: &mut Tx, ws: WorkspaceId) -> Result<Self> {
        let row = sql("SELECT detection FROM workspaces WHERE id = $1").bind(ws.0).optional(&mut *tx).await?;
        let detection = json(&or_missing(row, "workspace")?, "detection")?;
        let rules = rules::enabled(&mut *tx, ws).await?;
        let allowlist = allowlist::all(&mut *tx, ws).await?;
        let thresholds = thresholds::of_workspace(tx, ws).await?;
        let scopes = rules.iter().filter_map(|rule| match &rule.scope {
            RuleScope::All {} => None,
            RuleScope::Nodes { nodes } => Some(nodes.iter().copied()),
        });
        let named = scopes.flatten().chain(allowlist.iter().filter_map(|entry| entry.node)).collect();
        let trust = authorities::trust(tx, ws, None).await?;
        Ok(Self { rules, allowlist, thresholds, detection, named, trust, common: BTreeMap::new() })
    }

    fn config_of(&mut self, node: Uuid, renew_before: Option<Timestamp>) -> Arc<SharedConfig> {
        if self.named.contains(&node) {
            return Arc::new(self.select(Some(node), renew_before));
        }
        if let Some(common) = self.common.get(&renew_before) {
            return common.clone();
        }
        let common = Arc::new(self.select(None, renew_before));
        self.common.insert(renew_before, common.clone());
        common
    }

    /// What is for everybody, and for `node`.
    fn select(&self, node: Option<Uuid>, renew_before: Option<Timestamp>) -> SharedConfig {
        let covers = |scope: &RuleScope| match node {
            Some(node) => scope.covers(node),
            None => matches!(scope, RuleScope::All {}),
        };
        let rules = self.rules.iter().filter(|r| covers(&r.scope)).map(Rule::to_wire);
        let (rules, tool_rules) = rules.partition(|rule| rule.action.is_native());
        let trust = self.trust.clone().map(|trust| Trust { renew_before: renew_before.map(Into::into), ..trust });
        SharedConfig::new(NodeConfig {
            version: 0,
            rules,
            tool_rules,
            allowlist: (self.allowlist.iter().filter(|e| e.node.is_none() || e.node == node))
                .map(AllowlistEntry::to_wire)
                .collect(),
            thresholds: self.thresholds.iter().map(Threshold::to_wire).collect(),
            detection: self.detection.clone(),
            trust,
        })
    }
}
