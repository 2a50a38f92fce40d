"""Keys of the cluster and sealed bytes; access keys out of given random bytes.

The cluster secret may be a passphrase, so the key-encryption key (KEK) is stretched out of it with
scrypt, salted by the cluster's id. It wraps one random data key, which seals everything else: the
secret can change without touching what is sealed. Random bytes and nonces come from the caller.

Both forms on disk: a version byte, the nonce (12 bytes), then the AES-256-GCM ciphertext with its
tag (16 bytes). The version byte and the purpose are authenticated together with the caller's data.
"""

from __future__ import annotations

import base64

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from .errors import SealBroken, WrongSecret

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
ACCESS_KEY_ID_CHARS = 20
SECRET_KEY_CHARS = 40
MIN_CLUSTER_ID_BYTES = 8

_VERSION = 1
_HEAD = bytes([_VERSION])
_WRAP = b"holdfast data key"
_SEAL = b"holdfast sealed"
# 64 MiB and about a fifth of a second: spent once at the start of a process.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**16, 8, 1
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def derive_kek(cluster_secret: str, cluster_id: bytes) -> bytes:
    """The key-encryption key (32 bytes) of a cluster. Takes a moment on purpose."""
    if not cluster_secret:
        raise ValueError("the cluster secret is empty")
    if len(cluster_id) < MIN_CLUSTER_ID_BYTES:
        raise ValueError(f"a cluster id has at least {MIN_CLUSTER_ID_BYTES} bytes")
    salt = b"holdfast kek 1\0" + cluster_id
    stretched = Scrypt(salt=salt, length=KEY_BYTES, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P)
    return stretched.derive(cluster_secret.encode("utf-8"))


def wrap_key(kek: bytes, data_key: bytes, nonce: bytes, *, cluster_id: bytes = b"") -> bytes:
    """Wrap a data key (32 bytes); ``nonce`` is 12 random bytes, fresh for each call."""
    if len(data_key) != KEY_BYTES:
        raise ValueError(f"a data key has {KEY_BYTES} bytes")
    return _encrypt(kek, data_key, nonce, _WRAP, cluster_id)


def unwrap_key(kek: bytes, wrapped: bytes, *, cluster_id: bytes = b"") -> bytes:
    """The data key. Raises WrongSecret when the KEK is not the one it was wrapped with."""
    if len(wrapped) != len(_HEAD) + NONCE_BYTES + KEY_BYTES + TAG_BYTES:
        raise SealBroken("the wrapped key has a wrong length")
    try:
        return _decrypt(kek, wrapped, _WRAP, cluster_id)
    except InvalidTag:
        raise WrongSecret from None


def seal(data_key: bytes, plaintext: bytes, nonce: bytes, aad: bytes) -> bytes:
    """Encrypt; ``aad`` says what and where it is, so that it cannot be moved to another place."""
    return _encrypt(data_key, plaintext, nonce, _SEAL, aad)


def open_sealed(data_key: bytes, sealed: bytes, aad: bytes) -> bytes:
    """Decrypt, or raise SealBroken."""
    try:
        return _decrypt(data_key, sealed, _SEAL, aad)
    except InvalidTag:
        raise SealBroken("the sealed data was altered, or belongs elsewhere") from None


def _encrypt(key: bytes, plaintext: bytes, nonce: bytes, purpose: bytes, aad: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes")
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
    return _HEAD + nonce + AESGCM(key).encrypt(nonce, plaintext, _bound(purpose, aad))


def _decrypt(key: bytes, sealed: bytes, purpose: bytes, aad: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes")
    if sealed[:1] != _HEAD:
        raise SealBroken(f"the sealed data is not of version {_VERSION}")
    if len(sealed) < len(_HEAD) + NONCE_BYTES + TAG_BYTES:
        raise SealBroken("the sealed data was cut")
    nonce = sealed[1 : 1 + NONCE_BYTES]
    return AESGCM(key).decrypt(nonce, sealed[1 + NONCE_BYTES :], _bound(purpose, aad))


def _bound(purpose: bytes, aad: bytes) -> bytes:
    return _HEAD + purpose + b"\0" + aad


# ---- access keys --------------------------------------------------------------------------------

ACCESS_KEY_ID_RANDOM_BYTES = 12
SECRET_KEY_RANDOM_BYTES = 32


def access_key_id(random: bytes) -> str:
    """An access key id: "HF" and 18 characters out of A-Z and 2-7, from 12 random bytes."""
    if len(random) != ACCESS_KEY_ID_RANDOM_BYTES:
        raise ValueError(f"an access key id needs {ACCESS_KEY_ID_RANDOM_BYTES} random bytes")
    return "HF" + base64.b32encode(random).decode("ascii")[: ACCESS_KEY_ID_CHARS - 2]


def secret_key(random: bytes) -> str:
    """A secret key of 40 letters and digits (238 bits), from 32 random bytes.

    Without the "+" and "/" of base64, which shells, URLs and configuration files mistreat.
    """
    if len(random) != SECRET_KEY_RANDOM_BYTES:
        raise ValueError(f"a secret key needs {SECRET_KEY_RANDOM_BYTES} random bytes")
    number = int.from_bytes(random, "big")
    characters = []
    for _ in range(SECRET_KEY_CHARS):
        number, digit = divmod(number, len(_BASE62))
        characters.append(_BASE62[digit])
    return "".join(characters)
