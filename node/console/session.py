"""Console sessions without a store, and the brake on guessing.

A session is a cookie: who (the access key), until when, eight random bytes, and a MAC. The MAC's key
is derived of the cluster's secret and of the caller's own secret key; so every node accepts what
another one signed, and a session ends when its key is deleted, switched off or replaced, or when the
root password changes. The CSRF token of a session is a second MAC over the same bytes.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from node import limits

COOKIE = "holdfast_session"
PURPOSE = "console"
_FORMAT = 1
_MAX_TOKEN_CHARS = 512
_MAC_BYTES = 32
NONCE_BYTES = 8


class _Claim(msgspec.Struct, frozen=True, array_like=True):
    format: int
    access_key: str
    expires_s: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a cookie says; nothing of it is proved before `proves`."""

    access_key: str
    expires_s: float
    payload: bytes
    mac: bytes


def issue(
    keys: Sequence[bytes], access_key: str, secret: str, *, now_s: float, nonce: bytes
) -> tuple[str, str, float]:
    """A new session: (cookie value, CSRF token, when it ends in seconds since 1970)."""
    expires_s = int(now_s + limits.SESSION_S)
    payload = msgspec.msgpack.encode(_Claim(_FORMAT, access_key, expires_s, nonce))
    mac = _mac(keys[0], secret, b"session", payload)
    token = base64.urlsafe_b64encode(payload + mac).decode("ascii").rstrip("=")
    return token, csrf_token(keys[0], secret, payload), float(expires_s)


def read(token: str) -> Claimed | None:
    """The claim of a cookie; None when it is none of ours."""
    if not token or len(token) > _MAX_TOKEN_CHARS or not token.isascii():
        return None
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        payload, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
        claim = msgspec.msgpack.decode(payload, type=_Claim)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return None
    if claim.format != _FORMAT:
        return None
    return Claimed(claim.access_key, float(claim.expires_s), payload, mac)


def prove(claimed: Claimed, keys: Sequence[bytes], secret: str, *, now_s: float) -> str | None:
    """The session's CSRF token; None when it has ended or was not signed by this cluster."""
    if now_s >= claimed.expires_s:
        return None
    for key in keys:
        if hmac.compare_digest(_mac(key, secret, b"session", claimed.payload), claimed.mac):
            return csrf_token(key, secret, claimed.payload)
    return None


def csrf_token(key: bytes, secret: str, payload: bytes) -> str:
    return _mac(key, secret, b"csrf", payload).hex()


def _mac(key: bytes, secret: str, purpose: bytes, payload: bytes) -> bytes:
    bound = hmac.digest(key, secret.encode(), "sha256")
    return hmac.digest(bound, purpose + b"\0" + payload, "sha256")


class LoginBrake:
    """Bounds guessing: each source has a few attempts, and gets one back now and then.

    An attempt that succeeded is given back, so people and monitors never meet the brake.
    """

    def __init__(self) -> None:
        self._sources: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, as of

    def take(self, source: str, now: float) -> float:
        """0.0: go on (and `give_back` on success); else the seconds until the next attempt is free."""
        tokens = self._tokens(source, now)
        if tokens < 1.0:
            return (1.0 - tokens) * limits.LOGIN_REFILL_S
        self._keep(source, tokens - 1.0, now)
        return 0.0

    def give_back(self, source: str, now: float) -> None:
        self._keep(source, min(self._tokens(source, now) + 1.0, limits.LOGIN_BURST), now)

    def _tokens(self, source: str, now: float) -> float:
        tokens, since = self._sources.get(source, (float(limits.LOGIN_BURST), now))
        return min(tokens + (now - since) / limits.LOGIN_REFILL_S, float(limits.LOGIN_BURST))

    def _keep(self, source: str, tokens: float, now: float) -> None:
        self._sources[source] = (tokens, now)
        self._sources.move_to_end(source)
        while len(self._sources) > limits.LOGIN_SOURCES:
            self._sources.popitem(last=False)


def source_of(address: str, forwarded: Sequence[str], trusted_proxies: Sequence[str]) -> str:
    """Whom an attempt counts against: the socket's address, or the one that a trusted proxy names.

    Of IPv6 the network counts: one customer has a whole /64.
    """
    if _within(address, trusted_proxies):
        for candidate in reversed(forwarded):
            if not _within(candidate, trusted_proxies):
                address = candidate
                break
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if found.version == 6:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def _within(address: str, networks: Sequence[str]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in ipaddress.ip_network(network) for network in networks)
