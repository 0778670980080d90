"""From a run of the store, a cross-validation, or a predictions table alone, to report.html."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from evaluation.gain import share_of_labels
from evaluation.predictions import read_predictions
from evaluation.report.arms import describe_arms, main_arm
from evaluation.report.context import CrossvalContext, ReportContext, gain_from_json
from evaluation.report.crossval import render_crossval
from evaluation.report.page import Picture, Table
from evaluation.report.participants import Characteristic, characteristics_table, subgroup_frame
from evaluation.report.run import render_report
from evaluation.tasks import told_task
from experiments.saliency import TAG as SALIENCY_TAG
from experiments.sharing import Context, read_or_make_key, shared_context, write_codes
from tracking.environment import environment_facts
from tracking.errors import StoreError
from tracking.files import read_json, write_json
from tracking.paths import hide_paths, hide_paths_yaml
from tracking.redaction import redact_yaml

if TYPE_CHECKING:
    from evaluation.leakage import Finding
    from experiments.conclusion import Conclusion
    from experiments.jobs import Job
    from experiments.workplan import Workplan
    from tracking.store import Store

CURVES = ("train/loss", "val/loss", "val/mae", "val/auroc")
CROSSVAL = "crossval"  # tag `kind` of the parent of a cross-validation
RECORD = "report.json"  # what its report says beside the predictions table
SETTINGS = (
    *("num_folds", "num_repeats", "num_seeds", "num_inner_folds", "val_fraction", "match_train_size"),
    *("max_train_per_site", "label_fractions"),
)  # of a study
SUBGROUP_REPLICATES = 300
PARTICIPANT = ["dataset", "participant_id"]


def write_run_report(
    store: "Store", run_id: str, path: Path, home: Path | None = None, *, with_images: bool = True
) -> Path:
    """Render the report of a run, or of the parent of a cross-validation, from its artifacts and metrics.

    Args:
        store: Where the run is.
        run_id: MLflow's id.
        path: File to write.
        home: Folder of the key, for the form that may be sent away; None for the whole report.
        with_images: Whether saliency maps over images of participants are shown.
    """
    run = store.client.get_run(run_id)
    study = store.client.get_experiment(run.info.experiment_id).name
    if run.data.tags.get("kind") == CROSSVAL:
        recorded = _recorded_context(store, run_id, study, run.info.run_name)
        recorded = replace(recorded, saliency=saliency_pictures(store, _explained_children(store, run_id)))
        return _write(render_crossval, _predictions(store, run_id), recorded, path, home)
    cohort = read_json(store.download(run_id, "cohort.json"))
    context = ReportContext(
        title=f"{study}: {run.info.run_name}",
        question=question(cohort, run.data.tags),
        study=study,
        run_name=run.info.run_name,
        run_id=run_id,
        protocol=run.data.tags["protocol"],
        cohort=cohort,
        split=read_json(store.download(run_id, "folds.json")),
        config_yaml=store.download(run_id, "config.yaml").read_text(encoding="utf-8"),
        environment=read_json(store.download(run_id, "environment.json")),
        history=history(store, run_id),
        published=published_values(study),
        saliency=saliency_pictures(store, [(run_id, run.info.run_name)])
        if with_images and SALIENCY_TAG in run.data.tags
        else [],
        phantom=bool(cohort["phantom"]),
    )
    return _write(render_report, _predictions(store, run_id), context, path, home)


def write_crossval_report(
    workplan: "Workplan",
    store: "Store",
    conclusion: "Conclusion",
    parent_run_id: str,
    path: Path,
    findings: "Sequence[Finding] | None" = None,
) -> Path:
    """Render the report of a finished cross-validation, and keep in its run what a later rendering needs.

    Args:
        workplan: What was planned.
        store: Where its runs are kept.
        conclusion: What came out; its gains are not computed again.
        parent_run_id: MLflow's id of the parent run.
        path: File to write; `report.json` is written beside it, without an identifier of a participant.
        findings: Of a leakage audit of the same cohort and weights.
    """
    context = _context_of(workplan, store, conclusion, parent_run_id, findings)
    record = path.with_name(RECORD)
    write_json(record, hide_paths(context.as_json()))
    store.log_artifact(parent_run_id, record)
    return write_page(render_crossval(conclusion.held_out, context), path)


def write_table_report(table: Path, path: Path, home: Path | None = None, task: str | None = None) -> Path:
    """Render the report of a predictions table from any software.

    Args:
        table: CSV, TSV or Parquet file.
        path: File to write.
        home: Folder of the key, for the form that may be sent away; None for the whole report.
        task: Kind of outcome; told from targets and predictions by default.
    """
    frame = read_predictions(table)
    tasks = {str(output): task or told_task(rows) for output, rows in frame.groupby("output")}
    title = table.name if home is None else "Predictions table"
    return _write(render_report, frame, ReportContext(title=title, tasks=tasks), path, home)


def _write(
    render: Callable[[pd.DataFrame, Context], str],
    predictions: pd.DataFrame,
    context: Context,
    path: Path,
    home: Path | None,
) -> Path:
    if home is not None:
        sharing = read_or_make_key(home)
        context = shared_context(context, sharing)
        write_codes(home, sharing, predictions)
    return write_page(render(predictions, context), path)


def _context_of(
    workplan: "Workplan",
    store: "Store",
    conclusion: "Conclusion",
    parent_run_id: str,
    findings: "Sequence[Finding] | None",
) -> CrossvalContext:
    from datamodules.facts import describe_cohorts
    from experiments.lock import LOCK, site_tags, times_scored
    from experiments.workplan import BASE

    study, data, lock = workplan.study, workplan.cli.datamodule, workplan.lock
    facts = describe_cohorts(data.cohorts)
    people = workplan.frame.drop_duplicates(PARTICIPANT)
    target = data.targets[0]
    mine = [parent_run_id, *(job.run_id for job in conclusion.jobs if job.run_id)]
    known = workplan.frame[workplan.frame[target].notna()].drop_duplicates(PARTICIPANT)
    cohort = {
        "tables": facts["tables"],
        "verified": data.verified,
        "participants": len(people),
        "images": len(workplan.frame),
        "sites": int(people["site"].nunique()),
        "without_target": len(people) - len(known),
    }
    return CrossvalContext(
        title=f"{study.name}: {study.protocol}",
        study=study.name,
        run_name=workplan.name,
        run_id=parent_run_id,
        settings={**{name: getattr(study, name) for name in SETTINGS}, **_tuning_facts(workplan)},
        arms=lock.arms,
        primary_metric=lock.primary_metric,
        gains=conclusion.primary or None,
        cells=cells_frame({"repeat": c.repeat, "fold": c.fold, "parts": c.split.parts} for c in workplan.cells),
        cohort=cohort,
        characteristics=_characteristics(workplan, known),
        subgroups=_subgroups(workplan, conclusion.held_out),
        lock=read_json(workplan.folder / LOCK),
        times_scored=1 + times_scored(store, site_tags(conclusion.held_out), but=mine),
        ledgers=_ledgers(store, conclusion.jobs, workplan.sources),
        findings=findings,
        published=published_values(study.name),
        config_yaml=hide_paths_yaml(redact_yaml((workplan.folder / BASE).read_text(encoding="utf-8"))),
        environment=environment_facts(),
        saliency=saliency_pictures(store, _explained_children(store, parent_run_id))
        if store.sends_images(parent_run_id)
        else [],
        phantom=bool(facts["phantom"]),
        unit=data.target_unit(target) if workplan.task == "regression" else None,
    )


def _tuning_facts(workplan: "Workplan") -> dict[str, Any]:
    """Return what a report says of the tuning."""
    if workplan.tuning is None:
        return {}
    return {"tuned": list(workplan.tuning.sweep.space), "effort": workplan.tuning.effort}


def _recorded_context(store: "Store", run_id: str, study: str, run_name: str) -> CrossvalContext:
    """Return what the run of a cross-validation recorded for its report, or what its other artifacts say."""
    record = _artifact(store, run_id, RECORD)
    if record is not None:
        context = CrossvalContext.from_json(read_json(record))
        return replace(context, created=datetime.now(UTC))
    documents = {name: _artifact(store, run_id, f"{name}.json") for name in ("lock", "folds", "conclusion")}
    found = {name: read_json(path) for name, path in documents.items() if path is not None}
    lock, gains = found.get("lock", {}), found.get("conclusion", {}).get("gains")
    environment, config = (_artifact(store, run_id, name) for name in ("environment.json", "config.yaml"))
    return CrossvalContext(
        title=f"{study}: {lock.get('protocol', 'cross-validation')}",
        study=study,
        run_name=run_name,
        run_id=run_id,
        settings={"num_seeds": lock["num_seeds"]} if "num_seeds" in lock else {},
        arms=lock.get("arms", {}),
        primary_metric=lock.get("primary_metric"),
        gains=[gain_from_json(one) for one in gains] if gains else None,
        cells=cells_frame(found["folds"]["cells"]) if "folds" in found else None,
        lock={**lock, "deviations": found.get("conclusion", {}).get("deviations", lock.get("deviations", []))},
        published=published_values(study),
        config_yaml=None if config is None else config.read_text(encoding="utf-8"),
        environment=None if environment is None else read_json(environment),
    )


def cells_frame(cells: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return how many participants of each site are in each part of every test set.

    Args:
        cells: `repeat`, `fold` and `parts` (part -> site -> participants), as `folds.json` lists them.
    """
    rows = [
        {"repeat": cell["repeat"], "fold": cell["fold"], "part": part, "site": site, "participants": len(keys)}
        for cell in cells
        for part, sites in cell["parts"].items()
        for site, keys in sites.items()
    ]
    return pd.DataFrame(rows, columns=["repeat", "fold", "part", "site", "participants"])


def _characteristics(workplan: "Workplan", people: pd.DataFrame) -> Table:
    data = workplan.cli.datamodule
    schema = data.cohorts[0].schema
    target = data.targets[0]
    covariates = [column for column in schema.of_role("covariate") if column.name in people]
    shown = [Characteristic(target, target, data.target_unit(target))]
    shown += [Characteristic(column.name, column.name.replace("_", " "), column.unit) for column in covariates]
    return characteristics_table(people, shown)


def _subgroups(workplan: "Workplan", held_out: pd.DataFrame) -> pd.DataFrame:
    covariates = [column.name for column in workplan.cli.datamodule.cohorts[0].schema.of_role("covariate")]
    rows = {str(name): own for name, own in held_out.groupby("arm", sort=True)}
    reference = "scratch" if "scratch" in rows else min(rows)
    arms = describe_arms(rows, workplan.lock.arms, reference, tuple(workplan.sources))
    chosen = [arm.name for arm in (arms[0], main_arm(arms)) if arm is not None]
    return subgroup_frame(
        held_out,
        workplan.frame.drop_duplicates(PARTICIPANT),
        [name for name in covariates if name in workplan.frame],
        list(dict.fromkeys(chosen)),
        metric=workplan.lock.primary_metric,
        task=workplan.task,
        num_replicates=SUBGROUP_REPLICATES,
    )


def _ledgers(store: "Store", jobs: "Sequence[Job]", sources: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the weight ledger of one run of each arm that starts from pretrained weights."""
    found: dict[str, dict[str, Any]] = {}
    for job in jobs:
        arm = share_of_labels(job.key.arm)[0]
        if arm in sources and arm not in found and job.run_id is not None:
            path = _artifact(store, job.run_id, "transfer.json")
            if path is not None:
                found[arm] = read_json(path)
    return found


def saliency_pictures(store: "Store", runs: Sequence[tuple[str, str]]) -> list[Picture]:
    """Return what reports show of the saliency maps of some runs.

    Args:
        store: Where the runs are.
        runs: MLflow's id and the name of each.
    """
    from experiments import saliency

    found = []
    for run_id, name in runs:
        own = store.folder(run_id) / saliency.FOLDER
        folder = own if (own / saliency.TABLE).is_file() else store.download(run_id, saliency.FOLDER)
        found += saliency.pictures(folder, name)
    return found


def _explained_children(store: "Store", run_id: str) -> list[tuple[str, str]]:
    found = store.children(run_id, SALIENCY_TAG, "true")
    return [(child.run_id, child.name) for child in sorted(found, key=lambda child: child.name)]


def _artifact(store: "Store", run_id: str, name: str) -> Path | None:
    """Return an artifact, None where the run has none of that name."""
    names = {str(item.path) for item in store.client.list_artifacts(run_id)}
    return store.download(run_id, name) if name in names else None


def _predictions(store: "Store", run_id: str) -> pd.DataFrame:
    table = _artifact(store, run_id, "predictions.parquet")
    if table is None:
        raise StoreError(f"Run {run_id} has no predictions to report. Make some: fontanel test {run_id}")
    return read_predictions(table)


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
