"""The configuration: sources and their order, what is refused, and what the message says to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from node.config import Settings, WrongConfig, load, resolve
from node.options import OPTIONS, Secret, parse_listen, parse_size

ENVIRONMENT = {
    "HOLDFAST_VOLUMES": "node{1...4}:9002/data/disk{1...4}",
    "HOLDFAST_NODE": "node2:9002",
    "HOLDFAST_ROOT_USER": "admin",
    "HOLDFAST_ROOT_PASSWORD": "long-enough",
}


def load_with(**changes: str | None) -> Settings:
    environment = dict(ENVIRONMENT)
    for name, value in changes.items():
        if value is None:
            environment.pop(f"HOLDFAST_{name}", None)
        else:
            environment[f"HOLDFAST_{name}"] = value
    return load({}, environment)


def problems_with(**changes: str | None) -> str:
    with pytest.raises(WrongConfig) as caught:
        load_with(**changes)
    return "\n".join(caught.value.problems)


def test_a_plain_environment() -> None:
    settings = load_with()
    assert settings.node == "node2:9002"
    assert settings.node_names == ("node1:9002", "node2:9002", "node3:9002", "node4:9002")
    assert settings.local_paths == ("/data/disk1", "/data/disk2", "/data/disk3", "/data/disk4")
    assert settings.drives_per_node == (4, 4, 4, 4)
    assert not settings.alone
    assert settings.s3_listen == ("0.0.0.0", 9000)
    assert settings.console_listen == ("0.0.0.0", 9001)
    assert settings.peer_listen == ("0.0.0.0", 9002)
    assert settings.parity is None
    assert settings.durability is None
    assert settings.region == "us-east-1"


def test_flags_beat_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "holdfast.toml"
    file.write_text('region = "from-file"\nlog_level = "debug"\ndomain = "s3.example.com"\n')
    file.chmod(0o600)
    environment = {**ENVIRONMENT, "HOLDFAST_REGION": "from-env", "HOLDFAST_LOG_LEVEL": "error"}
    flags = {"config": str(file), "region": "from-flag"}
    settings = load(flags, environment)
    assert (settings.region, settings.log_level, settings.domain) == (
        "from-flag",
        "error",
        "s3.example.com",
    )
    origins = {name: value.origin for name, value in resolve(flags, environment).values.items()}
    assert origins["region"] == "flag --region"
    assert origins["log_level"] == "environment HOLDFAST_LOG_LEVEL"
    assert origins["domain"] == f"file {file}"
    assert origins["s3_listen"] == "default"


def test_the_file_may_be_named_by_the_environment_and_hold_lists(tmp_path: Path) -> None:
    file = tmp_path / "holdfast.toml"
    file.write_text('volumes = ["a:1/d", "b:1/d"]\nnode = "b:1"\nparity = 1\n')
    settings = load_with(CONFIG=str(file), VOLUMES=None, NODE=None)
    assert settings.node == "b:1"
    assert settings.parity == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('regoin = "x"', "'regoin' is unknown: did you mean region?"),
        ("parity = true", "parity must be a text, a number or a list of texts"),
        ("region = ", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "holdfast.toml"
    file.write_text(text)
    assert message in problems_with(CONFIG=str(file))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in problems_with(CONFIG=str(tmp_path / "none.toml"))


def test_a_secret_in_a_file_that_others_may_read_is_warned_about(tmp_path: Path) -> None:
    file = tmp_path / "holdfast.toml"
    file.write_text('root_password = "long-enough"\n')
    file.chmod(0o644)
    assert "chmod 600" in load_with(CONFIG=str(file)).warnings[0]
    file.chmod(0o600)
    assert load_with(CONFIG=str(file)).warnings == ()


def test_credentials_have_no_default() -> None:
    text = problems_with(ROOT_USER=None, ROOT_PASSWORD=None)
    assert "HOLDFAST_ROOT_USER is not set" in text
    assert "HOLDFAST_ROOT_PASSWORD is not set" in text


def test_an_empty_value_counts_as_none() -> None:
    assert "HOLDFAST_ROOT_PASSWORD is not set" in problems_with(ROOT_PASSWORD="")
    assert load_with(PARITY="").parity is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ROOT_PASSWORD", "1234567", "at least 8 characters; it has 7"),
        ("ROOT_USER", "ab", "at least 3 characters"),
        ("ROOT_USER", "a b c", "may have letters"),
        ("CLUSTER_SECRET", "short", "at least 16 characters"),
        ("S3_LISTEN", "9000", "write host:port"),
        ("S3_LISTEN", "0.0.0.0:70000", "write host:port"),
        ("S3_LISTEN", "0.0.0.0:9001", "has the port of HOLDFAST_S3_LISTEN (9001)"),
        ("PARITY", "9", "use 1 to 8, or leave it out for the default of 8"),
        ("PARITY", "0", "use 1 to 8"),
        ("PARITY", "four", "no number of parity shards"),
        ("DURABILITY", "none", "none of strict, relaxed"),
        ("MEMORY_LIMIT", "1MiB", "at least 256MiB"),
        ("MEMORY_LIMIT", "much", "is no size"),
        ("LOG_LEVEL", "loud", "none of debug, info, warning, error"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "has host bits set"),
        ("DOMAIN", "-x-", "no domain name"),
        ("ENDPOINT", "localhost:9000", "http://host:port"),
        ("REGION", "US EAST", "no region name"),
        ("VOLUMES", "a:1/x b:1/x b:1/y", "same number of drives (a:1: 1, b:1: 2)"),
    ],
)
def test_a_wrong_value_is_refused_with_what_to_do(name: str, value: str, message: str) -> None:
    text = problems_with(**{name: value})
    assert message in text
    assert "Traceback" not in text


def test_all_problems_come_at_once() -> None:
    text = problems_with(PARITY="9", LOG_LEVEL="loud", ROOT_PASSWORD="short", NODE="node9:9002")
    for name in ("PARITY", "LOG_LEVEL", "ROOT_PASSWORD", "NODE"):
        assert f"HOLDFAST_{name}" in text


def test_an_unknown_name_names_the_nearest_known_one() -> None:
    text = problems_with(VOLUMS="x")
    assert "HOLDFAST_VOLUMS is unknown: did you mean HOLDFAST_VOLUMES?" in text
    assert "HOLDFAST_ROOT_PASSWORD_FILE" in problems_with(ROOT_PASSWORT_FILE="x")


def test_service_links_are_only_warned_about() -> None:
    settings = load_with(SERVICE_HOST="10.0.0.1", PORT="tcp://10.0.0.1:9000", PORT_9000_TCP="x")
    assert len(settings.warnings) == 3
    assert all("service link" in warning for warning in settings.warnings)


def test_other_programs_names_do_not_matter() -> None:
    assert load({}, {**ENVIRONMENT, "HOLD": "x", "AWS_REGION": "y"}).warnings == ()


def test_node_must_match_one_entry() -> None:
    assert "is not in HOLDFAST_VOLUMES" in problems_with(NODE="node5:9002")
    assert "did you mean node2:9002?" in problems_with(NODE="node2:9003")
    assert "HOLDFAST_NODE is not set" in problems_with(NODE=None)
    assert load_with(NODE="NODE2:9002").node == "node2:9002"


def test_a_node_alone_needs_no_node() -> None:
    settings = load_with(VOLUMES="/data/disk{1...4}", NODE=None)
    assert settings.alone
    assert settings.local_paths == tuple(f"/data/disk{number}" for number in range(1, 5))
    assert settings.peer_listen == ("0.0.0.0", 9002)


def test_peers_are_listened_for_at_the_nodes_own_port() -> None:
    settings = load_with(VOLUMES="127.0.0.1:90{02...05}/d", NODE="127.0.0.1:9004")
    assert settings.peer_listen == ("0.0.0.0", 9004)
    assert load_with(PEER_LISTEN="10.0.0.2:9100").peer_listen == ("10.0.0.2", 9100)


def test_secrets_may_come_from_files(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("from the file\n")
    settings = load_with(ROOT_PASSWORD=None, ROOT_PASSWORD_FILE=str(file))
    assert settings.root_password.value == "from the file"
    assert "both set" in problems_with(ROOT_PASSWORD_FILE=str(file))
    file.write_text("\n")
    assert "is empty" in problems_with(ROOT_PASSWORD=None, ROOT_PASSWORD_FILE=str(file))
    file.unlink()
    text = problems_with(ROOT_PASSWORD=None, ROOT_PASSWORD_FILE=str(file))
    assert "cannot be read" in text
    assert "is not set" not in text  # one problem, one message


def test_a_rotation_names_both_cluster_secrets() -> None:
    settings = load_with(CLUSTER_SECRET="n" * 16, CLUSTER_SECRET_PREVIOUS="o" * 16)
    assert settings.cluster_secret == Secret("n" * 16)
    assert settings.previous_cluster_secret == Secret("o" * 16)


def test_secrets_never_show() -> None:
    settings = load_with(CLUSTER_SECRET="very-secret-value")
    assert not re.search(
        "very-secret-value|long-enough", repr(settings) + str(settings.cluster_secret)
    )
    shown = {value.option.name: value.shown for value in resolve({}, ENVIRONMENT).values.values()}
    assert shown["root_password"] == "********"
    assert shown["cluster_secret"] == ""
    effective = {variable: (value, origin) for variable, value, origin in load_with().shown}
    assert effective["HOLDFAST_ROOT_PASSWORD"] == ("********", "environment HOLDFAST_ROOT_PASSWORD")
    assert effective["HOLDFAST_PEER_LISTEN"] == ("0.0.0.0:9002", "default (port of this node)")


@pytest.mark.parametrize(
    ("text", "address"),
    [("0.0.0.0:9000", ("0.0.0.0", 9000)), (":80", ("0.0.0.0", 80)), ("[::1]:80", ("::1", 80))],
)
def test_listen_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text) == address


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 << 30), ("512m", 512 << 20), ("300000000", 300_000_000), ("1TB", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_trusted_proxies_take_spaces_and_commas() -> None:
    assert load_with(TRUSTED_PROXIES="10.0.0.0/8, ::1").trusted_proxies == ("10.0.0.0/8", "::1/128")


def test_every_option_explains_itself() -> None:
    assert all(option.help for option in OPTIONS)
