"""Arms without a network: a regression on columns of the cohort table, such as lesion volume, clinic, or site.

It is fitted on the training participants of a cell, chooses its threshold on the validation participants, and predicts
the same test participants as every other arm: what images and pretraining add is only what goes beyond this.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from datamodules.base import BaseDataModule
from evaluation.operating_point import choose_threshold
from evaluation.parts import SCORED
from experiments.runtime import ConfigurationError, FontanelCLI
from lightning_modules.classification import ClassificationModule


def baseline_rows(cli: FontanelCLI, columns: Sequence[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Fit a regression on columns of the table and predict the validation and test participants.

    Numbers are imputed by the training median (with an indicator) and standardised; text is one-hot, and a value that
    training never saw counts as none of the known ones. Classes take a logistic regression, numbers a ridge.

    Args:
        cli: Configuration and datamodule of a cell; splits are assigned.
        columns: What it may use.

    Returns:
        Rows as a module's `take_predictions` gives them, and what the run records of the fit.

    Raises:
        ConfigurationError: No training participant has the target, or only one class of it.
    """
    data, target = cli.datamodule, cli.datamodule.targets[0]
    table = _table(data, target, columns)
    known = table[(table["split"] == "train") & table["target"].notna()]
    binary = isinstance(cli.model, ClassificationModule)
    if known.empty or (binary and known["target"].nunique() < 2):
        raise ConfigurationError(f"A baseline on {', '.join(columns)} has no training participants of both classes.")
    model = _pipeline(known, columns, LogisticRegression(max_iter=1000) if binary else Ridge())
    model.fit(known[list(columns)], known["target"].astype(int) if binary else known["target"])
    rows = table[table["split"].isin(SCORED)].reset_index(drop=True)
    inputs = rows[list(columns)]
    rows = rows.drop(columns=[name for name in columns if name != "site"])
    rows["output"], rows["baseline"] = target, known["target"].mean()
    facts: dict[str, Any] = {"columns": list(columns), "model": type(model[-1]).__name__, "num_training": len(known)}
    if not binary:
        rows["prediction"] = model.predict(inputs)
        return rows, facts
    scores = model.predict_proba(inputs)
    rows["prediction"], rows["score_0"], rows["score_1"] = scores[:, 1], scores[:, 0], scores[:, 1]
    chosen = rows[(rows["split"] == "val") & rows["target"].notna()]
    rows["threshold"] = choose_threshold(chosen["target"].to_numpy(), chosen["prediction"].to_numpy())
    rows["decision"] = (rows["prediction"] >= rows["threshold"]).astype(float)
    return rows, {**facts, "threshold": float(rows["threshold"].iloc[0])}


def _table(data: BaseDataModule, target: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return one row per sample: who it is, its split, its target and the columns."""
    table = data.frame(list(columns))
    table["split"] = [sample.split for sample in data.samples]
    table["target"] = [sample.targets[target] for sample in data.samples]
    return table


def _pipeline(known: pd.DataFrame, columns: Sequence[str], regression: LogisticRegression | Ridge) -> Pipeline:
    numbers = [name for name in columns if pd.api.types.is_numeric_dtype(known[name])]
    texts = [name for name in columns if name not in numbers]
    imputed = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    encoded = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    steps = [("numbers", imputed, numbers), ("texts", encoded, texts)]
    return make_pipeline(ColumnTransformer([step for step in steps if step[2]]), regression)
