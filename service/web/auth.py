"""Checks API keys, where any are set."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import UnauthorizedError
from service.settings import Settings
from service.web.callers import note_key
from service.web.problems import error_response
from service.wire import DEEPSTACK_PATH, KEY_HEADER, PROBE_PATHS

logger = logging.getLogger(__name__)

# The page is the same for all visitors and has no data; it asks for a key before it detects.
_PAGE, _PAGE_FILES = "/", "/page/"
_BEARER = re.compile(rb"bearer +(\S+) *", re.IGNORECASE)
_CHALLENGE = 'Bearer realm="faster-rcnn-service"'
_WRONG_KEY = f'{_CHALLENGE}, error="invalid_token"'
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_SHORTEST_SAFE = 16
_OPENS = "opens"  # in a request's state: whether a key opens, where its route checks it


class KeysError(ValueError):
    """The API keys cannot be used as they are given. The message says what to do, and shows no key."""


def load_keys(settings: Settings) -> frozenset[str]:
    """The keys of the settings and of the file that they name; none at all if neither is set.

    Raises:
        KeysError: the file cannot be read, or one of them holds no key, or a key with blanks in it.
    """
    keys: set[str] = set()
    # Empty is unset: that is what `FRCNN_API_KEYS=${FRCNN_API_KEYS:-}` makes of a variable that is not there.
    if settings.api_keys is not None and settings.api_keys.get_secret_value():
        keys |= _checked(settings.api_keys.get_secret_value().split(","), "FRCNN_API_KEYS")
    if settings.api_keys_file is not None:
        try:
            text = settings.api_keys_file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            if isinstance(error, PermissionError):
                reason = f"{reason}; user {os.geteuid()} must be able to"
            raise KeysError(f"the API keys in {settings.api_keys_file} cannot be read: {reason}") from None
        keys |= _checked(text.splitlines(), str(settings.api_keys_file))
    return frozenset(keys)


def _checked(entries: Collection[str], source: str) -> set[str]:
    keys = {entry.strip() for entry in entries} - {""}
    if not keys:
        raise KeysError(f"there is no API key in {source}: give one, or unset it to let anybody call")
    if any(re.search(r"\s", key) for key in keys):
        raise KeysError(f"an API key in {source} has blanks in it, which no header can carry")
    return keys


class ApiKeys:
    """Rejects requests without a key before their path is looked up and their body is read.

    The key comes as `Authorization: Bearer KEY` or `X-API-Key: KEY`. DeepStack's clients have it in their form instead:
    that route checks it by `check_key`, before it keeps anything of the image.

    Args:
        app: the application.
        keys: those that open it.
        equal: compares in a time that does not depend on the values.
    """

    def __init__(
        self, app: ASGIApp, *, keys: Collection[str], equal: Callable[[bytes, bytes], bool] = hmac.compare_digest
    ) -> None:
        self.app = app
        self._equal = equal
        # Digests have one length, so that comparing them does not reveal a key's either.
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        shown = _shown(Headers(scope=scope))
        opening = [key for key in shown if self._opens(key)]  # all of them: as long for a right key as for a wrong one
        if opening:
            note_key(scope, _digest(opening[0]))
            await self.app(scope, receive, send)
            return
        if not shown and (scope["method"], scope["path"]) == ("POST", DEEPSTACK_PATH):
            scope["state"][_OPENS] = self._opens
            await self.app(scope, receive, send)
            return
        if shown:
            error = _wrong_key()
        else:
            wanted = f"send an API key as 'Authorization: Bearer KEY' or '{KEY_HEADER}: KEY'"
            error = UnauthorizedError(wanted, challenge=_CHALLENGE)
        response = error_response(scope, error)
        await response(scope, receive, send)

    def _opens(self, key: bytes) -> bool:
        digest = _digest(key)
        opens = False
        for accepted in self._digests:  # all of them, so that the time does not reveal which one it was
            opens |= self._equal(digest, accepted)
        return opens


def check_key(scope: Scope, key: str) -> None:
    """Check the key in a request's form, where `ApiKeys` has left that to its route.

    Raises:
        UnauthorizedError: it is missing or wrong.
    """
    opens: Callable[[bytes], bool] | None = scope["state"].get(_OPENS)
    if opens is None or opens(key.encode()):
        return
    if key:
        raise _wrong_key()
    wanted = f"send an API key in the form's field 'api_key', before the image, or as '{KEY_HEADER}: KEY'"
    raise UnauthorizedError(wanted, challenge=_CHALLENGE)


def _wrong_key() -> UnauthorizedError:
    return UnauthorizedError("the API key is not one of those that are accepted", challenge=_WRONG_KEY)


def _is_open(path: str) -> bool:
    return path in PROBE_PATHS or path == _PAGE or path.startswith(_PAGE_FILES)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _shown(headers: Headers) -> list[bytes]:
    """The keys that a request shows: one of each header at most. A gateway may have put its own Authorization there."""
    shown = []
    bearer = _BEARER.fullmatch(headers.get("authorization", "").encode("latin-1"))
    if bearer:
        shown.append(bearer[1])
    if key := headers.get(KEY_HEADER, "").strip():
        shown.append(key.encode("latin-1"))
    return shown


def log_auth_mode(settings: Settings, keys: Collection[str]) -> None:
    """Log how many keys there are, or that anybody may call."""
    if keys:
        logger.info("API keys are asked for: %d are accepted", len(keys))
        if any(len(key) < _SHORTEST_SAFE for key in keys):
            logger.warning("an API key has fewer than %d characters: it can be guessed", _SHORTEST_SAFE)
    elif settings.host not in _LOOPBACK:
        logger.warning("no API keys are set (FRCNN_API_KEYS): anybody who reaches %s may call", settings.host)
