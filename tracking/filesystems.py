"""Which kind of filesystem a path is on, because sqlite needs a local one."""

import os
import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
# Not here: `9p` and `virtiofs`, with which a virtual machine sees the local disks of its host.
NETWORK_TYPES = frozenset(
    {
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "fuse.beegfs",
        "fuse.blobfuse",
        "fuse.blobfuse2",
        "fuse.ceph",
        "fuse.ceph-fuse",
        "fuse.curlftpfs",
        "fuse.davfs",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.goofys",
        "fuse.juicefs",
        "fuse.mfs",
        "fuse.mount-s3",
        "fuse.mountpoint-s3",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "orangefs",
        "panfs",
        "pvfs2",
        "smb3",
        "smbfs",
        "wekafs",
    }
)
_ESCAPE = re.compile(r"\\([0-7]{3})")


def network_filesystem(path: Path) -> str | None:
    """Return the type of the network filesystem that a path is on, None on a local or unknown one.

    Args:
        path: File or folder; need not exist.
    """
    kind = filesystem_type(path)
    return kind if kind in NETWORK_TYPES else None


def filesystem_type(path: Path) -> str | None:
    """Return the type of the filesystem that a path is on, such as `ext4` or `nfs4`; None where nobody knows.

    Args:
        path: File or folder; what does not exist yet is where its nearest existing parent is.
    """
    try:
        place = path.resolve()  # first, because it makes what is mounted on demand be mounted
        lines = os.fsdecode(MOUNTS.read_bytes()).splitlines()
    except (OSError, RuntimeError):  # RuntimeError: symbolic links in a circle
        return None
    best: tuple[int, str] | None = None
    for mount, kind in map(_mount, lines):
        depth = len(mount.parts)
        if place.is_relative_to(mount) and (best is None or depth >= best[0]):  # of equal ones the last is on top
            best = depth, kind
    return None if best is None else best[1]


def _mount(line: str) -> tuple[Path, str]:
    """Return mount point and filesystem type of a line; proc(5) says what the fields are."""
    before, _, after = line.partition(" - ")
    point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), before.split(" ")[4])
    return Path(point), after.split(" ")[0]
