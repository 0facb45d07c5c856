//! Audits by others, for coordinators that have not got the model's layers.
//!
//! One stage of the answer is drawn. The rows that went into it are computed again by the stages before it, or are here; the
//! root that it has signed over them says whether they are the same. Another peer that holds its layers, drawn at random, computes
//! them anew and signs for it. Where its rows are others than the stage's, a second one is drawn: two that agree against a
//! third make it suspect. Nothing of this is certain, so nobody is convicted by it.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::PeerId;
use quelea_behaviours::kad::diversity::{Group, group_of};
use quelea_shard::commitment::{Chain, Root, digests};
use quelea_wire::ErrorCode;
use tokio::time::timeout;

use super::Signed;
use crate::inference::{
    coordinator::trail::Trail,
    discover::{Wanted, holders::holders},
    plane::Plane,
    planner::Hop,
    types::{HopReport, InferError},
};

/// How long one session of an audit may take. Notes wait for three of them at most, and for others before that.
const RUN: Duration = Duration::from_secs(180);

/// Peers that are asked for one opinion: who does not answer has none.
const TRIES: usize = 3;

/// Bytes of the rows that go into a stage, which are kept while others are asked.
const MAX_BYTES: usize = 128 << 20;

/// Why an answer is not audited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skipped {
    /// As many wait as may.
    Busy,
    /// Nobody else could come to the same bits.
    Profile,
    /// No stage has signed.
    Unsigned,
    /// The rows that went into the stage would take too much memory.
    Size,
    /// Nobody else holds the layers, or nobody who is far enough from the chain.
    NoAuditor,
    /// It would cost more than may be given.
    Price,
    /// The stages before it do not compute the rows again.
    NoRows,
    /// Nobody who was asked has answered.
    NoAnswer,
}

impl Skipped {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Profile => "profile",
            Self::Unsigned => "unsigned",
            Self::Size => "size",
            Self::NoAuditor => "no_auditor",
            Self::Price => "price",
            Self::NoRows => "no_rows",
            Self::NoAnswer => "no_answer",
        }
    }
}

/// What others make of a stage's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opinion {
    /// Somebody came to what it signed for.
    Right,
    /// It was given other rows than the stages before it make now.
    GivenOthers,
    /// It and two others have signed for three different things, or there was no second one.
    Undecided,
    /// Two others agree on something else than it signed for.
    Against,
}

/// What came of asking others.
pub(super) struct Found {
    /// The stage that was drawn.
    pub(super) stage: PeerId,
    pub(super) opinion: Opinion,
    /// Who is suspect, and why.
    pub(super) suspects: Vec<(PeerId, &'static str)>,
}

/// Why somebody is suspect.
const AGAINST: &str = "two others came to other rows than it signed for";
const ALONE: &str = "as an auditor it came to other rows than two others";
const TWICE: &str = "it signed for other rows than before over the same input";

/// Who may be asked for an opinion, and what is left to pay them.
struct Panel {
    holders: Vec<(Hop, u64, HashSet<Group>)>,
    /// Address groups of everybody who has had part in it.
    taken: HashSet<Group>,
    left: u64,
}

impl Panel {
    /// Whom [`Self::draw`] may draw.
    fn eligible(&self) -> Vec<usize> {
        let apart = |groups: &HashSet<Group>| groups.is_disjoint(&self.taken);
        let may =
            self.holders.iter().enumerate().filter(|(_, (_, price, groups))| *price <= self.left && apart(groups));
        may.map(|(at, _)| at).collect()
    }

    /// Draws one at random. What it may cost is spent, whatever becomes of it.
    fn draw(&mut self) -> Option<Hop> {
        let eligible = self.eligible();
        let at = *eligible.get(rand::random_range(0..eligible.len().max(1)))?;
        let (hop, price, groups) = self.holders.swap_remove(at);
        self.left = self.left.saturating_sub(price);
        self.taken.extend(groups);
        Some(hop)
    }
}

/// One audit.
struct Inquiry<'a> {
    plane: &'a Arc<Plane>,
    trail: &'a Trail,
    signed: &'a Signed,
    /// What went into the stage, where that is not what went into the first.
    input: Option<Vec<f32>>,
    panel: Panel,
}

/// Asks others about one of the stages of an answer, for `most` micro-credits at most. `reports` are all stages', in their order.
pub(super) async fn ask(
    plane: &Arc<Plane>,
    trail: &Trail,
    signed: &[Signed],
    reports: &[HopReport],
    most: u64,
) -> Result<Found, Skipped> {
    let here = plane.handle.local();
    let of_others: Vec<&Signed> = signed.iter().filter(|signed| signed.peer != here).collect();
    let drawn = of_others.get(rand::random_range(0..of_others.len().max(1))).copied().ok_or(Skipped::Unsigned)?;
    let span = drawn.claim.span;
    let at = trail.hops.iter().position(|hop| (hop.peer, hop.span) == (drawn.peer, span)).ok_or(Skipped::Unsigned)?;
    let (rows, width) = (drawn.claim.rows.end, trail.width());
    let values = usize::try_from(rows).unwrap_or(usize::MAX).saturating_mul(width);
    if values.saturating_mul(size_of::<f32>()) > MAX_BYTES {
        return Err(Skipped::Size);
    }
    let before = trail.hops.get(..at).unwrap_or_default();
    let price = |hop: &Hop| Trail::price(hop.price, hop.span, rows);
    let again = before.iter().try_fold(0_u64, |sum, hop| sum.checked_add(price(hop)?));
    let left = again.and_then(|again| most.checked_sub(again)).ok_or(Skipped::Price)?;
    let panel = panel(plane, trail, drawn, left).await;
    if panel.holders.is_empty() {
        return Err(Skipped::NoAuditor);
    }
    if panel.eligible().is_empty() {
        let too_near = panel.holders.iter().all(|(_, _, groups)| !groups.is_disjoint(&panel.taken));
        return Err(if too_near { Skipped::NoAuditor } else { Skipped::Price });
    }
    let mut inquiry = Inquiry { plane, trail, signed: drawn, input: None, panel };
    if let Some(found) = inquiry.gather(before, reports).await? {
        return Ok(found);
    }
    inquiry.weigh().await
}

/// Who holds the stage's layers, is none of the chain, and shares no address range with any of it.
async fn panel(plane: &Arc<Plane>, trail: &Trail, drawn: &Signed, left: u64) -> Panel {
    let (span, rows) = (drawn.claim.span, drawn.claim.rows.end);
    let mut query = trail.query(span, rows);
    query.exclude = trail.hops.iter().map(|hop| hop.peer).collect();
    let spec = trail.spec();
    let wanted = Wanted {
        model: spec.model,
        layers: spec.layers,
        profile: spec.profile,
        patience: spec.step_timeout,
        own: None,
        experience: &plane.experience,
        query: &query,
        local: None,
        why: false,
    };
    let holders = holders(&plane.handle, wanted).await;
    let snapshot = plane.handle.snapshot().await;
    // Where it says that it can be reached, and where it is connected from: what a peer claims costs it nothing.
    let groups = |hop: &Hop| -> HashSet<Group> {
        let views = snapshot.iter().flat_map(|snapshot| &snapshot.peers).filter(|view| view.peer == hop.peer);
        views.flat_map(|view| &view.addrs).chain(&hop.addrs).filter_map(group_of).collect()
    };
    let taken = trail.hops.iter().flat_map(groups).collect();
    let priced = |hop: Hop| {
        let (price, groups) = (Trail::price(hop.price, span, rows)?, groups(&hop));
        Some((hop, price, groups))
    };
    Panel { holders: holders.into_iter().filter_map(priced).collect(), taken, left }
}

impl Inquiry<'_> {
    /// Has the stages before the one that was drawn compute what went into it. Where that is not what it has signed for, there
    /// is nothing to ask.
    async fn gather(&mut self, before: &[Hop], reports: &[HopReport]) -> Result<Option<Found>, Skipped> {
        if before.is_empty() {
            // What went into the first stage came from here, and was compared with what it signed before anything was drawn.
            return Ok(None);
        }
        let claim = &self.signed.claim;
        let mut values: Vec<f32> = Vec::new();
        let run = self.trail.run(self.plane, before.to_vec(), claim.rows.end, None, |rows| values.extend(rows));
        let again = match timeout(RUN, run).await {
            Ok(Ok(again)) => again,
            Ok(Err(error)) => {
                tracing::info!(%error, "the rows that went into a stage are not computed again");
                return Err(Skipped::NoRows);
            }
            Err(_) => return Err(Skipped::NoRows),
        };
        if self.root(&values) == Some(claim.in_root) {
            self.input = Some(values);
            return Ok(None);
        }
        // Nobody can be made to have signed for two things over the same input but by himself.
        let twice = contradicts(before, reports, &again).map(|peer| (peer, TWICE));
        let suspects = twice.into_iter().collect();
        Ok(Some(Found { stage: self.signed.peer, opinion: Opinion::GivenOthers, suspects }))
    }

    /// Asks one, and another where that one disagrees with the stage.
    async fn weigh(&mut self) -> Result<Found, Skipped> {
        let (stage, signed) = (self.signed.peer, self.signed.claim.out_root);
        let Some((first, one)) = self.opinion().await else { return Err(Skipped::NoAnswer) };
        let second = if one == signed { None } else { self.opinion().await };
        let (opinion, suspects) = match second {
            _ if one == signed => (Opinion::Right, Vec::new()),
            None => (Opinion::Undecided, Vec::new()),
            Some((_, other)) if other == one => (Opinion::Against, vec![(stage, AGAINST)]),
            Some((_, other)) if other == signed => (Opinion::Right, vec![(first, ALONE)]),
            Some(_) => (Opinion::Undecided, Vec::new()),
        };
        Ok(Found { stage, opinion, suspects })
    }

    /// What somebody comes to who is drawn now, and has signed for it.
    async fn opinion(&mut self) -> Option<(PeerId, Root)> {
        for _ in 0..TRIES {
            let hop = self.panel.draw()?;
            let peer = hop.peer;
            match timeout(RUN, self.computed_by(hop)).await {
                Ok(Ok(root)) => return Some((peer, root)),
                Ok(Err(error)) => {
                    tracing::info!(%peer, %error, "an auditor does not answer");
                    // One that is full, or lends nobody anything, has done nothing wrong.
                    if error.peer() == Some(peer) && crate::inference::planning::died(error.error_code()) {
                        self.plane.experience.failed(peer, "it does not compute what it announces");
                    }
                }
                Err(_) => self.plane.experience.failed(peer, "it does not compute what it announces"),
            }
        }
        None
    }

    /// The root over what `hop` makes of the stage's input.
    async fn computed_by(&self, hop: Hop) -> Result<Root, InferError> {
        let (claim, width, peer) = (&self.signed.claim, self.trail.width(), hop.peer);
        let mut chain = Chain::new(0);
        let started = Instant::now();
        let told = |values: Vec<f32>| {
            let end = chain.end();
            chain.append(end, &digests(&values, width));
        };
        let run = self.trail.run(self.plane, vec![hop], claim.rows.end, self.input.as_deref(), told);
        let reports = run.await?;
        tracing::debug!(%peer, took = ?started.elapsed(), "an auditor has computed a stage's rows");
        // Rows that nobody has signed for are nobody's word.
        let signed = reports.first().and_then(|report| report.committed.as_ref());
        if signed.is_none_or(|signed| signed.rows != claim.rows.end) {
            let message = format!("peer {peer} does not sign for what it computes");
            return Err(InferError::new(ErrorCode::BadCommitment, message).about(peer));
        }
        let short = || InferError::new(ErrorCode::BadPosition, format!("peer {peer} gave too few rows")).about(peer);
        chain.root(claim.rows.start, claim.rows.end).ok_or_else(short)
    }

    /// The root over the stage's rows of all these.
    fn root(&self, values: &[f32]) -> Option<Root> {
        let mut chain = Chain::new(0);
        chain.append(0, &digests(values, self.trail.width()));
        chain.root(self.signed.claim.rows.start, self.signed.claim.rows.end)
    }
}

/// The first stage that has signed for the same input twice and for another output each time.
fn contradicts(before: &[Hop], then: &[HopReport], now: &[HopReport]) -> Option<PeerId> {
    let differs = |hop: &&Hop| {
        let name = hop.peer.to_string();
        let of = |reports: &[HopReport]| reports.iter().find(|report| report.peer == name)?.committed.clone();
        let (Some(then), Some(now)) = (of(then), of(now)) else { return false };
        (then.rows, &then.in_root) == (now.rows, &now.in_root) && then.out_root != now.out_root
    };
    before.iter().find(differs).map(|hop| hop.peer)
}

#[cfg(test)]
mod tests {
    use quelea_wire::{Price, SpanRange};

    use super::*;
    use crate::inference::types::CommittedRows;

    fn hop() -> Hop {
        let span = SpanRange::new(0, 3).unwrap();
        Hop { peer: PeerId::random(), span, rtt: None, addrs: Vec::new(), price: Price::FREE }
    }

    fn groups(addrs: &[&str]) -> HashSet<Group> {
        addrs.iter().filter_map(|addr| group_of(&addr.parse().unwrap())).collect()
    }

    #[test]
    fn nobody_is_drawn_who_is_too_near_or_too_dear_and_all_others_are() {
        let of = |addr: &str, price| (hop(), price, groups(&[addr]));
        let holders = vec![
            of("/ip4/9.1.1.1/tcp/1", 5),
            of("/ip4/9.1.2.1/tcp/1", 5),
            of("/ip4/9.1.3.1/tcp/1", 50),
            of("/ip4/9.1.4.1/tcp/1", 7),
            of("/ip4/9.1.4.9/tcp/1", 7),
            of("/ip4/10.0.0.1/tcp/1", 5),
        ];
        let names: Vec<PeerId> = holders.iter().map(|(hop, ..)| hop.peer).collect();
        let taken = groups(&["/ip4/9.1.1.200/tcp/9"]);
        let mut all = HashSet::new();
        for _ in 0..200 {
            let mut panel = Panel { holders: holders.clone(), taken: taken.clone(), left: 20 };
            let mut drawn = Vec::new();
            while let Some(hop) = panel.draw() {
                drawn.push(hop.peer);
            }
            assert!(!drawn.contains(&names[0]), "it shares a range with the chain");
            assert!(!drawn.contains(&names[2]), "it costs too much");
            assert!(!(drawn.contains(&names[3]) && drawn.contains(&names[4])), "these two share a range");
            // One of those two, the one with a range of its own, and the one at home: 17 of 20.
            assert_eq!((drawn.len(), panel.left), (3, 3));
            all.extend(drawn);
        }
        assert_eq!(all.len(), 4, "anybody may be drawn");
        assert!(Panel { holders: Vec::new(), taken, left: 20 }.draw().is_none());
    }

    #[test]
    fn who_signs_for_two_outputs_of_one_input_is_named() {
        let hops = [hop(), hop()];
        let report = |hop: &Hop, rows, in_root: &str, out_root: &str| HopReport {
            peer: hop.peer.to_string(),
            layers: hop.span.to_string(),
            rows: 4,
            compute_ms_per_row: 0.0,
            queue_ms_per_row: 0.0,
            hop_ms: None,
            committed: Some(CommittedRows { rows, in_root: in_root.into(), out_root: out_root.into() }),
        };
        let then = [report(&hops[0], 4, "a", "b"), report(&hops[1], 4, "b", "c")];
        let found = |now: &[HopReport]| contradicts(&hops, &then, now);
        assert_eq!(found(&then), None);
        assert_eq!(found(&[report(&hops[0], 4, "a", "x"), report(&hops[1], 4, "x", "y")]), Some(hops[0].peer));
        assert_eq!(found(&[report(&hops[0], 4, "a", "b"), report(&hops[1], 4, "b", "y")]), Some(hops[1].peer));
        // Of other rows, or with nothing said, it means nothing.
        assert_eq!(found(&[report(&hops[0], 5, "a", "x")]), None);
        assert_eq!(found(&[HopReport { committed: None, ..report(&hops[0], 4, "a", "x") }]), None);
    }
}
