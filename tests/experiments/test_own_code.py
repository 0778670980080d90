"""A lab's own network and datamodule are used from its folder, whatever else is called there as ours is."""

import importlib.machinery
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.own_code import WorkingFolder

FONTANEL = Path(sys.executable).with_name("fontanel")


def test_only_modules_with_code_and_none_of_ours_are_found_in_the_working_folder(tmp_path):
    finder = WorkingFolder(tmp_path)
    (tmp_path / "evaluation.py").touch()
    for name in ("experiments", "wandb", "lab", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "wandb" / "run.json").touch()
    (tmp_path / "experiments" / "mine.py").touch()
    (tmp_path / "lab" / "nets.py").touch()
    (tmp_path / "mine" / "__init__.py").touch()
    names = ("evaluation", "experiments", "wandb", "lab", "mine")
    assert {name for name in names if finder.find_spec(name, None)} == {"lab", "mine"}
    assert finder.find_spec("mine", ["somewhere"]) is None
    assert importlib.machinery.PathFinder.find_spec("evaluation", [str(tmp_path)]) is not None


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "command",
    [
        ["crossval", "--protocol", "external", "--external-sites", "west", "--launcher", "processes"],
        pytest.param(["fit", "--trainer.devices", "2", "--trainer.strategy", "ddp"], marks=pytest.mark.slow),
    ],
    ids=lambda command: command[0],
)
def test_processes_that_a_command_starts_find_the_labs_classes(command, lab_folder, tiny_cohort, tmp_path):
    words = ["--config", "lab.yaml", "--data.table", str(tiny_cohort), "--output-dir", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [FONTANEL, *command, *words],
        cwd=lab_folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_module_that_is_nowhere_is_named(lab_folder, monkeypatch, capsys):
    monkeypatch.chdir(lab_folder)
    assert main(["fit", "--config", "lab.yaml", "--model.network", "otherlab.nets.Foo"]) == 2
    said = "There is no module 'otherlab', which the class otherlab.nets.Foo should come from."
    assert said in capsys.readouterr().err
