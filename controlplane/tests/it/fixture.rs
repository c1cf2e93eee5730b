//! A store with one workspace and one node, on either database.

use std::sync::Arc;

use controlplane::domain::{Actor, Deployment, Fact, Secret, Timestamp, WorkspaceId};
use controlplane::store::sql::{Database, SqlStore};
use controlplane::store::{Store, StoreError};
use ftagent_common::api::{DeployRequest, Heartbeat};
use uuid::Uuid;

use crate::cluster::{Cluster, raw, settings};
use crate::support::NOW;

/// A fresh store with one workspace and one node.
pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) ws: WorkspaceId,
    pub(crate) node: Uuid,
    pub(crate) now: Timestamp,
    pub(crate) database: Database,
    /// What the database lives in.
    _home: Home,
}

enum Home {
    Folder { _folder: tempfile::TempDir },
    Cluster { _cluster: Arc<Cluster> },
}

impl Fixture {
    pub(crate) async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::Sqlite(folder.path().join("cp.sqlite"));
        Self::on(database, Home::Folder { _folder: folder }).await
    }

    pub(crate) async fn postgres() -> Option<Self> {
        let cluster = Cluster::shared()?;
        let database = settings(&cluster.database().await);
        Some(Self::on(database, Home::Cluster { _cluster: cluster }).await)
    }

    async fn on(database: Database, home: Home) -> Self {
        let store: Arc<dyn Store> = Arc::new(SqlStore::open(&database).await.unwrap());
        let now = NOW.parse().unwrap();
        assert!(store.bootstrap(now, &Secret::from_random([1; 32]).hash()).await.unwrap());
        assert!(!store.bootstrap(now, &Secret::from_random([2; 32]).hash()).await.unwrap());
        let ws = store.first_workspace().await.unwrap();
        let fixture = Self { store, ws, node: Uuid::nil(), now, database, _home: home };
        let node = fixture.deploy("edge-1").await.unwrap();
        Self { node, ..fixture }
    }

    pub(crate) fn fact(&self) -> Fact {
        Fact::new(self.now, &Actor::System { workspace: self.ws }, "test", "test")
    }

    pub(crate) async fn deploy(&self, name: &str) -> Result<Uuid, StoreError> {
        let request = DeployRequest {
            name: name.to_owned(),
            ip: String::new(),
            location: String::new(),
            os: String::new(),
            interface: String::new(),
        };
        let key = Secret::from_random([3; 32]).hash();
        self.store.deploy(self.ws, &Deployment::check(request)?, &key, self.fact()).await
    }

    pub(crate) async fn heartbeat(&self, node: Uuid, ratio: f64, at: Timestamp) {
        let text =
            format!(r#"{{"protocol_version":1,"agent_version":"1","mode":"enforce","threshold_ratio":{ratio}}}"#);
        let heartbeat: Heartbeat = serde_json::from_str(&text).unwrap();
        self.store.heartbeat(node, &heartbeat, at).await.unwrap();
    }

    /// Runs a statement beside the store.
    pub(crate) async fn raw(&self, statement: &str) {
        raw(&self.database, statement).await.unwrap();
    }

    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self.database, Database::Postgres(_))
    }

    pub(crate) async fn audited(&self) -> i64 {
        let (verifier, broken) = self.store.verify(self.ws).await.unwrap();
        assert_eq!(broken, None);
        verifier.seq()
    }
}

/// Runs tests that take a [`Fixture`] on each database.
macro_rules! contract {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test(crate::fixture::Fixture::sqlite().await).await;
            })+
        }

        mod postgres {
            $(#[tokio::test]
            async fn $test() {
                if let Some(fixture) = crate::fixture::Fixture::postgres().await {
                    super::$test(fixture).await;
                }
            })+
        }
    };
}
pub(crate) use contract;
