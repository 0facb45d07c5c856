"""Hooks of schemathesis: what its requests name is there, where they name something, and nothing leaves this machine.

Values that are of the right type are replaced, others stay, so that what is wrong stays wrong. Which of them are replaced
depends on their length alone: the same run asks the same each time.
"""

import os

import schemathesis

PEER, FOLDER = os.environ["PEER"], os.environ["FOLDER"]


def sometimes(text):
    return len(text) % 2 == 0


def named(fields):
    for name in ("peer", "target"):
        if isinstance(fields.get(name), str) and sometimes(fields[name]):
            fields[name] = PEER
    if isinstance(fields.get("addr"), str) and sometimes(fields["addr"]):
        fields["addr"] = os.environ["PEER_ADDR"]
    if isinstance(fields.get("model"), str):
        fields["model"] = "demo"
    # Files of this machine are none of its business.
    if isinstance(fields.get("path"), str) and fields["path"].startswith("/"):
        fields["path"] = f"{FOLDER}/{fields['path'].encode().hex()[:40]}"
    if isinstance(fields.get("draft"), str):
        fields["draft"] = "demo"
    # No page of others is fetched.
    if isinstance(fields.get("url"), str) and fields["url"].startswith("http"):
        fields["url"] = "http://127.0.0.1/"
    # Answers are short: it is their form that counts.
    for name in ("max_tokens", "max_completion_tokens", "count", "n"):
        if type(fields.get(name)) is int and fields[name] > 2:
            fields[name] = 2
    for name in ("deadline_ms", "interval_ms", "timeout_ms", "step_timeout_ms"):
        if type(fields.get(name)) is int and fields[name] > 200:
            fields[name] = 200
    for name in ("timeout_s",):
        if type(fields.get(name)) in (int, float) and fields[name] > 2:
            fields[name] = 2
    # The model's own width is the only one.
    if type(fields.get("dimensions")) is int and fields["dimensions"] > 0:
        del fields["dimensions"]
    # One of the two says what is meant.
    for one, other in (("value", "value_hex"), ("input", "input_hex")):
        if isinstance(fields.get(one), str) and isinstance(fields.get(other), str):
            del fields[other]
    return fields


def of_service(fields):
    if isinstance(fields.get("name"), str) and sometimes(fields["name"]):
        fields["name"] = "echo"
    if type(fields.get("max_price")) is int and fields["max_price"] > 0:
        fields["max_price"] = 10_000_000


@schemathesis.hook
def before_call(context, case, kwargs):
    # Whoever is convicted gets no work any more: that is for peers that there are not.
    if isinstance(case.body, dict) and not case.operation.path.endswith("/convict"):
        named(case.body)
        if "/services/" in case.operation.path:
            of_service(case.body)
        # A setting that may be changed here.
        if case.operation.path == "/api/v1/config/set" and isinstance(case.body.get("key"), str) and sometimes(case.body["key"]):
            case.body.update(key="price", values=["7"])
        # A token that may look.
        if case.operation.path == "/api/v1/tokens" and case.body.get("scopes") == []:
            case.body["scopes"] = ["read"]
    if isinstance(case.query, dict):
        named(case.query)
    # Without end, unless somebody goes away.
    if case.operation.path in ("/api/v1/events", "/api/v1/logs"):
        case.query = {**(case.query or {}), "follow": "false"}
    parameters = case.path_parameters
    if isinstance(parameters, dict) and isinstance(parameters.get("id"), str) and sometimes(parameters["id"]):
        parameters["id"] = "demo" if case.operation.path.startswith("/v1/") else PEER
    # An agent that is there, unless it is to be taken away.
    if isinstance(parameters, dict) and isinstance(parameters.get("name"), str):
        if not case.operation.path.endswith("/remove"):
            parameters["name"] = "hello"
