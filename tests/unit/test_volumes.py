"""HOLDFAST_VOLUMES: patterns, lists, and what is refused."""

from __future__ import annotations

import pytest

from node.errors import ConfigError
from node.volumes import Volume, node_names, parse_volumes


def listed(text: str) -> list[str]:
    return [str(volume) for volume in parse_volumes(text)]


def test_a_pattern_goes_node_by_node() -> None:
    assert listed("node{1...2}:9002/data/disk{1...2}") == [
        "node1:9002/data/disk1",
        "node1:9002/data/disk2",
        "node2:9002/data/disk1",
        "node2:9002/data/disk2",
    ]


def test_a_list_keeps_its_order_and_may_hold_patterns() -> None:
    assert listed("b:9002/x{1...2}  a:9002/y\n c:9003/z") == [
        "b:9002/x1",
        "b:9002/x2",
        "a:9002/y",
        "c:9003/z",
    ]
    assert node_names(parse_volumes("b:1/x a:1/x b:1/y a:1/y")) == ("b:1", "a:1")


def test_leading_zeros_are_kept() -> None:
    assert listed("n{08...10}:1/d") == ["n08:1/d", "n09:1/d", "n10:1/d"]
    assert listed("/d{1...03}") == ["local:9002/d01", "local:9002/d02", "local:9002/d03"]


def test_ipv6_hosts_stand_in_brackets() -> None:
    (volume,) = parse_volumes("[FD00::2]:9002/data")
    assert volume == Volume(host="fd00::2", port=9002, path="/data")
    assert volume.node == "[fd00::2]:9002"
    assert node_names(parse_volumes("[fd00::{1...2}]:9002/data")) == (
        "[fd00::1]:9002",
        "[fd00::2]:9002",
    )


def test_ports_may_count_too() -> None:
    assert node_names(parse_volumes("127.0.0.1:90{02...04}/d")) == (
        "127.0.0.1:9002",
        "127.0.0.1:9003",
        "127.0.0.1:9004",
    )


def test_paths_are_normal() -> None:
    assert listed("n:1//data//disk1/") == ["n:1/data/disk1"]
    assert listed("n:1/Data") == ["n:1/Data"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("http://node1:9002/data", "leave the scheme out"),
        ("node1:9002/a,node2:9002/a", "separate entries by spaces"),
        ("node1/data", "write host:port/path"),
        ("node1:9002", "the path of the drive is missing"),
        ("node1:x/data", "the port after the host"),
        ("node1:0/data", "the port after the host"),
        ("node1:65536/data", "the port after the host"),
        ("no_de!:9002/data", "no host name"),
        (":9002/data", "no host name"),
        ("fd00::2:9002/data", "write host:port/path"),
        ("node{1..4}:9002/data", "three dots"),
        ("node{a...d}:9002/data", "three dots"),
        ("node{4...1}:9002/data", "counts down"),
        ("node{1...9999}:9002/data{1...99}", "more than 4096"),
        ("node1:9002/", "root directory"),
        ("node1:9002/a/../b", "without '..'"),
        ("node1:9002/a node1:9002/a/", "listed twice"),
        ("node1:9002/a node1:9002/a/b/c", "lies inside another drive"),
        ("/data1 node1:9002/data", "has no host"),
        ("local:9002/data", "stands for a node alone"),
        ("disk1", "write host:port/path"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_volumes(text)
