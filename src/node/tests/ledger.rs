//! Two nodes that owe each other: what both remember, over restarts, old backups and connections that break.

use libp2p::PeerId;
use quelea_ledger::{
    Hash, HoldId,
    book::{Account, HoldTerms, Refusal, Side},
};

use super::*;
use crate::{
    home::Home,
    ledger::{Ledger, LedgerError},
    node::settings::Keep,
};

const CREDIT: u64 = 1_000_000;

fn ledger(node: &Node) -> &Ledger {
    node.plane.ledger()
}

fn id(node: &Node) -> PeerId {
    node.peer_id().parse().unwrap()
}

fn deadline() -> tokio::time::Instant {
    tokio::time::Instant::now() + PATIENCE
}

/// A node that keeps what it knows in `home`.
async fn keeping(home: &std::path::Path, bootstrap: &[PeerAddress]) -> Node {
    let mut settings = Settings::passing("node-tests", bootstrap.to_vec());
    settings.keep = Keep::in_home(Home::new(Some(home.into())).unwrap());
    settings.listen = vec![parse_multiaddr("/ip4/127.0.0.1/tcp/0").unwrap()];
    Node::start(settings).await.unwrap()
}

async fn addresses(node: &Node) -> Vec<PeerAddress> {
    node.addresses().await.iter().filter_map(|addr| parse_peer_address(addr).ok()).collect()
}

/// Connects and syncs.
async fn meet(one: &Node, other: &Node) {
    let addresses = addresses(other).await.into_iter().map(|addr| addr.addr).collect();
    one.handle.connect(id(other), addresses).await.unwrap();
    ledger(one).ready(id(other), deadline()).await.unwrap();
    ledger(other).ready(id(one), deadline()).await.unwrap();
}

async fn account(node: &Node, with: &Node) -> Account {
    ledger(node).account(id(with)).await.unwrap().unwrap()
}

/// Waits until both see the same counters, each from its side; and what the second owes the first.
async fn agree(one: &Node, other: &Node) -> i128 {
    let same = async || {
        let (here, there) = (account(one, other).await, account(other, one).await);
        let mirrored = (here.issued, here.discharged, here.received, here.redeemed)
            == (there.received, there.redeemed, there.issued, there.discharged);
        (mirrored && here.owed == -there.owed).then_some(here.owed)
    };
    until("both see the same", same).await
}

fn terms(n: u8, max: u64) -> HoldTerms {
    let expires_at = quelea_wire::time::unix_ms() + 60_000;
    HoldTerms { hold: HoldId([n; 16]), max, job_hash: Hash([7; 32]), expires_at, due_days: 14 }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_promises_the_other_is_owed() {
    let (one, other) = (node(&[], None).await, node(&[], None).await);
    meet(&one, &other).await;
    assert_eq!(agree(&one, &other).await, 0);
    ledger(&other).promise(id(&one), CREDIT / 2, u64::MAX).await.unwrap();
    until("the note arrives", async || (agree(&one, &other).await == 500_000).then_some(())).await;
    // The note is signed by both.
    let acknowledged = async || {
        let entries = ledger(&other).entries(Some(id(&one)), 10).await.unwrap();
        entries.iter().any(|entry| entry.mine && entry.promises && entry.acknowledged).then_some(())
    };
    until("the note is acknowledged", acknowledged).await;
    // Of more than was promised nothing is discharged.
    let refused = ledger(&one).redeem(id(&other), CREDIT, 0, Hash::ZERO).await.unwrap_err();
    assert_eq!(refused, LedgerError::Refused(Refusal::Amount { most: 500_000 }));
    ledger(&one).redeem(id(&other), 200_000, 0, Hash::ZERO).await.unwrap();
    until("the redeem arrives", async || (agree(&one, &other).await == 300_000).then_some(())).await;
    // A promise the other way sets off by itself.
    ledger(&one).promise(id(&other), 400_000, u64::MAX).await.unwrap();
    until("they set off", async || (agree(&one, &other).await == -100_000).then_some(())).await;
    for node in [&one, &other] {
        let checked = ledger(node).check().await.unwrap();
        assert!(checked.faults.is_empty() && checked.entries > 0, "{checked:?}");
    }
    stop([one, other]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_is_paid_once_and_no_more_than_it_reserves() {
    let (payer, worker) = (node(&[], None).await, node(&[], None).await);
    meet(&payer, &worker).await;
    let hold = HoldId([1; 16]);
    ledger(&payer).hold(id(&worker), terms(1, 200_000)).await.unwrap();
    let open = ledger(&worker).opened(id(&payer), hold, deadline()).await.unwrap();
    assert_eq!((open.max, open.job_hash), (200_000, Hash([7; 32])));
    // Vouchers travel beside the packets.
    for cumulative in [30_000, 90_000, 60_000] {
        let envelope = ledger(&payer).voucher(id(&worker), hold, 1, cumulative).await.unwrap();
        let (of, spent) = ledger(&worker).vouched(id(&payer), envelope).await.unwrap();
        assert_eq!((of, spent), (hold, cumulative.max(if cumulative == 60_000 { 90_000 } else { 0 })));
    }
    let more = ledger(&payer).voucher(id(&worker), hold, 1, 200_001).await.unwrap_err();
    assert_eq!(more, LedgerError::Refused(Refusal::Amount { most: 200_000 }));
    let more = ledger(&payer).pay(id(&worker), hold, 200_001, Hash::ZERO).await.unwrap_err();
    assert_eq!(more, LedgerError::Refused(Refusal::Amount { most: 200_000 }));
    // Asked again, as after an answer that was lost, it pays nothing more.
    let note = ledger(&payer).pay(id(&worker), hold, 120_000, Hash::ZERO).await.unwrap();
    assert_eq!(ledger(&payer).pay(id(&worker), hold, 120_000, Hash::ZERO).await.unwrap(), note);
    assert_eq!(ledger(&worker).settled(id(&payer), hold, deadline()).await.unwrap(), 120_000);
    assert_eq!(agree(&worker, &payer).await, 120_000);
    // Trust follows on both sides.
    let standings = ledger(&worker).standings().await.unwrap();
    assert!(standings.iter().any(|standing| standing.peer == id(&payer) && standing.commerce > 0));
    stop([payer, worker]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_gets_no_more_than_newcomers_get_however_many_holds_it_takes_at_once() {
    let (payer, worker) = (node(&[], None).await, node(&[], None).await);
    meet(&payer, &worker).await;
    // A quarter of the limit of one credit is for open holds.
    let asked = (1..=40).map(|n| ledger(&payer).hold(id(&worker), terms(n, 50_000)));
    for taken in futures::future::join_all(asked).await {
        taken.unwrap();
    }
    let opened = (1..=40).map(|n| ledger(&worker).opened(id(&payer), HoldId([n; 16]), deadline()));
    let opened = futures::future::join_all(opened).await;
    let taken = opened.iter().filter(|open| open.is_ok()).count();
    assert_eq!(taken, 5, "{opened:?}");
    assert!(opened.iter().all(|open| open.is_ok() || *open == Err(LedgerError::NoCredit("limit"))));
    assert_eq!(account(&worker, &payer).await.held, 250_000);
    // The operator may say otherwise.
    assert_eq!(ledger(&worker).limit(id(&payer), Some(8 * CREDIT)).await.unwrap(), 8 * CREDIT);
    ledger(&payer).hold(id(&worker), terms(99, CREDIT)).await.unwrap();
    ledger(&worker).opened(id(&payer), HoldId([99; 16]), deadline()).await.unwrap();
    assert_eq!(ledger(&worker).limit(id(&payer), Some(0)).await.unwrap(), 0);
    ledger(&payer).hold(id(&worker), terms(100, 1)).await.unwrap();
    let refused = ledger(&worker).opened(id(&payer), HoldId([100; 16]), deadline()).await.unwrap_err();
    assert_eq!(refused, LedgerError::NoCredit("limit"));
    // What will not be worked for reserves nothing.
    ledger(&worker).void(id(&payer), Side::Theirs, HoldId([99; 16])).await.unwrap();
    assert_eq!(account(&worker, &payer).await.held, 250_000);
    stop([payer, worker]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn debts_outlive_restarts_and_connections() {
    let (home, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let creditor = keeping(home.path(), &[]).await;
    let debtor = keeping(away.path(), &[]).await;
    meet(&debtor, &creditor).await;
    ledger(&debtor).promise(id(&creditor), CREDIT, u64::MAX).await.unwrap();
    // Told or not: the promise is on the debtor's disk.
    debtor.shutdown(GRACE).await;
    let debtor = keeping(away.path(), &[]).await;
    let refused = ledger(&debtor).promise(id(&creditor), CREDIT, u64::MAX).await.unwrap_err();
    assert_eq!(refused, LedgerError::Refused(Refusal::NotLive), "nothing is signed before both have synced");
    meet(&debtor, &creditor).await;
    until("the note arrives", async || (agree(&creditor, &debtor).await == i128::from(CREDIT)).then_some(())).await;
    ledger(&debtor).promise(id(&creditor), CREDIT, u64::MAX).await.unwrap();
    until("and another", async || (agree(&creditor, &debtor).await == 2 * i128::from(CREDIT)).then_some(())).await;
    let creditor = {
        creditor.shutdown(GRACE).await;
        keeping(home.path(), &[]).await
    };
    assert_eq!(account(&creditor, &debtor).await.owed, 2 * i128::from(CREDIT));
    let checked = ledger(&creditor).check().await.unwrap();
    assert!(checked.faults.is_empty() && checked.entries == 2, "two notes: {checked:?}");
    stop([creditor, debtor]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_lost_his_newest_notes_takes_them_from_his_creditor() {
    let away = tempfile::tempdir().unwrap();
    let creditor = node(&[], None).await;
    let debtor = keeping(away.path(), &[]).await;
    meet(&debtor, &creditor).await;
    ledger(&debtor).promise(id(&creditor), CREDIT, u64::MAX).await.unwrap();
    until("the note arrives", async || (agree(&creditor, &debtor).await == i128::from(CREDIT)).then_some(())).await;
    debtor.shutdown(GRACE).await;
    let database = away.path().join("quelea.redb");
    let old = std::fs::read(&database).unwrap();
    let debtor = keeping(away.path(), &[]).await;
    meet(&debtor, &creditor).await;
    ledger(&debtor).promise(id(&creditor), 3 * CREDIT, u64::MAX).await.unwrap();
    let four = 4 * i128::from(CREDIT);
    until("the second note arrives", async || (agree(&creditor, &debtor).await == four).then_some(())).await;
    debtor.shutdown(GRACE).await;
    // An old backup is put back.
    std::fs::write(&database, old).unwrap();
    let debtor = keeping(away.path(), &[]).await;
    assert_eq!(account(&debtor, &creditor).await.owed, -i128::from(CREDIT));
    meet(&debtor, &creditor).await;
    until("it owes again what it owed", async || (agree(&creditor, &debtor).await == four).then_some(())).await;
    assert!(debtor.telemetry.metrics.scrape().contains("quelea_ledger_self_recovered_total"));
    // It goes on from there, and nothing of it contradicts what it had signed.
    ledger(&debtor).promise(id(&creditor), CREDIT, u64::MAX).await.unwrap();
    let five = 5 * i128::from(CREDIT);
    until("a third note arrives", async || (agree(&creditor, &debtor).await == five).then_some(())).await;
    assert_eq!(account(&creditor, &debtor).await.frozen, None);
    assert_eq!(account(&debtor, &creditor).await.frozen, None);
    stop([creditor, debtor]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn newcomers_of_one_address_range_share_what_they_may_owe() {
    let mut settings = Settings::passing("node-tests", Vec::new());
    settings.listen = vec![parse_multiaddr("/ip4/127.0.0.1/tcp/0").unwrap()];
    // Otherwise this machine is a home, and no range.
    settings.limit_local = true;
    let worker = Node::start(settings).await.unwrap();
    let mut payers = Vec::new();
    for _ in 0..3 {
        let payer = node(&[], None).await;
        meet(&payer, &worker).await;
        payers.push(payer);
    }
    let hold = async |payer: &Node, n: u8, max: u64| {
        ledger(payer).hold(id(&worker), terms(n, max)).await.unwrap();
        ledger(&worker).opened(id(payer), HoldId([n; 16]), deadline()).await
    };
    hold(&payers[2], 1, 100_000).await.unwrap();
    for payer in &payers[..2] {
        ledger(payer).promise(id(&worker), 950_000, u64::MAX).await.unwrap();
        until("the note arrives", async || (agree(&worker, payer).await == 950_000).then_some(())).await;
    }
    let refused = hold(&payers[2], 2, 100_000).await.unwrap_err();
    assert_eq!(refused, LedgerError::NoCredit("group"));
    // They do not owe less for having hung up.
    let left = payers.remove(0);
    let gone = id(&left);
    left.shutdown(GRACE).await;
    until("it is gone", async || {
        let peers = worker.handle.snapshot().await?.peers;
        peers.iter().all(|peer| peer.peer != gone).then_some(())
    })
    .await;
    assert_eq!(hold(&payers[1], 3, 100_000).await.unwrap_err(), LedgerError::NoCredit("group"));
    stop(payers.into_iter().chain([worker])).await;
}
