"""The node's configuration: flags over environment over file over defaults, each value with its origin.

The only reader of the environment. Every problem is collected and reported at once, and each says
what to do; nothing starts on a configuration that is wrong.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from erasure.errors import ErasureError
from erasure.geometry import default_parity, layout
from node.errors import ConfigError
from node.limits import GIB, MAX_CONFIG_BYTES, MIN_PASSWORD_CHARACTERS
from node.options import BY_NAME, OPTIONS, PREFIX, VARIABLES, Address, Option, Secret
from node.volumes import LOCAL_HOST, Volume, join_address, node_names

# Kubernetes injects these for a service called holdfast; they are nobody's mistake.
_SERVICE_LINKS = ("HOLDFAST_SERVICE_", "HOLDFAST_PORT")

Durability = Literal["strict", "relaxed"]


class WrongConfig(ConfigError):
    """Everything that is wrong with a configuration. `problems`: one sentence each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A checked configuration of one node."""

    volumes: tuple[Volume, ...]
    node: str  # "host:port" of this node, as in the volumes
    root_user: str
    root_password: Secret
    cluster_secret: Secret | None = None
    previous_cluster_secret: Secret | None = None
    s3_listen: Address = ("0.0.0.0", 9000)
    console_listen: Address = ("0.0.0.0", 9001)
    peer_listen: Address = ("0.0.0.0", 9002)
    parity: int | None = None  # None: as stored in the cluster, or the default of its geometry
    durability: Durability | None = None  # None: as stored in the cluster, or strict
    region: str = "us-east-1"
    domain: str | None = None
    endpoint: str | None = None
    memory_limit_bytes: int = GIB
    guarded: bool = True  # False: only to measure what the guard costs
    log_level: str = "info"
    trusted_proxies: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    shown: tuple[
        tuple[str, str, str], ...
    ] = ()  # (variable, value or stars, origin) of each option

    @property
    def node_names(self) -> tuple[str, ...]:
        """All nodes in listed order."""
        return node_names(self.volumes)

    @property
    def local_paths(self) -> tuple[str, ...]:
        """The paths of this node's drives; their order is the drive index."""
        return tuple(volume.path for volume in self.volumes if volume.node == self.node)

    @property
    def drives_per_node(self) -> tuple[int, ...]:
        counts = dict.fromkeys(self.node_names, 0)
        for volume in self.volumes:
            counts[volume.node] += 1
        return tuple(counts.values())

    @property
    def alone(self) -> bool:
        """A cluster of this node only: no peers."""
        return len(self.node_names) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """An effective value. `origin` is for people: "flag --node", "environment HOLDFAST_NODE", ..."""

    option: Option
    text: str | None
    origin: str

    @property
    def shown(self) -> str:
        if self.text is None:
            return ""
        return "********" if self.option.secret else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What the sources say, before it is checked as a whole."""

    values: dict[str, Value]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


# ---- sources ---------------------------------------------------------------------------------------
def environment() -> Mapping[str, str]:
    """The process's environment; nobody else reads it."""
    return os.environ


def resolve(flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Resolved:
    """Every option's text with its origin. `flags` holds setting names, and "config" for the file."""
    problems: list[str] = []
    warnings: list[str] = []
    _check_names(environ, problems, warnings)
    path = flags.get("config") or environ.get(f"{PREFIX}CONFIG") or None
    from_file = _read_file(Path(path), problems, warnings) if path else {}
    values: dict[str, Value] = {}
    for option in OPTIONS:
        text, origin = option.default, "default"
        if option.name in from_file:
            text, origin = from_file[option.name], f"file {path}"
        from_environment = _from_environment(option, environ, problems)
        if from_environment is not None:
            text, origin = from_environment
        flag = flags.get(option.name)
        if flag is not None:
            text, origin = flag, f"flag --{option.name.replace('_', '-')}"
        values[option.name] = Value(option=option, text=text or None, origin=origin)
    return Resolved(values=values, problems=tuple(problems), warnings=tuple(warnings))


def _from_environment(
    option: Option, environ: Mapping[str, str], problems: list[str]
) -> tuple[str, str] | None:
    text = environ.get(option.variable) or None  # an empty value, as compose files give, is none
    file_variable = f"{option.variable}_FILE"
    path = (environ.get(file_variable) or None) if option.from_file else None
    if path is None:
        return None if text is None else (text, f"environment {option.variable}")
    if text is not None:
        problems.append(f"{option.variable} and {file_variable} are both set: unset one of them")
        return None
    try:
        content = _read_bounded(Path(path)).strip("\r\n")
    except (OSError, ValueError) as error:
        problems.append(
            f"{file_variable}: {path} cannot be read ({_reason(error)}); make it readable"
        )
        return None
    if not content:
        problems.append(f"{file_variable}: {path} is empty; write the value into it")
        return None
    return content, f"file {path} ({file_variable})"


def _check_names(environ: Mapping[str, str], problems: list[str], warnings: list[str]) -> None:
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in VARIABLES:
            continue
        if name.startswith(_SERVICE_LINKS):
            warnings.append(f"{name} is ignored: it looks like a Kubernetes service link")
            continue
        problems.append(f"{name} is unknown: {_nearest(name, sorted(VARIABLES))}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"did you mean {near[0]}? If it is not for Holdfast, unset it"


def _read_file(path: Path, problems: list[str], warnings: list[str]) -> dict[str, str]:
    try:
        table = tomllib.loads(_read_bounded(path))
    except (OSError, ValueError) as error:
        problems.append(f"configuration file {path} cannot be read: {_reason(error)}")
        return {}
    values: dict[str, str] = {}
    for name, value in table.items():
        if name not in BY_NAME:
            problems.append(f"{path}: {name!r} is unknown: {_nearest(name, sorted(BY_NAME))}")
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            values[name] = " ".join(value)
        elif isinstance(value, str | int) and not isinstance(value, bool):
            values[name] = str(value)
        else:
            problems.append(f"{path}: {name} must be a text, a number or a list of texts")
    if any(BY_NAME[name].secret for name in values) and path.stat().st_mode & 0o077:
        warnings.append(f"{path} holds a secret and others may read it: chmod 600 {path}")
    return values


def _read_bounded(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        text = file.read(MAX_CONFIG_BYTES + 1)
    if len(text) > MAX_CONFIG_BYTES:
        raise ValueError("it is too large")
    return text


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


# ---- the whole -------------------------------------------------------------------------------------
def load(
    flags: Mapping[str, str | None] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """The checked configuration of a node; WrongConfig names every problem."""
    return build(resolve(flags or {}, environment() if environ is None else environ))


def parse_values(resolved: Resolved, problems: list[str]) -> dict[str, Any]:
    """Each option's parsed value, None where it is absent or wrong (then a problem is added)."""
    parsed: dict[str, Any] = {}
    for name, value in resolved.values.items():
        parsed[name] = None
        if value.text is None:
            continue
        try:
            parsed[name] = value.option.parse(value.text)
        except (ValueError, ConfigError) as error:
            source = (
                ""
                if value.origin == f"environment {value.option.variable}"
                else f" ({value.origin})"
            )
            problems.append(f"{value.option.variable}{source}: {error}")
    return parsed


def build(resolved: Resolved) -> Settings:
    """Checks what was resolved, alone and together; WrongConfig names every problem."""
    problems = list(resolved.problems)
    parsed = parse_values(resolved, problems)
    for name, advice in _REQUIRED.items():
        if resolved.values[name].text is None and not _reported(name, problems):
            problems.append(f"{BY_NAME[name].variable} is not set: {advice}")
    volumes = cast(tuple[Volume, ...] | None, parsed["volumes"])
    node = None
    if volumes is not None:
        node = _choose_node(volumes, parsed["node"], problems)
        _check_geometry(volumes, parsed["parity"], problems)
    _place_peer_listen(volumes, node, resolved, parsed)
    _check_listens(parsed, problems)
    if problems:
        raise WrongConfig(tuple(problems))
    assert volumes is not None and node is not None
    return Settings(
        volumes=volumes,
        node=node,
        root_user=parsed["root_user"],
        root_password=parsed["root_password"],
        cluster_secret=parsed["cluster_secret"],
        previous_cluster_secret=parsed["cluster_secret_previous"],
        s3_listen=parsed["s3_listen"],
        console_listen=parsed["console_listen"],
        peer_listen=parsed["peer_listen"],
        parity=parsed["parity"],
        durability=parsed["durability"],
        region=parsed["region"],
        domain=parsed["domain"],
        endpoint=parsed["endpoint"],
        memory_limit_bytes=parsed["memory_limit"],
        log_level=parsed["log_level"],
        guarded=parsed["guard"] != "off",
        trusted_proxies=parsed["trusted_proxies"] or (),
        warnings=resolved.warnings,
        shown=tuple(
            (v.option.variable, v.shown, v.origin if v.text else "not set")
            for v in resolved.values.values()
        ),
    )


_REQUIRED = {
    "volumes": "name the drives of all nodes, as in node{1...4}:9002/data/disk{1...4}",
    "root_user": "choose the name of the root access key; there is no default",
    "root_password": f"choose a secret of {MIN_PASSWORD_CHARACTERS} or more characters, or name its file "
    "in HOLDFAST_ROOT_PASSWORD_FILE; there is no default",
}


def _reported(name: str, problems: list[str]) -> bool:
    return any(problem.startswith(BY_NAME[name].variable) for problem in problems)


def _choose_node(volumes: tuple[Volume, ...], node: str | None, problems: list[str]) -> str | None:
    names = node_names(volumes)
    if node in names:
        return node
    if node is None and len(names) == 1:
        return names[0]
    listed = ", ".join(names)
    if node is None:
        problems.append(
            f"HOLDFAST_NODE is not set: say which node of the volumes this is, one of {listed}"
        )
        return None
    near = difflib.get_close_matches(node, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    problems.append(f"HOLDFAST_NODE={node} is not in HOLDFAST_VOLUMES, which has {listed}{hint}")
    return None


def _check_geometry(volumes: tuple[Volume, ...], parity: int | None, problems: list[str]) -> None:
    names = node_names(volumes)
    counts = [sum(volume.node == name for volume in volumes) for name in names]
    if len(set(counts)) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in zip(names, counts, strict=True))
        problems.append(f"HOLDFAST_VOLUMES: give every node the same number of drives ({listed})")
        return
    try:
        sets = layout(counts)
    except ErasureError as error:
        problems.append(f"HOLDFAST_VOLUMES: {error}")
        return
    drives = len(sets[0])
    nodes = len({node for node, _ in sets[0]})
    if parity is None or (parity == 0 and drives == 1):
        return
    if not 1 <= parity <= drives // 2:
        problems.append(
            f"HOLDFAST_PARITY={parity} does not fit stripes of {drives} drives: use 1 to {drives // 2}, "
            f"or leave it out for the default of {default_parity(nodes, drives // nodes)}"
            if drives > 1
            else f"HOLDFAST_PARITY={parity}: a single drive has no parity; leave it out"
        )


def _place_peer_listen(
    volumes: tuple[Volume, ...] | None, node: str | None, resolved: Resolved, parsed: dict[str, Any]
) -> None:
    """Peers reach this node at the port of its name, so by default that is where it listens."""
    value = resolved.values["peer_listen"]
    if value.text is not None:
        return
    mine = next((volume for volume in volumes or () if volume.node == node), None)
    if mine is None or mine.host == LOCAL_HOST:
        parsed["peer_listen"], origin = ("0.0.0.0", 9002), "default"
    else:
        parsed["peer_listen"], origin = ("0.0.0.0", mine.port), "default (port of this node)"
    text = join_address(*parsed["peer_listen"])
    resolved.values["peer_listen"] = Value(option=value.option, text=text, origin=origin)


def _check_listens(parsed: dict[str, Any], problems: list[str]) -> None:
    taken: dict[int, str] = {}
    for name in ("s3_listen", "console_listen", "peer_listen"):
        address = cast(Address | None, parsed[name])
        if address is None:
            continue
        other = taken.setdefault(address[1], name)
        if other != name:
            problems.append(
                f"{BY_NAME[name].variable} has the port of {BY_NAME[other].variable} ({address[1]}): "
                "give each its own"
            )
