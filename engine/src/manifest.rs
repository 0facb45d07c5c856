//! A model's identity: what it is, and the hashes and sizes of its parts.
//!
//! The id is the BLAKE3 hash of the manifest's canonical CBOR: arrays only, fields in the order of the structs below,
//! numbers in their shortest form, floats as the bits of an `f32`. The file's name and the numeric profile are no part
//! of it: renaming a model does not make another model.

use std::collections::BTreeMap;

use minicbor::{Encode, Encoder, encode::Write};

use crate::{
    Hparams, LoadError,
    gguf::{DType, Gguf, Optional},
    hparams::{LongRope, Variant, Window},
    outline::{Outline, Place, TensorInfo},
};

/// What stands first in the canonical form, so that its hash can be nothing else's.
const DOMAIN: &str = "quelea.manifest";
/// Version of the canonical form.
const VERSION: u16 = 2;

/// Some tensors that belong together, or the tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Part {
    /// BLAKE3 of the canonical CBOR array of `[name, ggml type, shape, BLAKE3 of the data]` of each tensor, by name; the
    /// tokenizer's is that of its bytes.
    pub root: [u8; 32],
    /// Bytes of the data.
    pub bytes: u64,
}

/// What a model is. See the module's documentation.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// `general.name`, for people; no part of the id.
    pub name: String,
    /// The model family, as GGUF names it.
    pub architecture: String,
    /// Number of layers.
    pub n_layers: usize,
    /// Values in a row between stages.
    pub hidden: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Context length in tokens.
    pub context_length: usize,
    /// The other hyper-parameters.
    pub hparams: Hparams,
    /// BLAKE3 and length of all `tokenizer.*` metadata, by key ([`crate::outline::tokenizer_blob`]): with both, chunks of it that
    /// somebody sends can be checked one by one. A folder and the GGUF file made of it differ here, so that they are
    /// two models with the same parts: a `tokenizer.json` cuts words by its own expressions and normalises text where
    /// the file names a family's way, and the two give some texts other ids. Peers that hold different ones must not
    /// share a chain or a prefix.
    pub tokenizer: Part,
    /// The quantisation's name, such as `Q4_K_M`.
    pub quantisation: String,
    /// `token_embd.weight`.
    pub embedding: Part,
    /// Each layer's tensors.
    pub layers: Vec<Part>,
    /// The final norm and the output matrix, which is `token_embd.weight` again where the two are tied.
    pub head: Part,
    /// Tensors that every layer needs, such as `rope_freqs.weight`.
    pub shared: Part,
}

impl Manifest {
    /// Reads the hyper-parameters and hashes all tensors, on as many threads as the machine has. Reads the whole file.
    ///
    /// # Errors
    /// [`LoadError`], as [`Hparams::from_gguf`]; [`LoadError::UnsupportedType`] for a tensor of a type without a name.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, LoadError> {
        // What cannot be computed need not be read.
        Hparams::from_gguf(gguf)?;
        Self::from_outline(&Outline::of(gguf)?, gguf)
    }

    /// As [`Manifest::from_gguf`], with hashes that are known: those of `outline`. Of `gguf` only the header is read.
    ///
    /// # Errors
    /// [`LoadError`], as [`Hparams::from_gguf`].
    pub fn from_outline(outline: &Outline, gguf: &Gguf) -> Result<Self, LoadError> {
        let hparams = Hparams::from_gguf(gguf)?;
        let mut parts: BTreeMap<Place, Vec<&TensorInfo>> = BTreeMap::new();
        for tensor in outline.tensors() {
            let place = match Place::of(&tensor.name) {
                Place::Layer(i) if i >= hparams.n_layers => Place::Shared,
                place => place,
            };
            parts.entry(place).or_default().push(tensor);
        }
        if outline.tensors().iter().all(|tensor| tensor.name != "output.weight") {
            let embedding = parts.get(&Place::Embedding).cloned().unwrap_or_default();
            parts.entry(Place::Head).or_default().extend(embedding);
        }
        let mut part = |place| Part::new(parts.remove(&place).unwrap_or_default());
        Ok(Self {
            name: gguf.get_str("general.name").optional()?.unwrap_or("unnamed").to_owned(),
            architecture: hparams.architecture.name().to_owned(),
            n_layers: hparams.n_layers,
            hidden: hparams.hidden,
            vocab: hparams.vocab,
            context_length: hparams.context_length,
            tokenizer: Part { root: *outline.tokenizer().hash(), bytes: outline.tokenizer().bytes() },
            quantisation: quantisation(gguf, outline.tensors()),
            embedding: part(Place::Embedding),
            layers: (0..hparams.n_layers).map(|i| part(Place::Layer(i))).collect(),
            head: part(Place::Head),
            shared: part(Place::Shared),
            hparams,
        })
    }

    /// The model's id.
    pub fn id(&self) -> [u8; 32] {
        *blake3::hash(&self.canonical()).as_bytes()
    }

    /// Bytes of KV cache that one token takes in one layer.
    pub fn kv_bytes_per_row_per_layer(&self) -> u64 {
        self.hparams.kv_bytes_per_row_per_layer()
    }

    /// The canonical CBOR whose hash is the id.
    pub fn canonical(&self) -> Vec<u8> {
        encode(self)
    }
}

impl<C> Encode<C> for Manifest {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), minicbor::encode::Error<W::Error>> {
        let h = &self.hparams;
        e.array(10)?.str(DOMAIN)?.u16(VERSION)?.str(&self.architecture)?;
        // A plain dense model has twelve numbers; what goes beyond that is a thirteenth entry.
        let plain = h.variant == Variant::default();
        e.array(if plain { 12 } else { 13 })?;
        for size in [h.n_layers, h.hidden, h.feed_forward, h.heads, h.kv_heads, h.head_dim, h.rope_dims] {
            e.u64(size as u64)?;
        }
        for float in [h.rope_base, h.rope_scale, h.rms_eps] {
            e.u32(float.to_bits())?;
        }
        e.u64(h.context_length as u64)?.u64(h.vocab as u64)?;
        if !plain {
            e.encode(&h.variant)?;
        }
        e.encode(self.tokenizer)?.str(&self.quantisation)?.encode(self.embedding)?;
        e.array(self.layers.len() as u64)?;
        for layer in &self.layers {
            e.encode(layer)?;
        }
        e.encode(self.head)?.encode(self.shared)?.ok()
    }
}

impl<C> Encode<C> for Variant {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), minicbor::encode::Error<W::Error>> {
        let bits = |float: Option<f32>| float.map(f32::to_bits);
        e.array(8)?;
        e.encode(self.experts.map(|x| [x.count as u64, x.used as u64, x.feed_forward as u64]))?;
        match &self.window {
            Some(Window { size, layers, rope }) => {
                e.array(3)?.u64(*size as u64)?.encode(layers)?;
                e.encode(rope.map(|(base, scale)| [base.to_bits(), scale.to_bits()]))?;
            }
            None => {
                e.null()?;
            }
        }
        for float in [self.attention_scale, self.attention_cap, self.logit_cap, self.rope_magnitude] {
            e.encode(bits(float))?;
        }
        e.encode(self.long_rope.map(|list| list == LongRope::Long))?;
        let yarn = self.yarn.map(|yarn| {
            let floats = [yarn.ext_factor, yarn.beta_fast, yarn.beta_slow, yarn.log_multiplier];
            (yarn.original_context as u64, floats.map(f32::to_bits))
        });
        e.encode(yarn)?.ok()
    }
}

impl<C> Encode<C> for Part {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(2)?.bytes(&self.root)?.u64(self.bytes)?.ok()
    }
}

impl Part {
    fn new(mut tensors: Vec<&TensorInfo>) -> Self {
        tensors.sort_by_key(|tensor| &tensor.name);
        let bytes = tensors.iter().map(|tensor| tensor.tree.bytes()).sum();
        Self { root: *blake3::hash(&encode(&Records(&tensors))).as_bytes(), bytes }
    }
}

/// The tensors of a part, as their root hashes them.
struct Records<'a>(&'a [&'a TensorInfo]);

impl<C> Encode<C> for Records<'_> {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(self.0.len() as u64)?;
        for tensor in self.0 {
            e.array(4)?.str(&tensor.name)?.u32(tensor.dtype.id())?.array(tensor.shape.len() as u64)?;
            for dim in tensor.shape.iter() {
                e.u64(*dim as u64)?;
            }
            e.bytes(tensor.tree.hash())?;
        }
        Ok(())
    }
}

fn encode(value: &impl Encode<()>) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing to a vector cannot fail, and these encoders make no error of their own")
}

/// The quantisation's name by llama.cpp's numbers for `general.file_type`, else the type that most bytes have.
fn quantisation(gguf: &Gguf, tensors: &[TensorInfo]) -> String {
    let named = gguf.get_u32("general.file_type").ok().and_then(|number| {
        Some(match number {
            0 => "F32",
            1 => "F16",
            2 => "Q4_0",
            3 => "Q4_1",
            7 => "Q8_0",
            8 => "Q5_0",
            9 => "Q5_1",
            10 => "Q2_K",
            11 => "Q3_K_S",
            12 => "Q3_K_M",
            13 => "Q3_K_L",
            14 => "Q4_K_S",
            15 => "Q4_K_M",
            16 => "Q5_K_S",
            17 => "Q5_K_M",
            18 => "Q6_K",
            32 => "BF16",
            _ => return None,
        })
    });
    if let Some(name) = named {
        return name.to_owned();
    }
    let mut bytes: BTreeMap<DType, u64> = BTreeMap::new();
    for tensor in tensors {
        let sum = bytes.entry(tensor.dtype).or_default();
        *sum = sum.saturating_add(tensor.tree.bytes());
    }
    bytes.into_iter().max_by_key(|(_, sum)| *sum).map_or_else(|| "F32".to_owned(), |(dtype, _)| dtype.to_string())
}
