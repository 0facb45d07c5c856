#!/usr/bin/env python3
"""Makes the folders beside it: small random models as transformers saves them, and the logits that it computes.

    pip install torch transformers==4.57.6 safetensors numpy
    python3 make.py            # all, or the names given

Each folder has `config.json`, `*.safetensors` (one of them in shards, with an index), and `reference.json`: token ids
and, for each position, the logits of the model in f32. engine/tests/it/folders.rs reads them. Models with experts take
more than the others; none has more than 150 KB.
"""

import json
import pathlib
import shutil
import sys

import torch
import transformers as tf

HERE = pathlib.Path(__file__).parent
SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {"type": "longrope", "long_factor": [1.0, 1.5, 2.0, 4.0], "short_factor": [1.0, 1.0, 1.25, 1.5]}

# Name: class of the configuration, settings, type of the weights, largest file.
MODELS = {
    # One KV head, Llama 3's rope, an untied head.
    "llama3": (tf.LlamaConfig, {"num_key_value_heads": 1, "rope_theta": 5e5, "rope_scaling": LLAMA3}, "float32", None),
    # A linear rope, biases, the embedding as the head, half-precision weights.
    "llama-linear": (
        tf.LlamaConfig,
        {
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
        "float16",
        None,
    ),
    # YaRN in bf16, in several files.
    "llama-yarn": (tf.LlamaConfig, {"rope_scaling": YARN, "num_attention_heads": 8}, "bfloat16", "12KB"),
    # A factor for the attention, which stands for YaRN's own, and bounds of its own.
    "llama-yarn-factor": (
        tf.LlamaConfig,
        {"rope_scaling": {**YARN, "attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0}},
        "float32",
        None,
    ),
    # The rope that changes only past the context.
    "llama-dynamic": (tf.LlamaConfig, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "bfloat16", None),
    # Heads wider than their share, and a window.
    "mistral": (tf.MistralConfig, {"head_dim": 16, "sliding_window": 8}, "float32", None),
    "mixtral": (
        tf.MixtralConfig,
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None, "intermediate_size": 32},
        "float16",
        None,
    ),
    # Three heads, no window although one is named.
    "qwen2": (
        tf.Qwen2Config,
        {
            "hidden_size": 48,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
            "rope_scaling": YARN,
            "sliding_window": 8,
            "use_sliding_window": False,
        },
        "bfloat16",
        None,
    ),
    "qwen3": (tf.Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True, "rope_theta": 1e6}, "float32", None),
    "qwen3moe": (
        tf.Qwen3MoeConfig,
        {
            "head_dim": 16,
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
        },
        "bfloat16",
        None,
    ),
    # The long list of divisors, since the ids go beyond the original context; a window.
    "phi3-long": (
        tf.Phi3Config,
        {"rope_scaling": LONG, "original_max_position_embeddings": 16, "sliding_window": 12},
        "float32",
        None,
    ),
    # A part of each head is rotated; the context is the original one.
    "phi3-partial": (
        tf.Phi3Config,
        {"hidden_size": 64, "partial_rotary_factor": 0.75, "sliding_window": None, "tie_word_embeddings": True},
        "bfloat16",
        None,
    ),
    # Soft caps, a window in every other layer, a scale that is not the heads'.
    "gemma2": (
        tf.Gemma2Config,
        {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24, "num_key_value_heads": 1},
        "float32",
        None,
    ),
    # Layers with a window have a rope of their own; every third has none.
    "gemma3": (
        tf.Gemma3TextConfig,
        {
            "head_dim": 16,
            "num_hidden_layers": 4,
            "sliding_window": 8,
            "sliding_window_pattern": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 20,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        "bfloat16",
        None,
    ),
}


def randomise(model, gemma):
    """Weights that make the ids matter; norms around one."""
    generator = torch.Generator().manual_seed(7)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 1 and name.endswith("norm.weight") or "layernorm" in name:
            weight.data = noise * 0.2 + (0.0 if gemma else 1.0)
        elif weight.dim() == 1:
            weight.data = noise * 0.3
        elif "embed" in name:
            weight.data = noise
        else:
            weight.data = noise * (2.0 / weight.shape[-1]) ** 0.5


def vision():
    """Gemma 3 with eyes: the settings of its language in a part of their own, and tensors that are not language."""
    kind, more, *_ = MODELS["gemma3"]
    text = {**SMALL, **more, "num_hidden_layers": 3, "layer_types": more["layer_types"][:3]}
    text.pop("attn_implementation")
    eyes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = tf.Gemma3Config(text_config=text, vision_config={**eyes, "image_size": 28, "patch_size": 14})
    config.mm_tokens_per_image = 1
    config._attn_implementation = "eager"
    return tf.Gemma3ForConditionalGeneration(config)


def make(name):
    if name == "gemma3-vision":
        torch.manual_seed(1)
        model, dtype, shard = vision(), "bfloat16", None
    else:
        kind, more, dtype, shard = MODELS[name]
        torch.manual_seed(1)
        model = tf.AutoModelForCausalLM.from_config(kind(**{**SMALL, **more}))
    randomise(model, "gemma" in name)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    # What was saved, rounded as it is, computed in f32.
    kind = tf.Gemma3ForConditionalGeneration if name == "gemma3-vision" else tf.AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = [(7 * i * i + 3 * i + 1) % 45 + 3 for i in range(28)]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    rows = [[float(f"{value:.7g}") for value in row] for row in logits.tolist()]
    (folder / "reference.json").write_text(json.dumps({"ids": ids, "logits": rows}, separators=(",", ":")) + "\n")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {size} bytes, logits up to {logits.abs().max():.2f}", file=sys.stderr)


if __name__ == "__main__":
    for name in sys.argv[1:] or [*MODELS, "gemma3-vision"]:
        make(name)
