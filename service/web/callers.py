"""Tell callers apart, so that each gets a share."""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable
from functools import lru_cache
from typing import Literal

from starlette.types import Scope

_KEY = "api_key"  # in the scope's state
_V6_PREFIX = 64  # an IPv6 network that one subscriber has


def note_key(scope: Scope, digest: bytes) -> None:
    """Note the digest of the API key that opened a request."""
    scope.setdefault("state", {})[_KEY] = digest


def caller_of(scope: Scope, share_by: Literal["auto", "address", "off"]) -> Hashable | None:
    """Whose request it is, by the setting `fair_share`: the key's, where one was asked for, or the peer address's.

    None if callers are not told apart.
    """
    if share_by == "off":
        return None
    digest: bytes | None = scope.get("state", {}).get(_KEY)
    if digest is not None and share_by == "auto":
        return digest
    client = scope.get("client")
    return None if client is None else _network(client[0])


@lru_cache(maxsize=4096)
def _network(host: str) -> str:
    """The address, or of IPv6 the network: one subscriber has 2 to the 64 addresses."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # of a test, or a socket in the file system
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _V6_PREFIX), strict=False))
