"""Browsers that are logged in, where keys are on."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from hashlib import sha256

LOGIN_S = 30 * 86400
MAX_LOGINS = 1000


class Logins:
    """Who is logged in: the digest of a random cookie, and the key that it stands for.

    In memory: a restart ends all."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def begin(self, secret: str) -> str:
        cookie = secrets.token_urlsafe(32)
        self._keys[_digest(cookie)] = (secret, time.monotonic() + LOGIN_S)
        while len(self._keys) > MAX_LOGINS:
            self._keys.popitem(last=False)
        return cookie

    def secret(self, cookie: str) -> str | None:
        secret, ends = self._keys.get(_digest(cookie), (None, 0.0))
        return secret if time.monotonic() < ends else None

    def end(self, cookie: str) -> None:
        self._keys.pop(_digest(cookie), None)


def _digest(cookie: str) -> str:
    return sha256(cookie.encode("utf-8", "surrogateescape")).hexdigest()
