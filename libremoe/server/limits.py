"""Who may do what, and how much of it: keys, scopes, and quotas a minute. Access is asked once for each request."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from libremoe.errors import LibremoeError
from libremoe.server.errors import ApiError
from libremoe.server.keys import Key, find, load_keys

RELOAD_S = 1.0  # a key that was added or removed counts after this long
MAX_SECRET = 512  # characters of a key that are looked at

log = logging.getLogger(__name__)


@dataclass
class Bucket:
    """A quota a minute, refilled evenly, full at first."""

    per_minute: int
    level: float = 0.0
    at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.level = self.level or float(self.per_minute)

    def take(self, amount: float) -> float:
        """0 where the amount was there, and is taken; else the seconds until it will be, and nothing is taken."""
        now = time.monotonic()
        self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now
        if amount <= self.level:
            self.level -= amount
            return 0.0
        return (amount - self.level) * 60 / self.per_minute

    def give_back(self, amount: float) -> None:
        self.level = min(self.per_minute, self.level + amount)


class Access:
    """The keys of a running server. Whether keys are needed is decided at start and never becomes 'no' afterwards."""

    def __init__(self, path: Path | None):
        """path: the file of keys; None: no keys are needed."""
        self.path = path
        self.keys: list[Key] = load_keys(path) if path is not None else []
        self.required = bool(self.keys)
        self._stamp = self._file_stamp()
        self._looked = time.monotonic()
        self._buckets: dict[tuple[str, str, int], Bucket] = {}

    def _file_stamp(self) -> tuple[int, int, int]:
        try:
            info = self.path.stat() if self.path is not None else None
        except OSError:
            return (0, 0, 0)
        return (info.st_mtime_ns, info.st_size, info.st_ino) if info else (0, 0, 0)

    def _reload(self) -> None:
        if self.path is None or time.monotonic() - self._looked < RELOAD_S:
            return
        self._looked = time.monotonic()
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.keys = load_keys(self.path)
        except LibremoeError as error:
            log.error("the keys in use stay as they were: %s", error)

    def key_for(self, secret: str | None) -> Key | None:
        """The key of a request; None where none is needed. Raises ApiError 401, and 429 when its requests are used
        up."""
        if not self.required:
            return None
        self._reload()
        if not secret:
            raise ApiError(
                401,
                "this server needs a key: send it as 'Authorization: Bearer KEY' (libremoe keys add NAME)",
                code="missing_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        key = find(self.keys, secret) if len(secret) <= MAX_SECRET else None
        if key is None:
            raise ApiError(401, "the key is not known", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if key.rpm is not None and (wait_s := self._bucket(key.name, "rpm", key.rpm).take(1)):
            raise ApiError(429, f"the key {key.name} allows {key.rpm} requests a minute", code="rate_limit_exceeded",
                           retry_after_s=wait_s)
        return key

    def take_tokens(self, key: Key | None, amount: int) -> None:
        """Charge a request's worst case, prompt and max_tokens. Raises ApiError 429, or 400 where it can never fit."""
        if key is None or key.tpm is None:
            return
        if amount > key.tpm:
            raise ApiError(400, f"this request may take {amount} tokens; the key {key.name} allows {key.tpm} a minute: "
                           "ask for fewer", param="max_tokens", code="rate_limit_exceeded")
        if wait_s := self._bucket(key.name, "tpm", key.tpm).take(amount):
            raise ApiError(429, f"the key {key.name} allows {key.tpm} tokens a minute; this request may take {amount}",
                           code="rate_limit_exceeded", retry_after_s=wait_s)

    def give_back(self, key: Key | None, amount: int) -> None:
        """Return what a request did not use."""
        if key is not None and key.tpm is not None and amount > 0:
            self._bucket(key.name, "tpm", key.tpm).give_back(amount)

    def _bucket(self, name: str, kind: str, per_minute: int) -> Bucket:
        return self._buckets.setdefault((name, kind, per_minute), Bucket(per_minute))
