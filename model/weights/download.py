"""Fetch published weights once, into torch's own cache, so that files that torchvision fetched are found too."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import sys
import time
from pathlib import Path

import filelock
import httpx
import torch.hub

from model.weights.whole_files import put_in_place

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 30.0
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


class WeightsUnavailableError(OSError):
    """Published weights are neither in the cache nor to be fetched. The message gives the ways forward."""


class _HashMismatchError(Exception):
    pass


def cache_folder() -> Path:
    """Where fetched weights, and what is made of weights, are kept; `TORCH_HOME` moves it."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def cached_path(url: str) -> Path:
    """Where the file of this address is, or will be, on disk."""
    return cache_folder() / url.rsplit("/", 1)[1]


def fetch(url: str, *, progress: bool = True, timeout_s: float | None = None) -> Path:
    """The file of this address, from the cache or else from the network.

    A download that broke off goes on where it stopped if the server can do that, and from the start if not. The file
    gets its name only when its SHA-256 begins with the digits in that name. Processes that want the same file wait
    for the first.

    Args:
        url: its last part ends in `-<first digits of the SHA-256>.<ending>`.
        progress: show on standard error how far it is.
        timeout_s: give up after this many seconds in all; None to go on as long as bytes arrive.

    Raises:
        WeightsUnavailableError: no network, no such file, no space, or bytes that do not have the hash.
    """
    path = cached_path(url)
    if path.is_file():
        return path
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock", timeout=-1 if timeout_s is None else timeout_s):
            if not path.is_file():
                _fetch_verified(url, path, progress, deadline)
    except (httpx.HTTPError, OSError, _HashMismatchError) as error:
        raise WeightsUnavailableError(_ways_forward(url, path, error)) from error
    return path


def _fetch_verified(url: str, path: Path, progress: bool, deadline: float | None) -> None:
    partial = path.with_name(path.name + ".partial")
    resumed = partial.exists() and partial.stat().st_size > 0
    _download(url, partial, progress, deadline)
    digits = path.stem.rsplit("-", 1)[1]
    digest = _sha256(partial)
    if not digest.startswith(digits) and resumed:
        # What an earlier try left behind may be at fault: once more, from the first byte.
        partial.unlink()
        _download(url, partial, progress, deadline)
        digest = _sha256(partial)
    if not digest.startswith(digits):
        partial.unlink()
        raise _HashMismatchError(f"the bytes that came have the SHA-256 {digest[:8]}..., not {digits}...")
    put_in_place(partial, path)


def _download(url: str, partial: Path, progress: bool, deadline: float | None) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    # Compressed on the way, the bytes would not be those of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    timeout = httpx.Timeout(_within(deadline, _READ_TIMEOUT_S), connect=_within(deadline, _CONNECT_TIMEOUT_S))
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=timeout) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # all of it is here already; the hash will show
        response.raise_for_status()
        goes_on = response.status_code == httpx.codes.PARTIAL_CONTENT
        length = response.headers.get("Content-Length")
        done = have if goes_on else 0
        total = done + int(length) if length is not None else None
        shown = _Progress(partial.stem, total, done) if progress else None
        with partial.open("ab" if goes_on else "wb") as file:
            # As they arrive: gathering larger chunks would keep a slow server's bytes from the deadline and the file.
            for chunk in response.iter_raw():
                file.write(chunk)
                if shown is not None:
                    shown.advance(len(chunk))
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError("the time given for the download is over; the next try goes on from here")
        if shown is not None:
            shown.tell("\n")


def _within(deadline: float | None, seconds: float) -> float:
    """So many seconds to wait for the server, or what is left until the deadline."""
    return seconds if deadline is None else max(min(seconds, deadline - time.monotonic()), 0.001)


class _Progress:
    """Writes to standard error how far a download is: in one line of a terminal, elsewhere in a line now and then."""

    def __init__(self, name: str, total: int | None, done: int) -> None:
        self._name, self._total, self._done = name, total, done
        self._every_s, self._end = (0.2, "\r") if sys.stderr.isatty() else (10.0, "\n")
        self._told = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._told > self._every_s:
            self._told = time.monotonic()
            self.tell(self._end)

    def tell(self, end: str) -> None:
        of_total = f" of {self._total / 1e6:.0f}" if self._total else ""
        sys.stderr.write(f"{self._name}: {self._done / 1e6:.0f}{of_total} MB{end}")
        sys.stderr.flush()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ways_forward(url: str, path: Path, error: BaseException) -> str:
    again = "check the network, or HTTPS_PROXY, and try again: a broken download goes on where it stopped"
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        again = f"let user {os.geteuid()} write to {path.parent}, or set TORCH_HOME to a folder where that is so"
    return (
        f"{path.name} cannot be fetched from {url}: {error or type(error).__name__}\n"
        "Ways forward:\n"
        f"  - {again}\n"
        f"  - fetch the file elsewhere and put it at {path}\n"
        "  - use the detector of blood cells that ships in the package: --weights bundled, without --model\n"
        "  - use weights of your own: --weights PATH (.pth, .safetensors or .frcnn)"
    )
