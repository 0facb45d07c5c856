"""What llama.cpp computes, through the bindings of the package llama-cpp-python: log-probabilities of a model."""

import ctypes
import json
import pathlib
import sys

import llama_cpp
import numpy as np

PROMPTS = [
    "Once upon a time there was a node",
    "The build",
    'def main():\n    print("hello, world")\n',
    "Привет, мир! 你好 🦜",
    "".join(f"layer {i} of the model is held by peer {i * 7 % 5}; " for i in range(9)),
]
STEPS = 24
TOP = 8
ENGINE = "llama.cpp (source of llama-cpp-python {}), CPU, f32 KV, no flash attention, no repacking"

llama_cpp.llama_backend_init()
ERROR = 4


@llama_cpp.llama_log_callback
def _log(level, text, data):
    if level == ERROR:
        sys.stderr.write(text.decode())


llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))


class Session:
    """A model and one sequence: tokens in, log-probabilities of the next one out."""

    def __init__(self, path):
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = False
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise RuntimeError(f"{path} does not load")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = 0  # the file's own: it decides between long and short rope factors
        params.n_threads = params.n_threads_batch = 2
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.end = [i for i in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(self.vocab, i)]

    def close(self):
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def tokens(self, text):
        raw = text.encode()
        ids = (llama_cpp.llama_token * 4096)()
        n = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), True, False)
        return ids[:n]

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def advance(self, ids):
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(tokens, len(ids))) != 0:
            raise RuntimeError("llama_decode failed")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, -1), (self.n_vocab,))
        logits = logits.astype(np.float64)
        return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def reference(path, name, path_of=None):
    """The reference of a model. Greedy, or along the path, and for the tokens, of another reference."""
    session = Session(path)
    cases = []
    for n, prompt in enumerate(PROMPTS):
        session.clear()
        ids = session.tokens(prompt)
        first = now = session.advance(ids)
        steps = []
        for step in range(STEPS):
            if path_of is None:
                banned = now.copy()
                banned[session.end] = -np.inf
                top = [int(i) for i in np.argsort(-banned, kind="stable")[:TOP]]
                taken = top[0]
            else:
                given = path_of["cases"][n]["greedy"][step]
                taken, top = given["id"], [i for i, _ in given["top"]]
            steps.append({"id": taken, "top": [[i, round(float(now[i]), 5)] for i in top]})
            if step + 1 < STEPS:
                now = session.advance([taken])
        cases.append(
            {
                "prompt": prompt,
                "prompt_ids": ids,
                "first_step_logprobs": [round(float(x), 5) for x in first],
                "greedy": steps,
            }
        )
    session.close()
    note = "temperature 0, end of text banned; log-probabilities before sampling; add_special=true"
    if path_of is not None:
        note += "; steps along the path of true.json, for its tokens"
    return {"model": name, "engine": ENGINE.format(llama_cpp.__version__), "note": note, "cases": cases}


def distance(a, b):
    """Mean absolute difference of two references' log-probabilities: at the first step, and along the path."""
    first = [np.abs(np.array(x["first_step_logprobs"]) - np.array(y["first_step_logprobs"])).mean()
             for x, y in zip(a["cases"], b["cases"])]
    path = [abs(p - q) for x, y in zip(a["cases"], b["cases"]) for s, t in zip(x["greedy"], y["greedy"])
            for (_, p), (_, q) in zip(s["top"], t["top"])]
    return float(np.mean(first)), float(np.mean(path))


def save(value, path):
    pathlib.Path(path).write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
