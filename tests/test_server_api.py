"""Generated requests against the OpenAPI document that the server gives: no 5xx, and the server lives.

LIBREMOE_API_REQUESTS sets how many (a tenth of them against the tiny real model, the others against the stub engine);
`make soak` and CI ask for more than the default of a plain test run.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from serving import Running, chatting, served, stub, tiny_engine

schemathesis = pytest.importorskip("schemathesis")

REQUESTS = int(os.environ.get("LIBREMOE_API_REQUESTS", "1000"))
SOAK_REQUESTS = int(os.environ.get("LIBREMOE_API_SOAK_REQUESTS", "200000"))
MAX_EXAMPLES = 100  # of one operation in a row
MUTANTS = 9  # of each generated body: generating one takes longer than answering ten
ODD: list[Any] = [
    None, True, 0, 1, 2, -1, 3.5, 1e308, -(2**63), 2**64, 2**31, "", "x", "\x00",
    "\u202e[EOS]<|im_end|>", "e\u0301" * 40, "a" * 5000, [], [[]], [0], ["x", 1], [None], [{}], {}, {"": 1},
    {"type": "function"}, {"type": "text", "text": "x"}, [{"type": "text", "text": 5}],
    [{"role": "user", "content": "x"}], "user", "assistant", "tool", "system", "auto",
    "required", "json_schema", {"type": "json_object"}, {"$ref": "#/a"},
    {"type": "object", "properties": {"a": {"$ref": "#"}}},
]
LIMITS = {"max_body_bytes": 1 << 20, "queue_timeout_s": 20.0, "default_max_tokens": 8}
HEALTHY = {"suppress_health_check": list(HealthCheck), "deadline": None, "database": None, "phases": [Phase.generate]}


def drive(running: Running, requests: int) -> Counter[int]:
    """Send at least this many generated requests, valid ones and broken ones, to all operations in turn; returns how
    often each status came."""
    document = httpx2.get(f"{running.url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=running.url)
    operations = [result.ok() for result in schema.get_all_operations()]
    modes = list(schemathesis.GenerationMode)
    statuses: Counter[int] = Counter()
    rng = random.Random(requests)
    client = httpx2.Client(base_url=running.url, timeout=60)

    def send(case: Any) -> None:
        shorten(case)
        arguments = case.as_transport_kwargs(base_url=running.url)
        try:
            found = client.request(arguments["method"], arguments["url"], params=arguments.get("params"),
                                   headers=arguments.get("headers"), **content(arguments))
        except (httpx2.LocalProtocolError, httpx2.InvalidURL, UnicodeError):
            return  # what this client cannot send; test_server_edge.py sends bytes
        statuses[found.status_code] += 1
        assert found.status_code < 500, (case.method, case.path, case.body, found.status_code, found.text)
        if found.status_code >= 400:
            assert "error" in found.json()
        if not isinstance(case.body, dict):
            return
        for _ in range(MUTANTS):
            body = mutated(case.body, rng)
            found = client.post(case.path, content=json.dumps(body), headers={"content-type": "application/json"})
            statuses[found.status_code] += 1
            assert found.status_code < 500, (case.path, body, found.status_code, found.text)

    for round_number in itertools.count():
        sent = sum(statuses.values())
        if sent >= requests:
            break
        examples = min(MAX_EXAMPLES, -(-(requests - sent) // (len(operations) * len(modes) * (1 + MUTANTS))))
        for number, (operation, mode) in enumerate(itertools.product(operations, modes)):
            generate(operation, mode, examples, f"{round_number}/{number}", send)
        assert sum(statuses.values()) > sent  # else this would never end
    assert client.get("/health").status_code == 200
    return statuses


def generate(operation: Any, mode: Any, examples: int, seed_text: str, send: Callable[[Any], None]) -> None:
    """Call send with this many generated requests to one operation; fewer where there are no more."""
    try:
        strategy = operation.as_strategy(generation_mode=mode)
        seed(seed_text)(settings(max_examples=examples, **HEALTHY)(given(case=strategy)(lambda case: send(case))))()
    except schemathesis.errors.InvalidSchema as error:
        raise AssertionError(f"the document is wrong at {operation.label}") from error
    except Exception as error:
        if type(error).__name__ not in ("Unsatisfiable", "SkipTest"):  # a GET without fields cannot be broken
            raise


def mutated(body: Any, rng: random.Random) -> Any:
    """A copy of which one place, at any depth, is missing, doubled, or something else."""
    if isinstance(body, dict) and body and rng.random() < 0.9:
        name = rng.choice(list(body))
        kind = rng.randrange(8)
        if kind == 0:
            return {other: value for other, value in body.items() if other != name}
        return {**body, name: mutated(body[name], rng) if kind < 6 else rng.choice(ODD)}
    if isinstance(body, list) and body and rng.random() < 0.8:
        at = rng.randrange(len(body))
        return [*body[:at], mutated(body[at], rng), *body[at + rng.randrange(2) :]]
    return rng.choice(ODD)


def shorten(case: Any) -> None:
    """Answers of thousands of tokens test nothing that short ones do not."""
    if isinstance(case.body, dict):
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            value = case.body.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and 8 < value < 2000:
                case.body[name] = value % 8 + 1


def content(arguments: dict[str, Any]) -> dict[str, Any]:
    if "json" in arguments:
        return {"json": arguments["json"]}
    if arguments.get("data") is not None:
        return {"content": arguments["data"] if isinstance(arguments["data"], bytes | str) else str(arguments["data"])}
    return {}


def check(requests: int) -> None:
    total: Counter[int] = Counter()
    with served(stub(tokens_per_s=5000, max_running=64), chat=chatting(), **LIMITS) as running:
        total += drive(running, requests * 9 // 10)
        assert not running.service.engine.running
    with served(tiny_engine(), **LIMITS) as running:
        total += drive(running, requests // 10)
    assert sum(total.values()) >= requests // 10 * 10
    print(f"{sum(total.values())} requests: {dict(sorted(total.items()))}")
    assert total[200] > 0.05 * sum(total.values())  # else nothing behind the checks was reached
    assert total[400] > 0.05 * sum(total.values())


def test_generated_requests() -> None:
    check(REQUESTS)


@pytest.mark.soak
def test_generated_requests_at_length() -> None:
    check(SOAK_REQUESTS)


@pytest.mark.soak
def test_generated_requests_without_assertions() -> None:
    """The server's checks are code: the same holds under python -O."""
    code = f"import test_server_api as t; t.check({REQUESTS})"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([sys.executable, "-O", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


CLIENT = httpx2.Client(timeout=60)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
                    max_leaves=12)
FIELDS = [
    "model",
    "messages",
    "prompt",
    "input",
    "n",
    "stop",
    "tools",
    "tool_choice",
    "response_format",
    "logit_bias",
    "seed",
    "stream",
    "stream_options",
    "max_tokens",
    "logprobs",
    "top_logprobs",
    "echo",
    "system",
    "temperature",
    "text",
    "tokens",
    "instructions",
    "stop_sequences",
    "output_config",
    "encoding_format",
    "dimensions",
]


@settings(max_examples=200, **HEALTHY)
@given(body=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=8), good=st.booleans(), data=st.data())
def _any_body(running: Running, body: dict[str, Any], good: bool, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
                                      "/v1/messages/count_tokens", "/v1/embeddings", "/tokenize", "/detokenize"]))
    if good:  # so that the other fields are reached
        body = {**body, "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x", "max_tokens": 3}
    body.pop("model", None)
    found = CLIENT.post(running.url + path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert found.status_code < 500, (path, body, found.text)


def test_any_json_in_any_field() -> None:
    with served(stub(tokens_per_s=5000, max_running=64), chat=chatting(), **LIMITS) as running:
        _any_body(running)
