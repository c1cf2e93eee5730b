//! Servers on each database, and the tests that run on both.

use controlplane::app::CaptureLimits;
use controlplane::store::sql::Database;

use crate::cluster::{Cluster, settings};
use crate::support::Server;

pub(crate) async fn sqlite() -> Server {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::Sqlite(folder.path().join("cp.sqlite"));
    Server::start_on(&database, folder, None, CaptureLimits::default()).await
}

pub(crate) async fn postgres() -> Option<Server> {
    let cluster = Cluster::shared()?;
    let database = settings(&cluster.database().await);
    let folder = tempfile::tempdir().unwrap();
    Some(Server::start_on(&database, folder, Some(cluster), CaptureLimits::default()).await)
}

/// Runs tests that take a [`Server`] on each database.
macro_rules! contract {
    ($($test:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test(crate::servers::sqlite().await).await;
            })+
        }

        mod on_postgres {
            $(#[tokio::test]
            async fn $test() {
                if let Some(server) = crate::servers::postgres().await {
                    super::$test(server).await;
                }
            })+
        }
    };
}
pub(crate) use contract;
