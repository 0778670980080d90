"""From a run of the store, or a predictions table alone, to report.html."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from evaluation.predictions import read_predictions
from evaluation.report import ReportContext, render_report
from tracking.store import StoreError

if TYPE_CHECKING:
    from tracking.store import Store

CURVES = ("train/loss", "val/loss", "val/mae")


def write_run_report(store: "Store", run_id: str, path: Path) -> Path:
    """Render the report of a run from its artifacts and metrics.

    Args:
        store: Where the run is.
        run_id: MLflow's id.
        path: File to write.
    """
    run = store.client.get_run(run_id)
    study = store.client.get_experiment(run.info.experiment_id).name
    cohort = json.loads(store.download(run_id, "cohort.json").read_text(encoding="utf-8"))
    context = ReportContext(
        title=f"{study}: {run.info.run_name}",
        question=question(cohort, run.data.tags),
        study=study,
        run_name=run.info.run_name,
        run_id=run_id,
        protocol=run.data.tags["protocol"],
        cohort=cohort,
        split=json.loads(store.download(run_id, "folds.json").read_text(encoding="utf-8")),
        config_yaml=store.download(run_id, "config.yaml").read_text(encoding="utf-8"),
        environment=json.loads(store.download(run_id, "environment.json").read_text(encoding="utf-8")),
        history=history(store, run_id),
        published=published_values(study),
        phantom=bool(cohort["phantom"]),
    )
    try:
        table = store.download(run_id, "predictions.parquet")
    except StoreError as error:
        raise StoreError(f"Run {run_id} has no predictions to report. Make some: fontanel test {run_id}") from error
    predictions = read_predictions(table)
    return write_page(render_report(predictions, context), path)


def write_table_report(table: Path, path: Path) -> Path:
    """Render the report of a predictions table from any software."""
    return write_page(render_report(read_predictions(table), ReportContext(title=table.name)), path)


def write_page(page: str, path: Path) -> Path:
    """Write a page and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def question(cohort: dict[str, Any], tags: dict[str, str]) -> str:
    """Say in one sentence what the run was to find out."""
    targets = ", ".join(name for count in cohort["counts"][:1] for name in count["targets"])
    elsewhere = f" and at a site it never saw ({tags['test_site']})" if tags.get("test_site") else ""
    sites = tags["train_sites"].replace("+", " and ")
    return f"How well does a model trained at {sites} predict {targets} in participants it never saw{elsewhere}?"


def history(store: "Store", run_id: str) -> pd.DataFrame:
    """Return the learning curves of a run: columns key, step, value."""
    points = [
        {"key": key, "step": point.step, "value": point.value}
        for key in CURVES
        for point in store.client.get_metric_history(run_id, key)
    ]
    return pd.DataFrame(points, columns=["key", "step", "value"])


def published_values(study: str) -> list[dict[str, Any]]:
    """Return the published figures of a study (its `published.yaml`), [] where there are none."""
    folder, _, name = study.partition("/")
    path = Path(__file__).parent / folder / "published.yaml"
    if not name or not path.is_file():
        return []
    values: dict[str, list[dict[str, Any]]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values.get(name.removeprefix("phantom_"), [])
