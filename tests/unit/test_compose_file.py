"""The compose file, the image's commands and `make up`'s credentials, checked without an engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from node.cli.client import get_status
from node.config import Settings, load
from tests.cluster.world import free_port

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "var/tools/compose-schema/compose-spec.json"
NODES = ["node1", "node2", "node3", "node4"]


def compose_file() -> dict[str, Any]:
    with (ROOT / "docker-compose.yml").open() as file:
        loaded: dict[str, Any] = yaml.safe_load(file)
    return loaded


def interpolate(value: Any, variables: dict[str, str]) -> Any:
    """Compose's ${NAME}, ${NAME:-default} and ${NAME:?message}."""

    def replace(match: re.Match[str]) -> str:
        name, kind, rest = match["name"], match["kind"], match["rest"] or ""
        if variables.get(name):
            return variables[name]
        if kind == ":?":
            raise KeyError(f"{name}: {rest}")
        return rest

    if isinstance(value, dict):
        return {key: interpolate(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, variables) for item in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(?P<name>\w+)(?:(?P<kind>:[-?])(?P<rest>[^}]*))?\}", replace, value)
    return value


def environment_file(path: Path) -> dict[str, str]:
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def create_env(path: Path) -> None:
    subprocess.run([ROOT / "scripts/create-env.sh", path], check=True, capture_output=True)


def dockerfile() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def instruction(name: str) -> str:
    return [rest for found, rest in dockerfile() if found == name][-1]


# ---- the file ------------------------------------------------------------------------------------------
def schema() -> dict[str, Any]:
    if not SCHEMA.exists():
        pytest.skip("no compose schema: scripts/test-setup.sh fetches it where npm is")
    loaded: dict[str, Any] = json.loads(SCHEMA.read_text())
    return loaded


def test_it_follows_the_compose_specification() -> None:
    jsonschema.Draft201909Validator(schema()).validate(compose_file())


@pytest.mark.parametrize("slip", ["heathcheck", "restrat", "port"])
def test_the_check_finds_a_misspelt_key(slip: str) -> None:
    wrong = compose_file()
    wrong["services"]["node1"][slip] = "x"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft201909Validator(schema()).validate(wrong)


def test_four_nodes_have_four_volumes_of_their_own() -> None:
    content = compose_file()
    used = []
    for name in NODES:
        mounts = [volume.split(":") for volume in content["services"][name]["volumes"]]
        assert [target for _, target in mounts] == [f"/data/disk{number}" for number in range(1, 5)]
        used += [source for source, _ in mounts]
    assert len(set(used)) == 16
    assert set(used) < set(content["volumes"])


def test_each_node_starts_with_a_configuration_that_is_right(tmp_path: Path) -> None:
    create_env(tmp_path / ".env")
    content = interpolate(compose_file(), environment_file(tmp_path / ".env"))
    loaded: list[Settings] = []
    for name in NODES:
        service = content["services"][name]
        loaded.append(load({}, {key: str(value) for key, value in service["environment"].items()}))
        assert service["hostname"] == name
        assert loaded[-1].node == f"{name}:9002"
        mounted = tuple(volume.split(":")[1] for volume in service["volumes"])
        assert loaded[-1].local_paths == mounted
        assert f":{loaded[-1].s3_listen[1]}" in service["ports"][0]
        assert f":{loaded[-1].console_listen[1]}" in service["ports"][1]
        assert service["restart"] == "unless-stopped"
        assert service["sysctls"]["net.ipv4.tcp_retries2"] <= 8
        assert service["healthcheck"]["test"][0] == "CMD"
    assert len({settings.cluster_secret for settings in loaded}) == 1
    ports = [port.split(":")[-2] for s in content["services"].values() for port in s["ports"]]
    assert len(set(ports)) == len(ports)


@pytest.mark.parametrize("name", ["ROOT_USER", "ROOT_PASSWORD", "CLUSTER_SECRET"])
def test_credentials_are_required(tmp_path: Path, name: str) -> None:
    create_env(tmp_path / ".env")
    variables = environment_file(tmp_path / ".env")
    del variables[f"HOLDFAST_{name}"]
    with pytest.raises(KeyError, match="make up"):
        interpolate(compose_file(), variables)


def test_the_file_holds_no_secret() -> None:
    environment = compose_file()["services"]["node1"]["environment"]
    for name in ("ROOT_USER", "ROOT_PASSWORD", "CLUSTER_SECRET"):
        assert environment[f"HOLDFAST_{name}"].startswith(f"${{HOLDFAST_{name}:?")


def test_prometheus_scrapes_every_node_and_has_the_alerts() -> None:
    services = compose_file()["services"]
    mounts = dict(volume.split(":")[:2] for volume in services["prometheus"]["volumes"][:2])
    assert all((ROOT / source).is_file() for source in mounts)
    assert mounts["./alerts.yml"] == "/etc/prometheus/alerts.yml"
    config = yaml.safe_load((ROOT / "monitoring/prometheus/prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    (scrape,) = config["scrape_configs"]
    assert scrape["static_configs"][0]["targets"] == [f"{name}:9000" for name in NODES]
    assert scrape["metrics_path"] == "/metrics"


def test_credentials_are_made_once(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    create_env(file)
    made = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(environment_file(file)["HOLDFAST_ROOT_PASSWORD"]) == 40
    create_env(file)
    assert file.read_text() == made
    create_env(tmp_path / "other")
    assert (tmp_path / "other").read_text() != made
    assert sorted(path.name for path in tmp_path.iterdir()) == [".env", "other"]


# ---- the image -----------------------------------------------------------------------------------------
def test_the_image_runs_as_an_ordinary_user() -> None:
    names = [name for name, _ in dockerfile()]
    assert instruction("USER") == "holdfast"
    assert names.index("USER") < names.index("ENTRYPOINT")


def test_the_image_is_built_from_files_that_reach_the_engine() -> None:
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied: set[str] = set()
    for name, rest in dockerfile():
        if name == "COPY" and not rest.startswith("--from"):
            copied |= set(rest.split()[:-1])
    assert copied == let_through
    packages = {path.parent.name for path in ROOT.glob("*/py.typed")}
    assert packages <= copied


def command(*parts: str) -> list[str]:
    """A command of the image, run by this environment's own `holdfast`."""
    assert parts[0] == "holdfast"
    found = shutil.which("holdfast", path=os.path.dirname(sys.executable))
    assert found, "the package is not installed beside this Python"
    return [found, *parts[1:]]


def own_environment(**variables: str) -> dict[str, str]:
    clean = {n: v for n, v in os.environ.items() if not n.startswith("HOLDFAST_")}
    return {**clean, **variables}


def test_the_entry_point_refuses_to_start_without_credentials() -> None:
    parts = json.loads(instruction("ENTRYPOINT")) + json.loads(instruction("CMD"))
    done = subprocess.run(
        command(*parts), env=own_environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "HOLDFAST_ROOT_PASSWORD is not set" in done.stderr


def test_the_entry_point_serves_and_the_health_check_sees_it(tmp_path: Path) -> None:
    """What a container does, with four directories in place of four volumes."""
    for number in range(1, 5):
        (tmp_path / f"disk{number}").mkdir()
    s3, console, peer = (free_port() for _ in range(3))
    environment = own_environment(
        HOLDFAST_VOLUMES=f"{tmp_path}/disk{{1...4}}",
        HOLDFAST_ROOT_USER="admin",
        HOLDFAST_ROOT_PASSWORD="long-enough",
        HOLDFAST_S3_LISTEN=f"127.0.0.1:{s3}",
        HOLDFAST_CONSOLE_LISTEN=f"127.0.0.1:{console}",
        HOLDFAST_PEER_LISTEN=f"127.0.0.1:{peer}",
    )
    check = json.loads(re.sub(r"^.*?CMD ", "", instruction("HEALTHCHECK")))
    assert ["CMD", *check] == compose_file()["services"]["node1"]["healthcheck"]["test"]
    serve = json.loads(instruction("ENTRYPOINT")) + json.loads(instruction("CMD"))

    def healthy() -> bool:
        done = subprocess.run(command(*check), env=environment, capture_output=True, timeout=60)
        return done.returncode == 0

    assert not healthy()
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(command(*serve), env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while get_status(f"http://127.0.0.1:{s3}", "/health/ready/write") != 200:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.1)
        assert healthy()
        process.send_signal(getattr(signal, instruction("STOPSIGNAL")))
        assert process.wait(30) == 0, (tmp_path / "log").read_text()
        assert not healthy()
    finally:
        process.kill()
        process.wait()
        log.close()
