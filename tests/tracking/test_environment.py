import getpass
import json
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from tracking.environment import _commit, environment_facts


def test_facts_are_json_and_complete() -> None:
    facts = json.loads(json.dumps(environment_facts()))
    assert facts["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert facts["python"] == platform.python_version()
    assert facts["threads"]["intra_op"] == torch.get_num_threads()
    assert facts["processors"]["usable"] >= 1
    assert facts["memory_gib"] > 0


def test_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_TOKEN", "c4n4ry")
    text = json.dumps(environment_facts())
    home = str(Path.home())
    assert platform.node() not in text
    assert "c4n4ry" not in text
    assert home not in text
    assert str(Path.cwd()) not in text
    assert f'"{getpass.getuser()}"' not in text
    assert json.loads(text)["variables"]["OMP_NUM_THREADS"] == "1"


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def checkout(folder: Path) -> None:
    git(folder, "init")
    (folder / "a").write_text("1")
    git(folder, "add", "a")
    git(folder, "commit", "-m", "one")


def test_commit_of_a_checkout(tmp_path: Path) -> None:
    assert _commit(tmp_path) is None
    checkout(tmp_path)
    commit = _commit(tmp_path)
    assert commit is not None
    assert len(commit["id"]) == 40
    assert not commit["modified"]
    (tmp_path / "a").write_text("2")
    assert _commit(tmp_path) == {"id": commit["id"], "modified": True}


def test_a_package_inside_another_repository_has_no_commit(tmp_path: Path) -> None:
    checkout(tmp_path)
    (tmp_path / "site-packages").mkdir()
    assert _commit(tmp_path / "site-packages") is None
