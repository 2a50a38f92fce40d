from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Hello(_message.Message):
    __slots__ = ("protocol", "node", "target", "incarnation", "lane", "nonce")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    node: str
    target: str
    incarnation: int
    lane: str
    nonce: bytes
    def __init__(self, protocol: _Optional[int] = ..., node: _Optional[str] = ..., target: _Optional[str] = ..., incarnation: _Optional[int] = ..., lane: _Optional[str] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("node", "incarnation", "nonce", "session", "proofs", "error", "detail")
    NODE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PROOFS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    node: str
    incarnation: int
    nonce: bytes
    session: bytes
    proofs: _containers.RepeatedScalarFieldContainer[bytes]
    error: str
    detail: str
    def __init__(self, node: _Optional[str] = ..., incarnation: _Optional[int] = ..., nonce: _Optional[bytes] = ..., session: _Optional[bytes] = ..., proofs: _Optional[_Iterable[bytes]] = ..., error: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Proof(_message.Message):
    __slots__ = ("proof",)
    PROOF_FIELD_NUMBER: _ClassVar[int]
    proof: bytes
    def __init__(self, proof: _Optional[bytes] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("accepted", "error", "detail")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    error: str
    detail: str
    def __init__(self, accepted: _Optional[bool] = ..., error: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("id", "method", "bound_ms", "payload", "request_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    BOUND_MS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    method: int
    bound_ms: int
    payload: bytes
    request_id: str
    def __init__(self, id: _Optional[int] = ..., method: _Optional[int] = ..., bound_ms: _Optional[int] = ..., payload: _Optional[bytes] = ..., request_id: _Optional[str] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("id", "payload", "error", "detail")
    ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    id: int
    payload: bytes
    error: str
    detail: str
    def __init__(self, id: _Optional[int] = ..., payload: _Optional[bytes] = ..., error: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("calls", "replies")
    CALLS_FIELD_NUMBER: _ClassVar[int]
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[Call]
    replies: _containers.RepeatedCompositeFieldContainer[Reply]
    def __init__(self, calls: _Optional[_Iterable[_Union[Call, _Mapping]]] = ..., replies: _Optional[_Iterable[_Union[Reply, _Mapping]]] = ...) -> None: ...

class Opening(_message.Message):
    __slots__ = ("session", "counter", "mac", "bound_ms", "request_id", "header")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    COUNTER_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    BOUND_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    counter: int
    mac: bytes
    bound_ms: int
    request_id: str
    header: bytes
    def __init__(self, session: _Optional[bytes] = ..., counter: _Optional[int] = ..., mac: _Optional[bytes] = ..., bound_ms: _Optional[int] = ..., request_id: _Optional[str] = ..., header: _Optional[bytes] = ...) -> None: ...

class Ending(_message.Message):
    __slots__ = ("payload", "error", "detail")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    error: str
    detail: str
    def __init__(self, payload: _Optional[bytes] = ..., error: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("node", "target", "incarnation", "sequence", "lag_ms", "heard_ms", "versions")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAG_MS_FIELD_NUMBER: _ClassVar[int]
    HEARD_MS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    node: str
    target: str
    incarnation: int
    sequence: int
    lag_ms: int
    heard_ms: int
    versions: _containers.ScalarMap[str, int]
    def __init__(self, node: _Optional[str] = ..., target: _Optional[str] = ..., incarnation: _Optional[int] = ..., sequence: _Optional[int] = ..., lag_ms: _Optional[int] = ..., heard_ms: _Optional[int] = ..., versions: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Sealed(_message.Message):
    __slots__ = ("body", "macs")
    BODY_FIELD_NUMBER: _ClassVar[int]
    MACS_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    macs: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, body: _Optional[bytes] = ..., macs: _Optional[_Iterable[bytes]] = ...) -> None: ...
