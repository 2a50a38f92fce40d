"""Lock servers and requesters in one process, on a loop whose time is virtual."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from locks.driver import LockServerDriver, LockService
from locks.messages import Acquire, Owner, Reply, Request, decode, encode
from locks.policy import LockPolicy
from locks.server import LockServer
from locks.table import LockTable

T = TypeVar("T")


class _Selector(selectors.BaseSelector):
    """Nothing is ever ready; waiting makes time pass. To wait for ever is a deadlock."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("deadlock: nothing is scheduled")
        self.now_s += max(0.0, timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._keys[fileobj] = selectors.SelectorKey(fileobj, 0, events, data)
        return self._keys[fileobj]

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.virtual = _Selector()
        super().__init__(self.virtual)

    def time(self) -> float:
        return self.virtual.now_s


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    loop = _VirtualLoop()
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        result = runner.run(main)
    assert not unhandled, unhandled
    return result


class LoopClock:
    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Seen:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.acquired_s: list[float] = []

    def on_retry(self, resource_class: str) -> None:
        self.events.append(f"retry {resource_class}")

    def on_timeout(self, resource_class: str) -> None:
        self.events.append(f"timeout {resource_class}")

    def on_acquired(self, resource_class: str, seconds: float) -> None:
        self.events.append(f"acquired {resource_class}")
        self.acquired_s.append(seconds)

    def on_lost(self, resource_class: str) -> None:
        self.events.append(f"lost {resource_class}")


class World:
    """`servers` lock servers; `service(node)` is the requester's side of a node.

    `dark`: these servers never answer. `deaf_to(message)` true: the message is lost on the way there.
    `mute_to(message)` true: the answer is lost on the way back.
    """

    def __init__(self, servers: int = 4, delay_s: float = 0.001, seed: int = 1) -> None:
        self.names = tuple(f"n{number}" for number in range(1, servers + 1))
        self.clock = LoopClock()
        self.rng = random.Random(seed)
        self.delay_s = delay_s
        self.dark: set[str] = set()
        self.refusing: set[str] = set()
        self.deaf_to: Callable[[str, Request], bool] = lambda server, message: False
        self.mute_to: Callable[[str, Request], bool] = lambda server, message: False
        self.calls: list[tuple[float, str, Request]] = []
        self.drivers: dict[str, LockServerDriver] = {}
        for name in self.names:
            self.restart(name, 1)
            self.drivers[name].server.table.all_fresh()

    def restart(self, name: str, incarnation: int) -> None:
        peers = [peer for peer in self.names if peer != name]
        table = LockTable(self.clock.monotonic(), incarnation, peers=peers)
        if name in self.drivers:
            self.drivers[name].close()
        self.drivers[name] = LockServerDriver(LockServer(table), self.clock)

    def service(
        self, node: str, policy: LockPolicy | None = None, incarnation: int = 1
    ) -> tuple[LockService, Seen]:
        attempts = iter(range(1, 1_000_000))
        seen = Seen()
        service = LockService(
            self,
            self.clock,
            self.rng,
            self.names,
            lambda: Owner(node, incarnation, next(attempts)),
            seen,
            policy,
        )
        return service, seen

    async def call(self, server: str, message: Request, timeout_s: float) -> Reply:
        self.calls.append((self.clock.monotonic(), server, message))
        await asyncio.sleep(self.delay_s * self.rng.uniform(0.5, 1.5))
        if server in self.refusing:
            raise ConnectionError(server)
        if server in self.dark or self.deaf_to(server, message):
            await asyncio.sleep(3600)
        arrived = decode(encode(message))
        assert isinstance(arrived, Request)
        reply = self.drivers[server].handle(arrived)
        if isinstance(reply, asyncio.Future):
            reply = await reply
        await asyncio.sleep(self.delay_s * self.rng.uniform(0.5, 1.5))
        if self.mute_to(server, message):
            await asyncio.sleep(3600)
        answer = decode(encode(reply))
        assert isinstance(answer, Reply)
        return answer

    def held(self) -> dict[str, int]:
        """How many servers hold each resource."""
        counts: dict[str, int] = {}
        for driver in self.drivers.values():
            for entry in driver.server.table.snapshot(self.clock.monotonic()):
                counts[entry.resource] = counts.get(entry.resource, 0) + 1
        return counts

    def acquires(self) -> int:
        return sum(isinstance(message, Acquire) for _, _, message in self.calls)

    def close(self) -> None:
        for driver in self.drivers.values():
            driver.close()
