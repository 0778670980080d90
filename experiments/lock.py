"""The analysis lock: what was decided before the first test score, and what was changed afterwards.

`lock.json` in the folder of a cross-validation holds the primary metric, the protocol, and hashes of folds, table and
configuration. They make up its identity: another metric, protocol or configuration is another cross-validation, in a
folder of its own. Arms and seeds may be added later; that is recorded as a deviation, and the report prints it.
"""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from datamodules.cohort import participant_key
from experiments.runtime import ConfigurationError
from tracking.files import json_hash, read_json, write_json
from tracking.params import valid_name
from tracking.store import Store

LOCK = "lock.json"
TESTED = "tested/"  # tag of a run, by site: hash of the participants it has scored


@dataclass(frozen=True)
class AnalysisLock:
    """What was decided before the first test score.

    Args:
        study: Name of the study.
        protocol: Who trains for whom.
        primary_metric: The metric that decides.
        folds: Hash of all folds.
        config: Hash of the table and the configuration that all arms share.
        num_seeds: Trainings of every cell and arm.
        arms: Name -> what it changes.
        locked: When, in UTC.
        deviations: What was changed afterwards, each with its time.
    """

    study: str
    protocol: str
    primary_metric: str
    folds: str
    config: str
    num_seeds: int
    arms: Mapping[str, Mapping[str, Any]]
    locked: str = ""
    deviations: tuple[str, ...] = field(default=())

    @property
    def identity(self) -> str:
        """Hash of what must not change: study, protocol, primary metric, folds, table, configuration."""
        parts = (self.study, self.protocol, self.primary_metric, self.folds, self.config)
        return json_hash(parts)

    def after(self, folder: Path) -> "AnalysisLock":
        """Return the lock that is in a folder with what this one does beyond it, or this one where there is none.

        Raises:
            ConfigurationError: An arm is another one than it was when the first test was scored.
        """
        path = folder / LOCK
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return _read(path)._extended(self, now) if path.is_file() else replace(self, locked=now)

    def write(self, folder: Path) -> None:
        """Write the lock into a folder: from now on it holds."""
        write_json(folder / LOCK, {**asdict(self), "identity": self.identity})

    def _extended(self, other: "AnalysisLock", now: str) -> "AnalysisLock":
        changed = sorted(name for name in other.arms if name in self.arms and other.arms[name] != self.arms[name])
        if changed:
            raise ConfigurationError(
                f"The arm {', '.join(changed)} was another one when this analysis was locked ({self.locked}): "
                f"{self.arms[changed[0]]} then, {other.arms[changed[0]]} now. Give the new one another name, or lock "
                "another analysis (another --study)."
            )
        added = [name for name in other.arms if name not in self.arms]
        notes = [f"{now}: arm {name} added after the lock" for name in added]
        if other.num_seeds > self.num_seeds:
            notes.append(f"{now}: {other.num_seeds} seeds instead of {self.num_seeds}")
        return replace(
            self,
            num_seeds=max(self.num_seeds, other.num_seeds),
            arms={**self.arms, **{name: other.arms[name] for name in added}},
            deviations=(*self.deviations, *notes),
        )


def _read(path: Path) -> AnalysisLock:
    content = read_json(path)
    content.pop("identity")
    return AnalysisLock(**{**content, "deviations": tuple(content["deviations"])})


def site_tags(rows: pd.DataFrame) -> dict[str, str]:
    """Return the tags by which a store knows whom a run has scored: one per site, a hash of its participants.

    Args:
        rows: A predictions table; rows of `test` and `external` count.
    """
    scored = rows[rows["split"].isin(["test", "external"]) & rows["target"].notna()]
    return {
        valid_name(f"{TESTED}{site}"): participants_hash(map(participant_key, part["dataset"], part["participant_id"]))
        for site, part in scored.groupby("site", sort=True)
    }


def participants_hash(keys: Iterable[str]) -> str:
    """Return a hash of a set of participants."""
    return hashlib.sha256("\n".join(sorted(set(keys))).encode()).hexdigest()[:16]


def times_scored(store: Store, tags: Mapping[str, str], but: Sequence[str] = ()) -> int:
    """Return how many runs of a store have scored exactly these participants of one of the sites.

    Args:
        store: Where to look, in all of its studies.
        tags: What `site_tags` gave.
        but: Runs that do not count.
    """
    studies = [experiment.experiment_id for experiment in store.client.search_experiments(max_results=50_000)]
    runs = {
        run.info.run_id
        for name, value in tags.items()
        for run in store.client.search_runs(studies, f"tags.`{name}` = '{value}'", max_results=5_000)
    }
    return len(runs - set(but))
