"""Reports of runs and cross-validations, from a store that is a folder of files."""

import base64
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from datamodules.cohort import Cohort
from datamodules.protocols import Cell
from datamodules.schema import Column, Schema
from datamodules.splits import Split
from evaluation.gain import gains
from evaluation.leakage import Finding
from evaluation.predictions import write_predictions
from experiments.cli import main
from experiments.jobs import Job
from experiments.lock import AnalysisLock
from experiments.reporting import RECORD, write_crossval_report, write_run_report
from experiments.sharing import read_or_make_key
from experiments.study import Arm, Study
from experiments.training import RunKey
from tracking.errors import StoreError

PARENT = "a" * 32


class Folder:
    """What a report asks of a store, kept in a folder."""

    def __init__(self, root):
        self.root = root
        self.client = self

    def path(self, run_id):
        folder = self.root / run_id
        folder.mkdir(exist_ok=True)
        return folder

    def download(self, run_id, name):
        return self.path(run_id) / name

    def log_artifact(self, run_id, path):
        (self.path(run_id) / path.name).write_bytes(path.read_bytes())

    def folder(self, run_id):
        return self.root / "runs" / run_id

    def sends_images(self, run_id):
        return True

    def list_artifacts(self, run_id):
        return [SimpleNamespace(path=path.name) for path in self.path(run_id).iterdir()]

    def get_run(self, run_id):
        info = SimpleNamespace(run_id=run_id, run_name="crossval-cross-site-1", experiment_id="0")
        return SimpleNamespace(info=info, data=SimpleNamespace(tags={"kind": "crossval"}))

    def get_experiment(self, experiment_id):
        return SimpleNamespace(name="age2hie/phantom_crossval")

    def children(self, run_id, tag, value):
        return []

    def search_experiments(self, max_results):
        return []

    def search_runs(self, studies, clause, max_results):
        return [self.get_run("earlier")]


@pytest.fixture
def store(tmp_path):
    (tmp_path / "store").mkdir()
    return Folder(tmp_path / "store")


@pytest.fixture
def cohort():
    generator = np.random.default_rng(5)
    number = np.arange(60)
    return pd.DataFrame(
        {
            "dataset": "newborns",
            "participant_id": [f"p{one:02d}" for one in number],
            "session_id": "",
            "site": np.where(number < 30, "A", "B"),
            "outcome": np.where(number == 59, np.nan, number % 2),
            "birth_weight": generator.normal(3200, 400, 60),
            "hidden": number * 1.0,
        }
    )


@pytest.fixture
def held_out(cohort):
    generator = np.random.default_rng(6)
    known = cohort[cohort["outcome"].notna()]
    tables = []
    for arm, strength in (("scratch", 1.0), ("pretrained", 1.5)):
        for seed in range(2):
            score = 1 / (1 + np.exp(-strength * (known["outcome"] - 0.5) - generator.normal(size=len(known))))
            rows = known[["dataset", "participant_id", "site"]].assign(target=known["outcome"], prediction=score)
            tables.append(rows.assign(arm=arm, seed=seed, score_1=score, threshold=0.5))
    table = pd.concat(tables, ignore_index=True)
    other = table["site"].map({"A": "B", "B": "A"})
    return table.assign(
        protocol="cross-site", repeat=0, split="external", fold=table["site"], train_sites=other, output="outcome"
    )


@pytest.fixture
def campaign(tmp_path, store, cohort, held_out):
    """A finished cross-validation: its workplan and its conclusion."""
    folder = tmp_path / "crossval"
    folder.mkdir()
    columns = (
        Column("participant_id", "id", "text"),
        Column("outcome", "target", "number", required=False),
        Column("birth_weight", "covariate", "number", "g"),
        Column("hidden", "truth", "number"),
    )
    table = tmp_path / "cohort.tsv"
    table.write_text("participant_id\n", encoding="utf-8")
    read = Cohort(table, tmp_path, Schema(columns), cohort, "newborns")
    data = SimpleNamespace(cohorts=[read], targets=["outcome"], verified=True, target_unit=lambda name: None)
    arms = (Arm("scratch"), Arm("pretrained", {"model.transfer.source": "RUN"}))
    study = Study("age2hie/phantom_crossval", folder / "base.yaml", "cross-site", arms, num_seeds=2)
    lock = AnalysisLock(
        study.name, study.protocol, "auroc", "f", "c", 2, {arm.name: arm.definition() for arm in arms}
    ).after(folder)
    lock.write(folder)
    keys = {site: tuple("newborns/" + own["participant_id"]) for site, own in cohort.groupby("site")}
    cells = [
        Cell(0, one, Split("cross-site", 0, {"train": {two: keys[two]}, "external": {one: keys[one]}}))
        for one, two in (("A", "B"), ("B", "A"))
    ]
    (folder / "base.yaml").write_text("model: {width: 16}\napi_key: abc\n", encoding="utf-8")
    jobs = [
        Job(study.name, (), folder / "jobs" / f"{arm}-{site}", {}, RunKey(arm, "cross-site", 0, site, 0))
        for arm in ("scratch", "pretrained")
        for site in "AB"
    ]
    for number, job in enumerate(jobs):
        job.folder.mkdir(parents=True)
        (job.folder / "run.json").write_text(json.dumps({"run_id": f"{number}" * 32}), encoding="utf-8")
    ledger = {"source": {"file": "best.ckpt", "kind": "run", "run_id": "9" * 32}, "options": {}, "share": 0.995}
    (store.path("2" * 32) / "transfer.json").write_text(json.dumps(ledger), encoding="utf-8")
    workplan = SimpleNamespace(
        tuning=None,
        study=study,
        task="binary",
        folder=folder,
        lock=lock,
        cells=cells,
        cli=SimpleNamespace(datamodule=data),
        frame=cohort,
        sources={"pretrained": {"path": "best.ckpt"}},
        name="crossval-cross-site-1",
    )
    return workplan, SimpleNamespace(held_out=held_out, primary=gains(held_out, num_replicates=50), jobs=jobs)


def test_report_of_a_cross_validation_says_what_was_planned_and_found(campaign, store, tmp_path):
    workplan, conclusion = campaign
    findings = [Finding("site and label", "ok", "Cramer's V 0.02.")]
    path = write_crossval_report(workplan, store, conclusion, PARENT, tmp_path / "out" / "report.html", findings)
    page = path.read_text(encoding="utf-8")
    for words in (
        *("On phantom data: pretraining changed the AUROC", "60 participants", "outcome not known: 1"),
        *("Birth weight (g), mean (SD)", ">Birth weight<", "trained on 30", "These participants, by 2 runs"),
        *("99.5 %", "Cramer&#39;s V 0.02.", "model:", workplan.lock.identity[:12]),
    ):
        assert words in page, words
    assert "hidden" not in page.lower().replace("aria-hidden", "")
    assert "abc" not in page.partition("Configuration")[2].partition("Provenance")[0]
    record = (path.parent / RECORD).read_text(encoding="utf-8")
    assert "p01" not in record


def test_report_is_written_again_from_the_run_alone_also_to_be_shared(campaign, store, tmp_path):
    workplan, conclusion = campaign
    lost = [Finding("twins", "leak", "p07 is p08.", {}, "Look at it.")]
    path = write_crossval_report(workplan, store, conclusion, PARENT, tmp_path / "report.html", lost)
    write_predictions(conclusion.held_out, store.path(PARENT) / "predictions.parquet")
    again = write_run_report(store, PARENT, tmp_path / "again.html").read_text(encoding="utf-8")

    def undated(page):
        return [line for line in page.splitlines() if "<time" not in line]

    assert undated(again) == undated(path.read_text(encoding="utf-8"))
    people = [f"Ann-Example-{one}" for one in conclusion.held_out["participant_id"]]
    write_predictions(conclusion.held_out.assign(participant_id=people), store.path(PARENT) / "predictions.parquet")
    page = write_run_report(store, PARENT, tmp_path / "shared.html", tmp_path / "sharing").read_text(encoding="utf-8")
    drawn = [base64.b64decode(one).decode() for one in re.findall(r"svg\+xml;base64,([\w+/=]+)", page)]
    assert drawn
    assert [word for text in (page, *drawn) for word in ("Ann-Example", "p07", "60 participants") if word in text] == []
    assert "59 participants" in page
    assert "outcome not known: &lt;5" in page


@pytest.mark.parametrize(
    ("more", "names"),
    [([], "Area under the ROC curve"), (["--task", "regression"], "Mean absolute error")],
    ids=["told", "said"],
)
def test_the_task_of_a_table_of_other_software_is_told_or_said(tmp_path, more, names):
    frame = pd.DataFrame({"participant_id": [f"sub-{i}" for i in range(20)], "target": [0, 1] * 10})
    frame.assign(prediction=np.linspace(0.1, 0.9, 20)).to_csv(tmp_path / "theirs.csv", index=False)
    assert main(["report", str(tmp_path / "theirs.csv"), *more]) == 0
    page = (tmp_path / "theirs.report.html").read_text(encoding="utf-8")
    metrics = ("Area under the ROC curve", "Mean absolute error")
    assert [name for name in metrics if name in page] == [names]


def test_a_key_is_kept_and_a_broken_one_is_refused(tmp_path):
    first = read_or_make_key(tmp_path / "sharing")
    assert read_or_make_key(tmp_path / "sharing") == first
    assert read_or_make_key(tmp_path / "other").key != first.key
    (tmp_path / "sharing" / "key").write_bytes(b"short")
    with pytest.raises(StoreError, match="is no key: it has 5 bytes"):
        read_or_make_key(tmp_path / "sharing")


def test_report_is_written_from_lock_folds_and_conclusion_where_no_record_was_kept(campaign, store, tmp_path):
    workplan, conclusion = campaign
    folder = store.path(PARENT)
    with pytest.raises(StoreError, match="no predictions"):
        write_run_report(store, PARENT, tmp_path / "report.html")
    write_predictions(conclusion.held_out, folder / "predictions.parquet")
    (folder / "lock.json").write_bytes((workplan.folder / "lock.json").read_bytes())
    cells = [{"repeat": cell.repeat, "fold": cell.fold, **cell.split.as_dict()} for cell in workplan.cells]
    (folder / "folds.json").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    given = [replace(gain, p_holm=0.1234) for gain in conclusion.primary]
    document = {"gains": [gain.as_dict() for gain in given], "deviations": ["arm X added"]}
    (folder / "conclusion.json").write_text(json.dumps(document), encoding="utf-8")
    page = write_run_report(store, PARENT, tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("trained on 30", "arm X added", "0.123", workplan.lock.locked, "network from random initial weights"):
        assert words in page, words
