//! A change whose answer was never kept: its process was killed in between.

use controlplane::store::sql::SqlStore;
use controlplane::store::{ANSWER_SECS, Answered, Audits, CLAIM_SECS, Claim, Idempotency, Intent, Key, with_intent};

use crate::fixture::{Fixture, contract};

contract! {
    a_change_without_its_answer_is_found_done,
    a_key_that_was_taken_over_changes_nothing_any_more,
}

const KEY: Key = Key { hash: [2; 32], request_hash: [1; 32] };

async fn change(store: &impl Audits, fixture: &Fixture) -> bool {
    let change = store.append(fixture.ws, fixture.fact());
    with_intent(Intent::new("token/1".to_owned(), KEY), change).await.is_ok()
}

async fn a_change_without_its_answer_is_found_done(fixture: Fixture) {
    let claim = async |secs: i64| {
        let now = fixture.now.plus_secs(secs);
        fixture.store.claim("token/1", &KEY, now, fixture.now.plus_secs(-99)).await.unwrap()
    };
    assert_eq!(claim(0).await, Claim::Taken);
    // A refusal is no change.
    let refused = fixture.store.append(fixture.ws, fixture.fact().result("refused"));
    with_intent(Intent::new("token/1".to_owned(), KEY), refused).await.unwrap();
    assert_eq!(claim(0).await, Claim::Taken);
    let before = fixture.audited().await;
    let done = fixture.store.append(fixture.ws, fixture.fact());
    with_intent(Intent::new("token/1".to_owned(), KEY), done).await.unwrap();
    assert_eq!(fixture.audited().await, before + 1);
    if fixture.is_postgres() {
        assert_eq!(claim(ANSWER_SECS - 1).await, Claim::UnderWay, "another process may be about to answer");
    }
    let done = Claim::Done { request_hash: [1; 32], object: "test".to_owned() };
    assert_eq!(claim(ANSWER_SECS).await, done);
    fixture.store.release("token/1", KEY.hash).await.unwrap();
    assert_eq!(claim(CLAIM_SECS + 1).await, done, "it stays done");
    let answered = Answered { request_hash: [1; 32], status: 200, answer: vec![1] };
    fixture.store.remember("token/1", KEY.hash, &answered, fixture.now).await.unwrap();
    assert_eq!(claim(0).await, Claim::Answered(answered));
}

async fn a_key_that_was_taken_over_changes_nothing_any_more(fixture: Fixture) {
    if !fixture.is_postgres() {
        // There is no other process.
        return;
    }
    let (slow, quick) =
        (SqlStore::open(&fixture.database).await.unwrap(), SqlStore::open(&fixture.database).await.unwrap());
    let claim = async |store: &SqlStore, secs: i64| {
        let now = fixture.now.plus_secs(secs);
        Idempotency::claim(store, "token/1", &KEY, now, fixture.now.plus_secs(-99)).await.unwrap()
    };
    assert_eq!(claim(&slow, 0).await, Claim::Taken);
    assert_eq!(claim(&quick, CLAIM_SECS + 1).await, Claim::Taken, "the first one takes too long");
    let before = fixture.audited().await;
    assert!(!change(&slow, &fixture).await, "another process answers the same request");
    assert_eq!(fixture.audited().await, before, "nothing of it is kept");
    assert!(change(&quick, &fixture).await);
    assert!(!change(&slow, &fixture).await);
    assert_eq!(fixture.audited().await, before + 1);
}
