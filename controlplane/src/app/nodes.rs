//! Nodes as operators see them.

use ftagent_common::api::{NodeCommand, Order, Spans};
use serde_json::json;
use uuid::Uuid;

use super::{App, new_secret};
use crate::domain::{Actor, Deployment, Listed, Node, NodeFilter, NodePatch, Page, Problem, Secret};
use crate::store::{Result, StoreError};

impl App {
    /// Makes a machine a node; its key is shown this once.
    pub async fn deploy(&self, actor: &Actor, deployment: &Deployment) -> Result<(Uuid, Secret)> {
        let key = fresh_secret()?;
        let fact = self.fact(actor, "node.deploy", "node").with(deployment.request());
        let node = self.store.deploy(actor.workspace(), deployment, &key.hash(), fact).await?;
        self.events.announce(actor.workspace(), "node", json!({ "what": "deployed", "node": node }));
        Ok((node, key))
    }

    pub async fn nodes(&self, actor: &Actor, filter: &NodeFilter, page: Page) -> Result<Listed<Node>> {
        self.store.nodes(actor.workspace(), filter, page, self.now()).await
    }

    pub async fn node(&self, actor: &Actor, node: Uuid) -> Result<Node> {
        self.store.node(actor.workspace(), node, self.now()).await
    }

    pub async fn patch_node(&self, actor: &Actor, node: Uuid, patch: NodePatch) -> Result<Node> {
        let fact = self.fact(actor, "node.update", format!("node/{node}")).with(json!({
            "name": patch.name, "ip": patch.ip, "location": patch.location, "os": patch.os,
            "interface": patch.interface,
        }));
        let patched = self.store.patch_node(actor.workspace(), node, patch.check()?, self.now(), fact).await?;
        self.events.announce(actor.workspace(), "node", json!({ "what": "updated", "node": node }));
        Ok(patched)
    }

    pub async fn delete_node(&self, actor: &Actor, node: Uuid) -> Result<()> {
        let fact = self.fact(actor, "node.delete", format!("node/{node}"));
        self.store.delete_node(actor.workspace(), node, fact).await?;
        self.keys.forget(node);
        self.pushes.end(node);
        self.sweep_or_say().await;
        self.events.announce(actor.workspace(), "node", json!({ "what": "deleted", "node": node }));
        Ok(())
    }

    /// Leaves an order for a node and wakes its streams. An allowlisted source is refused and the refusal audited.
    pub async fn order(&self, actor: &Actor, node: Uuid, order: &Order) -> Result<NodeCommand> {
        let ws = actor.workspace();
        let fact = self.fact(actor, "command.create", format!("node/{node}")).with(order);
        if let Order::ApplyProfile { .. } | Order::ConfirmProfile { .. } | Order::RollBackProfile { .. } = order {
            let message = "profiles are applied, confirmed and rolled back under /attack-profiles";
            return Err(Problem::field("order.type", message).into());
        }
        if let Order::Apply { action, ttl_secs, .. } = order {
            action.validate().map_err(|e| Problem::field(format!("order.action.{}", e.field), e.message))?;
            if !(1..=86_400).contains(ttl_secs) {
                return Err(Problem::field("order.ttl_secs", "must be 1 to 86400 seconds").into());
            }
            let sources = action.sources().unwrap_or_default();
            if action.sources().is_some() && sources.is_empty() {
                return Err(Problem::field("order.action.sources", "an order must name them").into());
            }
            let allowed = self.store.all_allowed(ws).await?;
            let spans = Spans::of(sources);
            let holds =
                |e: &&crate::domain::AllowlistEntry| e.node.is_none_or(|n| n == node) && spans.touch(&e.ip_address);
            if let Some(entry) = allowed.iter().find(holds) {
                let message = format!("entry {} ({}) of the allowlist is among them", entry.id, entry.ip_address);
                self.store.append(ws, fact.result("refused")).await?;
                return Err(Problem::field("order.action.sources", message).into());
            }
        }
        if let Order::Block { source, ttl_secs } = order {
            if !(1..=86_400).contains(ttl_secs) {
                return Err(Problem::field("order.ttl_secs", "must be 1 to 86400 seconds").into());
            }
            if source.prefix_len() == 0 {
                return Err(Problem::field("order.source", "is everybody: name a longer prefix").into());
            }
            let allowed = self.store.all_allowed(ws).await?;
            let holds = |e: &&crate::domain::AllowlistEntry| e.node.is_none_or(|n| n == node) && e.overlaps(source);
            if let Some(entry) = allowed.iter().find(holds) {
                let message = format!("{source} is allowlisted by entry {} ({})", entry.id, entry.ip_address);
                self.store.append(ws, fact.result("refused")).await?;
                return Err(Problem::field("order.source", message).into());
            }
        }
        let command = self.store.order(ws, node, order, fact).await?;
        self.pushes.wake(&[node]);
        Ok(command)
    }
}

pub(super) fn fresh_secret() -> Result<Secret> {
    new_secret().map_err(|source| StoreError::Unavailable {
        reason: "the operating system gives no random numbers",
        source: Box::new(std::io::Error::other(source)),
    })
}
