"""The model card of a pack: what the run knows of its model, in words, and in counts that name nobody."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from evaluation.assessment import Assessment, assess
from evaluation.predictions import PredictionsError, read_predictions
from evaluation.tasks import metrics_of, task_of
from evaluation.wording import count_text, join_words
from experiments.pack_check import input_lines, output_lines
from experiments.pack_contents import FEW, Packed
from lightning_modules.base import BaseModule
from tracking.environment import environment_facts
from tracking.errors import StoreError
from tracking.packs import MODEL, PackError
from tracking.store import Store

if TYPE_CHECKING:
    from evaluation.estimate import Estimate

PARTS = {
    "train": "training",
    "val": "validation (chose the weights)",
    "test": "test (held-out participants of the training sites)",
    "external": "external (held-out sites)",
}
SHOWN = {
    "binary": ("auroc", "auprc", "sensitivity", "specificity", "brier"),
    "regression": ("mae", "rmse", "pearson_r", "mean_bias"),
}
VERSIONS = ("python", "packages", "threads")  # of the environment: nothing that tells one machine from another


@dataclass(frozen=True)
class RunFiles:
    """What a run has left beside its checkpoint, or in the store.

    Args:
        checkpoint: The checkpoint.
        run_id: The run.
        store: Where its artifacts are.
    """

    checkpoint: Path
    run_id: str
    store: Store

    def find(self, name: str) -> Path | None:
        """Return a file of the run, None where there is none to be had."""
        beside = self.checkpoint.absolute().parent.parent / name
        if beside.is_file():
            return beside
        try:
            return self.store.download(self.run_id, name)
        except StoreError:
            return None  # a checkpoint may be of a run that this store does not have

    def record(self, name: str) -> dict[str, Any] | None:
        """Return a JSON document of the run."""
        path = self.find(name)
        return None if path is None else dict(json.loads(path.read_text(encoding="utf-8")))

    def description(self) -> dict[str, Any]:
        """Return the run's `model.json`."""
        found = self.record("model/model.json")
        if found is None:
            raise PackError(
                f"{self.checkpoint} has no model/model.json beside its folder, nor is its run {self.run_id} in the "
                "store, so nobody knows units and threshold. Name the run, with the --output-dir it is in."
            )
        return found

    def environment(self) -> bytes:
        """Return the versions that the run was computed with, as JSON."""
        facts = self.record("environment.json") or environment_facts()
        kept = {name: facts.get(name) for name in VERSIONS}
        machine = {name: (facts.get("platform") or {}).get(name) for name in ("system", "machine")}
        return f"{json.dumps({**kept, 'platform': machine}, indent=1)}\n".encode()


def card(name: str, licence: str, packed: Packed, model: BaseModule, files: RunFiles) -> str:
    """Return the model card as Markdown.

    Args:
        name: What the model is called.
        licence: Name of its licence.
        packed: What the pack holds.
        model: The model, loaded.
        files: What the run has left.
    """
    facts = json.loads(packed.members[MODEL])
    cohort = files.record("cohort.json")
    sections = {
        "Intended use": _intended_use(cohort),
        "Model": _model_lines(facts, packed, model),
        "Input": input_lines(facts["input"]),
        "Output": output_lines(facts["outputs"]),
        "Training data": _cohort_lines(cohort, packed),
        "Performance": _performance(files),
        "Limits": _limits(cohort, facts),
        "Licence": [f"{licence[0].upper()}{licence[1:]}."],
        "Citation": [
            'The Fontanel developers. "Fontanel: transfer learning for clinical neuroimaging, tracked, and proven '
            'across sites." Software, Apache-2.0. Cite the work that trained this model too; its authors are to name '
            "it here."
        ],
    }
    lines = [f"# {name}", "", _summary(facts, cohort)]
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def _summary(facts: Mapping[str, Any], cohort: Mapping[str, Any] | None) -> str:
    kinds = {"binary": "the probability of "}
    outputs = [f"{kinds.get(value['kind'], '')}{key}" for key, value in facts["outputs"].items()]
    text = f"Predicts {join_words(outputs)} from {join_words(facts['input']['channels'])}. Not a medical device."
    if cohort is not None and cohort.get("phantom"):
        text += " Trained on a phantom: its images and outcomes were made by a program, and it knows nothing of people."
    return text


def _intended_use(cohort: Mapping[str, Any] | None) -> list[str]:
    text = "Research: external validation, and comparison with other models, on images like those it was trained on."
    if cohort is not None and cohort.get("phantom"):
        text = "Tests of software and of statistics. It was trained on a phantom: no use on people makes sense."
    return [text, "", "It is not a medical device, and must not be used for the diagnosis or treatment of anybody."]


def _model_lines(facts: Mapping[str, Any], packed: Packed, model: BaseModule) -> list[str]:
    network = yaml.safe_load(packed.contract.config)["model"]["init_args"].get("network") or {}
    arguments = ", ".join(f"{key} {value}" for key, value in (network.get("init_args") or {}).items())
    count = sum(value.numel() for value in model.parameters())
    return [
        f"- task: {facts['model']}",
        f"- network: {network.get('class_path', 'unknown')} ({arguments})",
        f"- parameters: {count:,}",
        f"- sha256 of the weights: {facts['weights']['sha256']}",
    ]


def _cohort_lines(cohort: Mapping[str, Any] | None, packed: Packed) -> list[str]:
    """Return a table of counts by split; fewer than `FEW` people are never counted."""
    if cohort is None:
        return ["The run has left no record of its cohort."]
    lines = ["The cohort was a phantom: made by a program, no people.", ""] if cohort.get("phantom") else []
    lines += ["| part | participants | images | sites |", "|---|---|---|---|"]
    for part, label in PARTS.items():
        counts = [count for count in cohort["counts"] if count["split"] == part]
        people = sum(count["participants"] for count in counts)
        if people:
            images = sum(count["images"] for count in counts)
            numbers = [f"fewer than {FEW}"] * 2 if people < FEW else [str(people), str(images)]
            lines.append(f"| {label} | {' | '.join(numbers)} | {len(counts)} |")
    hashes = len(packed.contract.training_images)
    said = f"The pack holds the sha256 of {hashes} image files that were seen in training, and nothing else of them."
    return [*lines, "", said if hashes else "The pack holds nothing of the images that were seen in training."]


def _performance(files: RunFiles) -> list[str]:
    """Return the metrics of the run's held-out predictions, with intervals."""
    path = files.find("predictions.parquet")
    if path is None:
        return ["The run has no test results here (`fontanel test` makes them)."]
    frame = read_predictions(path)
    lines: list[str] = []
    for part in ("test", "external"):
        for output, rows in frame[frame["split"] == part].groupby("output"):
            lines += [f"{PARTS[part].capitalize()}, {output}:", "", *_metric_lines(rows), ""]
    return lines[:-1] or ["The run has predictions of nobody who was held out."]


def _metric_lines(rows: pd.DataFrame) -> list[str]:
    task = task_of(rows)
    try:
        assessment = assess(rows, task)
    except PredictionsError as error:
        return [f"no metrics: {error.problems[0]}"]
    if _is_small(assessment):
        return [f"no metrics: they would rest on fewer than {FEW} participants, or on fewer than {FEW} of one class"]
    labels = metrics_of(task)
    lines = [f"{count_text(assessment.num_participants, 'participant')}. 95 % intervals over participants.", ""]
    lines += ["| metric | estimate | interval |", "|---|---|---|"]
    for name in SHOWN[task]:
        value = assessment.metrics[name]
        unit = f" ({assessment.unit})" if labels[name].in_unit and assessment.unit else ""
        lines.append(f"| {labels[name].label}{unit} | {_number(value)} | {_interval(value)} |")
    return lines


def _is_small(assessment: Assessment) -> bool:
    people = assessment.rows.drop_duplicates("participant")
    groups = people.groupby("target").size() if assessment.task == "binary" else pd.Series([len(people)])
    return bool(groups.min() < FEW) or (assessment.task == "binary" and len(groups) < 2)


def _number(value: "Estimate") -> str:
    return f"{value.estimate:.3f}" if value.defined else "undefined"


def _interval(value: "Estimate") -> str:
    return "" if value.low is None or value.high is None else f"{value.low:.3f} to {value.high:.3f}"


def _limits(cohort: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> list[str]:
    lines = [
        "- Scanners, sequences, ages and diseases that its training lacked are unknown to it, and it does not say so.",
        "- A threshold and a temperature fit the share of outcomes in the training; elsewhere they need to be checked.",
        "- It was measured on the cohort above only. Measure it on your own participants before you believe it.",
    ]
    if any(output.get("small") for output in facts["outputs"].values()):
        lines.append("- Threshold and temperature were chosen from few validation participants, and are mostly noise.")
    if cohort is not None and cohort.get("permuted_targets"):
        lines.insert(0, "- It was trained on shuffled targets, as a control: its predictions mean nothing.")
    return lines
