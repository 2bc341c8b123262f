"""Prompts to answers over HTTP, from any OpenAI-compatible URL.

Three ways to a multiple choice, the best that the endpoint offers; each answer says which it was:
  logprobs      /completions that echoes the prompt with log-probabilities: exact, of any option
  top_logprobs  the letters among the most probable first tokens (20 in chats, 5 in completions)
  generated     the letter that the model writes
"""

from __future__ import annotations

import math
import os
import random
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from os.path import commonprefix
from typing import Any
from urllib.parse import urlsplit

from libremoe.errors import LibremoeError
from libremoe.evals.task import LETTERS, Answer, Prompt

ATTEMPTS = 7
LONGEST_WAIT_S = 60.0
MAX_STOPS = 4  # of the OpenAI API
LETTER_TOKENS = 24  # room for "The answer is (B)."
TOP_CHAT, TOP_COMPLETION = 20, 5  # the most that the OpenAI API gives


class Refused(LibremoeError):
    """A 4xx. status; reason: what the endpoint said."""

    def __init__(self, where: str, status: int, reason: str):
        self.status, self.reason = status, reason
        super().__init__(f"{where}: HTTP {status}: {reason}")


class Endpoint:
    """A Sampler (task.py) over HTTP. api: "completions" or "chat"; echo: whether prompts come back scored."""

    def __init__(self, url: str, model: str | None = None, api: str = "auto", api_key_env: str | None = None,
                 concurrency: int = 8, timeout_s: float = 600.0, seed: int = 0):
        """Asks the endpoint a few tokens to learn what it can. Raises LibremoeError where it cannot be reached or used.

        url: with or without the final /v1. api: "auto" takes completions where they are offered.
        """
        try:
            import httpx2
        except ImportError:
            raise LibremoeError("evaluating over HTTP needs httpx2: pip install 'libremoe[eval]'") from None
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise LibremoeError(f"{url}: not a URL such as http://127.0.0.1:8000/v1")
        self.url = url.rstrip("/") + ("/v1" if parts.path in ("", "/") else "")
        self.concurrency, self.seed = concurrency, seed
        headers = {}
        if api_key_env is not None:
            key = os.environ.get(api_key_env)
            if not key:
                raise LibremoeError(f"--api-key-env {api_key_env}: the environment has no such variable")
            headers["authorization"] = f"Bearer {key}"
        self._httpx = httpx2
        self._client = httpx2.Client(headers=headers, timeout=httpx2.Timeout(timeout_s, connect=10.0),
                                     limits=httpx2.Limits(max_connections=concurrency))
        self._renamed: dict[str, str] = {}  # fields that this endpoint wants under another name
        self._unsent: set[str] = set()  # and those that it refuses
        self.model = model or self._only_model()
        self.api, self.echo, self._echo_tokens = api, False, 0
        self._learn()

    def describe(self) -> dict[str, Any]:
        """What tells this model from another, for the header of a run."""
        return {"kind": "endpoint", "url": self.url, "model": self.model, "api": self.api, "echo": self.echo}

    def __call__(self, prompts: Iterable[tuple[str, Prompt]]) -> Iterator[tuple[str, Answer]]:
        coming = iter(prompts)
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="libremoe eval")
        asked: dict[Future[Answer], str] = {}
        try:
            more = True
            while more or asked:
                while more and len(asked) < self.concurrency:
                    pair = next(coming, None)
                    more = pair is not None
                    if pair is not None:
                        asked[pool.submit(self._ask, pair[1])] = pair[0]
                done, _ = wait(asked, return_when=FIRST_COMPLETED) if asked else (set(), None)
                for future in done:
                    yield asked.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _only_model(self) -> str:
        found = [str(card.get("id")) for card in self._request("GET", "/models").get("data", [])
                 if isinstance(card, dict)]
        if len(found) != 1:
            shown = ", ".join(found[:5]) or "none"
            raise LibremoeError(f"{self.url}: offers {len(found)} models ({shown}...): choose with --model-name")
        return found[0]

    def _learn(self) -> None:
        """Which of the two routes there is, and whether it echoes with log-probabilities."""
        if self.api == "chat":
            return
        for max_tokens in (0, 1):  # some endpoints must generate something
            body = {"prompt": "One two", "max_tokens": max_tokens, "echo": True, "logprobs": 1}
            try:
                choice = _choices(self._completion(body))[0]
            except Refused as error:
                if error.status in (401, 403, 429):
                    raise
                continue
            found = (choice.get("logprobs") or {}).get("token_logprobs") or []
            if len(found) > max_tokens and any(isinstance(p, float | int) for p in found):
                self.api, self.echo, self._echo_tokens = "completions", True, max_tokens
                return
        if self.api == "auto":
            try:
                self._completion({"prompt": "One two", "max_tokens": 1})
                self.api = "completions"
            except Refused as error:
                if error.status in (401, 403, 429):
                    raise
                self.api = "chat"

    def _ask(self, prompt: Prompt) -> Answer:
        """One prompt, with fewer shots where the endpoint says that it is too long."""
        began = time.monotonic()
        how = "logprobs" if prompt.options and self.echo else "generated"
        for n_shots in range(len(prompt.shots), -1, -1):
            dropped = len(prompt.shots) - n_shots
            try:
                return self._once(prompt, n_shots, dropped, began)
            except Refused as error:
                if error.status not in (400, 413, 422) or not re.search(r"context|token|too long|length", error.reason):
                    raise
                reason = error.reason
        return Answer(how, dropped_shots=len(prompt.shots), seconds=time.monotonic() - began,  # type: ignore[arg-type]
                      error=reason[:300])

    def _once(self, prompt: Prompt, n_shots: int, dropped: int, began: float) -> Answer:
        how: Any = "generated"
        logprobs: tuple[float | None, ...] = ()
        text = finish = ""
        if prompt.options and self.echo:
            how = "logprobs"
            logprobs, used = self._scored(prompt.text(n_shots), prompt.options)
        elif prompt.options:
            letters = [option.strip() for option in prompt.options]
            question = prompt.text(n_shots)
            if not all(len(letter) == 1 and letter in LETTERS for letter in letters):
                letters, question = list(LETTERS[: len(prompt.options)]), prompt.lettered
            if not question:
                return Answer("generated", error="this endpoint gives no log-probabilities of a given text, and the "
                                                 "question has no other form")
            text, finish, top, used = self._written(question, LETTER_TOKENS, ("\n\n",), wants_top=True)
            found = _letter_logprobs(top, letters)
            if any(p is not None for p in found):
                how, logprobs = "top_logprobs", tuple(found)
        else:
            stop = prompt.stop if self.api != "chat" or prompt.chat_stop is None else prompt.chat_stop
            text, finish, _, used = self._written(prompt.text(n_shots), prompt.max_tokens, stop)
        count = {name: used.get(name) for name in ("prompt_tokens", "completion_tokens")}
        return Answer(how, text, logprobs, finish, count["prompt_tokens"] or 0, 0, count["completion_tokens"] or 0,
                      round(time.monotonic() - began, 4), dropped)

    def _scored(self, text: str, options: tuple[str, ...]) -> tuple[tuple[float, ...], dict[str, Any]]:
        """The log-probability of each option after text."""
        with_text = not all(option.isascii() for option in options)
        prompts = [*([text] if with_text else []), *(text + option for option in options)]
        answer = self._completion({"prompt": prompts, "max_tokens": self._echo_tokens, "echo": True, "logprobs": 1,
                                   "temperature": 0})
        echoed = []
        for choice in sorted(_choices(answer, len(prompts)), key=lambda choice: choice.get("index", 0)):
            found = choice.get("logprobs") or {}
            tokens, values = found.get("tokens") or [], found.get("token_logprobs") or []
            if len(tokens) != len(values) or not tokens:
                raise LibremoeError(f"{self.url}: echoes a prompt without its log-probabilities")
            end = len(tokens) - self._echo_tokens
            echoed.append((tokens[:end], values[:end]))
        plain = echoed.pop(0)[0] if with_text else None
        sums = [_tail(tokens, values, option, plain) for (tokens, values), option in zip(echoed, options, strict=True)]
        return tuple(sums), answer.get("usage") or {}

    def _written(self, text: str, max_tokens: int, stop: tuple[str, ...], wants_top: bool = False,
                 ) -> tuple[str, str, dict[str, float], dict[str, Any]]:
        """Text, why it ended, the most probable first tokens where there are any, usage."""
        body: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0, "seed": self.seed}
        if stop:
            body["stop"] = list(stop[:MAX_STOPS])
        top: dict[str, float] = {}
        if self.api == "chat":
            body |= {"logprobs": True, "top_logprobs": TOP_CHAT} if wants_top else {}
            answer = self._post("/chat/completions", {**body, "messages": [{"role": "user", "content": text}]})
            choice = _choices(answer)[0]
            said = (choice.get("message") or {}).get("content") or ""
            content = (choice.get("logprobs") or {}).get("content") or []
            for entry in content[0].get("top_logprobs") or [] if content else []:
                top[str(entry.get("token"))] = float(entry.get("logprob"))
        else:
            answer = self._completion({**body, "prompt": text} | ({"logprobs": TOP_COMPLETION} if wants_top else {}))
            choice = _choices(answer)[0]
            said = choice.get("text") or ""
            firsts = (choice.get("logprobs") or {}).get("top_logprobs") or []
            top = dict(firsts[0]) if firsts and isinstance(firsts[0], dict) else {}
        for end in stop:
            said = said.partition(end)[0]
        return str(said), str(choice.get("finish_reason") or ""), top, answer.get("usage") or {}

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._post("/completions", body)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Leaves out or renames fields that this endpoint refuses, and remembers: newer OpenAI models do."""
        for _ in range(4):
            sent = {self._renamed.get(name, name): value for name, value in {"model": self.model, **body}.items()
                    if name not in self._unsent}
            try:
                return self._request("POST", path, sent)
            except Refused as error:
                if error.status not in (400, 422):
                    raise
                if "max_completion_tokens" in error.reason and "max_tokens" in sent:
                    self._renamed["max_tokens"] = "max_completion_tokens"
                    continue
                refused = [name for name in ("temperature", "seed", "stop", "top_logprobs")
                           if name in sent and re.search(rf"\b{name}\b", error.reason)]
                if not refused or path != "/chat/completions":
                    raise
                self._unsent |= {*refused, *(["logprobs"] if "top_logprobs" in refused else [])}
        return self._request("POST", path, sent)

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """JSON from the endpoint; waits and tries again where it is busy or cannot be reached."""
        where = self.url + path
        for attempt in range(ATTEMPTS):
            wait_s = min(LONGEST_WAIT_S, 0.5 * 2**attempt * (1 + random.random()))
            try:
                answer = self._client.request(method, where, json=body)
            except self._httpx.HTTPError as error:
                problem = f"{where}: {type(error).__name__}: {error}"
            else:
                if answer.status_code < 400:
                    return _object(where, answer)
                problem = f"{where}: HTTP {answer.status_code}: {_reason(answer)}"
                if answer.status_code not in (408, 409, 429) and answer.status_code < 500:
                    hint = "; give a key with --api-key-env NAME" if answer.status_code == 401 else ""
                    raise Refused(where, answer.status_code, _reason(answer) + hint)
                asked = answer.headers.get("retry-after", "")
                wait_s = min(LONGEST_WAIT_S, float(asked)) if re.fullmatch(r"\d+(\.\d+)?", asked) else wait_s
            if attempt + 1 < ATTEMPTS:
                time.sleep(wait_s)
        raise LibremoeError(f"{problem} (tried {ATTEMPTS} times; the same command goes on from here)")


def _object(where: str, answer: Any) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise LibremoeError(f"{where}: does not answer with a JSON object: is it an OpenAI-compatible URL?")
    return found


def _reason(answer: Any) -> str:
    """What an error says, in one line."""
    try:
        found = answer.json()
        error = found.get("error", found) if isinstance(found, dict) else found
        text = error.get("message", error) if isinstance(error, dict) else error
    except ValueError:
        text = answer.text
    return " ".join(str(text).split())[:500]


def _choices(answer: dict[str, Any], n: int = 1) -> list[dict[str, Any]]:
    found = answer.get("choices")
    if not isinstance(found, list) or len(found) != n or not all(isinstance(choice, dict) for choice in found):
        raise LibremoeError(f"the endpoint answers without the {n} choices that were asked for")
    return found


def _tail(tokens: list[str], values: list[float | None], option: str, plain: list[str] | None) -> float:
    """Sum over the tokens that an option added. plain: the tokens of the text alone; without them, counted by their
    letters from the end, which only ASCII allows: half a character has no text."""
    if plain is not None:
        start = len(commonprefix([tokens, plain]))
    else:
        start, length = len(tokens), 0
        while start > 0 and length < len(option):
            start -= 1
            length += len(tokens[start])
    scored = [value for value in values[start:] if value is not None]
    if not scored:
        raise LibremoeError("the endpoint gives no log-probability for an option")
    return math.fsum(scored)


def _letter_logprobs(top: dict[str, float], letters: list[str]) -> list[float | None]:
    """Of each letter, its forms (" A", "A", "(A") together; None where no form is among the first tokens."""
    found: list[float | None] = []
    for letter in letters:
        forms = [p for token, p in top.items() if token.strip().strip("().*") == letter]
        found.append(math.log(math.fsum(map(math.exp, forms))) if forms else None)
    return found
