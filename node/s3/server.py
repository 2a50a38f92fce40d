"""HTTP servers for the node's loop: uvicorn with bounded connections (node.s3.connection). S3 and console use it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn import Config, Server

from node import limits
from node.errors import ConfigError
from node.s3.connection import BoundedProtocol


class HttpServer:
    """One listening port on the running loop. `app` is any ASGI application; no lifespan is run."""

    def __init__(self, app: Any, host: str, port: int, *, backlog: int = 1024) -> None:
        self._host = host
        self._port = port
        self._backlog = backlog
        self._socket: socket.socket | None = None
        config = Config(
            app,
            interface="asgi3",
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=int(limits.KEEPALIVE_IDLE_S),
            backlog=backlog,
        )
        config.load()
        self._server = Server(config)
        self._server.lifespan = config.lifespan_class(config)

    @property
    def port(self) -> int:
        """The port listened on; the system's choice when it was given as 0."""
        assert self._socket is not None, "start() comes first"
        port: int = self._socket.getsockname()[1]
        return port

    async def start(self) -> None:
        """Listen. ConfigError when the address cannot be taken."""
        loop = asyncio.get_running_loop()
        listener: socket.socket | None = None
        try:
            found = await loop.getaddrinfo(
                self._host or None, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, kind, protocol, _, address = found[0]
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind(address)
            listener.listen(self._backlog)
        except OSError as error:
            if listener is not None:
                listener.close()
            raise ConfigError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror or error}. Another program "
                "may hold the port, or the address may not be one of this machine."
            ) from error
        self._socket = listener
        await self._server.startup(sockets=[listener])

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more, let requests end for up to `grace_s`, then cut the rest off."""
        if self._socket is None:
            return
        self._server.config.timeout_graceful_shutdown = grace_s  # type: ignore[assignment]
        state = self._server.server_state
        await self._server.shutdown(sockets=[self._socket])
        for connection in list(state.connections):
            connection.transport.abort()
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=1.0)
