//! The best plan, those as good as it, a spare, and the one that stays at home.

use std::collections::HashSet;

use libp2p::PeerId;
use quelea_wire::{SpanRange, WorkedRows};

use super::{
    Candidate, Hop, Links, NoPlan, Query, Source,
    cost::{CHUNK_ROWS, Costs, transfer},
    explain::{self, LeftOut},
    search::{Part, shortest},
};

/// Plans that take at most this much more than the best, in parts of a hundred, are as good: what is measured is no
/// better than that.
const AS_GOOD_PERCENT: u128 = 10;

/// How fast this node runs the whole model by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Local {
    /// Nanoseconds for one row through one layer.
    pub(crate) decode_ns: u64,
    pub(crate) prefill_ns: u64,
    pub(crate) source: Source,
}

/// One stage of a plan and what it is expected to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedHop {
    pub(crate) hop: Hop,
    /// Bytes of one row on its way to it.
    pub(crate) row_bytes: u64,
    /// Nanoseconds for one row of an answer, waiting aside.
    pub(crate) compute_ns: u64,
    /// Nanoseconds for one chunk of the prompt.
    pub(crate) chunk_ns: u64,
    /// Nanoseconds that a batch waits for its turn.
    pub(crate) queue_ns: u64,
    /// Nanoseconds for one row to get here from the stage before.
    pub(crate) one_way_ns: u64,
    /// Whether that was measured.
    pub(crate) one_way_known: bool,
    /// Micro-credits for the whole request.
    pub(crate) price: u64,
    pub(crate) source: Source,
}

/// A chain and what it is expected to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Empty when everything runs here, unsplit.
    pub(crate) hops: Vec<PlannedHop>,
    /// Nanoseconds for one row to come back from the last stage.
    pub(crate) back_ns: u64,
    /// Nanoseconds for one token of the answer.
    pub(crate) token_ns: u64,
    /// Nanoseconds from the first row sent to the last row of the prompt.
    pub(crate) first_token_ns: u64,
    /// Nanoseconds of the slowest stage for one row: what bounds many sessions together.
    pub(crate) bottleneck_ns: u64,
    /// Micro-credits for the whole request.
    pub(crate) price: u64,
}

impl Plan {
    /// Nanoseconds for the whole answer.
    pub(crate) fn total_ns(&self, query: &Query) -> u64 {
        self.first_token_ns.saturating_add(self.token_ns.saturating_mul(query.answer_rows.saturating_sub(1)))
    }

    /// The stages.
    pub(crate) fn chain(&self) -> Vec<Hop> {
        self.hops.iter().map(|planned| planned.hop.clone()).collect()
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    /// The one to use.
    pub(crate) chosen: Plan,
    /// Plans that were as good, the chosen one among them.
    pub(crate) as_good: usize,
    /// A plan that shares no peer with the chosen one.
    pub(crate) spare: Option<Plan>,
    /// What this node alone would take.
    pub(crate) local: Option<Plan>,
    /// Who cannot be used.
    pub(crate) left_out: Vec<LeftOut>,
    /// Who could be, and is not.
    pub(crate) passed_over: Vec<LeftOut>,
}

impl Planned {
    /// Whether this node alone is faster than the chosen chain, going by what was measured here.
    pub(crate) fn local_is_faster(&self, query: &Query) -> bool {
        self.local.as_ref().is_some_and(|local| local.total_ns(query) < self.chosen.total_ns(query))
    }
}

/// The best chain for `query`.
///
/// Of plans that are within 10 % of the best the query's seed takes one. With `why` it is also told of every candidate that
/// is passed over what a chain through it would take, which is a search more for each.
///
/// # Errors
/// [`NoPlan`] says what is missing; `left_out` is handed through into it.
pub(crate) fn plan(
    query: &Query,
    candidates: &[Candidate],
    links: &Links,
    local: Option<Local>,
    mut left_out: Vec<LeftOut>,
    why: bool,
) -> Result<Planned, NoPlan> {
    left_out.extend(explain::unusable(query, candidates));
    let costs = Costs::new(query, candidates, links);
    let find = |avoid: &HashSet<PeerId>| shortest(query, candidates, &costs, avoid, None);
    let mut shunned: HashSet<PeerId> = candidates.iter().filter(|c| c.shunned).map(|c| c.peer).collect();
    let best = match find(&shunned) {
        None if !shunned.is_empty() => {
            shunned.clear();
            find(&shunned)
        }
        best => best,
    };
    let Some((best, cost)) = best else {
        return Err(NoPlan::new(query, candidates, left_out));
    };
    let without = |peers: &HashSet<PeerId>| find(&shunned.union(peers).copied().collect());
    let score = cost.score(costs.peaks);
    let peers = |parts: &[Part]| -> Vec<PeerId> {
        parts.iter().filter_map(|(index, ..)| candidates.get(*index)).map(|c| c.peer).collect()
    };
    // Other plans are those without one of its peers.
    let mut as_good = vec![best.clone()];
    for peer in peers(&best) {
        if let Some((parts, cost)) = without(&HashSet::from([peer]))
            && cost.score(costs.peaks) <= score + score * AS_GOOD_PERCENT / 100
            && !as_good.contains(&parts)
        {
            as_good.push(parts);
        }
    }
    // Not sorted by cost, so that a small change of a measurement does not move everybody.
    as_good.sort_by_key(|parts| peers(parts));
    let turn = usize::try_from(query.seed % u64::try_from(as_good.len()).unwrap_or(1)).unwrap_or(0);
    let chosen = as_good.get(turn).unwrap_or(&best).clone();
    let used: HashSet<PeerId> = peers(&chosen).into_iter().collect();
    let spare = without(&used).map(|(parts, _)| predict(query, candidates, links, &parts));
    let passed_over = if why { explain::passed_over(query, candidates, &costs, &used, score) } else { Vec::new() };
    Ok(Planned {
        chosen: predict(query, candidates, links, &chosen),
        as_good: as_good.len(),
        spare,
        local: local.map(|local| at_home(query, local)),
        left_out,
        passed_over,
    })
}

/// What a chain is expected to take: chunks of the prompt follow each other through the stages, tokens do not.
fn predict(query: &Query, candidates: &[Candidate], links: &Links, parts: &[Part]) -> Plan {
    let mut hops: Vec<PlannedHop> = Vec::new();
    let (mut before, mut per_s) = (query.from, u64::MAX);
    let (mut token, mut first, mut peak, mut bottleneck, mut price) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
    let chunk_rows = query.chunk_rows();
    for (index, start, end) in parts.iter().copied() {
        let (Some(candidate), Ok(span)) = (candidates.get(index), SpanRange::new(start, end)) else { continue };
        let layers = u64::from(span.count());
        let away = before != candidate.peer;
        let rate = per_s.min(candidate.bytes_per_s);
        let row = if hops.is_empty() { query.bytes_in() } else { query.row_bytes };
        let (one_way, row_time, chunk_time) = if away {
            let chunk = row.saturating_mul(chunk_rows);
            (links.one_way(before, candidate.peer), transfer(row, rate), transfer(chunk, rate))
        } else {
            (0, 0, 0)
        };
        let compute_ns = layers.saturating_mul(candidate.decode_ns);
        let chunk_ns = layers.saturating_mul(candidate.prefill_ns).saturating_mul(chunk_rows);
        let stage = compute_ns.saturating_add(candidate.queue_ns);
        let rows = WorkedRows { prefill: query.prompt_rows, decode: query.answer_rows };
        // What no counter holds nobody pays.
        let hop_price = candidate.price().amount(span.count(), rows).unwrap_or(u64::MAX);
        token = token.saturating_add(one_way).saturating_add(row_time).saturating_add(stage);
        first = first
            .saturating_add(one_way)
            .saturating_add(chunk_time)
            .saturating_add(chunk_ns)
            .saturating_add(candidate.queue_ns);
        peak = peak.max(chunk_ns.saturating_add(candidate.queue_ns)).max(chunk_time);
        bottleneck = bottleneck.max(stage).max(row_time);
        price = price.saturating_add(hop_price);
        hops.push(PlannedHop {
            hop: Hop {
                peer: candidate.peer,
                span,
                rtt: candidate.rtt,
                addrs: candidate.addrs.clone(),
                price: candidate.price(),
            },
            row_bytes: row,
            compute_ns,
            chunk_ns,
            queue_ns: candidate.queue_ns,
            one_way_ns: one_way.saturating_add(row_time),
            one_way_known: !away || links.knows(before, candidate.peer),
            price: hop_price,
            source: candidate.source,
        });
        before = candidate.peer;
        per_s = candidate.bytes_per_s;
    }
    let back_ns = if before == query.to {
        0
    } else {
        links.one_way(before, query.to).saturating_add(transfer(query.bytes_out(), per_s))
    };
    let later_chunks = peak.saturating_mul(query.chunks().saturating_sub(1));
    Plan {
        hops,
        back_ns,
        token_ns: token.saturating_add(back_ns),
        first_token_ns: first.saturating_add(back_ns).saturating_add(later_chunks),
        bottleneck_ns: bottleneck,
        price,
    }
}

/// What this node alone would take.
fn at_home(query: &Query, local: Local) -> Plan {
    let layers = u64::from(query.span.count());
    let token_ns = layers.saturating_mul(local.decode_ns);
    let rows = query.chunks().saturating_mul(CHUNK_ROWS).min(query.prompt_rows.max(1));
    Plan {
        hops: Vec::new(),
        back_ns: 0,
        token_ns,
        first_token_ns: layers.saturating_mul(local.prefill_ns).saturating_mul(rows),
        bottleneck_ns: token_ns,
        price: 0,
    }
}
