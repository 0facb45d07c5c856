#!/usr/bin/env python3
"""Renders chat templates as Hugging Face's transformers does, for engine/tests/templates.rs to compare with.

    pip install jinja2
    python3 render.py ../../../../../shared/fixtures/templates > expected.json

For each `*.jinja` of the folder: a hash of the template, and for each of conversations.json the text, or the words in
which the template refused it, or null where it failed otherwise; and the same for each template of snippets.json. The environment is that of
transformers/utils/chat_template_utils.py: a sandbox, blocks trimmed, loop controls, the tag `generation`, `tojson`
that leaves characters alone, `raise_exception` and `strftime_now` (here of a fixed day).
"""

import datetime
import json
import pathlib
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

HERE = pathlib.Path(__file__).parent
DAY = datetime.datetime(2026, 1, 2, 3, 4, 5)


class Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks the assistant's words for training and writes its body as it is."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class Refused(jinja2.exceptions.TemplateError):
    """What a template says with raise_exception."""


def raise_exception(message):
    raise Refused(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = DAY.strftime
    return env


def render(env, source, conversation):
    context = {"tools": None, "documents": None, **conversation.get("extra", {})}
    context |= {"bos_token": "<s>", "eos_token": "</s>", "messages": conversation["messages"]}
    context["add_generation_prompt"] = conversation["add_generation_prompt"]
    try:
        return {"text": env.from_string(source).render(**json.loads(json.dumps(context)))}
    except Refused as refused:
        return {"refused": str(refused)}
    except Exception as error:
        print(f"{conversation['name']}: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def fnv1a(data):
    """64-bit FNV-1a: tells that a template has changed."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def main(folder):
    conversations = json.loads((HERE / "conversations.json").read_text())
    env = environment()
    talk = next(c for c in conversations if c["name"] == "several turns")
    snippets = json.loads((HERE / "snippets.json").read_text())
    out = {"snippets": [render(env, snippet, talk) for snippet in snippets]}
    out |= {"day": int(DAY.replace(tzinfo=datetime.timezone.utc).timestamp()), "templates": {}}
    for path in sorted(pathlib.Path(folder).glob("*.jinja")):
        print(f"# {path.name}", file=sys.stderr)
        source = path.read_bytes().decode()
        cases = {c["name"]: render(env, source, c) for c in conversations}
        out["templates"][path.name] = {"hash": fnv1a(path.read_bytes()), "cases": cases}
    json.dump(out, sys.stdout, ensure_ascii=False, indent=1)
    print()


if __name__ == "__main__":
    main(sys.argv[1])
