//! Guesses of a smaller model with the same vocabulary.

use std::time::Duration;

use quelea_engine::{
    PREFILL_CHUNK, Runner,
    runner::{Input, Phase, SessionSpec, Want},
};
use quelea_wire::ErrorCode;

use super::super::{
    models::Ends,
    pipeline::{OWN_GROUP, Work},
    sampling::Picker,
    types::InferError,
};

/// A model that writes ahead, in a session of its own.
pub(crate) struct Draft {
    work: Work,
    /// The tokens that its session holds.
    held: Vec<u32>,
    max_rows: usize,
}

/// Whether two models have the same tokens under the same ids.
///
/// # Errors
/// Says where they differ.
pub(crate) fn same_vocabulary(model: &Ends, draft: &Ends) -> Result<(), InferError> {
    let refuse = |what: String| {
        let message = format!("{:?} cannot draft for {:?}: {what}", draft.file.name, model.file.name);
        Err(InferError::new(ErrorCode::Usage, message).hint("give a smaller model of the same family as --draft"))
    };
    let (ours, theirs) = (model.hparams.vocab, draft.hparams.vocab);
    if ours != theirs {
        return refuse(format!("its vocabulary has {theirs} tokens, the model's {ours}"));
    }
    let ids = 0..u32::try_from(ours).unwrap_or(u32::MAX);
    match ids.into_iter().find(|id| model.tokenizer.piece(*id) != draft.tokenizer.piece(*id)) {
        Some(id) => {
            let piece = |ends: &Ends| format!("{:?}", ends.tokenizer.piece(id).unwrap_or_default());
            refuse(format!("token {id} is {} there and {} here", piece(draft), piece(model)))
        }
        None => Ok(()),
    }
}

impl Draft {
    /// A session of at most `max_rows` rows in `runner`, which holds all of the draft model.
    pub(crate) fn open(runner: &Runner, max_rows: u32, step_timeout: Duration) -> Result<Self, InferError> {
        let stage = runner.stage();
        let context = u32::try_from(stage.hparams().context_length).unwrap_or(u32::MAX);
        let (layers, max_rows) = (0..stage.span().layers.len(), max_rows.min(context));
        let spec = SessionSpec { group: OWN_GROUP, layers, max_rows, ..SessionSpec::default() };
        let (work, _) = Work::open(runner, spec, step_timeout)?;
        Ok(Self { work, held: Vec::new(), max_rows: usize::try_from(max_rows).unwrap_or(usize::MAX) })
    }

    /// The next `n` tokens after `text`, drawn as the request draws its own. None where the text has outgrown the draft.
    pub(super) async fn guess(&mut self, text: &[u32], n: usize, picker: &Picker) -> Result<Vec<u32>, InferError> {
        if n == 0 || text.is_empty() || text.len() + n > self.max_rows {
            return Ok(Vec::new());
        }
        let alike = self.held.iter().zip(text).take_while(|(held, id)| held == id).count();
        let mut pos = alike.min(text.len() - 1);
        self.held.truncate(pos);
        let mut logits = Vec::new();
        for chunk in text.get(pos..).unwrap_or_default().chunks(PREFILL_CHUNK) {
            let phase = if chunk.len() <= super::MAX_GUESSES { Phase::Decode } else { Phase::Prefill };
            logits = self.run(chunk, pos, phase).await?;
            pos += chunk.len();
        }
        let mut picker = picker.clone();
        let mut guesses = Vec::with_capacity(n);
        loop {
            let (next, id, _) = picker.pick(logits).await?;
            picker = next;
            guesses.push(id);
            if guesses.len() >= n {
                return Ok(guesses);
            }
            logits = self.run(&[id], pos, Phase::Decode).await?;
            pos += 1;
        }
    }

    async fn run(&mut self, ids: &[u32], pos: usize, phase: Phase) -> Result<Vec<f32>, InferError> {
        let at = u32::try_from(pos).unwrap_or(u32::MAX);
        let logits = self.work.run(Input::Tokens(ids.to_vec()), at, Want::Logits, phase).await?;
        self.held.extend_from_slice(ids);
        Ok(logits)
    }
}
