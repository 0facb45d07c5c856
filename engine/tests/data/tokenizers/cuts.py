#!/usr/bin/env python3
"""Writes cuts.json: where llama.cpp cuts texts into words, for each of its pre-tokenizers.

    python3 cuts.py LLAMA_CPP > cuts.json

LLAMA_CPP is a source tree of llama.cpp (made with the one in the source package of llama-cpp-python 0.3.36). Its tables
of names and expressions are taken out of src/llama-vocab.cpp, put into a small program with src/unicode.cpp, and that
is compiled (g++ is needed) and asked. Nothing of it stays.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

TEXTS = [
    "Hello, world! It's  2024's DAY'S end\n\n x  ",
    "It'LL cost $1234567.89 (now)!\n\n\nok \t\n x\r\n\r\ny",
    "e\u0301e\u0301 a\u0301\u0302b \u0301ABC HTTPServer éABC ÉÉa ǅx ʰ",
    "中文字かなカナ한국어 ไทย Привет, Вася ΑΒΓαβγ मेरा 漢字x y漢字's",
    "1 12 123 1234 12345 ２３４５ ½ Ⅷ ٣٤ a1234b x12345678",
    "!= /// -- `a` <b> $c ~d^e|f_g {h} [i] \\j #k @l //\n/\n",
    "   a    b     c\t\td \u00a0\u3000e \u2028 f \u0085 g" + " " * 21 + "h" + " " * 9,
    "。，、…！？“x”‘y’—：；〿﹏ㄅㄆㄱㄴ 豈\ua000",
    "🦙\u200d👩 \u0000\u0001\u00ad\ue000x\u0378 \U0010ffffy \U0002a6dfz",
    "one two three a b  c d 'x' 're 've 'LL''s s's'",
    "<sentinel:12> IMGIMGABZ IMGIMGZ    x  y\tz\n",
    "\u1c89\u1c8a Ꟛꟛ \U0001e5d0 \u0897a new letters",
    "ＡＢｃ！＃１ ﬀ ß ſ K Å µ ª º ² ₂",
    "\n \n\n  \n x \r y\u000b\u000c z\n",
]


def program(root):
    vocab = (root / "src/llama-vocab.cpp").read_text()
    expressions = vocab[vocab.index("        switch (vocab.get_pre_type()) {") :]
    expressions = expressions[: expressions.index("    std::vector<std::string> regex_exprs;\n")].rstrip()[:-1]
    names = vocab[vocab.index("            if (tokenizer_pre.empty()) {") :]
    names = names[: names.index("        } else if (type == LLAMA_VOCAB_TYPE_SPM) {\n            pre_type")]
    listed = sorted(set(re.findall(r'tokenizer_pre == "([^"]+)"', names)))
    names = re.sub(r"throw std::runtime_error\(format\(.*?\)\);", "abort();", names).replace("LLAMA_LOG_WARN", "printf")
    header = (root / "src/llama-vocab.h").read_text()
    types = header[header.index("enum llama_vocab_pre_type") :]
    types = types[: types.index("};") + 2]
    source = f"""
#include "unicode.h"
#include <cstdio>
#include <cstdlib>
#include <iostream>
#define LLAMA_TOKEN_NULL -1
{types}
int main() {{
    std::string line;
    while (std::getline(std::cin, line)) {{
        const auto tab = line.find('\\t');
        const std::string tokenizer_pre = line.substr(0, tab);
        std::string text;
        for (size_t i = tab + 1; i + 1 < line.size(); i += 2) text += (char) strtol(line.substr(i, 2).c_str(), 0, 16);
        std::vector<std::string> regex_exprs;
        llama_vocab_pre_type pre_type;
        bool byte_encode, ignore_merges, add_bos, add_sep, clean_spaces, escape_whitespaces;
        int special_bos_id;
        struct {{ bool lowercase; }} normalizer_opts;
{names}
{expressions.replace("vocab.get_pre_type()", "pre_type")}
        for (const auto & word : unicode_regex_split(text, regex_exprs, false))
            if (!word.empty()) printf("%zu ", word.size());
        printf("\\n");
    }}
}}
"""
    return source, listed


def main(root):
    source, names = program(root)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / "cuts.cpp").write_text(source)
        units = [path / "cuts.cpp", root / "src/unicode.cpp", root / "src/unicode-data.cpp"]
        subprocess.run(["g++", "-std=c++17", "-I", root / "src", *units, "-o", path / "cuts"], check=True)
        lines = "".join(f"{name}\t{text.encode().hex()}\n" for name in names for text in TEXTS)
        out = subprocess.run([path / "cuts"], input=lines, capture_output=True, text=True, check=True).stdout
    lengths = iter(out.splitlines())
    cuts = {name: [[int(n) for n in next(lengths).split()] for _ in TEXTS] for name in names}
    same = {}
    for name, cut in cuts.items():
        same.setdefault(json.dumps(cut), []).append(name)
    groups = [{"names": group, "lengths": json.loads(cut)} for cut, group in same.items()]
    print(json.dumps({"texts": TEXTS, "groups": groups}).replace('{"names"', '\n{"names"'))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
