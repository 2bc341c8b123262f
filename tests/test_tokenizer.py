"""Tokenizers: streamed decoding equals the library's, untrusted text cannot steer, bad files are refused."""

from __future__ import annotations

import hashlib
import json
import os
import random
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from libremoe import tokenizer as tokenizer_file
from libremoe.errors import CheckpointError, LibremoeError
from libremoe.tokenizer import Tokenizer, open_tokenizer
from libremoe.tokenizer_hf import HFTokenizer
from libremoe.tokenizer_spm import SentencePieceTokenizer

HERE = Path(__file__).parent
OWN_MODEL = HERE / "golden" / "spm" / "tokenizer.model"
SHARED = Path(os.environ.get("LIBREMOE_SHARED", HERE.parent.parent / "shared"))
OFFICIAL_MODEL = SHARED / "tokenizer" / "tokenizer.model"
GOLDEN = json.loads((HERE / "golden" / "tokenizer" / "golden.json").read_text())
CONTROLS = ["<|separator|>", "<|mask|>", *(f"<|control{n}|>" for n in range(1, 21))]
TEXT = "the quick brown fox jumps over the lazy dog; größere Brücken, 12 Fragen. Где мост?"
KINDS = ["spm", "byte-level", "fallback", "metaspace", "metaspace-never"]


def llama_like_json(kind: str) -> str:
    """A tokenizer.json of spaced pieces with bytes, as converted from Llama's, with the decoder of `kind`."""
    space = "\u2581"
    library = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)])
    special = ["<unk>", "<s>", "</s>"]
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)] if kind == "fallback" else []
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special + byte_pieces, show_progress=False)
    library.train_from_iterator([TEXT] * 4, trainer)
    if kind == "fallback":
        steps = [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()]
        library.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    else:
        scheme = "never" if kind == "metaspace-never" else "always"
        library.decoder = decoders.Metaspace(replacement=space, prepend_scheme=scheme)
    parsed = json.loads(library.to_str())
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["content"] in special]
    return json.dumps(parsed)


def byte_level_json() -> str:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
    )  # fmt: skip
    library.train_from_iterator([TEXT] * 4, trainer)
    library.add_tokens(["<|tool|>", "  "])  # not marked special: one that steers, one that does not
    return library.to_str()


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "spm":
        return open_tokenizer(OWN_MODEL)
    content = byte_level_json() if kind == "byte-level" else llama_like_json(kind)
    return HFTokenizer(Path("tokenizer.json"), content.encode())


def official() -> Tokenizer:
    if not OFFICIAL_MODEL.exists():
        pytest.skip("the official tokenizer.model is not at LIBREMOE_SHARED/tokenizer")
    return open_tokenizer(OFFICIAL_MODEL)


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> str:
    stream = tokenizer.stream_decoder()
    return "".join([stream.push(token) for token in tokens] + [stream.finish()])


def id_lists(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Any ids, with bytes, leading spaces and specials more frequent than chance would have them."""
    known = range(tokenizer.vocab_size)
    spaced = [i for i in known if (tokenizer.token_bytes(i) or b"").startswith(b" ")]
    partial = [i for i in known if len(tokenizer.token_bytes(i) or b"") == 1]
    special = [i for i in known if tokenizer.token_bytes(i) is None]
    any_id = st.integers(0, tokenizer.vocab_size - 1)
    groups = [st.sampled_from(group) for group in (spaced, partial, special) if group]
    characters = st.characters(codec="utf-8").map(tokenizer.encode)
    single = [group.map(lambda i: [i]) for group in (any_id, *groups)]
    return st.lists(st.one_of(*single, characters)).map(lambda parts: sum(parts, []))


@pytest.mark.parametrize("kind", KINDS)
def test_stream_equals_decode_for_any_ids(kind: str) -> None:
    tokenizer = tokenizer_of(kind)

    @settings(max_examples=300, deadline=None)
    @given(id_lists(tokenizer))
    def check(tokens: list[int]) -> None:
        assert streamed(tokenizer, tokens) == tokenizer.decode(tokens)

    check()


def test_stream_equals_decode_official() -> None:
    tokenizer = official()
    byte, space = range(69, 325), tokenizer.encode("a")[0]
    rng = random.Random(1)
    for _ in range(2000):
        pool = [rng.choice(byte), rng.randrange(tokenizer.vocab_size), rng.randrange(69), space, 327]
        tokens = [rng.choice(pool + [rng.choice(byte)]) for _ in range(rng.randrange(12))]
        assert streamed(tokenizer, tokens) == tokenizer.decode(tokens), tokens


def model_with_spec(tmp_path: Path, **spec: bool) -> SentencePieceTokenizer:
    """The own model with another normalizer_spec: protobuf merges a repeated message into the first."""
    field = {"add_dummy_prefix": 3, "remove_extra_whitespaces": 4}
    body = b"".join(bytes([field[name] << 3, value]) for name, value in spec.items())
    path = tmp_path / "tokenizer.model"
    path.write_bytes(OWN_MODEL.read_bytes() + bytes([3 << 3 | 2, len(body)]) + body)
    return open_tokenizer(path)  # type: ignore[return-value]


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("remove", [False, True])
def test_stream_follows_the_space_rules_of_the_file(tmp_path: Path, prefix: bool, remove: bool) -> None:
    tokenizer = model_with_spec(tmp_path, add_dummy_prefix=prefix, remove_extra_whitespaces=remove)
    space = next(i for i in range(1000) if tokenizer.piece(i) == "\u2581")
    word = tokenizer.processor.piece_to_id("\u2581the")
    assert tokenizer.encode("a")[0] != tokenizer.encode(" a")[0] or prefix or remove
    rng = random.Random(2)
    for _ in range(500):
        tokens = rng.choices([space, word, 0, 3, 4, 69 + 0xC3, 69 + 0x20, 300], k=rng.randrange(7))
        assert streamed(tokenizer, tokens) == tokenizer.decode(tokens), tokens


@pytest.mark.parametrize("kind", KINDS)
def test_stream_never_gives_half_a_character(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    text = "né 漢字 👩‍👩‍👧 Где"
    stream = tokenizer.stream_decoder()
    tokens = tokenizer.encode(text)
    parts = [stream.push(token) for token in tokens] + [stream.finish()]
    assert "".join(parts) == tokenizer.decode(tokens)
    if not kind.startswith("metaspace"):  # those have no bytes, and unknown characters are lost
        assert "".join(parts) == text and "\ufffd" not in text


@pytest.mark.parametrize("kind", ["spm", "byte-level", "fallback"])
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\u2581")))
def test_text_comes_back(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    tokens = tokenizer.encode(text)
    if not any(tokenizer.is_special(token) for token in tokens):
        assert tokenizer.decode(tokens) == text
        joined = b"".join(tokenizer.token_bytes(token) or b"" for token in tokens)
        assert joined.removeprefix(b"" if kind == "byte-level" else b" ") == text.encode()


def steering_text(words: list[str]) -> st.SearchStrategy[str]:
    pieces = words + [" ", "\n", "x", "<", "|", ">", "<|", "|>", "separator", "7", "é"]
    return st.lists(st.sampled_from(pieces), max_size=12).map("".join)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("spm", CONTROLS),
        ("byte-level", ["<|begin_of_text|>", "<|end_of_text|>", "<|tool|>"]),
        ("fallback", ["<s>", "</s>", "<unk>"]),
    ],
)
def test_untrusted_text_never_steers(kind: str, words: list[str]) -> None:
    tokenizer = tokenizer_of(kind)

    @settings(max_examples=300, deadline=None)
    @given(steering_text(words))
    def check(text: str) -> None:
        tokens = tokenizer.encode_untrusted(text)
        assert not any(tokenizer.is_special(token) for token in tokens)
        assert tokenizer.decode(tokens) == text
        if not any(tokenizer.is_special(token) for token in tokenizer.encode(text)):
            assert tokens == tokenizer.encode(text)

    check()
    for word in words:  # the plain encoding does steer, so the check above can fail
        assert any(tokenizer.is_special(token) for token in tokenizer.encode(f"a{word}b"))


def test_untrusted_text_official() -> None:
    tokenizer = official()
    assert [i for i in range(69) if tokenizer.is_special(i)] == [0, 1, 2, 3, *range(47, 69)]
    for word in CONTROLS:
        for text in (word, f"a {word} b", f"{word}{word}\n7", f"<|mask{word}|>"):
            tokens = tokenizer.encode_untrusted(text)
            assert not any(tokenizer.is_special(token) for token in tokens)
            assert tokenizer.decode(tokens) == text


def test_official_golden() -> None:
    tokenizer = official()
    assert hashlib.sha256(OFFICIAL_MODEL.read_bytes()).hexdigest() == GOLDEN["model_sha256"]
    assert tokenizer.vocab_size == GOLDEN["piece_count"]
    ids = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
    assert ids == (GOLDEN["pad_id"], GOLDEN["bos_id"], GOLDEN["eos_id"])
    for case in GOLDEN["encode"]:
        tokens = tokenizer.encode(case["text"])
        assert tokens == case["ids"]
        assert [tokenizer.piece(token) for token in tokens] == case["pieces"]
        assert tokenizer.decode(tokens) == case["decoded"] == streamed(tokenizer, tokens)
    for case in GOLDEN["decode"]:
        assert tokenizer.decode(case["ids"]) == case["text"] == streamed(tokenizer, case["ids"])
    for entry in GOLDEN["user_defined"]:
        assert tokenizer.piece(entry["id"]) == entry["piece"]
        assert tokenizer.token_bytes(entry["id"]) == entry["piece"].encode()
    for entry in GOLDEN["control_and_unknown"]:
        assert tokenizer.token_bytes(entry["id"]) is None and tokenizer.is_special(entry["id"])


def test_own_model_has_the_official_layout() -> None:
    tokenizer = tokenizer_of("spm")
    assert tokenizer.vocab_size == 1000
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    for entry in GOLDEN["control_and_unknown"] + GOLDEN["user_defined"]:
        assert tokenizer.piece(entry["id"]) == entry["piece"]
    assert [tokenizer.token_bytes(69 + byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert tokenizer.encode("<s>[BOS]") == tokenizer.encode_untrusted("<s>[BOS]")


def test_hf_ids() -> None:
    assert (tokenizer_of("fallback").bos_id, tokenizer_of("fallback").eos_id) == (1, 2)
    assert (tokenizer_of("byte-level").bos_id, tokenizer_of("byte-level").eos_id) == (0, 1)
    assert tokenizer_of("byte-level").pad_id is None


@pytest.mark.parametrize("kind", KINDS)
def test_mistakes_in_arguments(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for token in (-1, tokenizer.vocab_size, 1 << 40):
        push = tokenizer.stream_decoder().push
        for call in (tokenizer.piece, tokenizer.token_bytes, tokenizer.is_special, push):
            with pytest.raises(LibremoeError, match=str(token)):
                call(token)
        with pytest.raises(LibremoeError, match=str(token)):
            tokenizer.decode([5, token])
    for encode in (tokenizer.encode, tokenizer.encode_untrusted):
        with pytest.raises(LibremoeError, match="surrogate pair at character 1"):
            encode("a\ud800")


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_tokenizer(path)
    assert str(path) in str(caught.value) or str(path) == str(caught.value.path.parent)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_directory(tmp_path: Path) -> None:
    assert "neither" in refusal(tmp_path)
    (tmp_path / "tokenizer.json").write_text(byte_level_json())
    assert isinstance(open_tokenizer(tmp_path), HFTokenizer)
    (tmp_path / "tokenizer.model").write_bytes(OWN_MODEL.read_bytes())
    assert isinstance(open_tokenizer(str(tmp_path)), SentencePieceTokenizer)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_hostile_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert "No such file" in refusal(path)
    path.write_bytes(b"")
    assert "empty" in refusal(path)
    with path.open("wb") as file:
        file.truncate(200 << 20)
    assert "bytes" in refusal(path)
    length_of_2_to_the_48 = b"\n\xff\xff\xff\xff\xff\xff\x7f"
    for content in (b"\0" * 100, b"garbage", b"\xff" * 1000, b"{}", b"[]", b"null", length_of_2_to_the_48):
        path.write_bytes(content)
        assert refusal(path)
    path.unlink()
    os.mkfifo(path)
    assert "regular" in refusal(path)


def test_a_file_that_grows_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_file, "MAX_FILE_BYTES", 1000)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(OWN_MODEL.read_bytes())
    assert "at most 1000" in refusal(path)


def test_damaged_models_are_refused_or_work(tmp_path: Path) -> None:
    """Truncated anywhere: refused, or (cut between pieces) a smaller model. Altered: never another error."""
    whole = OWN_MODEL.read_bytes()
    path = tmp_path / "tokenizer.model"
    rng = random.Random(3)
    for _ in range(300):
        content = bytearray(whole[: rng.randrange(1, len(whole))] if rng.random() < 0.5 else whole)
        for _ in range(rng.randrange(4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            tokenizer = open_tokenizer(path)
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            tokens = tokenizer.encode("the miller 7 é")
            assert streamed(tokenizer, tokens) == tokenizer.decode(tokens)


def test_truncated_model_says_so(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(OWN_MODEL.read_bytes()[:5005])
    assert "truncated" in refusal(path)


def test_output_rewriting_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(OWN_MODEL.read_bytes() + bytes([5 << 3 | 2, 3, 2 << 3 | 2, 1, 65]))
    assert "denormalizer" in refusal(path)


def test_bad_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    good = json.loads(byte_level_json())
    words = {"type": "WordLevel", "vocab": {"<|begin_of_text|>": 0, "u": 1}, "unk_token": "u"}
    bad = {
        "decoder": good | {"decoder": None},
        "WordPiece": good | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}},
        "tokenizer.json": good | {"model": {"type": "BPE", "vocab": 7}},
        "can be used": good | {"added_tokens": [7]},
        "ids": good | {"model": good["model"] | {"vocab": {"a": 1 << 30}, "merges": []}, "added_tokens": []},
        "cannot tell": good | {"model": words, "pre_tokenizer": {"type": "WhitespaceSplit"}},
    }
    for reason, content in bad.items():
        path.write_text(json.dumps(content))
        assert reason in refusal(path)
    path.write_text('{"decoder": ' + "[" * 100_000)
    assert "deeply" in refusal(path)
    path.write_text(byte_level_json()[:-50])
    assert "tokenizer.json that can be used" in refusal(path)


def test_truncation_in_the_file_is_ignored(tmp_path: Path) -> None:
    limit = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(byte_level_json()) | {"truncation": limit}))
    assert len(open_tokenizer(path).encode("a b c d e f")) > 3
