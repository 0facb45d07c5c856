"""The official Python SDK against a node: BASE_URL and API_KEY in the environment. Prints one line for each thing checked."""

import json
import os
import sys
import time

import openai

MODEL = "demo"
QUESTION = [{"role": "user", "content": "What is a relay?"}]


def client(**more):
    return openai.OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"], **more)


def same(what, found, expected):
    if found != expected:
        raise AssertionError(f"{what}: {found!r}, expected {expected!r}")


def expect(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"nothing failed, expected {kind.__name__}")


def models():
    # The node may still be hearing of the others.
    for _ in range(100):
        ids = [model.id for model in client().models.list()]
        if MODEL in ids:
            break
        time.sleep(0.1)
    assert MODEL in ids, ids
    same("the model", client().models.retrieve(MODEL).id, MODEL)
    expect(openai.NotFoundError, lambda: client().models.retrieve("no/such model"))


def chat():
    """Streamed or not, typed or raw, the answer is the same."""
    ask = dict(model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=64)
    whole = client().chat.completions.create(**ask)
    choice = whole.choices[0]
    text = choice.message.content
    assert text and choice.message.role == "assistant" and choice.finish_reason == "stop", whole
    assert whole.id.startswith("chatcmpl-") and whole.object == "chat.completion" and whole.usage, whole
    same("total", whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens)

    chunks = list(client().chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    same("ids", len({chunk.id for chunk in chunks}), 1)
    same("role", chunks[0].choices[0].delta.role, "assistant")
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    same("text", "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), text)
    same("usage is last and has no choices", chunks[-1].choices, [])
    same("usage", chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)
    same("finish", chunks[-2].choices[0].finish_reason, "stop")
    plain = list(client().chat.completions.create(**ask, stream=True))
    assert all(chunk.usage is None for chunk in plain), "usage that nobody asked for"

    with client().chat.completions.stream(**ask) as stream:
        same("accumulated", stream.get_final_completion().choices[0].message.content, text)
    raw = client().chat.completions.with_raw_response.create(**ask, extra_headers={"x-request-id": "mine-1"})
    same("request id", raw.headers["x-request-id"], "mine-1")
    assert "=" in raw.headers["x-quelea-route"], dict(raw.headers)
    assert "total;dur=" in raw.headers["server-timing"] and raw.headers["x-quelea-cost"], dict(raw.headers)


def choices():
    ask = dict(model=MODEL, messages=QUESTION, n=3, seed=7, temperature=1.5, max_tokens=12)
    first, again = (client().chat.completions.create(**ask) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    same("indices", [choice.index for choice in first.choices], [0, 1, 2])
    same("one seed, one answer", [choice.message.content for choice in again.choices], texts)
    chunks = list(client().chat.completions.create(**ask, stream=True))
    for at, text in enumerate(texts):
        parts = [c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == at]
        same(f"choice {at}", "".join(parts), text)


def logprobs():
    ask = dict(model=MODEL, messages=QUESTION, temperature=0, max_tokens=16, logprobs=True, top_logprobs=3)
    choice = client().chat.completions.create(**ask).choices[0]
    tokens = choice.logprobs.content
    same("bytes", bytes(b for token in tokens for b in token.bytes).decode(), choice.message.content)
    same("tokens", "".join(token.token for token in tokens), choice.message.content)
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in tokens)
    chunks = client().chat.completions.create(**ask, stream=True)
    streamed = [t.token for c in chunks if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    same("streamed tokens", streamed, [token.token for token in tokens])


def stops():
    ask = dict(model=MODEL, messages=QUESTION, temperature=0)
    text = client().chat.completions.create(**ask).choices[0].message.content
    words = text.split(" ")
    stop = f"{words[2][-1]} {words[3][0]}"
    cut = client().chat.completions.create(**ask, stop=["never said", stop]).choices[0]
    same("stopped", (cut.message.content, cut.finish_reason), (text.split(stop)[0], "stop"))
    short = client().chat.completions.create(**ask, max_tokens=3)
    same("length", (short.choices[0].finish_reason, short.usage.completion_tokens), ("length", 3))


def completions():
    ask = dict(model=MODEL, temperature=0, max_tokens=8)
    one = client().completions.create(prompt="A relay is", **ask)
    assert one.id.startswith("cmpl-") and one.object == "text_completion", one
    both = client().completions.create(prompt=["A relay is", "A peer is"], echo=True, **ask)
    same("echo", both.choices[0].text, "A relay is" + one.choices[0].text)
    assert both.choices[1].text.startswith("A peer is"), both
    chunks = client().completions.create(prompt="A relay is", stream=True, **ask)
    same("streamed", "".join(c.choices[0].text for c in chunks if c.choices), one.choices[0].text)
    expect(openai.BadRequestError, lambda: client().completions.create(prompt="a", suffix="b", **ask))


def json_answers():
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["relay", "peer"]}, "hops": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["kind", "hops"],
        "additionalProperties": False,
    }
    for temperature in (0, 1.5):
        answer = client().chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=temperature, max_tokens=200, seed=3,
            response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}},
        )
        same("finish", answer.choices[0].finish_reason, "stop")
        found = json.loads(answer.choices[0].message.content)
        assert found["kind"] in ("relay", "peer") and 0 <= found["hops"] <= 9 and len(found) == 2, found
    bad = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "nonsense"}}}
    expect(openai.BadRequestError,
           lambda: client().chat.completions.create(model=MODEL, messages=QUESTION, response_format=bad))


def errors():
    ask = lambda **more: client().chat.completions.create(**({"model": MODEL, "messages": QUESTION} | more))
    error = expect(openai.NotFoundError, lambda: ask(model="none"))
    same("code", error.code, "model_not_found")
    error = expect(openai.BadRequestError, lambda: ask(messages=[]))
    same("param", error.param, "messages")
    error = expect(openai.BadRequestError, lambda: ask(messages=[{"role": "user", "content": "relay " * 4000}], stream=True))
    same("code", error.code, "context_length_exceeded")
    expect(openai.BadRequestError, lambda: ask(temperature=3))
    stranger = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key="wrong")
    error = expect(openai.AuthenticationError, lambda: stranger.models.list())
    same("code", error.code, "invalid_api_key")
    ask(max_tokens=1, user="u", store=False, metadata={"a": "b"}, extra_body={"no_such_field": {"x": 1}})


if __name__ == "__main__":
    for check in [models, chat, choices, logprobs, stops, completions, json_answers, errors]:
        check()
        print("ok", check.__name__, flush=True)
    print("done")
    sys.exit(0)
