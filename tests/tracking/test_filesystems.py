from pathlib import Path

import pytest

from tracking import filesystems
from tracking.errors import StoreError
from tracking.filesystems import filesystem_type, network_filesystem
from tracking.store import Store

LINES = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 0:40 / /home rw,relatime shared:1 master:2 - nfs4 server:/export/home rw,vers=4.2
31 30 8:1 / /home/ann/scratch rw - xfs /dev/sda1 rw
32 27 0:41 / /mnt/my\040lab\134s\011disk rw - cifs //host/lab\040disk rw
33 27 0:42 / /mnt/twice rw - autofs systemd-1 rw
34 33 0:43 / /mnt/twice rw - lustre 10.0.0.1@tcp:/scratch rw
35 27 0:44 / /mnt/host rw - 9p hostshare rw
36 27 0:45 / /mnt/covered rw - nfs server:/covered rw
37 36 8:2 / /mnt/covered rw - ext4 /dev/sdb1 rw
"""


@pytest.fixture(autouse=True)
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(LINES.lstrip())
    monkeypatch.setattr(filesystems, "MOUNTS", path)
    return path


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/srv/out/mlflow.db", "ext4"),
        ("/home", "nfs4"),
        ("/home/ann/outputs/not/there/yet", "nfs4"),
        ("/home/ann/scratch/out", "xfs"),
        ("/home/ann/scratchpad", "nfs4"),
        ("/homework", "ext4"),
        ("/mnt/my lab\\s\tdisk/out", "cifs"),
        ("/mnt/twice/out", "lustre"),
        ("/mnt/host/out", "9p"),
        ("/mnt/covered/out", "ext4"),
        ("/srv/../home/ann", "nfs4"),
    ],
)
def test_the_deepest_and_last_mount_counts(path: str, kind: str) -> None:
    assert filesystem_type(Path(path)) == kind


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/home/ann")
    assert filesystem_type(tmp_path / "out" / "new") == "nfs4"
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert filesystem_type(tmp_path / "circle" / "new") is None


def test_names_that_are_no_text(mounts: Path) -> None:
    mounts.write_bytes(b"1 0 8:1 / /mnt/\xff\xfe rw - nfs a:/b rw\n")
    assert filesystem_type(Path("/mnt/\udcff\udcfe/out")) == "nfs"


def test_without_proc_nothing_is_known_and_all_is_allowed(mounts: Path) -> None:
    mounts.unlink()
    assert filesystem_type(Path("/home/ann")) is None
    assert network_filesystem(Path("/home/ann")) is None


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "fuse.sshfs", "fuse.s3fs"])
def test_network_types(kind: str, mounts: Path) -> None:
    mounts.write_text(f"1 0 0:1 / / rw - {kind} server rw\n")
    assert network_filesystem(Path("/out")) == kind


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "9p", "virtiofs", "fuseblk"])
def test_local_types(kind: str, mounts: Path) -> None:
    mounts.write_text(f"1 0 0:1 / / rw - {kind} disk rw\n")
    assert network_filesystem(Path("/out")) is None


def test_a_store_on_a_network_filesystem_is_refused_before_anything_is_made(tmp_path: Path, mounts: Path) -> None:
    mounts.write_text("1 0 0:1 / / rw - nfs4 server:/ rw\n")
    output = tmp_path / "out"
    with pytest.raises(StoreError) as caught:
        Store(f"sqlite:///{output}/mlflow.db", output)
    text = str(caught.value)
    assert f"{output} is on nfs4" in text
    for alternative in ("--output-dir", "sqlite:////local/disk/mlflow.db", "fontanel ui", "http://HOST", "postgresql"):
        assert alternative in text
    assert not output.exists()


def test_an_existing_store_is_refused_too(fresh_database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracking.addresses.network_filesystem", lambda path: "lustre")
    with pytest.raises(StoreError, match="is on lustre"):
        Store(f"sqlite:///{fresh_database}", fresh_database.parent)


def test_only_the_database_must_be_local(tmp_path: Path, mounts: Path) -> None:
    local, output = tmp_path / "local", tmp_path / "out"
    mounts.write_text(f"1 0 8:1 / / rw - nfs s:/ rw\n2 1 8:2 / {local} rw - ext4 /dev/sda rw\n")
    Store(f"sqlite:///{local}/mlflow.db", output).start_run("study", "run", {})
    assert (output / "artifacts" / "study").is_dir()
    assert (local / "mlflow.db").is_file()


def test_servers_are_asked_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tracking.addresses.network_filesystem", lambda path: "nfs")
    assert Store("http://127.0.0.1:1", tmp_path).uri == "http://127.0.0.1:1"
