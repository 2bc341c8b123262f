"""`libremoe eval fetch NAMES`: gets benchmark files from their public homes and keeps them only where their sha256 is
the one pinned here. A file that is there already is not fetched again."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from libremoe.errors import LibremoeError
from libremoe.progress import Progress

HOME = "https://github.com"
TIMEOUT_S = 60.0
MAX_BYTES = 64 << 20  # of one file


@dataclass(frozen=True)
class Source:
    """Files of a benchmark at one commit of a public repository, and where they go below <data>/<task>/.

    files: path there -> path here. sha256: of the single file; of several: of the lines "<path here> <sha256>\\n" in
    order of path.
    """

    repository: str
    commit: str
    files: dict[str, str]
    sha256: str


_SUBJECTS = """
abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
professional_law professional_medicine professional_psychology public_relations security_studies sociology
us_foreign_policy virology world_religions"""
_BBH = """
boolean_expressions causal_judgement date_understanding disambiguation_qa dyck_languages formal_fallacies
geometric_shapes hyperbaton logical_deduction_five_objects logical_deduction_seven_objects
logical_deduction_three_objects movie_recommendation multistep_arithmetic_two navigate object_counting
penguins_in_a_table reasoning_about_colored_objects ruin_names salient_translation_error_detection snarks
sports_understanding temporal_sequences tracking_shuffled_objects_five_objects
tracking_shuffled_objects_seven_objects tracking_shuffled_objects_three_objects web_of_lies word_sorting"""
_MMLU = [f"data/{split}/{subject}_{split}.csv" for split in ("dev", "val", "test") for subject in _SUBJECTS.split()]
_BBH_FILES = [*(f"bbh/{task}.json" for task in _BBH.split()), *(f"cot-prompts/{task}.txt" for task in _BBH.split())]

SOURCES: dict[str, list[Source]] = {
    "mmlu": [Source("yyin-dev/cs336-a5", "33af552abab8", {f"data/mmlu/{p.removeprefix('data/')}": p for p in _MMLU},
                    "d59a00a733445df0080f4bf01e8f679dc6e1821c24048ea7c6f6e205abaa9328")],
    "gsm8k": [Source("openai/grade-school-math", "3101c7d50724",
                     {"grade_school_math/data/test.jsonl": "test.jsonl"},
                     "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14")],
    "humaneval": [Source("openai/human-eval", "6d43fb980f9f", {"data/HumanEval.jsonl.gz": "HumanEval.jsonl.gz"},
                         "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef")],
    "openbookqa": [Source("genggui001/opencompass", "5649a0f7e3d2", {"data/openbookqa/Main/test.tsv": "test.tsv"},
                          "30b94f7cc2fa216455cc6e04bc4d5ef7d634eeb4f5c7b5f6b018914e78e0b0ff")],
    "piqa": [Source("ybisk/ybisk.github.io", "21edab439af6", {"piqa/data/valid.jsonl": "valid.jsonl"},
                    "93503cc97c679e459b065c3d13e848282e44b2a25213985bed3e5d458abef72d"),
             Source("ybisk/ybisk.github.io", "21edab439af6", {"piqa/data/valid-labels.lst": "valid-labels.lst"},
                    "b4192dc3a2a0363d9d60ccf79800cbbe2f32ebb17726efdde6970e0b8131bceb")],
    "ifeval": [Source("josejg/instruction_following_eval", "0c495b2f9515",
                      {"instruction_following_eval/data/input_data.jsonl": "input_data.jsonl"},
                      "67ffeee0fcb87c317c5b08a2de85557b4a7e96ada6178aa645b4954fe4b53d49")],
    "bbh": [Source("suzgunmirac/BIG-Bench-Hard", "9ee07bd481fe", {p: p for p in _BBH_FILES},
                   "85f7bded35a8313943acc6f7c05bac99cf5648d86e003edc8b570e711450f478")],
    "wikitext2": [Source("pytorch/examples", "77f55b912142",
                         {"word_language_model/data/wikitext-2/test.txt": "test.txt"},
                         "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0")],
}
BY_HAND = {  # what has no pinned public home, and where people find it
    "math": "MATH was withdrawn by a copyright notice: put your own copy there, in the published layout",
    "arc_challenge": "ARC-V1-Feb2018.zip of the Allen Institute: ARC-Challenge/ARC-Challenge-Test.jsonl",
    "truthfulqa": "github.com/sylinrl/TruthfulQA: data/mc_task.json",
    "hellaswag": "github.com/rowanz/hellaswag: data/hellaswag_val.jsonl",
    "winogrande": "winogrande_1.1.zip of the Allen Institute: dev.jsonl",
}


def run(args: argparse.Namespace) -> int:
    names = [name for text in args.names for name in text.split(",") if name]
    for name in names:
        if name in BY_HAND:
            raise LibremoeError(f"{name} cannot be fetched: {BY_HAND[name]}; it goes to {args.data / name}")
        if name not in SOURCES:
            raise LibremoeError(f"no benchmark {name!r} to fetch; there are: {', '.join(SOURCES)}")
    wanted = [(name, source) for name in names for source in SOURCES[name]]
    fetched = []
    with Progress("fetching", sum(len(source.files) for _, source in wanted), not args.json, "files") as bar:
        for name, source in wanted:
            fetched += fetch(source, args.data / name, bar)
    summary = {"data": str(args.data), "fetched": fetched}
    print(json.dumps(summary) if args.json else f"{args.data}: {', '.join(names)}, every sha256 as pinned; "
                                                f"{len(fetched)} files fetched")
    return 0


def fetch(source: Source, folder: Path, bar: Progress | None = None) -> list[str]:
    """Bring folder to hold the source's files, and return those that had to be fetched. What came before an
    interruption is not fetched again; nothing is kept where the digest differs. Raises LibremoeError."""
    contents: dict[str, bytes] = {}
    unchecked: dict[str, Path] = {}  # whole files that came, until the digest of all says that they are the right ones
    for there, here in sorted(source.files.items(), key=lambda pair: pair[1]):
        path = folder / here
        if not path.is_file():
            path = unchecked[here] = path.with_name(f".{path.name}.new")
            if not path.is_file():
                _write(path, _download(source, there, folder))
        contents[here] = _read(path)
        if bar is not None:
            bar.advance(1)
    digest = _digest(contents)
    if digest != source.sha256:
        for path in unchecked.values():
            path.unlink()
        raise LibremoeError(f"{folder}: the sha256 of {_named(source)} is {digest}, pinned is {source.sha256}: not kept"
                            f"{'' if unchecked else '; remove what lies there and fetch it again'}")
    for here, path in unchecked.items():
        path.replace(folder / here)
    return list(unchecked)


def _write(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise LibremoeError(f"{path.parent}: cannot be written: {error.strerror or error}") from error


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)  # one that is larger has another digest


def _digest(contents: dict[str, bytes]) -> str:
    digests = {here: hashlib.sha256(content).hexdigest() for here, content in contents.items()}
    if len(digests) == 1:
        return next(iter(digests.values()))
    listed = "".join(f"{here} {digest}\n" for here, digest in sorted(digests.items()))
    return hashlib.sha256(listed.encode()).hexdigest()


def _named(source: Source) -> str:
    return next(iter(source.files)) if len(source.files) == 1 else f"the {len(source.files)} files"


def _download(source: Source, there: str, folder: Path) -> bytes:
    url = f"{HOME}/{source.repository}/raw/{source.commit}/{there}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            content: bytes = answer.read(MAX_BYTES + 1)
            if len(content) < int(answer.headers["content-length"] or 0):
                raise HTTPException("the connection ended early")
    except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise LibremoeError(f"{url}: cannot be fetched ({reason}); without a network, put the file into {folder} by "
                            f"hand") from None
    if len(content) > MAX_BYTES:
        raise LibremoeError(f"{url}: more than {MAX_BYTES} bytes: not the file that is wanted")
    return content
