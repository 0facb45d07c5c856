//! What a receipt says, and whether that fits together.

use std::{collections::BTreeSet, ops::Range};

use libp2p::PeerId;
use quelea_wire::{SpanRange, envelope::Signed};

use super::{About, Entry, Lost, Part, Receipt, Work};
use crate::fields::{Hash, HoldId};

/// The domain of commitments, and their only kind.
const COMMITMENTS: (&str, u8) = ("quelea/commitment/1", 1);

/// The longest commitment, as the shard protocol has it.
const MAX_COMMITMENT: usize = 256;

/// What a receipt says of one stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartReport {
    /// The stage.
    pub stage: PeerId,
    /// Its layers.
    pub span: SpanRange,
    /// What it did, and for how much.
    pub work: Work,
    /// What it was paid by.
    pub hold: HoldId,
    /// The note that paid it, or [`Hash::ZERO`].
    pub note: Hash,
    /// Whether the stage has signed for it; else it was lost, and this is the coordinator's word.
    pub signed: bool,
    /// The rows that its roots are over, with the roots that go in and out; nothing where it signs for none.
    pub roots: Option<(u32, u32, [u8; 32], [u8; 32])>,
}

/// What a receipt says, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Who signed it.
    pub coordinator: PeerId,
    /// What the session was.
    pub about: About,
    /// What all stages get together, in micro-credits.
    pub total: u64,
    /// The stages in the order of their layers; those that were lost behind them.
    pub parts: Vec<PartReport>,
    /// Between how many neighbours the roots were compared.
    pub links: usize,
    /// What does not fit. Empty for a receipt that holds.
    pub problems: Vec<String>,
    /// What is no fault, but should be known.
    pub remarks: Vec<String>,
}

impl Report {
    /// Whether everything fits.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.problems.is_empty()
    }
}

impl Receipt {
    /// Checks what the receipt says: signatures of all stages, sums, layers, and roots of neighbours.
    #[must_use]
    pub fn verify(&self) -> Report {
        let (coordinator, about, total) = (self.coordinator, self.about, self.total);
        let (parts, problems, remarks) = (Vec::new(), Vec::new(), Vec::new());
        let mut report = Report { coordinator, about, total, parts, links: 0, problems, remarks };
        for (at, entry) in self.entries.iter().enumerate() {
            match Part::open(&entry.part.0, &self.network) {
                Ok((stage, part)) => self.part(stage, &part, entry, &mut report),
                Err(error) => report.problems.push(format!("entry {at} is not signed by its stage: {error}")),
            }
        }
        report.parts.sort_by_key(|part| (part.span, part.stage));
        report.whole(&self.lost);
        report.linked();
        for lost in &self.lost {
            report.lost(lost);
        }
        report.sums();
        report
    }

    fn part(&self, stage: PeerId, part: &Part, entry: &Entry, report: &mut Report) {
        let About { session, model, profile, .. } = self.about;
        let mut wrong = |what: &str| report.problems.push(format!("stage {stage}: {what}"));
        if part.session != session {
            wrong("its part is of another session");
        }
        if part.coordinator != self.coordinator {
            wrong("its part is for another coordinator");
        }
        if (part.model, part.profile) != (model, profile) {
            wrong("its part is of another model or arithmetic");
        }
        if !part.work.adds_up(part.span.count()) {
            wrong("its amount does not follow from rows and prices");
        }
        if part.hold == HoldId::NONE && part.work.amount > 0 {
            wrong("it is to be paid without a hold");
        }
        let has_roots = part.rows > 0;
        if has_roots && part.rows <= part.first {
            wrong("its roots are over no rows");
        }
        if !entry.commitment.0.is_empty() {
            let (domain, kind) = COMMITMENTS;
            match Signed::open(&entry.commitment.0, &self.network, domain, MAX_COMMITMENT) {
                Ok(of) if of.kind != kind => wrong("its commitment is something else"),
                Ok(of) if of.signer != stage => wrong("its commitment is somebody else's"),
                Ok(of) if of.body() != part.commitment() => wrong("its commitment is to other roots than its part"),
                Ok(_) => {}
                Err(error) => wrong(&format!("its commitment is not signed: {error}")),
            }
        } else if has_roots {
            report.remarks.push(format!("stage {stage}: its commitment is not in the receipt"));
        }
        if part.work.amount > 0 && entry.note == Hash::ZERO {
            report.remarks.push(format!("stage {stage}: no note is named that pays it"));
        }
        let roots = has_roots.then_some((part.first, part.rows, part.in_root, part.out_root));
        let Part { span, work, hold, .. } = *part;
        report.parts.push(PartReport { stage, span, work, hold, note: entry.note, signed: true, roots });
    }
}

impl Report {
    /// The layers of those who signed are all that there are, each once. For those of a stage that was lost and in whose place
    /// nobody came there is only the coordinator's word; that is said, and takes nothing from what the others have signed.
    fn whole(&mut self, lost: &[Lost]) {
        let of = self.about.span;
        if of.end() > self.about.layers {
            self.problems.push(format!("layers {of} of a model of {}", self.about.layers));
        }
        if self.parts.is_empty() && !lost.is_empty() {
            self.problems.push("no stage has signed for anything".into());
        }
        let mut unsigned = Vec::new();
        let mut next = of.start();
        for part in &self.parts {
            let span = part.span;
            if span.start() > next {
                unsigned.push(next..span.start());
            } else if span.start() < next {
                self.problems.push(format!("layers {span} overlap those before them, which end at {next}"));
            }
            next = next.max(span.end());
        }
        if next < of.end() {
            unsigned.push(next..of.end());
        } else if next > of.end() {
            self.problems.push(format!("layers up to {next} are signed for, and only {of} were to be computed"));
        }
        unsigned.iter().for_each(|layers| self.unsigned(layers, lost));
    }

    /// Layers that nobody has signed for: whether the coordinator at least says who was to.
    fn unsigned(&mut self, layers: &Range<u16>, lost: &[Lost]) {
        let by = |layer: u16| lost.iter().any(|lost| lost.span.start() <= layer && layer < lost.span.end());
        let Range { start, end } = layers;
        if layers.clone().all(by) {
            self.remarks.push(format!("layers {start}..{end}: no stage has signed; this is the coordinator's word"));
        } else {
            self.problems.push(format!("nobody has signed for layers {start}..{end}"));
        }
    }

    /// What one gave out the next one took in, where both signed for the same rows.
    fn linked(&mut self) {
        let mut links = 0_usize;
        for pair in self.parts.windows(2) {
            let [before, after] = pair else { continue };
            let (Some(given), Some(taken)) = (before.roots, after.roots) else { continue };
            if (given.0, given.1) != (taken.0, taken.1) || before.span.end() != after.span.start() {
                let (one, other) = (before.stage, after.stage);
                self.remarks.push(format!("stages {one} and {other} signed for different rows: not compared"));
                continue;
            }
            links = links.saturating_add(1);
            if given.3 != taken.2 {
                let (one, other, layer) = (before.stage, after.stage, after.span.start());
                self.problems.push(format!(
                    "stages {one} and {other} signed for different rows before layer {layer}: one of them lies"
                ));
            }
        }
        self.links = links;
    }

    fn lost(&mut self, lost: &Lost) {
        let Lost { stage, span, work, hold, note } = *lost;
        if !self.about.span.covers(&span) {
            self.problems.push(format!("lost stage {stage}: layers {span} are not of the session"));
        }
        if !work.adds_up(span.count()) {
            self.problems.push(format!("lost stage {stage}: its amount does not follow from rows and prices"));
        }
        self.parts.push(PartReport { stage, span, work, hold, note, signed: false, roots: None });
    }

    fn sums(&mut self) {
        let sum = self.parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(part.work.amount));
        if sum != Some(self.total) {
            self.problems.push("the total is not the sum of the amounts".into());
        }
        let (mut holds, mut stages) = (BTreeSet::new(), BTreeSet::new());
        for part in &self.parts {
            if part.hold != HoldId::NONE && !holds.insert(part.hold) {
                self.problems.push(format!("stage {}: its hold is another stage's, too", part.stage));
            }
            if part.signed && !stages.insert(part.stage) {
                self.problems.push(format!("stage {}: it is there twice", part.stage));
            }
        }
    }
}
