"""A wheel holds every folder that an editable install has."""

import fnmatch
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("datamodules", "evaluation", "experiments", "lightning_modules", "tracking")


def test_every_folder_is_installed_with_its_files():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    below = (file.relative_to(ROOT) for room in ROOMS for file in (ROOT / room).rglob("*") if file.is_file())
    files = [file for file in below if "__pycache__" not in file.parts]
    assert {".".join(file.parent.parts) for file in files} == set(settings["packages"])
    for file in files:
        data = settings["package-data"].get(".".join(file.parent.parts), [])
        assert file.suffix == ".py" or any(fnmatch.fnmatch(file.name, pattern) for pattern in data), file
