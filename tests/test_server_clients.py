"""The clients that people have, over loopback, against a tiny model: they change a base URL and it works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import MODEL, VOCAB, Running, served, tiny_engine, tokenizer

pytest.importorskip("openai")
import anthropic  # noqa: E402
import openai  # noqa: E402
from pydantic import BaseModel  # noqa: E402

HI = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Rome"]}, "days": {"type": "integer", "enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER_TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "the weather", "parameters": WEATHER},
}
OPTIONS = {"model": MODEL, "temperature": 0.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with served(tiny_engine()) as running:
        yield running


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def claude(running: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=running.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_a_chat_is_its_stream_collected(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=HI, seed=3, **{**OPTIONS, "temperature": 1.0})
    chunks = list(
        client.chat.completions.create(
            messages=HI, seed=3, stream=True, stream_options={"include_usage": True}, **{**OPTIONS, "temperature": 1.0}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert whole.model_extra["libremoe"] == {"template": "transcript"}


def test_same_seed_same_text_and_n_answers(client: openai.OpenAI) -> None:
    def texts(**more: object) -> list[str]:
        found = client.chat.completions.create(messages=HI, **{**OPTIONS, "temperature": 1.0}, **more)
        return [choice.message.content for choice in found.choices]

    three = texts(seed=7, n=3)
    assert texts(seed=7, n=3) == three
    assert three[0] == texts(seed=7)[0]
    assert len(set(three)) == 3
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(
        messages=HI, seed=7, n=3, stream=True, **{**OPTIONS, "temperature": 1.0}
    ):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == three


def test_logprobs(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(messages=HI, logprobs=True, top_logprobs=3, **OPTIONS)
    content = found.choices[0].logprobs.content
    assert len(content) == found.usage.completion_tokens
    for entry in content:  # greedy: the chosen token is the best one
        assert len(entry.top_logprobs) == 3
        assert entry.token == entry.top_logprobs[0].token
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0


def test_stop_bias_and_penalties(client: openai.OpenAI) -> None:
    free = client.completions.create(prompt="Once", **OPTIONS).choices[0].text
    stop = free[3:5]
    cut = client.completions.create(prompt="Once", stop=[stop, "never said"], **OPTIONS).choices[0]
    assert (cut.text, cut.finish_reason) == (free[: free.index(stop)], "stop")
    biased = client.completions.create(prompt="Once", logit_bias={"100": 100}, **OPTIONS).choices[0].text
    assert biased == tokenizer().decode([100]) * OPTIONS["max_tokens"]
    varied = client.completions.create(prompt="Once", logit_bias={"100": 5, "101": 5}, presence_penalty=2.0,
                                       frequency_penalty=2.0, **OPTIONS).choices[0].text
    assert varied != biased


def test_forced_tool_call(client: openai.OpenAI) -> None:
    forced = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", forced):
        found = client.chat.completions.create(messages=HI, tools=[WEATHER_TOOL], tool_choice=choice, model=MODEL,
                                               max_tokens=200, temperature=1.0)
        (call,) = found.choices[0].message.tool_calls
        assert found.choices[0].finish_reason == "tool_calls"
        assert call.function.name == "weather"
        arguments = json.loads(call.function.arguments)
        assert arguments["city"] in ("Bern", "Rome") and arguments["days"] in (1, 2)
    answer = [*HI, found.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert client.chat.completions.create(messages=answer, tools=[WEATHER_TOOL], **OPTIONS).choices[0].message


def test_forced_tool_call_streamed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(messages=HI, tools=[WEATHER_TOOL], tool_choice="required", model=MODEL,
                                        max_tokens=200) as stream:
        for _ in stream:
            pass
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert json.loads(call.function.arguments).keys() == {"city", "days"}


class Answer(BaseModel):
    city: str
    warm: bool
    model_config = {
        "json_schema_extra": {"properties": {"city": {"enum": ["Bern", "Rome"]}, "warm": {"type": "boolean"}}}
    }


def test_json_schema(client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(messages=HI, response_format=Answer, model=MODEL, max_tokens=100)
    assert found.choices[0].message.parsed.city in ("Bern", "Rome")
    raw = client.chat.completions.create(
        messages=HI, response_format={"type": "json_object"}, model=MODEL, max_tokens=30
    )
    assert raw.choices[0].message.content.startswith("{")
    with pytest.raises(openai.BadRequestError, match="schema"):
        bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
        client.chat.completions.create(messages=HI, response_format=bad, model=MODEL)


def test_completions_take_ids_and_lists(client: openai.OpenAI) -> None:
    text = client.completions.create(prompt="ab", **OPTIONS).choices[0].text
    assert client.completions.create(prompt=tokenizer().encode("ab"), **OPTIONS).choices[0].text == text
    both = client.completions.create(prompt=["zz", "ab"], n=2, **OPTIONS).choices
    assert [choice.index for choice in both] == [0, 1, 2, 3]
    assert [both[2].text, both[3].text] == [text, text]
    streamed = "".join(c.choices[0].text for c in client.completions.create(prompt="ab", stream=True, **OPTIONS))
    assert streamed == text


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_echo_with_logprobs_scores_the_prompt(client: openai.OpenAI, running: Running, max_tokens: int) -> None:
    ids = tokenizer().encode("score me")
    found = client.completions.create(
        model=MODEL, prompt=[ids], echo=True, logprobs=2, max_tokens=max_tokens, temperature=0
    )
    choice = found.choices[0]
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(ids) + max_tokens
    assert choice.text.startswith("score me")
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert logprobs.text_offset[:4] == [0, 1, 2, 3]
    streamed = list(client.completions.create(model=MODEL, prompt=[ids], echo=True, logprobs=2, max_tokens=max_tokens,
                                              temperature=0, stream=True))
    together = [
        value for chunk in streamed if chunk.choices[0].logprobs for value in chunk.choices[0].logprobs.token_logprobs
    ]
    assert together == logprobs.token_logprobs
    # the score of a token is what the model would have said of it as an answer
    if max_tokens == 0:
        bias = {str(ids[-1]): 100}
        said = client.completions.create(model=MODEL, prompt=[ids[:-1]], max_tokens=1, logprobs=1, logit_bias=bias)
        assert said.choices[0].logprobs.token_logprobs[0] == pytest.approx(logprobs.token_logprobs[-1], abs=1e-4)


def test_responses(client: openai.OpenAI) -> None:
    options = {"model": MODEL, "temperature": 0.0, "max_output_tokens": 12}
    whole = client.responses.create(input="Hi", instructions="Be brief", **options)
    assert whole.status == "incomplete" and whole.incomplete_details.reason == "max_output_tokens"
    assert [item.status for item in whole.output] == ["incomplete"]
    assert whole.usage.output_tokens == 12
    items = [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]
    assert client.responses.create(input=items, instructions="Be brief", **options).output_text == whole.output_text
    events = list(client.responses.create(input="Hi", instructions="Be brief", stream=True, **options))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    tool = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}
    with client.responses.stream(model=MODEL, input="Hi", tools=[tool], tool_choice="required",
                                 max_output_tokens=200) as stream:
        for _ in stream:
            pass
        (call,) = stream.get_final_response().output
    assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Bern", "Rome")
    back = [
        {"role": "user", "content": "Hi"},
        call.model_dump(exclude={"status", "parsed_arguments"}, exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    assert client.responses.create(input=back, tools=[tool], **options).output_text
    schema = {"format": {"type": "json_schema", "name": "w", "schema": WEATHER}}
    parsed = client.responses.create(model=MODEL, input="Hi", text=schema, max_output_tokens=100)
    assert parsed.status == "completed" and json.loads(parsed.output_text)["days"] in (1, 2)


def test_embeddings(client: openai.OpenAI) -> None:
    one = client.embeddings.create(model=MODEL, input="hello", encoding_format="float").data[0].embedding
    both = client.embeddings.create(model=MODEL, input=["zz", "hello"])  # the client asks for base64 here
    assert both.data[1].embedding == pytest.approx(one, abs=1e-5)
    assert len(one) == 64


def test_errors_name_the_field(client: openai.OpenAI) -> None:
    cases = [
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": HI, "temperature": "hot"}, "temperature"),
        ({"messages": HI, "max_tokens": 10**6}, "max_tokens"),
        ({"messages": HI, "logit_bias": {"x": 1}}, "logit_bias"),
        ({"messages": HI, "tool_choice": "required"}, "tool_choice"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": HI, "extra_body": {"chat_template": "{{ 1 }}"}}, "chat_template"),
    ]
    for fields, param in cases:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL, **fields)
        assert caught.value.param == param, fields
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=HI)


def test_anthropic(claude: anthropic.Anthropic, client: openai.OpenAI) -> None:
    options = {"model": MODEL, "max_tokens": 12, "messages": HI, "extra_body": {"temperature": 0.0}}
    whole = claude.messages.create(system="Be brief", **options)
    same = client.chat.completions.create(messages=[{"role": "system", "content": "Be brief"}, *HI], **OPTIONS)
    assert whole.content[0].text == same.choices[0].message.content
    assert whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 12
    with claude.messages.stream(system="Be brief", **options) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        assert stream.get_final_message().usage.output_tokens == 12
    stop = whole.content[0].text[4:6]
    cut = claude.messages.create(system="Be brief", stop_sequences=[stop], **options)
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    config = {"format": {"type": "json_schema", "schema": WEATHER}}
    formed = claude.messages.create(model=MODEL, max_tokens=100, messages=HI, output_config=config)
    assert json.loads(formed.content[0].text)["days"] in (1, 2)
    counted = claude.messages.count_tokens(model=MODEL, messages=HI, system="Be brief")
    assert counted.input_tokens == same.usage.prompt_tokens
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(**{**options, "max_tokens": 10**6})
    assert caught.value.body["type"] == "error" and caught.value.body["error"]["type"] == "invalid_request_error"


def test_anthropic_tools(claude: anthropic.Anthropic) -> None:
    tool = {"name": "weather", "input_schema": WEATHER}
    options = {"model": MODEL, "max_tokens": 200, "messages": HI, "tools": [tool], "tool_choice": {"type": "any"}}
    found = claude.messages.create(**options)
    assert found.stop_reason == "tool_use" and found.content[0].input["city"] in ("Bern", "Rome")
    with claude.messages.stream(**options) as stream:
        final = stream.get_final_message()
    assert final.content[0].input["days"] in (1, 2)
    back = [
        *HI,
        {"role": "assistant", "content": [found.content[0].model_dump(exclude_none=True)]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": found.content[0].id, "content": "sunny"}]},
    ]
    assert claude.messages.create(model=MODEL, max_tokens=5, messages=back, tools=[tool]).content


def test_langchain(running: Running) -> None:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    chat = ChatOpenAI(
        model=MODEL, base_url=f"{running.url}/v1", api_key="none", max_tokens=12, temperature=0, max_retries=0
    )
    whole = chat.invoke("Hi").content
    assert "".join(chunk.content for chunk in chat.stream("Hi")) == whole != ""
    bound = ChatOpenAI(
        model=MODEL, base_url=f"{running.url}/v1", api_key="none", max_tokens=200, max_retries=0
    ).bind_tools([WEATHER_TOOL], tool_choice="weather")
    assert bound.invoke("Hi").tool_calls[0]["args"]["city"] in ("Bern", "Rome")
    vectors = OpenAIEmbeddings(
        model=MODEL, base_url=f"{running.url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    assert len(vectors.embed_query("hello")) == 64


def test_llm_command(running: Running, tmp_path: Path) -> None:
    models = f"- model_id: local\n  model_name: {MODEL}\n  api_base: {running.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-m", "llm", "-m", "local", "-o", "max_tokens", "12", "Hi"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


EVALUATE = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager

arguments, folder = sys.argv[1:]
tasks = TaskManager(include_path=folder, include_defaults=False)  # the thousands that it brings take 20 s to list
found = lm_eval.simple_evaluate(model="local-completions", model_args=arguments, tasks=["choose", "write"],
                                task_manager=tasks, log_samples=True, bootstrap_iters=0)
with open(folder + "/samples.json", "w") as file:
    json.dump(found["samples"], file, default=str)
"""


@pytest.mark.parametrize("tokens_from", ["server", "folder"])
def test_lm_eval_local_completions(running: Running, tmp_path: Path, tokens_from: str) -> None:
    """Two tasks in a file: choosing among continuations (echo and logprobs), and generating."""
    pytest.importorskip("lm_eval")
    rows = [
        {"q": "The sky is", "a": [" blue", " a fish"], "gold": 0},
        {"q": "Two and two make", "a": [" four", " red"], "gold": 0},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = f"dataset_path: json\ndataset_kwargs:\n  data_files: {tmp_path}/rows.jsonl\n"
    common += "test_split: train\ndoc_to_text: '{{q}}'\ntarget_delimiter: ''\n"
    (tmp_path / "choose.yaml").write_text(
        f"task: choose\n{common}output_type: multiple_choice\ndoc_to_choice: '{{{{a}}}}'\n"
        "doc_to_target: '{{gold}}'\n"
        "metric_list:\n  - metric: acc\n"
    )
    (tmp_path / "write.yaml").write_text(
        f"task: write\n{common}output_type: generate_until\ndoc_to_target: '{{{{a[0]}}}}'\n"
        "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 8\nmetric_list:\n  - metric: exact_match\n")
    arguments = f"model={MODEL},base_url={running.url}/v1/completions,num_concurrent=1,max_length=512"
    if tokens_from == "folder":
        from libremoe.tiny import byte_tokenizer

        folder = tmp_path / "tokenizer"
        folder.mkdir()
        (folder / "tokenizer.json").write_text(byte_tokenizer(VOCAB))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast",
                                                                  "eos_token": "[EOS]", "bos_token": "[BOS]"}))
        arguments += f",tokenizer={folder},tokenizer_backend=huggingface"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OPENAI_API_KEY": "none"}
    done = subprocess.run([sys.executable, "-c", EVALUATE, arguments, str(tmp_path)], env=environment,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "samples.json").read_text())
    samples = found["choose"]
    assert len(samples) == 2 and all(sample["filtered_resps"][0] for sample in found["write"])
    scored = float(samples[0]["filtered_resps"][0][0])
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as client:
        ids = tokenizer().encode(samples[0]["doc"]["q"] + samples[0]["doc"]["a"][0])
        own = client.completions.create(model=MODEL, prompt=[ids], echo=True, logprobs=1, max_tokens=0)
    expected = sum(own.choices[0].logprobs.token_logprobs[len(tokenizer().encode(samples[0]["doc"]["q"])) :])
    assert scored == pytest.approx(expected, abs=1e-3)


def test_tokens_do_not_depend_on_company(running: Running) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(i: int) -> str:
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
            return (
                client.completions.create(model=MODEL, prompt=f"story {i % 3}", seed=i % 3, max_tokens=20)
                .choices[0]
                .text
            )

    alone = [ask(i) for i in range(3)]
    with ThreadPoolExecutor(9) as pool:
        assert list(pool.map(ask, range(9))) == alone * 3
