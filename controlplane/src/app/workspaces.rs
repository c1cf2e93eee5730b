//! The workspace and its tokens.

use serde_json::json;

use super::App;
use super::nodes::fresh_secret;
use crate::domain::{
    Actor, Listed, NewToken, Page, Secret, Subscription, Token, Workspace, WorkspaceId, WorkspacePatch,
};
use crate::store::Result;

impl App {
    /// The oldest workspace, which the command line acts on.
    pub async fn first_workspace(&self) -> Result<WorkspaceId> {
        self.store.first_workspace().await
    }

    pub async fn workspace(&self, actor: &Actor) -> Result<Workspace> {
        self.store.workspace(actor.workspace()).await
    }

    pub async fn patch_workspace(&self, actor: &Actor, patch: WorkspacePatch) -> Result<Workspace> {
        let patch = patch.check()?;
        let fact = self.fact(actor, "workspace.update", "workspace").with(json!({
            "name": patch.name, "detection": patch.detection,
        }));
        let (workspace, changed) = self.store.patch_workspace(actor.workspace(), patch, fact).await?;
        self.wake(&changed);
        self.events.announce(actor.workspace(), "workspace", json!({ "what": "updated", "workspace": workspace }));
        Ok(workspace)
    }

    pub async fn subscribe(&self, actor: &Actor, subscription: Subscription) -> Result<()> {
        let fact = self.fact(actor, "workspace.subscribe", "workspace").with(json!({ "subscription": subscription }));
        self.store.subscribe(actor.workspace(), subscription, fact).await
    }

    pub async fn tokens(&self, actor: &Actor, page: Page) -> Result<Listed<Token>> {
        self.store.tokens(actor.workspace(), page).await
    }

    /// Makes a token; its value is shown this once.
    pub async fn create_token(&self, actor: &Actor, new: NewToken) -> Result<(Token, Secret)> {
        let new = new.check(self.now())?;
        let secret = fresh_secret()?;
        let fact = self.fact(actor, "token.create", "token").with(json!({
            "name": new.name, "role": new.role, "rate_limit": new.rate_limit, "expires_at": new.expires_at,
        }));
        let token = self.store.create_token(actor.workspace(), new, &secret.hash(), fact).await?;
        Ok((token, secret))
    }

    pub async fn revoke_token(&self, actor: &Actor, id: i64) -> Result<Token> {
        let fact = self.fact(actor, "token.revoke", format!("token/{id}"));
        self.store.revoke_token(actor.workspace(), id, self.now(), fact).await
    }

    /// Makes the workspace `default` at first start; the owner's token, shown this once, or none later.
    pub async fn bootstrap(&self) -> Result<Option<Secret>> {
        let secret = fresh_secret()?;
        Ok(self.store.bootstrap(self.now(), &secret.hash()).await?.then_some(secret))
    }
}
