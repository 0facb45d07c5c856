#!/usr/bin/env python3
"""Writes the small vocabularies beside it and what llama.cpp makes of texts with them.

    pip install llama-cpp-python==0.3.36 gguf sentencepiece tokenizers
    python3 vocabularies.py             # unigram.gguf, wordpiece.gguf, whitespace.gguf, and a .json for each
    python3 vocabularies.py FOLDER OUT  # ids for every ggml-vocab-*.gguf of FOLDER, into OUT (for QUELEA_VOCABULARIES)

They are trained on a text of this repository: Unigram by sentencepiece, with a few rules to replace characters;
WordPiece and merges over characters by tokenizers. engine/tests/tokenizers.rs reads them.
"""

import ctypes
import json
import pathlib
import sys
import tempfile

import llama_cpp

HERE = pathlib.Path(__file__).parent
TEXT = HERE.parents[2] / "demo" / "topics.txt"
TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\t\n x",
    "Hello, world! It's  a quelea's DAY\n\n and  night  ",
    " Hello",
    "  two spaces  between   words",
    "The birds fly in flocks of millions.",
    "é e\u0301 É ñ Ångström naïve İstanbul ǅ ß ſ",
    "ﬁne ½ ² Ⅷ ＡＢｃ１ ㍿ ™",
    "中文字 かなカナ 한국어 ไทย Привет मेरा \U0002b820\U0002b920",
    "a\u00a0b\u3000c\u2028d\u200be\u00adf\ufefff",
    "\u0001\u0000\ufffd\ue000 control",
    "🦙\u200d👩‍👩‍👧 x🙂y",
    "$100 + 5% = 3^2 <tag> [x] `y` |z|~",
    "</s> <s> a<user>b <pad> [SEP]x[MASK] <extra_id_0>",
    "unknownwordthatisnowhere zzzqqq",
    "HTTPServer 1234567 3.14 x_y-z",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "'s 'LL don't \"quoted\"",
    "line\r\nline\rline\u0085line\x0bline",
]


class Vocabulary:
    """A vocabulary in llama.cpp."""

    def __init__(self, path):
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self.model, path
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def ids(self, text, add, special):
        data = text.encode()
        room = (llama_cpp.llama_token * (len(data) * 4 + 16))()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), room, len(room), add, special)
        assert count >= 0, (text, count)
        return list(room[:count])


def expected(path, texts=TEXTS):
    """For each text: ids of it as text, with special tokens parsed, and of a whole input."""
    vocabulary = Vocabulary(path)
    keys = {"plain": (False, False), "special": (False, True), "input": (True, True)}
    return [{"text": text} | {key: vocabulary.ids(text, *how) for key, how in keys.items()} for text in texts]


def writer(name, model):
    import gguf

    out = gguf.GGUFWriter(HERE / f"{name}.gguf", "llama")
    out.add_tokenizer_model(model)
    return out


def finish(out, name):
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.close()
    save(expected(HERE / f"{name}.gguf"), HERE / f"{name}.json")


def save(cases, path):
    path.write_text("[\n" + ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases) + "\n]\n")


def unigram():
    import sentencepiece
    from gguf import TokenType
    from sentencepiece import sentencepiece_model_pb2 as pb

    with tempfile.TemporaryDirectory() as folder:
        rules = pathlib.Path(folder) / "rules.tsv"
        replaced = {"é": "e", "e\u0301": "e", "ﬁ": "fi", "½": "1/2", "\u3000": " ", "\u00a0": " ", "\u200b": "", "Ａ": "A"}
        replaced |= {"\t": " ", "\n": " ", "\r": " ", "™": "TM", "e\u0301\u0302": "ê"}
        lines = [
            " ".join(f"{ord(c):X}" for c in old) + "\t" + " ".join(f"{ord(c):X}" for c in new)
            for old, new in replaced.items()
        ]
        rules.write_text("\n".join(lines) + "\n")
        sentencepiece.SentencePieceTrainer.train(
            input=str(TEXT),
            model_prefix=f"{folder}/model",
            model_type="unigram",
            vocab_size=400,
            normalization_rule_tsv=str(rules),
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            user_defined_symbols=["<user>", "zz q"],
            minloglevel=2,
        )
        model = pb.ModelProto()
        model.ParseFromString(pathlib.Path(f"{folder}/model.model").read_bytes())
    kinds = {1: TokenType.NORMAL, 2: TokenType.UNKNOWN, 3: TokenType.CONTROL, 4: TokenType.USER_DEFINED}
    out = writer("unigram", "t5")
    out.add_token_list([piece.piece for piece in model.pieces] + ["<extra_id_0>"])
    out.add_token_scores([piece.score for piece in model.pieces] + [0.0])
    out.add_token_types([kinds[piece.type] for piece in model.pieces] + [TokenType.CONTROL])
    out.add_precompiled_charsmap(model.normalizer_spec.precompiled_charsmap)
    out.add_remove_extra_whitespaces(model.normalizer_spec.remove_extra_whitespaces)
    out.add_add_space_prefix(model.normalizer_spec.add_dummy_prefix)
    out.add_pad_token_id(0)
    out.add_eos_token_id(1)
    out.add_unk_token_id(2)
    finish(out, "unigram")


def wordpiece():
    from gguf import TokenType
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXT.read_text().splitlines() + ["中 文 字 1 2 3 $ %"], trainer)
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=ids.get)
    out = writer("wordpiece", "bert")
    # As conversions have them: a mark at the beginning of a word, none within.
    out.add_token_list([
        t if t in special else t[2:] if t.startswith("##") else "▁" + t for t in tokens
    ])
    out.add_token_types([TokenType.CONTROL if t in special else TokenType.NORMAL for t in tokens])
    out.add_token_type_count(2)
    out.add_pad_token_id(0)
    out.add_unk_token_id(1)
    out.add_bos_token_id(2)
    out.add_sep_token_id(3)
    out.add_mask_token_id(4)
    finish(out, "wordpiece")


def whitespace():
    from gguf import TokenType
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXT.read_text().splitlines() + ["中 文 字"], trainer)
    ids = tokenizer.get_vocab()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    tokens = sorted(ids, key=ids.get) + ["<0xC3>", "<0x09>"]
    out = writer("whitespace", "whitespace")
    out.add_tokenizer_pre("whitespace")
    out.add_token_list(tokens)
    out.add_token_types([TokenType.CONTROL if t in special else TokenType.NORMAL for t in tokens])
    out.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    out.add_bos_token_id(0)
    out.add_eos_token_id(2)
    out.add_unk_token_id(3)
    out.add_add_bos_token(True)
    out.add_add_eos_token(True)
    finish(out, "whitespace")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        more = [text for text in TEXTS if "\x00" not in text]
        for path in sorted(pathlib.Path(sys.argv[1]).glob("ggml-vocab-*.gguf")):
            inputs = path.with_name(path.name + ".inp")
            texts = inputs.read_text().split("\n__ggml_vocab_test__\n") if inputs.exists() else []
            save(expected(path, more + texts), pathlib.Path(sys.argv[2]) / f"{path.stem}.json")
    else:
        for make in [unigram, wordpiece, whitespace]:
            make()
