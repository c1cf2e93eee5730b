//! Feeds for other machines, and the tokens that read them.

use ftagent_common::vocab::IncidentStatus;
use serde_json::json;

use super::App;
use super::nodes::fresh_secret;
use crate::domain::{
    Actor, FeedEntry, FeedFormat, FeedQuery, FeedToken, IncidentFilter, Listed, MAX_ENTRIES, NewFeedToken, Page,
    Secret, Sightings, WorkspaceId, assemble_feed,
};
use crate::store::{KnownFeed, Result};

/// Times that a feed reads incidents, the newest first: each reads 500.
const READS: usize = 10;

impl App {
    pub async fn feed_tokens(&self, actor: &Actor, page: Page) -> Result<Listed<FeedToken>> {
        self.store.feed_tokens(actor.workspace(), page).await
    }

    /// Makes a feed token; its value is shown this once.
    pub async fn create_feed_token(&self, actor: &Actor, new: NewFeedToken) -> Result<(FeedToken, Secret)> {
        let new = new.check(self.now())?;
        let secret = fresh_secret()?;
        let fact = self
            .fact(actor, "feed_token.create", "feed_token")
            .with(json!({ "name": new.name, "expires_at": new.expires_at }));
        let token = self.store.create_feed_token(actor.workspace(), &new, &secret.hash(), fact).await?;
        Ok((token, secret))
    }

    pub async fn revoke_feed_token(&self, actor: &Actor, id: i64) -> Result<FeedToken> {
        let fact = self.fact(actor, "feed_token.revoke", format!("feed_token/{id}"));
        self.store.revoke_feed_token(actor.workspace(), id, fact).await
    }

    /// The feed token with this value, unless it is unknown or revoked. Whole hashes are compared in constant time.
    pub(crate) async fn feed_token_of(&self, secret: &Secret) -> Result<Option<KnownFeed>> {
        let hash = secret.hash();
        Ok(self.store.feed_token_candidates(&hash).await?.into_iter().find(|known| known.hash.matches(&hash)))
    }

    /// What a feed of this format says now, each entry with the number of its rule (0 where the format has none).
    pub async fn feed(
        &self,
        workspace: WorkspaceId,
        format: FeedFormat,
        query: FeedQuery,
    ) -> Result<Vec<(FeedEntry, i64)>> {
        let now = self.now();
        let filter =
            IncidentFilter { status: Some(IncidentStatus::Resolved), from: Some(query.since), ..Default::default() };
        let (mut sightings, mut before) = (Sightings::default(), i64::MAX);
        for _ in 0..READS {
            let incidents = self.store.export(workspace, &filter, before).await?;
            let Some(last) = incidents.last() else { break };
            before = last.id;
            incidents.iter().for_each(|incident| sightings.observe(incident));
        }
        let most = u32::try_from(MAX_ENTRIES * 2).unwrap_or(u32::MAX);
        let mut indicators = self.store.surest_indicators(workspace, query.since, now, most).await?;
        indicators.retain(|indicator| format.holds(indicator.kind));
        let allowlist = self.store.all_allowed(workspace).await?;
        let entries = assemble_feed(indicators, &sightings, &allowlist, query);
        if format != FeedFormat::Suricata {
            return Ok(entries.into_iter().map(|entry| (entry, 0)).collect());
        }
        let values: Vec<_> = entries.iter().map(|entry| entry.value.to_string()).collect();
        let sids = self.store.sids(workspace, &values, now).await?;
        let numbered = entries.into_iter().zip(values);
        Ok(numbered.filter_map(|(entry, value)| Some((entry, *sids.get(&value)?))).collect())
    }
}
