//! The shapes of real models, by the names people know them by.

/// How a vocabulary is spelt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// SentencePiece with scores and byte fallback.
    Pieces,
    /// Byte-level byte-pair encoding, with the pre-tokenizer of this name.
    Bytes(&'static str),
}

/// Experts of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// How many work on a token.
    pub used: usize,
    /// Width inside one.
    pub feed_forward: usize,
}

/// The shape of a model: what decides its speed and its size. Sizes are counts of values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelShape {
    /// Name, in lower case.
    pub name: &'static str,
    /// GGUF's name of the family.
    pub architecture: &'static str,
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward part.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Context length in tokens.
    pub context: u32,
    /// Base frequency of the rotation.
    pub rope_base: f32,
    /// Llama 3's divisor of the low frequencies; 1 without.
    pub rope_factor: f32,
    /// Added to the mean square in norms.
    pub eps: f32,
    /// The output matrix is the embedding.
    pub tied: bool,
    /// How the vocabulary is spelt.
    pub spelling: Spelling,
    /// Experts in place of one feed-forward part.
    pub experts: Option<Experts>,
}

/// What most shapes share.
const BASE: ModelShape = ModelShape {
    name: "",
    architecture: "llama",
    layers: 0,
    hidden: 0,
    feed_forward: 0,
    heads: 0,
    kv_heads: 0,
    head_dim: 128,
    vocab: 0,
    context: 32768,
    rope_base: 1e6,
    rope_factor: 1.0,
    eps: 1e-6,
    tied: true,
    spelling: Spelling::Bytes("qwen2"),
    experts: None,
};

const LLAMA_3: ModelShape = ModelShape {
    vocab: 128_256,
    context: 131_072,
    rope_base: 500_000.0,
    rope_factor: 32.0,
    eps: 1e-5,
    spelling: Spelling::Bytes("llama-bpe"),
    ..BASE
};

const QWEN_2: ModelShape = ModelShape { architecture: "qwen2", vocab: 151_936, ..BASE };

const QWEN_3: ModelShape = ModelShape { architecture: "qwen3", vocab: 151_936, context: 40_960, ..BASE };

/// All shapes, the smallest first.
pub const SHAPES: &[ModelShape] = &[
    ModelShape {
        name: "smollm2-135m",
        layers: 30,
        hidden: 576,
        feed_forward: 1536,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        vocab: 49_152,
        context: 8192,
        rope_base: 100_000.0,
        eps: 1e-5,
        spelling: Spelling::Bytes("smollm"),
        ..BASE
    },
    ModelShape {
        name: "qwen2.5-0.5b",
        layers: 24,
        hidden: 896,
        feed_forward: 4864,
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        ..QWEN_2
    },
    ModelShape { name: "qwen3-0.6b", layers: 28, hidden: 1024, feed_forward: 3072, heads: 16, kv_heads: 8, ..QWEN_3 },
    ModelShape {
        name: "tinyllama-1.1b",
        layers: 22,
        hidden: 2048,
        feed_forward: 5632,
        heads: 32,
        kv_heads: 4,
        head_dim: 64,
        vocab: 32_000,
        context: 2048,
        rope_base: 10_000.0,
        eps: 1e-5,
        tied: false,
        spelling: Spelling::Pieces,
        ..BASE
    },
    ModelShape {
        name: "llama-3.2-1b",
        layers: 16,
        hidden: 2048,
        feed_forward: 8192,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        ..LLAMA_3
    },
    ModelShape { name: "qwen2.5-1.5b", layers: 28, hidden: 1536, feed_forward: 8960, heads: 12, kv_heads: 2, ..QWEN_2 },
    ModelShape { name: "qwen3-1.7b", layers: 28, hidden: 2048, feed_forward: 6144, heads: 16, kv_heads: 8, ..QWEN_3 },
    ModelShape {
        name: "llama-3.2-3b",
        layers: 28,
        hidden: 3072,
        feed_forward: 8192,
        heads: 24,
        kv_heads: 8,
        ..LLAMA_3
    },
    ModelShape { name: "qwen3-4b", layers: 36, hidden: 2560, feed_forward: 9728, heads: 32, kv_heads: 8, ..QWEN_3 },
    ModelShape {
        name: "mistral-7b",
        layers: 32,
        hidden: 4096,
        feed_forward: 14_336,
        heads: 32,
        kv_heads: 8,
        vocab: 32_768,
        eps: 1e-5,
        tied: false,
        spelling: Spelling::Pieces,
        ..BASE
    },
    ModelShape {
        name: "llama-3.1-8b",
        layers: 32,
        hidden: 4096,
        feed_forward: 14_336,
        heads: 32,
        kv_heads: 8,
        rope_factor: 8.0,
        tied: false,
        ..LLAMA_3
    },
    ModelShape {
        name: "qwen3-8b",
        layers: 36,
        hidden: 4096,
        feed_forward: 12_288,
        heads: 32,
        kv_heads: 8,
        tied: false,
        ..QWEN_3
    },
    ModelShape {
        name: "qwen3-30b-a3b",
        architecture: "qwen3moe",
        layers: 48,
        hidden: 2048,
        feed_forward: 6144,
        heads: 32,
        kv_heads: 4,
        tied: false,
        experts: Some(Experts { count: 128, used: 8, feed_forward: 768 }),
        ..QWEN_3
    },
    ModelShape {
        name: "mixtral-8x7b",
        layers: 32,
        hidden: 4096,
        feed_forward: 14_336,
        heads: 32,
        kv_heads: 8,
        vocab: 32_000,
        eps: 1e-5,
        tied: false,
        spelling: Spelling::Pieces,
        experts: Some(Experts { count: 8, used: 2, feed_forward: 14_336 }),
        ..BASE
    },
    ModelShape {
        name: "llama-3.1-70b",
        layers: 80,
        hidden: 8192,
        feed_forward: 28_672,
        heads: 64,
        kv_heads: 8,
        rope_factor: 8.0,
        tied: false,
        ..LLAMA_3
    },
];

impl ModelShape {
    /// The shape called `name`, in either case.
    pub fn named(name: &str) -> Option<&'static Self> {
        SHAPES.iter().find(|shape| shape.name.eq_ignore_ascii_case(name))
    }
}
