//! Debts between two nodes: what an older database does not say, and what ends a default besides payment.

use std::time::Duration;

use libp2p::PeerId;
use quelea_wire::time::unix_ms;

use super::*;
use crate::{
    home::Home,
    ledger::{DebtTerms, Standing},
    node::settings::Keep,
};

const OWED: u64 = 200_000;

async fn keeping(home: &std::path::Path) -> Node {
    let mut settings = Settings::passing("node-tests", Vec::new());
    settings.keep = Keep::in_home(Home::new(Some(home.into())).unwrap());
    settings.listen = vec![parse_multiaddr("/ip4/127.0.0.1/tcp/0").unwrap()];
    settings.debts = DebtTerms { grace: Duration::from_millis(1), ..DebtTerms::USUAL };
    Node::start(settings).await.unwrap()
}

fn id(node: &Node) -> PeerId {
    node.peer_id().parse().unwrap()
}

async fn meet(one: &Node, other: &Node) {
    let addresses = other.addresses().await;
    let addresses = addresses.iter().filter_map(|addr| parse_peer_address(addr).ok()).map(|addr| addr.addr).collect();
    one.handle.connect(id(other), addresses).await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    one.plane.ledger().ready(id(other), deadline).await.unwrap();
    other.plane.ledger().ready(id(one), deadline).await.unwrap();
}

async fn standing(node: &Node, peer: PeerId) -> Standing {
    let all = node.plane.ledger().standings().await.unwrap();
    all.into_iter().find(|standing| standing.peer == peer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_database_says_what_is_due_and_work_ends_a_default() {
    let home = tempfile::tempdir().unwrap();
    let (creditor, debtor) = (keeping(home.path()).await, node(&[], None).await);
    let peer = id(&debtor);
    meet(&debtor, &creditor).await;
    // Due in an hour, so that nothing is overdue before the dates are forgotten; and a small one now.
    let ledger = debtor.plane.ledger();
    ledger.promise(id(&creditor), OWED, unix_ms() + 3_600_000).await.unwrap();
    ledger.promise(id(&creditor), 7, unix_ms()).await.unwrap();
    until("the small one is overdue", async || (standing(&creditor, peer).await.debt.amount == 7).then_some(())).await;
    stop([creditor]).await;
    crate::storage::tests::older::forget_dates(home.path());

    let creditor = keeping(home.path()).await;
    assert_eq!(standing(&creditor, peer).await.debt.amount, 7, "the notes still say it");
    meet(&debtor, &creditor).await;
    // What is known of it now is kept, and all that follows is.
    let in_default = async || {
        let standing = standing(&creditor, peer).await;
        (standing.debt.asked.defaulted > 0 && standing.limit == 0 && standing.row.overdue == 7).then_some(())
    };
    until("the debtor is in default", in_default).await;
    let repute = creditor.plane.ledger().reputes().of(&peer).unwrap();
    assert_eq!(repute.to_string(), "counted as a risk: it has not paid what it owes");

    // The other way round as much is owed: nothing is overdue any more.
    creditor.plane.ledger().promise(peer, 7, u64::MAX).await.unwrap();
    let after = standing(&creditor, peer).await;
    assert_eq!((after.debt.amount, after.debt.asked.defaulted, after.row.overdue, after.limit), (0, 0, 0, 0));
    let (no_credit, little_trust) = after.row.remembered(unix_ms()).unwrap();
    assert!(no_credit > unix_ms() && little_trust > no_credit);
    stop([creditor, debtor]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_whom_it_went_badly_is_a_risk_and_who_cheats_gets_no_work() {
    let (boot, workers, asker) = swarm(2).await;
    until("both are found", async || plan(&asker).await.spare).await;
    let (bad, cheat) = (id(&workers[0]), id(&workers[1]));
    let ledger = asker.plane.ledger();
    ledger.failed(bad, 1_000_000, true).await;
    ledger.convict(cheat).await;
    let held_against = async || {
        let report = plan(&asker).await;
        let why = |peer: PeerId| {
            let out = report.left_out.iter().find(|out| out.peer == peer.to_string());
            out.map(|out| out.reason.clone())
        };
        Some((why(bad)?, why(cheat)?))
    };
    let (risk, never) = until("the plan says what is held against them", held_against).await;
    assert_eq!(risk, "counted as a risk: dealings with it went badly (commerce -0.050)");
    assert_eq!(never, "never: it is proven to cheat");
    for _ in 0..3 {
        assert_eq!(ask(&asker).await.unwrap().hops[0].peer, workers[0].peer_id());
    }
    ledger.convict(bad).await;
    until("nobody is left", async || plan(&asker).await.missing).await;
    stop(workers.into_iter().chain([asker, boot])).await;
}
