//! What a coordinator knows of the roots of a session, and what does not fit together.

use std::collections::BTreeMap;

use libp2p::PeerId;
use quelea_wire::{ModelId, Profile, SpanRange};

use super::{Chain, Commitment, Digest, EVERY, Root, due, seed};
use crate::frame::SessionId;

/// Commitments that are kept of one peer, the newest: 4,096 rows of an answer, some 100 KiB. Roots are over all rows from the
/// first, so older ones are missed only by those who would look into rows that are long past.
const KEPT: usize = 256;

/// Commitments that a peer may send in a session beside one for every four rows: one for each chunk and each recovery, and
/// all of them again after that. Each costs a check of a signature.
const SPARE: u32 = 1024;

/// What commitments of a session have to be about.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The session.
    pub session: SessionId,
    /// The model.
    pub model: ModelId,
    /// The numeric profile.
    pub profile: Profile,
    /// Whether rows have the same bits whoever computes them.
    pub exact: bool,
    /// The first row that any stage computed.
    pub first: u32,
    /// Rows that the session may have.
    pub max_rows: u32,
}

/// A commitment that was found in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The position behind the last row.
    pub rows: u32,
    /// Root over the rows that came in.
    pub in_root: Root,
    /// Root over the rows that went out.
    pub out_root: Root,
    /// The signed bytes.
    pub envelope: Vec<u8>,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A commitment that is none for this session: its sender's own fault, which says nothing of its rows.
    Invalid {
        /// Who sent it.
        peer: PeerId,
        /// What about it, for people.
        why: &'static str,
    },
    /// A peer has signed a root that is not of the rows that it was given or that came from it, or two that cannot both be.
    Lie {
        /// Who.
        peer: PeerId,
        /// The position behind the last row.
        rows: u32,
        /// What about it, for people.
        why: &'static str,
    },
    /// Two peers do not agree on the rows between two layers; one of them lies.
    Differ {
        /// The one that gave the rows out, or had done so before; and the other.
        peers: [PeerId; 2],
        /// The position behind the last row.
        rows: u32,
        /// The rows are those that go into this layer.
        layer: u16,
    },
}

/// What became of a commitment without fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It fits to all that is known, and is kept.
    Kept,
    /// It is of an epoch that is over, or of a peer that has left the chain.
    Late,
}

#[derive(Debug)]
struct Record {
    peer: PeerId,
    span: SpanRange,
    /// Whether the peer is in the chain.
    here: bool,
    heard: u32,
    at: BTreeMap<u32, Committed>,
    /// The position up to which what it gave out was compared with what came back.
    checked: u32,
}

impl Record {
    fn latest(&self) -> Option<&Committed> {
        self.at.last_key_value().map(|(_, committed)| committed)
    }
}

/// A pure state machine: it is told what the coordinator gave to the first stage and got from the last, and what stages
/// have signed, and says what does not fit.
#[derive(Debug)]
pub struct Witness {
    terms: Terms,
    epoch: u32,
    /// What went to the first stage.
    sent: Chain,
    /// The furthest that it ever went.
    given: u32,
    /// What came from the last stage, the newest rows without a gap.
    received: Chain,
    /// Rows before this came from `before`.
    received_since: u32,
    before: Option<PeerId>,
    records: Vec<Record>,
    /// Whether rows that were computed twice have to be the same.
    comparable: bool,
}

impl Witness {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        let chain = Chain::new(terms.first);
        Self {
            terms,
            epoch: 0,
            sent: chain.clone(),
            given: terms.first,
            received: chain,
            received_since: 0,
            before: None,
            records: Vec::new(),
            comparable: true,
        }
    }

    /// From now on, in `epoch`, these are the stages, in the order of the layers.
    pub fn arrange(&mut self, epoch: u32, stages: &[(PeerId, SpanRange)]) {
        self.epoch = epoch;
        let last = self.last().map(|record| record.peer);
        for record in &mut self.records {
            let stays = stages.iter().any(|(peer, _)| *peer == record.peer);
            // Rows of another processor, computed again, need not have the same bits.
            self.comparable &= stays || !record.here || self.terms.exact;
            record.here = stays;
        }
        for (peer, span) in stages {
            if !self.records.iter().any(|record| record.peer == *peer) {
                let (peer, span, checked) = (*peer, *span, self.terms.first);
                self.records.push(Record { peer, span, here: true, heard: 0, at: BTreeMap::new(), checked });
            }
        }
        if last.is_some() && self.last().map(|record| record.peer) != last {
            (self.received_since, self.before) = (self.received.end(), last);
        }
    }

    /// Rows from `pos` on went to the first stage. What went there before is given again with the same values, except where
    /// the session goes back.
    pub fn sent(&mut self, pos: u32, goes_back: bool, rows: &[Digest]) {
        if goes_back {
            self.sent.cut(pos);
            if self.received.end() > pos {
                self.received.cut(pos);
            }
        }
        go_on(&mut self.sent, pos, rows);
        self.given = self.given.max(self.sent.end());
    }

    /// Rows from `pos` on came from the last stage, and count: of those that came before, the first time.
    pub fn received(&mut self, pos: u32, rows: &[Digest]) -> Option<Finding> {
        if let Some(from) = go_on(&mut self.received, pos, rows) {
            self.received_since = self.received_since.min(from);
        }
        self.compare_received()
    }

    /// A peer sent a commitment, whose signature is its own.
    ///
    /// # Errors
    /// When that does not fit.
    pub fn claim(&mut self, peer: PeerId, of: &Commitment, envelope: &[u8]) -> Result<Heard, Box<Finding>> {
        let (terms, epoch, given) = (self.terms, self.epoch, self.given);
        let Some(at) = self.records.iter().position(|record| record.peer == peer && record.here) else {
            return Ok(Heard::Late);
        };
        let Some(record) = self.records.get_mut(at) else { return Ok(Heard::Late) };
        record.heard = record.heard.saturating_add(1);
        let span = record.span;
        let invalid = |why| Err(Box::new(Finding::Invalid { peer, why }));
        if record.heard > SPARE.saturating_add(terms.max_rows / 4) {
            return invalid("sends more commitments than there are rows");
        }
        if of.session != terms.session {
            return invalid("commits to another session");
        }
        if of.epoch < epoch {
            return Ok(Heard::Late);
        }
        if of.epoch > epoch {
            return invalid("commits to an epoch that was not opened");
        }
        if (of.model, of.profile) != (terms.model, terms.profile) {
            return invalid("commits to another model");
        }
        if of.span != span {
            return invalid("commits to other layers than it was given");
        }
        if of.first != terms.first || of.rows > given {
            return invalid("commits to rows that it was not given");
        }
        self.fits(at, of)?;
        let committed =
            Committed { rows: of.rows, in_root: of.in_root, out_root: of.out_root, envelope: envelope.to_vec() };
        if let Some(record) = self.records.get_mut(at) {
            record.at.insert(of.rows, committed);
            while record.at.len() > KEPT {
                record.at.pop_first();
            }
        }
        self.compare_received().map_or(Ok(Heard::Kept), |finding| Err(Box::new(finding)))
    }

    /// Whether a commitment of the peer at `at` says the same as everybody who knows the same rows.
    fn fits(&mut self, at: usize, of: &Commitment) -> Result<(), Box<Finding>> {
        let Some(own) = self.records.get(at) else { return Ok(()) };
        let (peer, rows) = (own.peer, of.rows);
        let lie = |why| Err(Box::new(Finding::Lie { peer, rows, why }));
        if of.span.start() == self.begins() && self.sent.root(of.first, rows).is_some_and(|root| root != of.in_root) {
            return lie("commits to other rows than it was given");
        }
        if !self.comparable {
            return Ok(());
        }
        let before = own.at.get(&rows);
        if before.is_some_and(|before| before.in_root == of.in_root && before.out_root != of.out_root) {
            return lie("commits to two results of the same rows");
        }
        for (n, other) in self.records.iter().enumerate().filter(|(n, _)| *n != at) {
            let Some(known) = other.at.get(&rows) else { continue };
            for (layer, root) in [(of.span.start(), of.in_root), (of.span.end(), of.out_root)] {
                let theirs = [(other.span.end(), known.out_root), (other.span.start(), known.in_root)];
                if theirs.iter().any(|(theirs, known)| *theirs == layer && *known != root) {
                    let other_first = (other.span.end(), n) < (of.span.end(), at);
                    let peers = if other_first { [other.peer, peer] } else { [peer, other.peer] };
                    return Err(Box::new(Finding::Differ { peers, rows, layer }));
                }
            }
        }
        Ok(())
    }

    /// Compares what the last stage says that it gave out with what came from it, between each two commitments of which all
    /// rows are known.
    fn compare_received(&mut self) -> Option<Finding> {
        if !self.comparable {
            return None;
        }
        let (received, since, from) = (&self.received, self.received_since, self.terms.first);
        let record = self.records.iter_mut().filter(|record| record.here).max_by_key(|record| record.span.end())?;
        let checked = record.at.range(..=record.checked).next_back();
        let (mut at, mut root) = checked.map_or((from, seed(from)), |(rows, of)| (*rows, of.out_root));
        for (&rows, of) in record.at.range(record.checked.saturating_add(1)..) {
            if at >= received.from() {
                if rows > received.end() {
                    return None;
                }
                if received.onwards(root, at, rows).is_some_and(|root| root != of.out_root) {
                    let peer = record.peer;
                    let why = "commits to other rows than it gave back";
                    return Some(match self.before.filter(|_| at < since) {
                        Some(before) => Finding::Differ { peers: [before, peer], rows, layer: record.span.end() },
                        None => Finding::Lie { peer, rows, why },
                    });
                }
            }
            (record.checked, at, root) = (rows, rows, of.out_root);
        }
        None
    }

    /// The layer whose rows the coordinator gives.
    fn begins(&self) -> u16 {
        self.here().map(|record| record.span.start()).min().unwrap_or(0)
    }

    fn last(&self) -> Option<&Record> {
        self.here().max_by_key(|record| record.span.end())
    }

    fn here(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.here)
    }

    /// The layers of a peer that is or was in the chain.
    #[must_use]
    pub fn span(&self, peer: &PeerId) -> Option<SpanRange> {
        self.records.iter().find(|record| record.peer == *peer).map(|record| record.span)
    }

    /// The newest commitment of a peer.
    #[must_use]
    pub fn latest(&self, peer: &PeerId) -> Option<&Committed> {
        self.records.iter().find(|record| record.peer == *peer)?.latest()
    }

    /// Peers of the chain that have not committed to as many rows as they have to when all have computed `end`.
    #[must_use]
    pub fn owing(&self, end: u32) -> Vec<PeerId> {
        self.lacking(due(end))
    }

    /// Peers of the chain whose newest commitment is to fewer than `rows`.
    #[must_use]
    pub fn lacking(&self, rows: u32) -> Vec<PeerId> {
        let lacks = |record: &&Record| rows > self.terms.first && record.latest().is_none_or(|of| of.rows < rows);
        self.here().filter(lacks).map(|record| record.peer).collect()
    }

    /// Who has taken the place of a peer that is gone, and has not committed to as many rows as that one has: where a
    /// comparison is due, given that rows up to `end` will have been computed.
    pub fn unproven(&self, end: u32) -> impl Iterator<Item = PeerId> {
        let most = due(end);
        let open = move |new: &&Record| {
            self.records.iter().filter(|old| !old.here).any(|old| {
                let same = old.span.end() == new.span.end() || old.span.start() == new.span.start();
                let last = old.at.range(..=most).map(|(rows, _)| *rows).rfind(|rows| rows.is_multiple_of(EVERY));
                same && last.is_some_and(|last| new.latest().is_none_or(|of| of.rows < last))
            })
        };
        self.here().filter(|_| self.comparable).filter(open).map(|record| record.peer)
    }
}

/// Adds what is new of `rows`, the first of which is at `pos`; where that begins.
fn go_on(chain: &mut Chain, pos: u32, rows: &[Digest]) -> Option<u32> {
    let known = usize::try_from(chain.end().saturating_sub(pos)).unwrap_or(usize::MAX);
    let new = rows.get(known..).filter(|new| !new.is_empty())?;
    let from = chain.end().max(pos);
    chain.append(from, new);
    Some(from)
}

#[cfg(test)]
mod tests;
