"""A power-off laboratory for a storage cluster on ONE Linux machine.

Every node is a network namespace with its own address, hosts file and N virtual drives (real ext4
on a loop device whose backing file is served by vdisk.py, so I/O errors, hangs and delays can be
injected *below* the file system).  No container engine and no third-party Python: root, `ip`,
`nft`, `mkfs.ext4`, `losetup`, and a kernel with veth, bridge, tun, loop, ext4 and fuse.

    node1 = 10.231.0.11, node2 = .12, ...   client = 10.231.0.100

    with Lab(["python3", "server.py", "--node", "{node}"], nodes=4, drives=4) as lab:
        lab.wait_port(1, 9000)
        lab.poweroff(2)
        lab.run("client", ["python3", "put.py"], check=True)
        lab.poweron(2)

{node} {name} {ip} {dir} {disks} {nodes} are replaced in the command and in env values.

What makes the power-off faithful, in this order: the wire leaves the bridge (nothing escapes, the
node sees no carrier change); all its processes are stopped, so none sees another die; the drives
refuse everything and ext4 is shut down without flushing its log (page cache and uncommitted
journal are gone); SIGKILL; the network stack is deleted, so that no orphaned socket can send a
FIN later.  A new namespace with the same MAC and IP then behaves as a rebooted host: it answers
old connections with RST.  `kill -9` alone loses no data and tells every peer: it proves nothing
about power.

By hand: `python -m tests.cluster.lab --help`.
"""

from __future__ import annotations

from .lab import Lab, missing
from .system import LabError, wait_until

__all__ = ["Lab", "LabError", "missing", "wait_until"]
