"""The one error of a drive process; it becomes a Failed answer."""

from __future__ import annotations

import errno

from node.protocol.verbs import DriveFault, Failed

SICK_ERRNOS = frozenset({errno.EIO, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.EUCLEAN})


class DriveError(Exception):
    """A verb that cannot be done. `condemns`: nothing is acknowledged any more until the drive is checked."""

    def __init__(self, fault: DriveFault, detail: str = "", *, condemns: bool = False) -> None:
        super().__init__(f"{fault}: {detail}")
        self.fault = fault
        self.detail = detail
        self.condemns = condemns

    def reply(self) -> Failed:
        return Failed(str(self.fault), self.detail)


def of_os_error(error: OSError, doing: str, *, writing: bool) -> DriveError:
    """The fault behind an errno. A read error concerns the one file; a write error concerns the drive."""
    detail = f"{doing}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DriveError(DriveFault.NO_SPACE, detail)
    if error.errno == errno.ENOENT:
        return DriveError(DriveFault.NOT_FOUND, detail)
    return DriveError(
        DriveFault.IO, detail, condemns=writing or error.errno in (errno.EROFS, errno.ENODEV)
    )
