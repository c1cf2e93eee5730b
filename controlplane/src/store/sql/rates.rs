//! What all processes count together: each takes parts of a bucket's budget, as it needs them.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;

use super::rows::Rows;
use super::transaction::Pools;
use super::{SqlStore, again, amount, at, sql};
use crate::domain::Timestamp;
use crate::store::{Lease, Leased, Rates, Result};

/// Leases of one transaction.
pub(super) const MOST: usize = 512;
/// A request waits for these.
pub(super) const PACE: Duration = Duration::from_millis(2);

// A window that has ended, or that a clock set back left in the far future, begins anew: `ends_at` of what is asked for
// lies a minute ahead, by clocks that differ by less. `used` grows beyond the limit when more is wanted than is left:
// that is how each sees what it did not get.
static TAKE: Rows = Rows::new(
    "INSERT INTO rate_windows AS w (bucket, ends_at, used) VALUES",
    3,
    "ON CONFLICT (bucket) DO UPDATE
     SET used = CASE WHEN w.ends_at <= excluded.ends_at - 60000000 OR w.ends_at > excluded.ends_at + 60000000
                     THEN excluded.used ELSE w.used + excluded.used END,
         ends_at = CASE WHEN w.ends_at <= excluded.ends_at - 60000000 OR w.ends_at > excluded.ends_at + 60000000
                        THEN excluded.ends_at ELSE w.ends_at END
     RETURNING bucket, ends_at, used",
);

#[async_trait]
impl Rates for SqlStore {
    fn is_shared(&self) -> bool {
        self.pools.is_postgres()
    }

    async fn lease(&self, lease: Lease) -> Result<Leased> {
        self.leases.call(lease).await
    }

    async fn forget_windows(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.write().await?;
        let done = sql("DELETE FROM rate_windows WHERE ends_at < $1").bind(before.micros()).run(&mut tx).await?;
        tx.commit().await?;
        Ok(done)
    }
}

pub(super) async fn lease(pools: Pools, leases: Vec<Lease>) -> Result<Vec<Result<Leased>>> {
    again(|| lease_once(&pools, &leases)).await
}

async fn lease_once(pools: &Pools, leases: &[Lease]) -> Result<Vec<Result<Leased>>> {
    // By bucket: a statement may name a row once, and processes take them in one order.
    let mut wanted: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
    for lease in leases {
        let (ends, want) = wanted.entry(&lease.bucket).or_insert((lease.ends.micros(), 0));
        *ends = lease.ends.micros().max(*ends);
        *want += i64::from(lease.want);
    }
    let wanted: Vec<_> = wanted.into_iter().collect();
    let mut tx = pools.write_lazily().await?;
    let mut windows = BTreeMap::new();
    for (text, some) in TAKE.exactly(tx.is_postgres(), &wanted) {
        let take =
            some.iter().fold(sql(text), |take, (bucket, (ends, want))| take.bind(*bucket).bind(*ends).bind(*want));
        for row in take.all(&mut tx).await? {
            let bucket: String = row.try_get("bucket")?;
            windows.insert(bucket, (at(&row, "ends_at")?, amount(&row, "used")?));
        }
    }
    tx.commit().await?;
    // What was used before these, and what they get of the rest, in order.
    let mut before: BTreeMap<&str, u64> = BTreeMap::new();
    for (bucket, (_, want)) in &wanted {
        let used = windows.get(*bucket).map_or(0, |(_, used)| *used);
        before.insert(bucket, used.saturating_sub(want.unsigned_abs()));
    }
    Ok(leases
        .iter()
        .map(|lease| {
            let used = before.entry(&lease.bucket).or_default();
            let left = u64::from(lease.limit).saturating_sub(*used);
            let granted = left.min(lease.want.into());
            *used += u64::from(lease.want);
            let ends = windows.get(&lease.bucket).map_or(lease.ends, |(ends, _)| *ends);
            let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
            Ok(Leased { granted: narrow(granted), left: narrow(left - granted), ends })
        })
        .collect())
}
