//! The names that files give their pre-tokenizers, and what goes with them.

use super::{
    Pass, PreTokenizer,
    families::{
        AFMOE, BLANKS, BLOOM, CHAMELEON, DEEPSEEK_CODER, DEEPSEEK_LLM, DEEPSEEK3, DEFAULT, DIGITS_GPT2, EXAONE_MOE,
        FALCON, GPT2, GPT4O, GRANITE_EMBED, JAIS2, KIMI_K2, LAGUNA, LINES, LLAMA3, MINICPM5, QWEN2, QWEN35, SEED_CODER,
        SPARK, SUPERBPE, TEKKEN, TINY_AYA, UFAKZEKA, VIKING, YOUTU,
    },
};

/// Every name, with its expressions.
const NAMES: &[(&str, &[Pass])] = &[
    ("a.x-4.0", GPT2),
    ("afmoe", AFMOE),
    ("bailingmoe", QWEN2),
    ("bailingmoe2", QWEN2),
    ("bloom", BLOOM),
    ("chameleon", CHAMELEON),
    ("chatglm-bpe", LLAMA3),
    ("codeshell", DIGITS_GPT2),
    ("cohere2moe", TINY_AYA),
    ("command-r", DIGITS_GPT2),
    ("dbrx", LLAMA3),
    ("deepseek-coder", DEEPSEEK_CODER),
    ("deepseek-llm", DEEPSEEK_LLM),
    ("deepseek-r1-qwen", QWEN2),
    ("deepseek-v3", DEEPSEEK3),
    ("default", DEFAULT),
    ("exaone", DIGITS_GPT2),
    ("exaone-moe", EXAONE_MOE),
    ("exaone4", GPT2),
    ("f2llmv2", QWEN2),
    ("falcon", FALCON),
    ("falcon-h1", LLAMA3),
    ("falcon3", LLAMA3),
    ("gemma4", LINES),
    ("gigachat", GPT2),
    ("glm4", LLAMA3),
    ("glm5", LLAMA3),
    ("gpt-2", GPT2),
    ("gpt-4o", GPT4O),
    ("gpt3-finnish", BLOOM),
    ("granite-docling", GPT2),
    ("granite-embed-multi-311m", LINES),
    ("granite-embed-multi-97m", GRANITE_EMBED),
    ("grok-2", QWEN2),
    ("hunyuan", QWEN2),
    ("hunyuan-dense", DEEPSEEK3),
    ("hy_v4", DEEPSEEK3),
    ("jais", GPT2),
    ("jais-2", JAIS2),
    ("jina-de", GPT2),
    ("jina-es", GPT2),
    ("jina-v1-en", GPT2),
    ("jina-v2-code", GPT2),
    ("jina-v2-de", GPT2),
    ("jina-v2-es", GPT2),
    ("jina-v5-nano", LLAMA3),
    ("joyai-llm", DEEPSEEK3),
    ("kanana2", GPT4O),
    ("kimi-k2", KIMI_K2),
    ("kormo", QWEN2),
    ("laguna", LAGUNA),
    ("lfm2", LLAMA3),
    ("llada-moe", QWEN2),
    ("llama-bpe", LLAMA3),
    ("llama-v3", LLAMA3),
    ("llama3", LLAMA3),
    ("llama4", GPT4O),
    ("megrez", QWEN2),
    ("mellum", GPT2),
    ("mellum2", DIGITS_GPT2),
    ("midm-2.0", LLAMA3),
    ("minerva-7b", DIGITS_GPT2),
    ("minicpm5", MINICPM5),
    ("minimax-m2", GPT4O),
    ("modern-bert", GPT2),
    ("mpt", GPT2),
    ("olmo", GPT2),
    ("phi-2", GPT2),
    ("pixtral", LLAMA3),
    ("poro-chat", BLOOM),
    ("qwen2", QWEN2),
    ("qwen35", QWEN35),
    ("refact", DIGITS_GPT2),
    ("roberta-bpe", GPT2),
    ("sarvam-moe", LINES),
    ("seed-coder", SEED_CODER),
    ("smaug-bpe", LLAMA3),
    ("smollm", DIGITS_GPT2),
    ("solar-open", QWEN2),
    ("spark2_5", SPARK),
    ("stablelm2", QWEN2),
    ("starcoder", DIGITS_GPT2),
    ("superbpe", SUPERBPE),
    ("talkie", GPT4O),
    ("tekken", TEKKEN),
    ("tiny_aya", TINY_AYA),
    ("trillion", GPT2),
    ("ufakzeka", UFAKZEKA),
    ("viking", VIKING),
    ("whitespace", BLANKS),
    ("youtu", YOUTU),
];

impl PreTokenizer {
    /// The pre-tokenizer that `tokenizer.ggml.pre` names; none when the name is unknown.
    pub fn from_name(name: &str) -> Option<Self> {
        let at = NAMES.binary_search_by_key(&name, |(name, _)| name).ok()?;
        let (_, passes) = NAMES.get(at)?;
        let escape = matches!(name, "gemma4" | "granite-embed-multi-311m" | "sarvam-moe");
        let llama3 = matches!(
            name,
            "falcon-h1"
                | "falcon3"
                | "jina-v5-nano"
                | "lfm2"
                | "llama-bpe"
                | "llama-v3"
                | "llama3"
                | "midm-2.0"
                | "pixtral"
                | "tekken"
        );
        let whole_words = matches!(name, "glm4" | "glm5" | "granite-embed-multi-97m" | "minicpm5" | "youtu");
        Some(Self {
            passes,
            raw: escape || name == "whitespace",
            escape,
            ignore_merges: llama3 || whole_words,
            newline_tokens: escape && name != "sarvam-moe",
            add_bos: llama3 || name == "chameleon" || (escape && name != "sarvam-moe"),
        })
    }

    /// The names of [`Self::from_name`].
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }

    /// What a file without a name gets.
    pub fn fallback() -> Self {
        Self { passes: DEFAULT, ..Self::default() }
    }
}
