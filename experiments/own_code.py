"""Classes of the user's own: found in the folder where a command is typed, and never taken for ours."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from typing_extensions import override

from experiments.cli import PACKAGES


class WorkingFolder(MetaPathFinder):
    """Finds modules in the working folder that nothing else has; a folder `experiments` there does not hide ours.

    Args:
        folder: The folder; where the process is may change while a configuration is read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module is; None for ours, for parts of packages, and for folders without Python files."""
        if path is not None or fullname in PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, [str(self.folder)], target)
        if spec is not None and spec.loader is None and not _has_code(spec):
            return None  # `wandb/` or `onnx/` full of results is not the library of that name
        return spec


def _has_code(spec: ModuleSpec) -> bool:
    return any(any(Path(folder).glob("*.py")) for folder in spec.submodule_search_locations or ())


def find_own_code() -> None:
    """Let a configuration name classes of the working folder, such as `mylab.nets.Foo`."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, WorkingFolder)]
    sys.meta_path.append(WorkingFolder(Path.cwd()))
