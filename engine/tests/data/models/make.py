"""Writes the models of this folder and what llama.cpp says of them. README.md tells how; names on the command line
limit it to those files."""

import dataclasses
import math
import os
import pathlib
import sys
import tempfile

import gguf
import llama_cpp
import numpy as np

import reference
import vocab

HERE = pathlib.Path(__file__).parent
CONTEXT = 512


@dataclasses.dataclass
class Shape:
    """A family at a small size. `hidden` is 256 where a quantisation in blocks of 256 follows."""

    arch: str
    seed: int
    hidden: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    inner: int = 160
    vocab: int = 512
    tokenizer: str = "gpt2"
    pre: str = "default"
    tied: bool = False
    eps: float = 1e-5
    rope_base: float = 10000.0
    rope_dim: int | None = None
    qkv_bias: bool = False
    experts: int = 0
    rope_freqs: list | None = None
    rope_long_short: tuple | None = None
    scaling: tuple | None = None  # type, factor, original context
    attn_factor: float | None = None
    original_context: int | None = None
    window: int | None = None
    window_pattern: int | list | None = None
    caps: tuple | None = None
    brief: bool = False  # leave out what readers know a default for


def metadata(writer, s):
    # Not "phi3": llama.cpp takes that word in a name as a reason to look for tokens.
    writer.add_name(f"small random {s.arch.rstrip('3')}")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(s.hidden)
    writer.add_block_count(s.layers)
    writer.add_feed_forward_length(s.inner * (3 if s.arch == "qwen3moe" else 1))
    writer.add_head_count(s.heads)
    if not s.brief:
        writer.add_head_count_kv(s.kv_heads)
        writer.add_key_length(s.head_dim)
        writer.add_value_length(s.head_dim)
    writer.add_layer_norm_rms_eps(s.eps)
    if not s.brief:
        writer.add_rope_freq_base(s.rope_base)
        writer.add_rope_dimension_count(s.rope_dim or s.head_dim)
        writer.add_vocab_size(s.vocab)
    if s.experts:
        writer.add_expert_count(s.experts)
        writer.add_expert_used_count(2)
        if s.arch == "qwen3moe":
            writer.add_expert_feed_forward_length(s.inner)
    if s.scaling:
        kind, factor, original = s.scaling
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(factor)
        if original:
            writer.add_rope_scaling_orig_ctx_len(original)
    if s.original_context:
        writer.add_rope_scaling_orig_ctx_len(s.original_context)
    if s.attn_factor:
        writer.add_rope_scaling_attn_factors(s.attn_factor)
    if s.window:
        writer.add_sliding_window(s.window)
    if s.window_pattern is not None:
        writer.add_sliding_window_pattern(s.window_pattern)
    if s.caps:
        attention, final = s.caps
        if attention:
            writer.add_attn_logit_softcapping(attention)
        writer.add_final_logit_softcapping(final)
    if s.tokenizer == "gpt2":
        vocab.bpe(writer, s.vocab, s.pre)
    else:
        vocab.spm(writer, s.vocab, s.tokenizer == "spm-prefix")


def weights(s):
    """Random weights by name. Large enough gains give attention something to choose and logits some spread."""
    rng = np.random.default_rng(s.seed)

    def matrix(outputs, inputs, gain=1.0, copies=None):
        size = (outputs, inputs) if copies is None else (copies, outputs, inputs)
        return (rng.standard_normal(size) * gain / math.sqrt(inputs)).astype(np.float32)

    def norm(n):
        return (1 + 0.2 * rng.standard_normal(n)).astype(np.float32)

    gemma = s.arch.startswith("gemma")
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    # Gemma multiplies its embedding, which is its head too, by a number that would drown the layers' part.
    yield "token_embd.weight", matrix(s.vocab, s.hidden, 0.5 if gemma else 0.5 * math.sqrt(s.hidden))
    if s.rope_freqs:
        yield "rope_freqs.weight", np.array(s.rope_freqs, np.float32)
    if s.rope_long_short:
        yield "rope_factors_long.weight", np.array(s.rope_long_short[0], np.float32)
        yield "rope_factors_short.weight", np.array(s.rope_long_short[1], np.float32)
    for layer in range(s.layers):
        name = f"blk.{layer}.".__add__
        yield name("attn_norm.weight"), norm(s.hidden)
        if s.arch == "phi3":
            yield name("attn_qkv.weight"), np.concatenate(
                [matrix(q + kv, s.hidden, 1.5), matrix(kv, s.hidden)]
            )
        else:
            for part, width, gain in (("q", q, 1.5), ("k", kv, 1.5), ("v", kv, 1.0)):
                yield name(f"attn_{part}.weight"), matrix(width, s.hidden, gain)
                if s.qkv_bias:
                    yield name(f"attn_{part}.bias"), (0.2 * rng.standard_normal(width)).astype(np.float32)
        if s.arch in ("qwen3", "qwen3moe", "gemma3"):
            yield name("attn_q_norm.weight"), norm(s.head_dim)
            yield name("attn_k_norm.weight"), norm(s.head_dim)
        yield name("attn_output.weight"), matrix(s.hidden, q)
        if gemma:
            yield name("post_attention_norm.weight"), norm(s.hidden)
        yield name("ffn_norm.weight"), norm(s.hidden)
        if s.experts:
            yield name("ffn_gate_inp.weight"), matrix(s.experts, s.hidden, 2.0)
            yield name("ffn_gate_exps.weight"), matrix(s.inner, s.hidden, 1.5, s.experts)
            yield name("ffn_up_exps.weight"), matrix(s.inner, s.hidden, 1.5, s.experts)
            yield name("ffn_down_exps.weight"), matrix(s.hidden, s.inner, 1.0, s.experts)
        else:
            if s.arch == "phi3":
                yield name("ffn_up.weight"), matrix(2 * s.inner, s.hidden, 1.5)
            else:
                yield name("ffn_gate.weight"), matrix(s.inner, s.hidden, 1.5)
                yield name("ffn_up.weight"), matrix(s.inner, s.hidden, 1.5)
            yield name("ffn_down.weight"), matrix(s.hidden, s.inner)
        if gemma:
            yield name("post_ffw_norm.weight"), norm(s.hidden)
    yield "output_norm.weight", norm(s.hidden) * np.float32(6 if gemma and s.tied else 1)
    if not s.tied:
        yield "output.weight", matrix(s.vocab, s.hidden, 3.0)


def write(path, shape, tensors):
    writer = gguf.GGUFWriter(path, shape.arch)
    metadata(writer, shape)
    for name, values in tensors:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def expanded(path):
    """The weights of a quantised file as F32."""
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        yield tensor.name, values.astype(np.float32).reshape([int(n) for n in reversed(tensor.shape)])


def quantise(source, target, quantisation, pure):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quantisation}")
    params.pure = pure
    params.nthread = 2
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) != 0:
        raise RuntimeError(f"{target} could not be quantised")


def llama3_factors(head_dim, base, factor=8.0, low=1.0, high=4.0, original=128):
    """Llama 3's rope factors, with an original context so small that all three branches occur."""
    out = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * base ** (i / head_dim)
        smooth = (original / wavelength - low) / (high - low)
        out.append(1 / ((1 - min(max(smooth, 0.0), 1.0)) / factor + min(max(smooth, 0.0), 1.0)))
    return out


def longrope(rope_dim):
    n = rope_dim // 2
    return [1 + 5 * i / n for i in range(n)], [1 + 0.3 * i / n for i in range(n)]


SPM, PREFIX = "spm", "spm-prefix"
FAMILIES = {
    "llama3": Shape("llama", 1, pre="llama-bpe", rope_base=500000.0, rope_freqs=llama3_factors(16, 500000.0)),
    "llama-odd": Shape("llama", 2, tokenizer=PREFIX, heads=3, kv_heads=1, head_dim=48, hidden=72, inner=136, tied=True),
    "llama-linear": Shape("llama", 3, layers=2, scaling=("linear", 4.0, None), kv_heads=4, brief=True),
    "llama-yarn": Shape("llama", 4, layers=2, scaling=("yarn", 4.0, 128), rope_base=1000000.0, head_dim=32),
    "mistral": Shape("llama", 5, layers=2, tokenizer=PREFIX, heads=6, kv_heads=3, head_dim=16, rope_base=1000000.0),
    "mixtral": Shape("llama", 6, layers=2, tokenizer=PREFIX, experts=4, inner=64, rope_base=1000000.0),
    "qwen2": Shape("qwen2", 7, pre="qwen2", heads=7, kv_heads=1, hidden=112, inner=120, layers=2, qkv_bias=True,
                   tied=True, rope_base=1000000.0, eps=1e-6),
    "qwen2-yarn": Shape("qwen2", 8, layers=2, pre="qwen2", qkv_bias=True, rope_base=1000000.0, eps=1e-6,
                        scaling=("yarn", 4.0, 128)),
    "qwen3": Shape("qwen3", 9, pre="qwen2", heads=5, kv_heads=1, head_dim=80, inner=144, layers=2, tied=True,
                   rope_base=1000000.0, eps=1e-6),
    "qwen3moe": Shape("qwen3moe", 10, pre="qwen2", experts=8, inner=40, layers=2, head_dim=32,
                      rope_base=1000000.0, eps=1e-6),
    "phi3": Shape("phi3", 11, layers=2, tokenizer=PREFIX, original_context=CONTEXT, kv_heads=4),
    "phi3-long": Shape("phi3", 12, layers=2, tokenizer=PREFIX, head_dim=32, heads=2, kv_heads=1, rope_dim=24,
                       rope_long_short=longrope(24), original_context=128, attn_factor=1.19),
    "phi3-short": Shape("phi3", 13, pre="gpt-4o", heads=4, kv_heads=2, tied=True, rope_dim=12,
                        rope_long_short=longrope(12), original_context=CONTEXT, attn_factor=1.0),
    "gemma2": Shape("gemma2", 14, tokenizer=SPM, head_dim=32, window=16, caps=(8.0, 10.0), tied=True, eps=1e-6),
    "gemma3": Shape("gemma3", 15, tokenizer=SPM, layers=7, head_dim=24, kv_heads=1, inner=72, window=16, tied=True,
                    eps=1e-6, rope_base=1000000.0, scaling=("linear", 8.0, None)),
    "gemma3-pattern": Shape("gemma3", 16, tokenizer=SPM, head_dim=32, window=20, window_pattern=[True, False, True],
                            caps=(None, 10.0), eps=1e-6, rope_base=1000000.0),
}
WIDE = dict(hidden=256, layers=2, head_dim=32, heads=8, kv_heads=2, inner=256)
# Shape, quantisations, whether every matrix gets the same type (else llama.cpp's mixture of that name).
QUANTISED = {
    "llama": (Shape("llama", 21, **WIDE), [
        ("Q8_0", True), ("Q4_0", True), ("Q4_1", True), ("Q5_0", True), ("Q5_1", True), ("Q2_K", False),
        ("Q3_K_M", False), ("Q4_K_M", False), ("Q5_K_M", False), ("Q6_K", True),
    ]),
    "llama-half": (Shape("llama", 20, hidden=128, layers=2, heads=4, kv_heads=2, head_dim=32, inner=256),
                   [("F16", False), ("BF16", False)]),
    "mixtral": (FAMILIES["mixtral"], [("Q8_0", True)]),
    "qwen2": (Shape("qwen2", 22, hidden=128, heads=4, kv_heads=2, head_dim=32, inner=192, layers=2, pre="qwen2",
                    qkv_bias=True, tied=True, rope_base=1000000.0, eps=1e-6), [("Q4_0", False)]),
    "qwen3moe": (Shape("qwen3moe", 23, pre="qwen2", experts=4, rope_base=1000000.0, eps=1e-6,
                       **{**WIDE, "layers": 1}), [("Q4_K_M", False)]),
    "phi3": (Shape("phi3", 24, tokenizer=PREFIX, original_context=CONTEXT, **WIDE), [("Q4_K_M", False)]),
    "gemma2": (Shape("gemma2", 25, tokenizer=SPM, window=16, caps=(8.0, 10.0), tied=True, eps=1e-6, **WIDE),
               [("Q4_K_M", False)]),
    "gemma3": (Shape("gemma3", 26, tokenizer=SPM, window=16, window_pattern=[True, False], tied=True, eps=1e-6,
                     rope_base=1000000.0, **WIDE), [("Q8_0", True)]),
}


def main(wanted):
    print("file                  MiB   first     path   (mean |difference| between llama.cpp's answer and the truth)")
    for family, shape in FAMILIES.items():
        name = f"{family}-F32"
        if wanted and name not in wanted:
            continue
        path = HERE / f"{name}.gguf"
        write(path, shape, weights(shape))
        reference.save(reference.reference(path, path.name), HERE / f"{name}.ref.json")
        print(f"{name:<20} {path.stat().st_size / 2**20:>5.2f}")
    for family, (shape, quantisations) in QUANTISED.items():
        for quantisation, pure in quantisations:
            name = f"{family}-{quantisation}"
            if wanted and name not in wanted:
                continue
            path = HERE / f"{name}.gguf"
            with tempfile.TemporaryDirectory() as folder:
                full = os.path.join(folder, "f32.gguf")
                write(full, shape, weights(shape))
                quantise(full, path, quantisation, pure)
                write(full, shape, expanded(path))
                true = reference.reference(full, f"{path.name}, expanded to F32")
            ref = reference.reference(path, path.name, true)
            reference.save(ref, HERE / f"{name}.ref.json")
            reference.save(true, HERE / f"{name}.true.json")
            first, along = reference.distance(ref, true)
            print(f"{name:<20} {path.stat().st_size / 2**20:>5.2f} {first:.6f} {along:.6f}")


if __name__ == "__main__":
    main(set(sys.argv[1:]))
