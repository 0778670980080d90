"""A tiny cohort in the real layout on disk, and stores and caches that no test shares with a user."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

SITES = ("north", "south", "west")
AFFINE_PSR = np.array([[0.0, 0.0, 4.0, -30.0], [-4.0, 0.0, 0.0, 34.0], [0.0, 4.0, 0.0, -32.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where services are required (continuous integration), a test that would skip for want of one fails."""
    report = yield
    if report.skipped and item.get_closest_marker("services") and os.environ.get("FONTANEL_REQUIRE_SERVICES"):
        report.outcome = "failed"
        report.longrepr = f"FONTANEL_REQUIRE_SERVICES is set, and this test skipped: {report.longrepr}"
    return report


@pytest.fixture(autouse=True, scope="session")
def _own_folders(tmp_path_factory):
    """Keep the tests away from the user's store and cache."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "FONTANEL_OUTPUT"):
            patch.delenv(name, raising=False)
        patch.setenv("FONTANEL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images, or a skip that says why."""
    folder = os.environ.get("FONTANEL_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FONTANEL_TEST_DATA names no folder with real images")
    return Path(folder)


def write_tiny_cohort(folder: Path, num_participants: int = 30, seed: int = 0) -> Path:
    """Write T1-like balls whose radius shrinks with age, stored P-S-R, and return the table."""
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    grid = np.stack(np.meshgrid(np.arange(18), np.arange(16), np.arange(17), indexing="ij"), axis=-1) - 8.0
    rows = []
    for index in range(num_participants):
        age = float(generator.uniform(20, 90))
        radius = 7.5 - age / 30
        ball = 800.0 / (1 + np.exp(2 * (np.linalg.norm(grid, axis=-1) - radius)))
        data = (ball + generator.normal(0, 10, ball.shape)).clip(0).astype(np.int16)
        name = f"images/sub-{index:02d}_T1w.nii.gz"
        nib.save(nib.Nifti1Image(data, AFFINE_PSR), folder / name)
        person = {"participant_id": f"sub-{index:02d}", "site": SITES[index % 3], "t1w": name, "age": round(age, 3)}
        rows.append({**person, "outcome": int(age + generator.normal(0, 10) > 55)})
    pd.DataFrame(rows).to_csv(folder / "tiny.tsv", sep="\t", index=False)
    return folder / "tiny.tsv"


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory) -> Path:
    """The table of a verified cohort of 30 participants at three sites; not to be changed."""
    from datamodules.verify import verify_cohort, write_manifest

    table = write_tiny_cohort(tmp_path_factory.mktemp("tiny"))
    verification = verify_cohort(table)
    assert verification.ok, json.dumps(verification.as_json(), indent=1)
    write_manifest(verification)
    return table


@pytest.fixture(scope="session")
def make_tiny_cohort():
    """A function of a folder and a number of participants that writes a cohort and returns its table."""
    return write_tiny_cohort


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory):
    """The database of a store nobody has used."""
    from tracking.store import Store

    folder = tmp_path_factory.mktemp("fresh")
    Store(f"sqlite:///{folder / 'mlflow.db'}", folder)
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def make_database(fresh_database):
    """A function of a folder that puts an empty store there: making its tables takes seconds, copying them does not."""

    def copy(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "mlflow.db"
        with closing(sqlite3.connect(fresh_database)) as source, closing(sqlite3.connect(path)) as target:
            source.backup(target)
        return path

    return copy
