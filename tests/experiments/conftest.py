"""A finished run that the tests of several verbs look at."""

from pathlib import Path

import pytest

from experiments.cli import main
from tracking.store import Store

CONFIG = Path(__file__).parent.parent / "conf" / "brain_age_regression.yaml"


@pytest.fixture(scope="session")
def fitted(tiny_cohort, tmp_path_factory):
    """An output folder with one finished run, and its id."""
    output = tmp_path_factory.mktemp("outputs")
    words = ["fit", "--config", str(CONFIG), "--data.table", str(tiny_cohort), "--output-dir", str(output)]
    assert main(words) == 0
    store = Store(f"sqlite:///{output / 'mlflow.db'}", output)
    return output, store.find_run("scratch-holdout-0-r0-s3").run_id
