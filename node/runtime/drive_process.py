"""The process of one drive: `python -m node.runtime.drive_process PATH name=value …`.

Started by node.runtime.drive_client with two inherited descriptors: its end of a socket pair and the
node's arena. It has nothing else of the node's, and ends when the socket does. The path comes first,
so that the process list shows which drive a process serves.
"""

from __future__ import annotations

import gc
import mmap
import os
import resource
import signal
import socket
import sys
import threading

from node.runtime.drive.serve import Server
from node.runtime.drive.store import DriveOptions


def main(arguments: list[str]) -> None:
    """Serves until the socket is closed. Names: socket, arena, arena_bytes, relaxed, reserve_*, unlink_after_s."""
    path = arguments[0]
    given = dict(argument.split("=", 1) for argument in arguments[1:])
    options = DriveOptions(
        path=path,
        relaxed=given["relaxed"] == "1",
        reserve_fraction=float(given["reserve_fraction"]),
        reserve_bytes=int(given["reserve_bytes"]),
        unlink_after_s=float(given["unlink_after_s"]),
    )
    threading.excepthook = _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a ^C on the node's terminal is not for us
    sys.setswitchinterval(0.0005)  # the syncer's answers must not wait for the serving thread
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connection = socket.socket(fileno=int(given["socket"]))
    descriptor = int(given["arena"])
    arena = mmap.mmap(descriptor, int(given["arena_bytes"]))
    os.close(descriptor)
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # a page of a listing is not to pay for three collections
    status = 0
    try:
        Server(options, connection, arena).run()
    except SystemExit as left:
        print(f"drive {path}: {left}", file=sys.stderr, flush=True)
        status = 1
    finally:
        # Threads may hang in a system call for ever; none of them is waited for.
        sys.stdout.flush()
    os._exit(status)


def _stop(failure: threading.ExceptHookArgs) -> None:
    """A thread that died would leave calls without an answer: the whole process ends, and is started anew."""
    sys.__excepthook__(
        failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback
    )
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
