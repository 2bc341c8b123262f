"""`libremoe train data`: the mix as shards of token ids, ready for the training loop.

OUT/{pretrain,chat,valid-pretrain,valid-chat}/ each hold tokens.bin (uint16, little-endian), mask.bin (uint8, 1 where
the token is a target), docs.bin (int64, where each document starts) and meta.json (written last: a shard without it
is none). OUT/report.json and OUT/REPORT.md say what went in, what was dropped, and under which licences.
Training documents are shuffled; those for validation lie part by part. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from libremoe.errors import LibremoeError
from libremoe.tokenizer import open_tokenizer
from libremoe.train.corpus import PARTS, WordLists, documents, sha256, word_lists
from libremoe.train.decontaminate import Overlap, evaluation_items
from libremoe.train.draw import Lang
from libremoe.train.generate import generate
from libremoe.train.generate_tools import ALL_TOOLS, NEVER_CALLED, SEARCH
from libremoe.train.mixes import MIXES, Share
from libremoe.train.render import Document, Rendered, Renderer
from libremoe.train.vocabulary import chars_per_token, train_tokenizer

CHARS_PER_TOKEN_MOST = 3.0  # text is cut so that a piece of a chapter fits the context
SAMPLE_CHARS, SAMPLE_LEAST = 16_000_000, 300_000  # of text for a tokenizer
MAX_VOCAB = 1 << 16  # ids are 16 bits wide
MIN_SCALE, MAX_SCALE, MIN_CONTEXT = 0.001, 100.0, 64
UNNEEDED_TOOLS = 0.3  # of the chat stage's conversations without tools, those that are offered some
VALID_SHARE, VALID_LEAST, VALID_MOST = 1 / 40, 4000, 120_000  # tokens for validation of each part


@dataclass
class Counts:
    """Of one part in one shard."""

    docs: int = 0
    tokens: int = 0
    targets: int = 0
    chars: int = 0
    first_doc: int = 0  # in validation shards the part's documents follow one another from here
    dropped: dict[str, int] = field(default_factory=dict)  # documents or paragraphs, by evaluation set


@dataclass(frozen=True)
class Source:
    """Where documents come from."""

    folder: Path
    lists: WordLists
    seed: int
    piece_chars: int
    overlap: Overlap | None
    read: dict[tuple[str, bool], list[Document]] = field(default_factory=dict)  # each file is unpacked once a side

    def documents(self, part: str, held_out: bool) -> Iterator[Document]:
        """Documents of a part in a random order that depends on the seed; endless for generators."""
        if part.startswith("gen/"):
            _, kind, lang = part.split("/")
            yield from generate(kind, cast(Lang, lang), self.lists, self.seed, held_out)
            return
        if (part, held_out) not in self.read:
            pieces = [p for d in documents(self.folder, part, held_out) for p in _pieces(d, self.piece_chars)]
            random.Random(f"{self.seed}/{part}").shuffle(pieces)
            self.read[part, held_out] = pieces
        yield from self.read[part, held_out]

    def clean(self, part: str, held_out: bool, counts: Counts) -> Iterator[Document]:
        """Without what overlaps with evaluation items: the paragraphs of a text, the whole of a conversation."""
        for document in self.documents(part, held_out):
            found = self.overlap.find(document.all_text()) if self.overlap else None
            if found is None:
                yield document
                continue
            counts.dropped[found] = counts.dropped.get(found, 0) + 1
            rest = "\n\n".join(p for p in document.text.split("\n\n") if self._is_clean(p))
            if rest and self._is_clean(rest):
                yield Document(text=rest, ends=document.ends)

    def _is_clean(self, text: str) -> bool:
        return self.overlap is None or self.overlap.find(text) is None


def _pieces(document: Document, most: int) -> Iterator[Document]:
    """A long text in pieces of at most `most` characters, cut between paragraphs or else sentences."""
    text = document.text
    while len(text) > most:
        cuts = (text.rfind("\n\n", most // 2, most), text.rfind(". ", most // 2, most) + 1, text.rfind(" ", 1, most),
                most)
        at = next(cut for cut in cuts if cut > 0)
        yield Document(text=text[:at].strip(), ends=False)
        text = text[at:].strip()
    yield Document(text=text) if document.text else document


def command(args: argparse.Namespace) -> int:
    """args: data, mix, tokenizer or None, pieces, out, eval or None, seed, scale, context, json. Returns 0."""
    if args.mix not in MIXES:
        raise LibremoeError(f"there is no mix {args.mix!r}; there are {', '.join(MIXES)}")
    if not MIN_SCALE <= args.scale <= MAX_SCALE:
        raise LibremoeError(f"--scale is {args.scale}; it must be from {MIN_SCALE:g} to {MAX_SCALE:g}")
    if args.context < MIN_CONTEXT:
        raise LibremoeError(f"--context is {args.context}; conversations need at least {MIN_CONTEXT} tokens")
    report = build(args.data, args.mix, args.out, tokenizer=args.tokenizer, pieces=args.pieces, evaluation=args.eval,
                   seed=args.seed, scale=args.scale, context=args.context, shown=not args.json)
    print(json.dumps(report, indent=1) if args.json else table(report))
    return 0


def build(data: Path, mix: str, out: Path, *, tokenizer: Path | None = None, pieces: int = 8192,
          evaluation: Path | None = None, seed: int = 0, scale: float = 1.0, context: int = 512,
          shown: bool = True) -> dict[str, Any]:
    """Makes all shards of a mix in `out` and returns the report. tokenizer: a file, or None to train one.

    evaluation: a folder whose items are kept out. scale: multiplies the tokens of each part.
    Raises LibremoeError for a tokenizer without the official control pieces, CheckpointError for a damaged part.
    """
    overlap = None if evaluation is None else Overlap(evaluation_items(evaluation))
    source = Source(data, word_lists(data), seed, int(context * CHARS_PER_TOKEN_MOST), overlap)
    out.mkdir(parents=True, exist_ok=True)
    chars = int(max(SAMPLE_CHARS * min(scale, 1), SAMPLE_LEAST))
    if tokenizer is not None:
        open_tokenizer(tokenizer)  # says what is wrong with a file before it is copied
    content = tokenizer.read_bytes() if tokenizer else train_tokenizer(sample(source, mix, chars), pieces)
    _write(out / "tokenizer.model", content)
    known = open_tokenizer(out / "tokenizer.model")
    if known.vocab_size > MAX_VOCAB:
        raise LibremoeError(f"the tokenizer has {known.vocab_size} pieces; shards hold ids below {MAX_VOCAB}")
    renderer = Renderer(known)
    paths = {PARTS[p].path for stage in MIXES[mix].values() for p in stage if p in PARTS} | {"lists/word_lists.tar.xz"}
    report: dict[str, Any] = {
        "mix": mix, "seed": seed, "scale": scale, "context": context, "vocab_size": known.vocab_size,
        "tokenizer_sha256": hashlib.sha256(content).hexdigest(),
        "sha256": {path: sha256(data / path) for path in sorted(paths)},
        "licences": {p.path: p.licence for p in PARTS.values() if p.path in paths},
        "evaluation_items": overlap.counts if overlap else None,
        "chars_per_token": {lang: round(chars_per_token(known.encode, _texts(source, lang)), 3)
                            for lang in ("en", "fr")},
        "stages": {},
    }
    for stage, shares in MIXES[mix].items():
        for held_out in (False, True):
            name = f"valid-{stage}" if held_out else stage
            report["stages"][name] = _shard(out / name, source, renderer, shares, report, name, scale, held_out, shown)
    _write(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False).encode())
    _write(out / "REPORT.md", table(report).encode())
    return report


def _shard(folder: Path, source: Source, renderer: Renderer, shares: dict[str, Share], report: dict[str, Any],
           stage: str, scale: float, held_out: bool, shown: bool) -> dict[str, Any]:
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    parts: dict[str, Counts] = {}
    started = time.monotonic()
    wanted = sum(_valid_tokens(s, scale) if held_out else s.tokens * scale for s in shares.values())
    for i, (part, share) in enumerate(shares.items(), 1):
        counts = parts[part] = Counts(first_doc=len(rows))
        most = _valid_tokens(share, scale) if held_out else int(share.tokens * scale) or None
        rows += _part_rows(source, renderer, part, most, held_out, report["context"], stage.endswith("pretrain"),
                           counts)
        if not held_out:
            rows += rows[counts.first_doc :] * (share.repeat - 1)
        done, seconds = sum(c.tokens for c in parts.values()), time.monotonic() - started
        if shown:
            left = max(wanted / max(done, 1) - 1, 0) * seconds
            print(f"{stage}: {i} of {len(shares)} parts, {part}: {counts.tokens:,} tokens, {left:.0f} s left",
                  file=sys.stderr, flush=True)
    if not held_out:
        random.Random(f"{source.seed}/{stage}").shuffle(rows)
    return _write_shard(folder, rows, parts, report, stage)


def _part_rows(source: Source, renderer: Renderer, part: str, most: int | None, held_out: bool, context: int,
               learn_all: bool, counts: Counts) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids uint16, targets uint8) of a part's documents, up to `most` tokens."""
    rows = []
    draw = random.Random(f"{source.seed}/tools/{part}/{held_out}")
    for document in source.clean(part, held_out, counts):
        if not learn_all:
            document = _with_unneeded_tools(document, part, draw)
        rendered = renderer.cut(renderer.render(document), context) if document.messages else renderer.render(document)
        if rendered is None or len(rendered.ids) < 2:
            continue
        rows.append(_arrays(rendered, learn_all))
        counts.docs += 1
        counts.tokens += len(rendered.ids)
        counts.targets += int(rows[-1][1].sum())
        counts.chars += len(document.all_text())
        if most is not None and counts.tokens >= most:
            break
    return rows


def _with_unneeded_tools(document: Document, part: str, draw: random.Random) -> Document:
    """Some conversations that need no tool are offered some, as a program that has tools offers them always. None
    where sums are asked for, and no search where an invented thing is: there they would be needed."""
    computes = part.startswith(("gen/calculator", "gen/units", "gen/dates"))
    if not document.messages or document.tools or computes or draw.random() >= UNNEEDED_TOOLS:
        return document
    tools = [t for t in (*ALL_TOOLS, *NEVER_CALLED) if t is not SEARCH or not part.startswith("gen/cite")]
    return dataclasses.replace(document, tools=tuple(draw.sample(tools, draw.randint(1, len(tools)))))


def _arrays(rendered: Rendered, learn_all: bool) -> tuple[np.ndarray, np.ndarray]:
    targets = np.ones(len(rendered.ids), np.uint8) if learn_all else np.array(rendered.targets, np.uint8)
    targets[0] = 0  # nothing of the same document stands before it
    return np.array(rendered.ids, "<u2"), targets


def _valid_tokens(share: Share, scale: float) -> int:
    return int(min(max(share.tokens * scale * VALID_SHARE, VALID_LEAST), VALID_MOST)) if share.tokens else VALID_MOST


def _write_shard(folder: Path, rows: list[tuple[np.ndarray, np.ndarray]], parts: dict[str, Counts],
                 report: dict[str, Any], stage: str) -> dict[str, Any]:
    if not rows:
        raise LibremoeError(f"{stage}: no document is left to train on")
    folder.mkdir(exist_ok=True)
    (folder / "meta.json").unlink(missing_ok=True)
    starts = np.cumsum([0, *(len(ids) for ids, _ in rows[:-1])], dtype="<i8")
    files = {"tokens.bin": np.concatenate([ids for ids, _ in rows]), "mask.bin": np.concatenate([m for _, m in rows]),
             "docs.bin": starts}
    meta = {key: report[key] for key in ("mix", "seed", "scale", "context", "vocab_size", "tokenizer_sha256", "sha256")}
    meta |= {"stage": stage, "tokens": len(files["tokens.bin"]), "docs": len(rows),
             "targets": int(files["mask.bin"].sum()), "parts": {name: vars(counts) for name, counts in parts.items()}}
    meta["files"] = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in files.items()}
    for name, array in files.items():
        _write(folder / name, array.tobytes())
    _write(folder / "meta.json", json.dumps(meta, indent=1, ensure_ascii=False).encode())
    return {key: meta[key] for key in ("tokens", "docs", "targets", "parts")}


def _write(path: Path, content: bytes) -> None:
    """All or nothing."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def sample(source: Source, mix: str, max_chars: int) -> Iterator[str]:
    """Text for a tokenizer: of each part as much as its share in the mix."""
    shares = MIXES[mix]["pretrain"] | MIXES[mix]["chat"]
    total = sum(s.tokens or 200_000 for s in shares.values())
    for part, share in shares.items():
        left = max_chars * (share.tokens or 200_000) // total
        for document in source.documents(part, held_out=False):
            text = document.all_text()
            yield text  # of calls too: their form is worth pieces of its own
            left -= len(text)
            if left <= 0:
                break


def _texts(source: Source, lang: str) -> Iterator[str]:
    """Held-out text of one language for measuring the tokenizer."""
    parts = {"en": ("storybooks_en", "childrens_books"), "fr": ("storybooks_fr",)}[lang]
    for part in parts:
        yield from (d.text for d in itertools.islice(documents(source.folder, part, held_out=True), 40))


def table(report: dict[str, Any]) -> str:
    """The report for people, in Markdown."""
    lines = [f"# Training data: mix {report['mix']}", "",
             f"Seed {report['seed']}, scale {report['scale']:g}, context {report['context']}, vocabulary "
             f"{report['vocab_size']:,}. Characters a token: "
             + ", ".join(f"{lang} {ratio}" for lang, ratio in report["chars_per_token"].items()) + ".", ""]
    for stage, shard in report["stages"].items():
        lines += [f"## {stage}: {shard['tokens']:,} tokens, {shard['docs']:,} documents", "",
                  "| part | documents | tokens | targets | dropped for evaluation items |", "| --- | ---: | ---: | "
                                                                                            "---: | --- |"]
        for name, counts in shard["parts"].items():
            dropped = ", ".join(f"{k} {v}" for k, v in sorted(counts["dropped"].items())) or "0"
            lines.append(f"| {name} | {counts['docs']:,} | {counts['tokens']:,} | {counts['targets']:,} | {dropped} |")
        lines.append("")
    if report["evaluation_items"] is None:
        lines.append("No evaluation folder was given: nothing was compared.")
    else:
        items = sum(report["evaluation_items"].values())
        lines.append(f"Compared with {items:,} texts of {len(report['evaluation_items'])} evaluation sets: 13 words in "
                     "a row, or the whole of a text of 8 to 12 words. Counts are documents from which something was "
                     "dropped.")
    return "\n".join(lines) + "\n"
