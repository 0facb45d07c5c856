"""Small vocabularies, trained on a text of this repository."""

import json
import pathlib

import gguf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXT = pathlib.Path(__file__).parents[3] / "demo" / "topics.txt"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _train(size, pre_tokenizer, alphabet):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[], initial_alphabet=alphabet, limit_alphabet=len(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.read_text().splitlines(), trainer)
    ids = tokenizer.get_vocab()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return sorted(ids, key=ids.get), [m if isinstance(m, str) else " ".join(m) for m in merges]


def bpe(writer, size, pre):
    """Byte-level pair encoding, four control tokens at the end."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    octets = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = _train(size - len(special), pre_tokenizers.ByteLevel(add_prefix_space=False), octets)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens + special)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(special))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def spm(writer, size, space_prefix):
    """SentencePiece's pair encoding with bytes to fall back on. The earlier a piece was merged, the higher its score."""
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    octets = [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet = sorted(chr(c) for c in range(33, 127)) + ["▁"]
    pieces, _ = _train(
        size - len(special) - len(octets), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first"), alphabet
    )
    kind = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(special[:3] + octets + pieces + special[3:])
    writer.add_token_scores([0.0] * (3 + len(octets)) + [-float(i) for i in range(len(pieces))] + [0.0] * 2)
    writer.add_token_types(
        [kind.UNKNOWN, kind.CONTROL, kind.CONTROL]
        + [kind.BYTE] * len(octets)
        + [kind.NORMAL] * len(pieces)
        + [kind.CONTROL] * 2
    )
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(space_prefix)
    writer.add_chat_template(TEMPLATE)
