"""python -m tests.cluster.lab: the laboratory by hand.

up --nodes 4 --drives 4 -- python3 server.py --node {node} --listen {ip}:9000
status | down | logs 2 | exec client -- curl http://node1:9000/

poweroff 2    link cut silently, page cache lost, then SIGKILL: peers receive no FIN, RST or ARP
poweron 2     new network stack, drives mounted (journal replay), command run
kill 2        SIGKILL with the link up: FIN and RST do reach the peers;  term 2: SIGTERM
start 2       runs the command again
hang 2        SIGSTOP: the kernel still ACKs and accepts;  hang 2 --host: the whole host freezes
resume 2      undoes either hang
unplug 2 | plug 2           cable out / in, processes keep running
partition '1,2|3,4'         both directions;  '1>3' drops only 1 -> 3;  '2|*' cuts 2 from all
heal                        removes all partitions
slow 2 --delay 50 --jitter 5 --loss 1 --rate 20   (ms, ms, %, Mbit/s; each way);  slow 2 off

drive 2 1 fail [read|write|all] | slow MS | hang [read|write|all] | lie | full [BYTES_LEFT] | free
drive 2 1 readonly | badsector FILE | flip FILE [OFFSET] | wipe | replace | ok | stats
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys

from .lab import Lab
from .system import LabError

FAULTS = ["badsector", "fail", "flip", "free", "full", "hang", "lie", "ok", "readonly"]
FAULTS += ["replace", "slow", "stats", "wipe"]


def reaper(name: str) -> int:
    """Block until the owner of the lab says it is done, or dies; then clear away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.stdin.buffer.readline() != b"done\n":
        Lab(name=name).down()
    return 0


def size_mb(text: str) -> int:
    return int(text[:-1]) * {"M": 1, "G": 1024}[text[-1]]


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", default="lab", help="labs of different names run side by side")
    top = argparse.ArgumentParser(
        prog="python -m tests.cluster.lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub = top.add_subparsers(dest="verb", required=True)

    def verb(name: str, *numbers: str) -> argparse.ArgumentParser:
        made = sub.add_parser(name, parents=[common])
        for number in numbers:
            made.add_argument(number, type=int)
        return made

    up = verb("up")
    up.add_argument("--nodes", type=int, default=4)
    up.add_argument("--drives", type=int, default=4)
    up.add_argument("--drive-size", type=size_mb, default=256, help="such as 256M or 2G (sparse)")
    up.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    up.add_argument("--cwd")
    up.add_argument("--no-start", action="store_true")
    for name in ("down", "status", "heal"):
        verb(name)
    for name in ("poweroff", "poweron", "kill", "term", "start", "resume", "unplug", "plug"):
        verb(name, "node")
    verb("hang", "node").add_argument("--host", action="store_true")
    verb("partition").add_argument("spec")
    slow = verb("slow", "node")
    slow.add_argument("off", nargs="?", choices=["off"])
    for option in ("delay", "jitter", "loss", "rate"):
        slow.add_argument(f"--{option}", type=float, default=0)
    drive = verb("drive", "node", "drive")
    drive.add_argument("fault", choices=FAULTS)
    drive.add_argument("args", nargs="*")
    verb("exec").add_argument("host")
    verb("logs").add_argument("host")
    return top


def up(args: argparse.Namespace, command: list[str]) -> int:
    lab = Lab(
        command,
        nodes=args.nodes,
        drives=args.drives,
        drive_mb=args.drive_size,
        name=args.name,
        env=dict(e.split("=", 1) for e in args.env),
        cwd=args.cwd and os.path.abspath(args.cwd),
        autostart=not args.no_start,
        keep=True,
    ).up()
    print(json.dumps(lab.status(), indent=1))
    return 0


def drive_fault(lab: Lab, args: argparse.Namespace) -> int:
    kinds = {"slow": float, "full": int}
    values = [kinds.get(args.fault, str)(a) for a in args.args]
    if args.fault == "flip" and len(values) > 1:
        values[1] = int(values[1])
    result = getattr(lab.drives, args.fault)(args.node, args.drive, *values)
    if result is not None:
        print(json.dumps(result))
    return 0


def main(argv: list[str]) -> int:
    if argv[:1] == ["_reaper"]:
        return reaper(argv[1])
    command: list[str] = []
    if "--" in argv:
        command, argv = argv[argv.index("--") + 1 :], argv[: argv.index("--")]
    args = parser().parse_args(argv)
    if args.verb == "up":
        return up(args, command)
    if args.verb == "down":
        Lab(name=args.name).down()
        return 0
    lab = Lab.attach(args.name)
    match args.verb:
        case "status":
            print(json.dumps(lab.status(), indent=1))
        case "exec":
            full = ["ip", "netns", "exec", lab.book.ns(args.host), *command]
            return subprocess.call(full)
        case "logs":
            sys.stdout.write(lab.log_path(args.host).read_text(errors="replace"))
        case "heal":
            lab.fabric.heal()
        case "partition":
            lab.fabric.partition(args.spec)
        case "unplug" | "plug":
            getattr(lab.fabric, args.verb)(args.node)
        case "slow" if args.off:
            lab.fabric.unslow(args.node)
        case "slow":
            lab.fabric.slow(args.node, args.delay, args.jitter, args.loss, args.rate)
        case "hang":
            lab.hang(args.node, host=args.host)
        case "drive":
            return drive_fault(lab, args)
        case _:
            getattr(lab, args.verb)(args.node)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabError as error:
        sys.exit(f"lab: {error}")
