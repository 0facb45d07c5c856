//! The vocabulary: a byte-level BPE trained on the text, in the form that llama.cpp calls "gpt2" with the "qwen2" split.

use std::collections::HashSet;

use tokenizers::models::bpe::{self, BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    TokenizerImpl,
};

use crate::Res;

/// Ends a text that is no conversation; also used as padding.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Opens a turn of a conversation.
pub const TURN_START: &str = "<|im_start|>";
/// Closes a turn; what the model ends its answer with.
pub const TURN_END: &str = "<|im_end|>";
/// Tokens that are learnt or single bytes; the three above come on top.
const LEARNT: usize = 2045;
/// How Qwen2 cuts text before the merges.
const SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

type Bpe = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Text to token ids and back.
pub struct Vocab {
    bpe: Bpe,
    /// Ids of the three control tokens.
    pub end_of_text: u32,
    /// See [`TURN_START`].
    pub turn_start: u32,
    /// See [`TURN_END`].
    pub turn_end: u32,
    /// All tokens by id, in the byte-level alphabet.
    pub tokens: Vec<String>,
    /// Merges by rank, two tokens with a space between.
    pub merges: Vec<String>,
}

fn bare(model: BPE) -> Res<Bpe> {
    let split = Split::new(SplitPattern::Regex(SPLIT.to_owned()), SplitDelimiterBehavior::Isolated, false)?;
    let bytes = ByteLevel::new(false, true, false);
    let mut bpe: Bpe = TokenizerImpl::new(model);
    bpe.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(vec![split.into(), bytes.into()]))));
    bpe.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::default())));
    Ok(bpe)
}

impl Vocab {
    /// Learns merges from `text`; the most frequent pair first, ties by the smaller ids.
    pub fn train(text: &[String]) -> Res<Self> {
        let mut bpe = bare(BPE::default())?;
        let alphabet: HashSet<char> = ByteLevel::alphabet().into_iter().collect();
        let mut trainer = BpeTrainerBuilder::new()
            .vocab_size(LEARNT)
            .min_frequency(2)
            .initial_alphabet(alphabet)
            .show_progress(false)
            .build();
        bpe.train(&mut trainer, text.iter())?;
        let model = serde_json::to_value(bpe.get_model())?;
        let merges = model.get("merges").and_then(|m| m.as_array()).ok_or("the trained vocabulary has no merges")?;
        let merges = merges
            .iter()
            .map(|pair| {
                let side = |i: usize| pair.get(i).and_then(|s| s.as_str()).unwrap_or_default();
                format!("{} {}", side(0), side(1))
            })
            .collect();
        let size = bpe.get_model().get_vocab_size() as u32;
        let mut tokens: Vec<String> = (0..size).filter_map(|id| bpe.get_model().id_to_token(id)).collect();
        tokens.extend([END_OF_TEXT, TURN_START, TURN_END].map(str::to_owned));
        Self::new(tokens, merges)
    }

    /// From the tokens and merges of a file.
    pub fn new(tokens: Vec<String>, merges: Vec<String>) -> Res<Self> {
        let id = |token: &str| {
            tokens.iter().position(|t| t == token).map(|i| i as u32).ok_or_else(|| format!("no token {token}"))
        };
        let (end_of_text, turn_start, turn_end) = (id(END_OF_TEXT)?, id(TURN_START)?, id(TURN_END)?);
        let ids: bpe::Vocab = tokens.iter().enumerate().map(|(i, token)| (token.clone(), i as u32)).collect();
        let pairs = merges.iter().filter_map(|m| m.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned()));
        let model = BPE::builder().vocab_and_merges(ids, pairs.collect()).build()?;
        Ok(Self { bpe: bare(model)?, end_of_text, turn_start, turn_end, tokens, merges })
    }

    /// Plain text to ids; control tokens in the text are not recognised.
    pub fn encode(&self, text: &str) -> Res<Vec<u32>> {
        Ok(self.bpe.encode_fast(text, false)?.get_ids().to_vec())
    }

    /// Ids to text, without control tokens.
    pub fn decode(&self, ids: &[u32]) -> Res<String> {
        let plain: Vec<u32> = ids.iter().copied().filter(|id| *id < self.end_of_text).collect();
        self.bpe.decode(&plain, false)
    }

    /// Ids of one turn: `<|im_start|>role\ntext<|im_end|>\n`.
    pub fn turn(&self, role: &str, text: &str) -> Res<Vec<u32>> {
        let mut ids = vec![self.turn_start];
        ids.extend(self.encode(&format!("{role}\n"))?);
        ids.extend(self.encode(text)?);
        ids.push(self.turn_end);
        ids.extend(self.encode("\n")?);
        Ok(ids)
    }

    /// What the model is asked to go on from after the last turn.
    pub fn answer_start(&self) -> Res<Vec<u32>> {
        let mut ids = vec![self.turn_start];
        ids.extend(self.encode("assistant\n")?);
        Ok(ids)
    }
}
