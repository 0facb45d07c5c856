//! The shortest path over (boundary, peer).
//!
//! A label is a path that has reached a boundary with some peer last. Boundaries are looked at in rising order, so every
//! label that can be extended is known when its turn comes. A path is dropped when another that ends the same way costs
//! no more, bears no more at once, and has used no peer that this one could still use: that is exact. What is not
//! exact is [`MAX_LABELS`], which bounds the work when peers are many and alike.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
};

use libp2p::PeerId;

use super::{
    Candidate, Query,
    cost::{Cost, Costs},
};

/// Stages of a chain: each costs a trip per token, and more of them than this no answer survives.
const MAX_HOPS: u8 = 32;

/// Paths kept for one boundary and last peer, while every cut is tried and when not.
const MAX_LABELS: usize = 12;
const FEW_LABELS: usize = 3;

/// With so many candidates every cut is tried. With more, only where somebody's span begins or ends: costs grow with the
/// number of layers, so but for the sharing of peaks the best cut is at such a place.
const EVERY_CUT: usize = 12;

/// Candidates that are looked at for each layer: the fastest, and half as many that go the farthest.
const PER_LAYER: usize = 6;

/// A part of a chain: which candidate runs which layers.
pub(super) type Part = (usize, u16, u16);

/// This layer is to be run by this candidate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Through {
    pub(super) layer: u16,
    pub(super) candidate: usize,
}

#[derive(Debug, Clone)]
struct Label {
    before: Option<usize>,
    candidate: usize,
    start: u16,
    end: u16,
    cost: Cost,
    hops: u8,
    /// The path's peers, this one included.
    used: Peers,
}

/// A set of peers, by their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Peers(Vec<u64>);

impl Peers {
    fn insert(&mut self, peer: usize) {
        if self.0.len() <= peer / 64 {
            self.0.resize(peer / 64 + 1, 0);
        }
        if let Some(word) = self.0.get_mut(peer / 64) {
            *word |= 1 << (peer % 64);
        }
    }

    fn contains(&self, peer: usize) -> bool {
        self.0.get(peer / 64).is_some_and(|word| word & (1 << (peer % 64)) != 0)
    }

    /// Whether those of `of` that are in this set are all in `other`.
    fn within(&self, other: &Self, of: &Self) -> bool {
        let at = |set: &Self, i: usize| set.0.get(i).copied().unwrap_or(0);
        self.0.iter().enumerate().all(|(i, word)| word & at(of, i) & !at(other, i) == 0)
    }
}

struct Search<'a> {
    query: &'a Query,
    candidates: &'a [Candidate],
    costs: &'a Costs<'a>,
    usable: &'a [usize],
    cuts: &'a BTreeSet<u16>,
    through: Option<Through>,
    most_labels: usize,
    /// The peer's number of each candidate.
    numbers: Vec<usize>,
    /// Peers that hold layers behind a boundary.
    behind: Vec<Peers>,
    labels: Vec<Label>,
    /// Labels that reach a boundary, by boundary and last candidate.
    reached: Vec<BTreeMap<usize, Vec<usize>>>,
}

/// The cheapest chain among those that `usable` leaves, and its cost.
pub(super) fn shortest(
    query: &Query,
    candidates: &[Candidate],
    costs: &Costs<'_>,
    avoid: &HashSet<PeerId>,
    through: Option<Through>,
) -> Option<(Vec<Part>, Cost)> {
    let (start, end) = (query.span.start(), query.span.end());
    let usable = usable(query, candidates, avoid, through);
    let cuts = cuts(query, candidates, &usable);
    let mut search = Search::new(query, candidates, costs, &usable, &cuts, through);
    search.extend(None, start);
    for boundary in start.saturating_add(1)..end {
        let here: Vec<usize> = search.reached.get(usize::from(boundary))?.values().flatten().copied().collect();
        for label in here {
            search.extend(Some(label), boundary);
        }
    }
    let last = search.reached.get(usize::from(end))?.values().flatten();
    let best = last.filter_map(|label| Some((*label, search.labels.get(*label)?)));
    // Of cuts that cost the same the latest is taken.
    let rank = |label: &Label| (label.cost.score(costs.peaks), label.hops, Reverse(label.start), label.candidate);
    let (best, label) = best.min_by_key(|(_, label)| rank(label))?;
    Some((search.path(best), label.cost))
}

/// Who may be used at all; of many, the fastest for each layer.
fn usable(query: &Query, candidates: &[Candidate], avoid: &HashSet<PeerId>, through: Option<Through>) -> Vec<usize> {
    let fits = |c: &Candidate| c.is_usable(query) && !avoid.contains(&c.peer);
    let all: Vec<usize> =
        candidates.iter().enumerate().filter(|(_, candidate)| fits(candidate)).map(|(index, _)| index).collect();
    if all.len() <= EVERY_CUT {
        return all;
    }
    let mut kept: BTreeSet<usize> = through.iter().map(|through| through.candidate).collect();
    let quickness = |index: &usize| {
        candidates.get(*index).map(|c| (c.decode_ns.saturating_add(c.queue_ns), c.rtt.is_none(), c.rtt, *index))
    };
    for layer in query.span.start()..query.span.end() {
        let of_use = |c: &Candidate| c.span.contains(layer) && c.has_ends(query, layer, layer.saturating_add(1));
        let holds = |index: &usize| candidates.get(*index).is_some_and(of_use);
        let mut of_layer: Vec<usize> = all.iter().copied().filter(holds).collect();
        of_layer.sort_by_key(quickness);
        // The fastest, and those that save hops.
        kept.extend(of_layer.iter().take(PER_LAYER));
        of_layer.sort_by_key(|index| candidates.get(*index).map(|c| (Reverse(c.span.end()), quickness(index))));
        kept.extend(of_layer.iter().take(PER_LAYER / 2));
    }
    kept.into_iter().collect()
}

/// Where a span may be left.
fn cuts(query: &Query, candidates: &[Candidate], usable: &[usize]) -> BTreeSet<u16> {
    let (start, end) = (query.span.start(), query.span.end());
    if usable.len() <= EVERY_CUT {
        return (start..=end).collect();
    }
    let spans = usable.iter().filter_map(|index| candidates.get(*index)).map(|c| c.span);
    spans.flat_map(|span| [span.start(), span.end()]).filter(|cut| (start..=end).contains(cut)).chain([end]).collect()
}

impl<'a> Search<'a> {
    fn new(
        query: &'a Query,
        candidates: &'a [Candidate],
        costs: &'a Costs<'a>,
        usable: &'a [usize],
        cuts: &'a BTreeSet<u16>,
        through: Option<Through>,
    ) -> Self {
        let boundaries = usize::from(query.span.end()) + 1;
        let mut known: HashMap<PeerId, usize> = HashMap::new();
        let numbers: Vec<usize> = candidates
            .iter()
            .map(|candidate| {
                let next = known.len();
                *known.entry(candidate.peer).or_insert(next)
            })
            .collect();
        let mut behind = vec![Peers::default(); boundaries];
        for index in usable {
            let (Some(candidate), Some(number)) = (candidates.get(*index), numbers.get(*index)) else { continue };
            for peers in behind.iter_mut().take(usize::from(candidate.span.end())) {
                peers.insert(*number);
            }
        }
        let most_labels = if usable.len() <= EVERY_CUT { MAX_LABELS } else { FEW_LABELS };
        let reached = vec![BTreeMap::new(); boundaries];
        Self {
            query,
            candidates,
            costs,
            usable,
            cuts,
            through,
            most_labels,
            numbers,
            behind,
            labels: Vec::new(),
            reached,
        }
    }

    /// Every way to go on from a label that has reached `boundary`.
    fn extend(&mut self, before: Option<usize>, boundary: u16) {
        let known = before.and_then(|before| self.labels.get(before)).cloned();
        let hops = known.as_ref().map_or(0, |label| label.hops);
        if hops >= MAX_HOPS {
            return;
        }
        let cost = known.as_ref().map_or_else(Cost::default, |label| label.cost);
        let used = known.as_ref().map_or_else(Peers::default, |label| label.used.clone());
        let last = known.as_ref().map(|label| label.candidate);
        for index in self.usable.iter().copied() {
            let (Some(candidate), Some(number)) = (self.candidates.get(index), self.numbers.get(index)) else {
                continue;
            };
            let fits = candidate.has_ends(self.query, boundary, boundary);
            if !candidate.span.contains(boundary) || used.contains(*number) || !fits {
                continue;
            }
            let mut used = used.clone();
            used.insert(*number);
            let entered = cost.plus(self.costs.link(last, index));
            let far = candidate.span.end().min(self.query.span.end());
            for end in self.cuts.range(boundary.saturating_add(1)..=far).rev().copied() {
                let forced = |t: &Through| (boundary..end).contains(&t.layer) && t.candidate != index;
                if self.through.as_ref().is_some_and(forced) || !candidate.has_ends(self.query, boundary, end) {
                    continue;
                }
                let mut cost = entered.plus(self.costs.stage(index, end.saturating_sub(boundary)));
                if end == self.query.span.end() {
                    cost = cost.plus(self.costs.back(index));
                }
                let (start, hops, used) = (boundary, hops.saturating_add(1), used.clone());
                self.keep(Label { before, candidate: index, start, end, cost, hops, used });
            }
        }
    }

    /// Keeps a label unless one that is there is as good in every way.
    fn keep(&mut self, new: Label) {
        let boundary = usize::from(new.end);
        let (Some(behind), Some(reached)) = (self.behind.get(boundary), self.reached.get_mut(boundary)) else { return };
        let alike = reached.entry(new.candidate).or_default();
        let labels = &self.labels;
        let better = |a: &Label, b: &Label| {
            a.cost.sum <= b.cost.sum && a.cost.peak <= b.cost.peak && a.used.within(&b.used, behind)
        };
        // Of cuts that cost the same the latest is kept.
        let later = |old: &Label| old.cost == new.cost && new.start > old.start && better(&new, old);
        if alike.iter().filter_map(|index| labels.get(*index)).any(|old| better(old, &new) && !later(old)) {
            return;
        }
        alike.retain(|index| labels.get(*index).is_some_and(|old| !better(&new, old)));
        if alike.len() >= self.most_labels {
            let score = |index: usize| labels.get(index).map(|label| label.cost.score(self.costs.peaks));
            let worst = alike.iter().enumerate().max_by_key(|(_, index)| score(**index)).map(|(at, _)| at);
            let worse =
                |at: &usize| alike.get(*at).and_then(|index| score(*index)) > Some(new.cost.score(self.costs.peaks));
            match worst.filter(worse) {
                Some(at) => drop(alike.swap_remove(at)),
                None => return,
            }
        }
        alike.push(self.labels.len());
        self.labels.push(new);
    }

    fn path(&self, label: usize) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = Some(label);
        while let Some(label) = at.and_then(|at| self.labels.get(at)) {
            parts.push((label.candidate, label.start, label.end));
            at = label.before;
        }
        parts.reverse();
        parts
    }
}
