"""The handler of every row that is known by name and not done."""

from __future__ import annotations

from node.errors import CodedError
from node.s3.shapes import Reply, Request


async def not_implemented(request: Request) -> Reply:
    assert request.operation is not None
    raise CodedError(
        "NotImplemented",
        f"{request.operation.name} is not implemented",
        Operation=request.operation.name,
    )
