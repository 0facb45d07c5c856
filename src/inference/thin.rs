//! Asking without embedding and head: the first stage embeds, and sees the tokens; the last one gives the likeliest logits,
//! and sampling stays here.

use quelea_announce::Ends;
use quelea_shard::frame::{self, MAX_TOP_LOGITS, TopLogits};
use quelea_wire::ErrorCode;

use super::{
    models,
    planner::Query,
    sampling,
    types::{InferError, InferRequest},
};

/// So many logits a plan counts with where nobody has said how the answer is drawn: a common top-k.
const PLANNED_LOGITS: u16 = 40;

/// What a chain does for a node that lacks the model's ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thin {
    /// Logits that come back for each row.
    pub(crate) logits: u16,
}

impl Thin {
    /// Whether the chain computes the ends for `request`, and how many logits it gives: all that drawing from them takes, so
    /// that the answer is the same as from all.
    ///
    /// # Errors
    /// When the request insists, and no number of logits would do.
    pub(crate) fn of(request: &InferRequest, ends: &models::Ends) -> Result<Option<Self>, InferError> {
        match request.thin {
            Some(false) => Ok(None),
            Some(true) => Self::needed(request, ends.hparams.vocab).map(Some),
            None if ends.has_ends() => Ok(None),
            // What no number of logits tells is drawn here, from all of them.
            None => Ok(Self::needed(request, ends.hparams.vocab).ok()),
        }
    }

    /// The same for a plan, which does not know how the answer is drawn.
    pub(crate) fn planned(asked: Option<bool>, ends: &models::Ends) -> Option<Self> {
        asked.unwrap_or_else(|| !ends.has_ends()).then_some(Self { logits: PLANNED_LOGITS })
    }

    fn needed(request: &InferRequest, vocab: usize) -> Result<Self, InferError> {
        let refused = |why: String| {
            let what = format!("the last stage gives at most {MAX_TOP_LOGITS} logits a token, and {why}");
            InferError::new(ErrorCode::Usage, what).hint(
                "draw with --top-k and without penalties that raise tokens, or leave --thin out: embedding and head are then fetched",
            )
        };
        if request.format.is_some() {
            return Err(refused("what an answer with a format is drawn from is known only when it is drawn".into()));
        }
        let needed = sampling::settings(request, vocab)?.top_needed().map_err(|why| refused(why.to_string()))?;
        let all = needed.max(request.logprobs.unwrap_or(0)).min(vocab);
        match u16::try_from(all) {
            Ok(logits) if logits <= MAX_TOP_LOGITS => Ok(Self { logits }),
            _ => Err(refused(format!("this request draws from {all}"))),
        }
    }

    /// What is asked of the chain's first and last stage.
    pub(crate) fn on_the_wire(self) -> frame::Ends {
        frame::Ends { takes_tokens: true, gives_logits: self.logits }
    }

    /// The query for a chain that does it.
    pub(crate) fn in_query(this: Option<Self>, query: Query) -> Query {
        let logits_bytes = this.map_or(0, |thin| u64::from(TopLogits::width(thin.logits)).saturating_mul(VALUE_BYTES));
        Query { ends: Ends { embedding: this.is_some(), head: this.is_some() }, logits_bytes, ..query }
    }
}

/// Bytes of a value on the wire.
const VALUE_BYTES: u64 = size_of::<f32>() as u64;

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(request: InferRequest) -> Result<u16, String> {
        Thin::needed(&request, 32_000).map(|thin| thin.logits).map_err(|error| error.message)
    }

    #[test]
    fn as_many_logits_are_asked_for_as_drawing_takes() {
        let ask = || InferRequest::new("demo", "hi");
        assert_eq!(needed(ask()), Ok(1));
        assert_eq!(needed(InferRequest { logprobs: Some(5), ..ask() }), Ok(5));
        assert_eq!(needed(InferRequest { temperature: 0.8, top_k: 40, top_p: 0.9, ..ask() }), Ok(40));
        assert_eq!(needed(InferRequest { repeat_penalty: 1.1, ..ask() }), Ok(65));
        let all = needed(InferRequest { temperature: 0.8, top_p: 0.9, ..ask() }).unwrap_err();
        assert!(all.contains("without top_k"), "{all}");
        let many = needed(InferRequest { temperature: 0.8, top_k: 2000, ..ask() }).unwrap_err();
        assert!(many.contains("draws from 2000"), "{many}");
        let raises = needed(InferRequest { logit_bias: [(3, 4.0)].into(), ..ask() }).unwrap_err();
        assert!(raises.contains("may raise"), "{raises}");
    }
}
