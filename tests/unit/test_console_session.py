"""Sessions and the brake on guessing, without a server."""

from __future__ import annotations

import base64

import pytest

from node import limits
from node.console.session import LoginBrake, issue, prove, read, source_of

KEYS = (b"k" * 32, b"o" * 32)
NONCE = b"12345678"


def _issue(keys: tuple[bytes, ...] = KEYS, secret: str = "secret") -> tuple[str, str, float]:
    return issue(keys, "ann-key", secret, now_s=1000.0, nonce=NONCE)


def test_a_session_is_proved_by_the_same_secrets_until_it_ends() -> None:
    token, csrf, expires_s = _issue()
    claimed = read(token)
    assert claimed is not None and claimed.access_key == "ann-key"
    assert prove(claimed, KEYS, "secret", now_s=1000.0) == csrf
    assert prove(claimed, KEYS, "secret", now_s=expires_s - 1) == csrf
    assert prove(claimed, KEYS, "secret", now_s=expires_s) is None
    assert prove(claimed, KEYS, "replaced", now_s=1000.0) is None
    assert prove(claimed, (b"x" * 32,), "secret", now_s=1000.0) is None


def test_a_session_survives_the_rotation_of_the_clusters_secret() -> None:
    token, csrf, _ = _issue(keys=KEYS[1:])
    claimed = read(token)
    assert claimed is not None
    assert prove(claimed, KEYS, "secret", now_s=1000.0) == csrf
    assert csrf != _issue()[1]


def test_no_bit_of_a_cookie_may_change() -> None:
    token, _, _ = _issue()
    data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    for at in range(len(data) * 8):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        claimed = read(base64.urlsafe_b64encode(changed).decode().rstrip("="))
        assert claimed is None or prove(claimed, KEYS, "secret", now_s=1000.0) is None


@pytest.mark.parametrize("junk", ["", "a", "a" * 600, "é" * 40, "AAAA", "....", "/+/+" * 20])
def test_junk_is_no_session(junk: str) -> None:
    assert read(junk) is None


def test_the_brake_holds_after_a_burst_and_lets_go() -> None:
    brake = LoginBrake()
    assert all(brake.take("a", 0.0) == 0.0 for _ in range(limits.LOGIN_BURST))
    wait_s = brake.take("a", 0.0)
    assert wait_s == pytest.approx(limits.LOGIN_REFILL_S)
    assert brake.take("b", 0.0) == 0.0
    assert brake.take("a", wait_s * 0.99) > 0.0
    assert brake.take("a", wait_s) == 0.0
    assert brake.take("a", wait_s) > 0.0


def test_success_costs_nothing_and_memory_is_bounded() -> None:
    brake = LoginBrake()
    for _ in range(10 * limits.LOGIN_BURST):
        assert brake.take("a", 0.0) == 0.0
        brake.give_back("a", 0.0)
    for number in range(limits.LOGIN_SOURCES + 10):
        brake.take(f"source{number}", 1.0)
    assert len(brake._sources) == limits.LOGIN_SOURCES


def test_whom_an_attempt_counts_against() -> None:
    trusted = ("10.0.0.0/8",)
    assert source_of("192.0.2.1", ["198.51.100.7"], trusted) == "192.0.2.1"  # not vouched for
    assert source_of("10.0.0.1", ["6.6.6.6", "198.51.100.7", "10.0.0.2"], trusted) == "198.51.100.7"
    assert source_of("10.0.0.1", [""], trusted) == ""
    assert source_of("2001:db8::1:2", [], ()) == source_of("2001:db8::9", [], ())
    assert source_of("", [], ()) == ""
