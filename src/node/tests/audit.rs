//! Whoever computes wrongly and signs for it fits together with everybody, and is found by computing again.

use quelea_wire::Profile;

use super::{commitments::halves, *};
use crate::inference::{
    Mischief, RequestProfile,
    audit::{Claim, Verdict, again},
};

/// What an answer's stages have signed for, in their order.
fn claims(answer: &Summary) -> Vec<Claim> {
    let root = |hex: &str| <[u8; 32]>::try_from(hex::decode(hex).unwrap()).unwrap();
    let claim = |hop: &crate::inference::HopReport| {
        let committed = hop.committed.clone().unwrap();
        let (in_root, out_root) = (root(&committed.in_root), root(&committed.out_root));
        Claim { span: hop.layers.parse().unwrap(), rows: 0..committed.rows, in_root, out_root }
    };
    answer.hops.iter().map(claim).collect()
}

async fn verdicts(answer: &Summary, profile: Profile) -> Vec<Verdict> {
    let file = tokio::task::spawn_blocking(|| ModelFile::open(DEMO)).await.unwrap().unwrap();
    let ids = [answer.prompt_ids.clone(), answer.ids.clone()].concat();
    again(&file, profile, quelea_engine::StageOptions::default(), &claims(answer), &ids, |_| {}).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_stages_are_never_accused() {
    let swarm = halves(&[]).await;
    for (profile, asked) in [(Profile::Exact, RequestProfile::Own), (Profile::ExactBf16, RequestProfile::ExactBf16)] {
        for prompt in
            ["Who are you?", "one two three one two three one two three one", "Who are you? And what is a relay?"]
        {
            let mut request = swarm.request(prompt);
            request.profile = asked;
            let answer = swarm.asker.answer(request, |_| {}).await.unwrap();
            assert_eq!(verdicts(&answer, profile).await, [Verdict::Right; 2], "{profile} {prompt}");
        }
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_row_is_pinned_to_who_made_it() {
    for (liar, expected) in [(0, [Verdict::Wrong, Verdict::GivenOthers]), (1, [Verdict::Right, Verdict::Wrong])] {
        let swarm = halves(&[]).await;
        // Of the prompt, and of the answer.
        for row in [1, 24] {
            swarm.workers[liar].plane.misbehave(Mischief::Computes(row));
            let answer = swarm.ask("Who are you?").await.unwrap();
            assert_eq!(verdicts(&answer, Profile::Exact).await, expected, "worker {liar}, row {row}");
        }
        swarm.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_found_without_being_asked_for_and_gets_no_work_and_no_credit() {
    let mut swarm = halves(&[0]).await;
    swarm.audit_all().await;
    let (used, spare) = swarm.in_use(0, 2).await;
    swarm.workers[used].plane.misbehave(Mischief::Computes(1));
    let liar: libp2p::PeerId = swarm.workers[used].peer_id().parse().unwrap();
    // Whoever is asked first.
    let convicted = async || {
        let _ = swarm.ask("Who are you?").await;
        let standings = swarm.asker.plane.ledger().standings().await.unwrap();
        standings
            .iter()
            .any(|standing| standing.peer == liar && standing.row.convicted && standing.limit == 0)
            .then_some(())
    };
    until("the liar is found", convicted).await;
    until("others are asked", async || {
        let answer = swarm.ask("Who are you?").await.ok()?;
        let right = verdicts(&answer, Profile::Exact).await == [Verdict::Right; 2];
        (right && answer.hops[0].peer == swarm.workers[spare].peer_id()).then_some(())
    })
    .await;
    let metrics = swarm.asker.telemetry.metrics.scrape();
    assert!(metrics.contains(r#"quelea_audits_total{outcome="wrong""#), "{metrics}");
    swarm.stop().await;
}
