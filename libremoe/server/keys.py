"""`libremoe keys`: who may use the server. A file (mode 0600) with the SHA-256 of each key, its scopes and its quotas.

A key is 256 random bits, so a plain hash is enough: there is nothing to guess. The key itself is shown once, when made.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from libremoe.errors import LibremoeError

SCOPES = ("generate", "embed", "tokenize", "metrics", "chat")
MAX_FILE_BYTES = 4 << 20
PREFIX = "lm-"
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Key:
    """One entry. rpm, tpm: requests and tokens (prompt and answer) a minute; None: as many as the machine can."""

    name: str
    sha256: str
    scopes: tuple[str, ...] = SCOPES
    rpm: int | None = None
    tpm: int | None = None
    created: int = 0  # seconds since 1970


def keys_path() -> Path:
    """$LIBREMOE_KEYS, or libremoe/keys.json in the user's configuration folder."""
    if chosen := os.environ.get("LIBREMOE_KEYS"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "libremoe" / "keys.json"


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def load_keys(path: Path) -> list[Key]:
    """The keys in the file, none if there is no file. Raises LibremoeError where others may read it or it is
    damaged."""
    try:
        info = path.stat()
        if stat.S_IMODE(info.st_mode) & 0o077:
            raise LibremoeError(f"{path}: others may read it; do: chmod 600 {path}")
        if info.st_size > MAX_FILE_BYTES:
            raise LibremoeError(f"{path}: has {info.st_size} bytes, more than {MAX_FILE_BYTES}")
        entries = json.loads(path.read_text(encoding="utf-8"))["keys"]
        return [_entry(path, entry) for entry in entries]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LibremoeError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LibremoeError(f"{path}: is no file of keys ({type(error).__name__}: {error})") from error


def _entry(path: Path, entry: dict[str, object]) -> Key:
    name, sha256, scopes = entry["name"], entry["sha256"], entry["scopes"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise LibremoeError(f"{path}: a key has the name {name!r}")
    if not isinstance(sha256, str) or not _DIGEST.fullmatch(sha256):
        raise LibremoeError(f"{path}: key {name} has no SHA-256")
    if not isinstance(scopes, list) or not set(scopes) <= set(SCOPES):
        raise LibremoeError(f"{path}: key {name} has scopes other than {', '.join(SCOPES)}")
    quotas = [entry.get(quota) for quota in ("rpm", "tpm")]
    for quota in quotas:
        if quota is not None and (isinstance(quota, bool) or not isinstance(quota, int) or quota < 1):
            raise LibremoeError(f"{path}: key {name} has a quota of {quota!r}")
    created = entry.get("created", 0)
    return Key(name, sha256, tuple(scopes), quotas[0], quotas[1], created if isinstance(created, int) else 0)  # type: ignore[arg-type]


def save_keys(path: Path, keys: list[Key]) -> None:
    """Write the file whole or not at all, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"version": 1, "keys": [asdict(key) for key in keys]}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def find(keys: list[Key], secret: str) -> Key | None:
    """The key with this secret; all are compared, so the time says nothing."""
    wanted, found = digest(secret), None
    for key in keys:
        if hmac.compare_digest(key.sha256, wanted):
            found = key
    return found


def add(path: Path, name: str, scopes: tuple[str, ...] = SCOPES, rpm: int | None = None, tpm: int | None = None) -> str:
    """Make a key and return its secret, which is kept nowhere. Raises LibremoeError for a name that is taken or odd."""
    keys = load_keys(path)
    if not _NAME.fullmatch(name):
        raise LibremoeError(f"{name!r} cannot name a key: use 1 to 64 letters, digits, and _ . @ -")
    if any(key.name == name for key in keys):
        raise LibremoeError(f"there is a key named {name} already; remove it first: libremoe keys remove {name}")
    for field, quota in (("--rpm", rpm), ("--tpm", tpm)):
        if quota is not None and not 1 <= quota < 1 << 48:
            raise LibremoeError(f"{field} is {quota}; it must be 1 or more")
    unknown = set(scopes) - set(SCOPES)
    if unknown:
        raise LibremoeError(f"no scope {', '.join(sorted(unknown))}; there are: {', '.join(SCOPES)}")
    secret = PREFIX + secrets.token_urlsafe(32)
    save_keys(path, [*keys, Key(name, digest(secret), scopes, rpm, tpm, int(time.time()))])
    return secret


def remove(path: Path, name: str) -> None:
    """Raises LibremoeError where there is no such key."""
    keys = load_keys(path)
    left = [key for key in keys if key.name != name]
    if len(left) == len(keys):
        raise LibremoeError(f"there is no key named {name}; see: libremoe keys list")
    save_keys(path, left)


def run(args: argparse.Namespace) -> int:
    """The command. args: action (add, list, remove), name, scope (list of str), rpm, tpm, keys_file."""
    path = args.keys_file or keys_path()
    if args.action == "add":
        secret = add(path, args.name, tuple(args.scope or SCOPES), args.rpm, args.tpm)
        print(secret)
        print(f"This is the only time the key is shown; {path} holds its hash.", file=sys.stderr)
    elif args.action == "remove":
        remove(path, args.name)
    else:
        keys = load_keys(path)
        if not keys:
            print(f"There are no keys in {path}: the server answers whoever reaches it, on loopback only.",
                  file=sys.stderr)
        for key in keys:
            quotas = f"{key.rpm or 'any'} requests and {key.tpm or 'any'} tokens a minute"
            print(f"{key.name:20} {','.join(key.scopes):36} {quotas}")
    return 0
