"""Bodies of the requests of the page (server/chat_api.py), as strict as those of schema.py. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from libremoe.server.schema import Body, Penalty, Share, Temperature

Id = Annotated[str, Field(min_length=1, max_length=64)]
Language = Literal["en", "fr"]
PersonaName = Annotated[str, Field(min_length=1, max_length=32)]
Title = Annotated[str, Field(max_length=200)]
ToolName = Annotated[str, Field(min_length=1, max_length=128)]
MAX_TEXT = 1_000_000


class NewConversation(Body):
    title: Title = ""
    persona: PersonaName = "regular"
    language: Language = "en"


class ChangeConversation(Body):
    title: Title | None = None
    persona: PersonaName | None = None
    leaf_id: Id | None = None


class AnswerOptions(Body):
    """What a person chooses for an answer. tools: names, or true for all that the persona has."""

    live: bool = False
    tools: bool | Annotated[list[ToolName], Field(max_length=128)] = False
    persona: PersonaName | None = None
    language: Language | None = None
    experts: bool = True
    temperature: Temperature | None = None
    top_p: Share | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**48)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    presence_penalty: Penalty | None = None

    def sampling(self) -> dict[str, Any]:
        names = ("temperature", "top_p", "max_tokens", "seed", "presence_penalty")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class NewTurn(AnswerOptions):
    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
    parent_id: Id | None = None


class AnotherAnswer(AnswerOptions):
    turn_id: Id


class Decision(Body):
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    allow: bool
    always: bool = False


class Offline(Body):
    offline: bool


class NewSource(Body):
    """A source to be asked in live answers, as `libremoe live add` takes it. key_env: the name of the environment
    variable that holds its key; keys themselves are neither sent nor stored here."""

    url: Annotated[str, Field(min_length=1, max_length=2048)]
    kind: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    key_env: Annotated[str, Field(max_length=128)] = ""
    limit: Annotated[float, Field(ge=0, le=1e9)] = 0.0


class CodeRequest(Body):
    task: Literal["complete", "explain", "tests", "patch"]
    code: Annotated[str, Field(max_length=MAX_TEXT)]
    path: Annotated[str, Field(max_length=512)] | None = None
    language: Annotated[str, Field(max_length=32)] | None = None
    instruction: Annotated[str, Field(max_length=20_000)] | None = None
    suffix: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**48)] | None = None
    temperature: Temperature | None = None
    stream: bool | None = None
