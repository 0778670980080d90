"""What a report says beside the numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from evaluation.design import Design
from evaluation.disclosure import Sharing
from evaluation.estimate import NUM_REPLICATES, Estimate
from evaluation.gain import REFERENCE, Gain
from evaluation.leakage import Finding
from evaluation.paired import CorrectedT
from evaluation.report.page import Picture, Table

NOT_KEPT = ("saliency", "sharing")  # of the context of a cross-validation, when it is kept as JSON


@dataclass(frozen=True)
class ReportContext:
    """What the report of one run says beside the numbers.

    Args:
        title: Title of the page.
        question: What was to be found out, in one sentence.
        study: Name of the study.
        run_name: Name of the run.
        run_id: MLflow's id of the run.
        protocol: How participants were assigned to parts.
        cohort: Facts of the cohort (`cohort.json`): `tables`, `verified`, `counts` per split and site.
        split: The split (`folds.json`): `protocol`, `seed`, `hash`.
        config_yaml: The resolved configuration.
        environment: Versions and machine (`environment.json`).
        history: Columns `key`, `step`, `value`: the course of the training.
        published: Figures of the literature: `metric`, `value`, and `unit`, `cohort`, `source`, `doi` where known.
        saliency: Pictures of what the predictions rest on; a shared page has none.
        sharing: How the page names participants where it may leave the place where they are known.
        phantom: Whether the cohort is made by software.
        unit: Unit of the target; years for the output `age` by default.
        tasks: Output -> its kind; told from the columns by default.
        design: How the participants came to be studied; it matters to a binary outcome.
        num_replicates: Bootstrap replicates.
        seed: Seed of the bootstrap.
        created: When the report was written; now by default.
    """

    title: str
    question: str | None = None
    study: str | None = None
    run_name: str | None = None
    run_id: str | None = None
    protocol: str | None = None
    cohort: Mapping[str, Any] | None = None
    split: Mapping[str, Any] | None = None
    config_yaml: str | None = None
    environment: Mapping[str, Any] | None = None
    history: pd.DataFrame | None = None
    published: Sequence[Mapping[str, Any]] = ()
    saliency: Sequence[Picture] = ()
    sharing: Sharing | None = None
    phantom: bool = False
    unit: str | None = None
    tasks: Mapping[str, str] = field(default_factory=dict)
    design: Design = field(default_factory=Design)
    num_replicates: int = NUM_REPLICATES
    seed: int = 0
    created: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class CrossvalContext:
    """What the report of a cross-validation says beside the numbers; plain data only, so that it can be kept as JSON.

    Args:
        title: Title of the page.
        question: What was to be found out, in one sentence; made from arms and protocol by default.
        study: Name of the study.
        run_name: Name of the parent run.
        run_id: MLflow's id of the parent run.
        settings: What the study file says: `num_folds`, `num_repeats`, `num_seeds`, `num_inner_folds`, `val_fraction`,
            `match_train_size`, `max_train_per_site`, `label_fractions`; what is not known is left out.
        arms: Arm -> its definition in the lock: dotted arguments, `baseline` (columns), `seed_offset`.
        reference: The arm that gains are measured against.
        primary_metric: The metric that decides; that of the task by default.
        gains: Gains that were computed already, of the primary metric over all sites and at each; computed by default.
        cells: Columns `repeat`, `fold`, `part`, `site`, `participants`: who is in which part of each test set.
        cohort: Facts of the cohort: `tables`, `verified`, `participants`, `images`, `without_target`.
        characteristics: Participants by site, as `evaluation.report.participants.characteristics_table` gives them;
            outcome and site of the scored participants by default.
        subgroups: As `evaluation.cross_site.subgroups` gives them, with a column `arm`.
        lock: What was locked: `locked`, `identity`, `deviations`, `folds`, `config`.
        times_scored: Runs of the store, this one included, that have scored exactly these participants of a site.
        ledgers: Arm -> weight ledger (`transfer.json`) of one of its runs.
        findings: Of the leakage audit; None where there was none.
        published: Figures of the literature: `metric`, `value`, `protocol` (that of this study only is compared),
            `of` (`gain` for a gain over training from scratch), and `unit`, `cohort`, `source`, `doi` where known.
        config_yaml: The resolved configuration that all arms share.
        environment: Versions and machine (`environment.json`).
        saliency: Pictures of what the predictions of its runs rest on; not kept as JSON, and not shared.
        sharing: As above; not kept as JSON.
        phantom: Whether the cohort is made by software.
        unit: Unit of the target; years for the output `age` by default.
        design: How the participants came to be studied; it matters to a binary outcome.
        num_replicates: Bootstrap replicates of the primary metric; secondary ones take fewer, and say so.
        seed: Seed of the bootstrap.
        created: When the report was written; now by default.
    """

    title: str
    question: str | None = None
    study: str | None = None
    run_name: str | None = None
    run_id: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reference: str = REFERENCE
    primary_metric: str | None = None
    gains: Sequence[Gain] | None = None
    cells: pd.DataFrame | None = None
    cohort: Mapping[str, Any] | None = None
    characteristics: Table | None = None
    subgroups: pd.DataFrame | None = None
    lock: Mapping[str, Any] | None = None
    times_scored: int | None = None
    ledgers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    findings: Sequence[Finding] | None = None
    published: Sequence[Mapping[str, Any]] = ()
    config_yaml: str | None = None
    environment: Mapping[str, Any] | None = None
    saliency: Sequence[Picture] = ()
    sharing: Sharing | None = None
    phantom: bool = False
    unit: str | None = None
    design: Design = field(default_factory=Design)
    num_replicates: int = NUM_REPLICATES
    seed: int = 0
    created: datetime = field(default_factory=lambda: datetime.now(UTC))

    def as_json(self) -> dict[str, Any]:
        """Return JSON types, from which `from_json` makes the same context, pictures apart."""
        content = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in NOT_KEPT}
        content["created"] = self.created.isoformat()
        content["design"] = asdict(self.design)
        for name in ("cells", "subgroups"):
            frame = content[name]
            content[name] = None if frame is None else _plain(frame.astype(object).to_dict("list"))
        content["characteristics"] = None if self.characteristics is None else asdict(self.characteristics)
        for name in ("gains", "findings"):
            listed = getattr(self, name)
            content[name] = None if listed is None else [one.as_dict() for one in listed]
        plain: dict[str, Any] = _plain(content)
        return plain

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "CrossvalContext":
        """Return the context that `as_json` was taken from."""
        known = {item.name for item in fields(cls)}
        values = {name: value for name, value in content.items() if name in known}
        values["created"] = datetime.fromisoformat(values["created"])
        values["design"] = Design(**values["design"])
        for name in ("cells", "subgroups"):
            if values[name] is not None:
                values[name] = pd.DataFrame(values[name])
        if values["characteristics"] is not None:
            values["characteristics"] = Table(**values["characteristics"])
        if values["gains"] is not None:
            values["gains"] = [gain_from_json(one) for one in values["gains"]]
        if values["findings"] is not None:
            values["findings"] = [Finding.from_dict(one) for one in values["findings"]]
        return cls(**values)


def gain_from_json(content: Mapping[str, Any]) -> Gain:
    """Return the gain that `Gain.as_dict` was taken from; a null becomes NaN again."""
    values = {item.name: content[item.name] for item in fields(Gain)}
    for name in ("p_value", "p_holm", "spread", "reference_spread", "detectable"):
        values[name] = _number(values[name])
    for name in ("value", "reference_value", "gain"):
        one = values[name]
        values[name] = Estimate(_number(one["estimate"]), one["low"], one["high"])
    values |= {"sites": tuple(values["sites"]), "left_out": tuple(values["left_out"])}
    if values["corrected_t"] is not None:
        test = {name: _number(one) for name, one in values["corrected_t"].items()}
        values["corrected_t"] = CorrectedT(**{**test, "degrees": int(test["degrees"])})  # type: ignore[arg-type]
    return Gain(**values)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Turn mappings, sequences and numbers of NumPy into JSON types; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
