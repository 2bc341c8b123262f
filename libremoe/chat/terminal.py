"""`libremoe chat`: a conversation in the terminal, over the same session and the same store as the page.

Esc or Ctrl-C stops an answer, Ctrl-D or /quit leaves, /help lists the commands (commands.py). Where standard input is
no terminal, its lines are messages and commands, answers go to standard output, and tools that act are refused.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.history import InMemoryHistory
from rich.console import Console

from libremoe.chat import session
from libremoe.chat.conversation import Conversation, State, Turn, title_from
from libremoe.chat.draft import Draft
from libremoe.chat.events import CallAsked, CallDone, Event, Searching, Sources, TextDelta
from libremoe.chat.folder import Belongings, open_belongings
from libremoe.chat.keys import Listener, listening
from libremoe.chat.local_model import LocalModel, load_local
from libremoe.chat.message import Text
from libremoe.chat.screen import Screen, harmless
from libremoe.chat.tool_box import ToolBox
from libremoe.errors import LibremoeError
from libremoe.french import told, translated
from libremoe.live.reasons import worded
from libremoe.run import default_model, sampling_params
from libremoe.tiny import is_random
from libremoe.weights import open_checkpoint

HISTORY = 200  # earlier messages that the arrow keys bring back
SHOWN_RESULT = 400  # characters of a tool's result on the screen
SAMPLING = {"temperature": 0.7, "max_tokens": 1024}  # where neither a flag nor the persona says


def run(args: argparse.Namespace) -> int:
    """Talk until the person leaves. args: path, persona, language, those of open_belongings, loading and sampling.

    Returns 0; 1 where standard input is no terminal and an answer failed. Raises LibremoeError, in the language.
    """
    args.language = args.language or _language()
    try:
        return _run(args)
    except LibremoeError as error:
        raise LibremoeError(translated(str(error), args.language)) from error


def _run(args: argparse.Namespace) -> int:
    chosen = {name: value for name in SAMPLING if (value := getattr(args, name)) is not None}
    for name, value in SAMPLING.items():
        setattr(args, name, chosen.get(name, value))
    params = sampling_params(args)
    args.path = args.path or default_model()
    reader = open_checkpoint(args.path)
    own = open_belongings(args)
    try:
        if args.persona not in own.personas:
            raise LibremoeError(f"--persona {args.persona}: there is none; there are {', '.join(own.personas)}")
        model = load_local(args, params)
        config = model.lm.config
        terminal = Terminal(own, model, args.persona, args.language, chosen, args.live, config.n_experts)
        terminal.tell("{path}: {family}, {n} M parameters. Esc or Ctrl-C stops an answer, Ctrl-D leaves, /help says "
                      "the rest.", "default", path=args.path, family=config.family,
                      n=terminal.number(config.n_params() / 1e6, 1))
        if is_random(reader):
            terminal.tell("The weights of this model are random numbers: what it writes is noise. It shows that the "
                          "machinery works; for answers, give the path of a trained model.", "yellow")
        return asyncio.run(_talk(terminal))
    finally:
        own.store.close()
        if own.live is not None:
            own.live.close()


def _language() -> str:
    spoken = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or ""
    return "fr" if spoken.startswith("fr") else "en"


async def _talk(terminal: Terminal) -> int:
    terminal.tools, notes = await terminal.own.tools()
    terminal.chosen_tools = terminal.tools.names()
    for note in notes:
        terminal.say(translated(note, terminal.language), "yellow")
    try:
        return await terminal.talk()
    finally:
        await terminal.tools.close()
        await terminal.model.close()


class Terminal:
    """One person at one terminal: the conversation that is open, what was chosen, and how it is shown."""

    def __init__(self, own: Belongings, model: LocalModel, persona: str, language: str, sampling: dict[str, Any],
                 live: bool, n_experts: int = 0):
        self.own, self.model, self.persona, self.language = own, model, persona, language
        self.sampling, self.live, self.n_experts = sampling, live, n_experts
        self.store = own.store
        self.tools = ToolBox([])
        self.chosen_tools: list[str] = []
        self.allowed: set[str] = set()  # tools that the person has allowed in this conversation
        self.conversation: Conversation | None = None
        self.interactive = sys.stdin.isatty()
        self.console = Console(highlight=False, soft_wrap=True)
        self.failed = False
        self._line_open = False  # the cursor stands behind text of an answer
        self._screen = Screen(self.console)
        self._listener: Listener | None = None

    # --- what is typed

    async def talk(self) -> int:
        from libremoe.chat.commands import obey

        prompt: PromptSession[str] | None = None
        if self.interactive:
            prompt = PromptSession(history=InMemoryHistory(self._earlier()))
        while (line := await self._line(prompt)) is not None:
            try:
                if line.startswith("/"):
                    if not await obey(self, line):
                        return 0
                elif line:
                    await self.send(line)
            except LibremoeError as error:
                self.failed = True
                self.say(translated(str(error), self.language), "red")
        return int(self.failed and not self.interactive)

    async def _line(self, prompt: PromptSession[str] | None) -> str | None:
        """The next line; None at the end."""
        if prompt is None:
            line = await asyncio.to_thread(sys.stdin.readline)
            return line.strip() if line else None
        while True:
            try:
                self.console.print()
                return (await prompt.prompt_async("> ")).strip()
            except EOFError:
                return None
            except KeyboardInterrupt:
                self.tell("(Ctrl-D leaves)")

    async def edited(self, text: str) -> str:
        """The text as the person changes it; as it is where there is no terminal."""
        if not self.interactive:
            return text
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            return (await PromptSession[str]().prompt_async(told("edit>", self.language) + " ", default=text)).strip()
        return text

    def _earlier(self) -> list[str]:
        """Messages of the last conversations: kept in no file beside the store, so that what is erased is gone."""
        found: list[str] = []
        for conversation in self.store.conversations(10):
            turns = self.store.turns(conversation.id)
            found = [turn.text.replace("\n", " ") for turn in turns if turn.role == "user"] + found
        return found[-HISTORY:]

    # --- answers

    def path(self) -> list[Turn]:
        """The turns of the open conversation, from its first to the selected one."""
        return [] if self.conversation is None else self.store.path(self.conversation.id)

    async def send(self, text: str, parent_id: str | None = None, *, edit: bool = False) -> None:
        """A message and its answer; after the selected turn, or, as an edit, after parent_id."""
        if self.conversation is None:
            self.conversation = self.store.create(title_from((Text(text),)), self.persona, self.language)
        if not edit:
            parent_id = next((t.id for t in reversed(self.path()) if t.role == "assistant"), None)
        asked = self.store.add(self.conversation.id, parent_id, "user", (Text(text),))
        await self.answer(asked)

    async def answer(self, asked: Turn, continued: Turn | None = None) -> None:
        """Answer a turn, or go on with an answer. What is written is saved as it grows, and when it is stopped."""
        turn = self.store.update(continued.id, state="writing") if continued is not None else self.store.add(
            asked.conversation_id, asked.id, "assistant", (), "writing", {"persona": self.persona})
        prefix = "".join(p.text for p in turn.parts if isinstance(p, Text))
        sources = tuple(turn.details.get("sources", ()))
        options = session.Options(live=bool(sources) or (self.live and continued is None),
                                  tools=tuple(self.chosen_tools), language=self.language, sampling=self.sampling,
                                  prefix=prefix, sources=sources, tag=asked.conversation_id)
        draft = Draft(self.store, turn, prefix, self.n_experts)
        events = session.reply(self.store.path(asked.conversation_id, asked.id), self.own.personas[self.persona],
                               self.model, self.own.live, self.tools, options, self.approve)
        state, error = await self._write(draft, events)
        turn = await draft.finish(state, None if error is None else str(error))
        self._end_line(" " + told("(stopped)", self.language) if state == "stopped" else "")
        if error is not None:
            raise error
        self.show_details(turn, draft.written.text)

    async def _write(self, draft: Draft, events: Any) -> tuple[State, LibremoeError | None]:
        """Show and save events until they end, or a key stops them."""
        work = asyncio.create_task(self._consume(draft, events))
        self._listener = Listener(work.cancel)
        try:
            if self.interactive:
                with listening(self._listener):
                    await asyncio.wait({work})
            else:
                await asyncio.wait({work})
            await work
        except asyncio.CancelledError:
            work.cancel()
            await asyncio.wait({work})
            return "stopped", None
        except LibremoeError as error:
            return "failed", error
        finally:
            self._listener = None
        return "done", None

    async def _consume(self, draft: Draft, events: Any) -> None:
        async with aclosing(events) as more:
            async for event in more:
                draft.add(event)
                self._show(event)
                await draft.keep()

    async def approve(self, asked: CallAsked) -> bool:
        """Asks for a key: y, n, or a for always in this conversation (in French o, n, t). Without a terminal, nothing
        that acts is run."""
        if asked.approval == "ask" and asked.call.name in self.allowed:
            return True
        if not self.interactive or self._listener is None:
            self.tell("refused: nobody is here to allow it")
            return False
        may_always = asked.approval == "ask"
        if may_always:
            self.tell("Allow it? [y]es, [n]o, [a]lways in this conversation", "bold")
        else:
            self.tell("Allow it? [y]es, [n]o", "bold")
        key = await self._listener.letter()
        yes, always = ("o", "t") if self.language == "fr" else ("y", "a")
        if key == always and may_always:
            self.allowed.add(asked.call.name)
        return key == yes or (key == always and may_always)

    # --- the screen

    def say(self, text: str, style: str = "dim") -> None:
        """A line of ours, not the model's."""
        self._end_line()
        self.console.print(harmless(text), style=style, markup=False, soft_wrap=not self.console.is_terminal)

    def tell(self, sentence: str, style: str = "dim", /, **values: object) -> None:
        """A sentence of the table (french.py) with its values, in the person's language."""
        self.say(told(sentence, self.language, **values), style)

    def number(self, value: float, digits: int) -> str:
        text = f"{value:,.{digits}f}"
        return text.translate({44: "\u202f", 46: ","}) if self.language == "fr" else text

    def _show(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            self._screen.add(event.text)
            self._line_open = True
        elif isinstance(event, Searching):
            self.tell("searching: {query}", query=event.query)
        elif isinstance(event, Sources) and event.sources:
            self.tell("excerpts found: {n}", n=len(event.sources))
        elif isinstance(event, CallAsked):
            self.tell("tool: {name} {arguments}", "cyan", name=event.call.name, arguments=event.call.arguments)
        elif isinstance(event, CallDone):
            text = event.result.text
            shown = text if len(text) <= SHOWN_RESULT else text[:SHOWN_RESULT] + " ..."
            self.say(shown, "cyan" if event.ok else "yellow")

    def _end_line(self, note: str = "") -> None:
        self._screen.end()
        if note:
            self.console.print(note, end="", style="dim")
        if note or (self._line_open and not self.console.is_terminal):
            self.console.print()
        self._line_open = False

    def show_details(self, turn: Turn, text: str) -> None:
        """After an answer: its sources, sentences that they do not bear out, and what it cost."""
        details = turn.details
        for one in details.get("sources", []):
            fetched = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["fetched"]))
            self.tell("[{number}] {title} - {url} (read {when})", number=one["number"], title=one["title"],
                      url=one["url"], when=fetched)
        for one in details.get("sentences", []):
            if one["verdict"] in ("unsupported", "dangling"):
                why = worded(one.get("reason", ""), one.get("about", ""), self.language)
                self.tell("not borne out: “{sentence}”: {why}", "yellow",
                          sentence=text[one["start"] : one["end"]], why=why)
        for one in details.get("facts", []):
            self.tell("agreed by independent sources {marks}: {text}", "green", marks=_marks(one["numbers"]),
                      text=one["text"])
        for one in details.get("opinions", []):
            who = ", ".join(one["who"]) or told("somebody", self.language)
            self.tell("an opinion {marks}, of {who}: {text}", marks=_marks(one["numbers"]), who=who, text=one["text"])
        for one in details.get("conflicts", []):
            sides = "; ".join(f"[{number}] {value}: {sentence}" for number, value, sentence in one["sides"])
            self.tell("sources contradict each other: {sides}", "yellow", sides=sides)
        for one in details.get("notes", []):
            self.say(one, "yellow")
        stats = details.get("stats")
        if stats:
            experts = ""
            if "expert_hits" in stats:
                experts = told("; experts: {hits} hits, {misses} misses", self.language, hits=stats["expert_hits"],
                               misses=stats["expert_misses"])
            self.tell("{n} tokens at {speed} tokens/s, the first after {first} s{experts}", n=stats["tokens"],
                      speed=self.number(stats.get("tokens_s", 0.0), 2), first=self.number(stats["first_token_s"], 2),
                      experts=experts)

    def show_turn(self, turn: Turn) -> None:
        """An earlier turn, as it was."""
        words = "".join(part.text for part in turn.parts if isinstance(part, Text))
        self.say(f"> {words}" if turn.role == "user" else words, "bold" if turn.role == "user" else "default")


def _marks(numbers: Sequence[int]) -> str:
    return f"[{', '.join(map(str, numbers))}]"
