"""The trials of a sweep as a queue that any number of workers on any number of machines share.

Trials that are to be done wait in Optuna's storage; a worker takes one, and nobody else gets the same. While it works,
it sets the trial's heartbeat again and again. A trial whose heart stands still, or whose process on this machine is
gone, has failed; it waits again, with the same arguments and the folder to go on from, twice at most.
"""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.runtime import ConfigurationError
from experiments.sweep_file import Sweep, make_pruner, make_sampler
from experiments.sweep_storage import SweepStorage

DEFINITION = "definition"  # attribute of a study: what everybody who joins must know
BUDGET = "budget"  # attribute of a study: its number of trials, and when it ends; both may grow
SLOT, ATTEMPT, CHOSEN, FOLDER, OWNER, BEAT, WHY = (
    *("slot", "attempt", "chosen", "folder", "owner", "beat", "why"),  # attributes of a trial
)
BEAT_INTERVAL = 20.0  # seconds between two signs of life
GRACE = 150.0  # seconds without one, after which a worker of another machine counts as dead
MAX_RETRIES = 2
OVER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass
class TrialQueue:
    """The trials of one sweep.

    Args:
        name: Name of the sweep.
        storage: Where they are kept.
        seed: Seed of the sampler.
    """

    name: str
    storage: SweepStorage
    seed: int = 0
    _hearts: dict[int, tuple[Any, float]] = field(default_factory=dict)

    @classmethod
    def create(cls, sweep: Sweep, storage: SweepStorage, definition: Mapping[str, Any], seed: int) -> "TrialQueue":
        """Make the study of a sweep, or return that which is there.

        Args:
            sweep: What is searched.
            storage: Where trials are kept.
            definition: What everybody who joins must know; JSON.
            seed: Seed of the sampler.

        Raises:
            ConfigurationError: The sweep of this name searches something else.
        """
        study = optuna.create_study(
            storage=storage.backend, study_name=sweep.name, directions=list(sweep.directions), load_if_exists=True
        )
        known = study.user_attrs.get(DEFINITION)
        if known is not None and known != dict(definition):
            raise ConfigurationError(
                f"The sweep {sweep.name} is there already, and is another one: {_difference(known, definition)}. Give "
                f"this one another name (--study), or go on with that one: fontanel sweep --join {sweep.name}."
            )
        study.set_user_attr(DEFINITION, dict(definition))
        return cls(sweep.name, storage, seed)

    @classmethod
    def join(cls, name: str, storage: SweepStorage) -> tuple["TrialQueue", dict[str, Any]]:
        """Return a sweep that somebody else has made, and its definition.

        Raises:
            ConfigurationError: There is none of this name.
        """
        known = optuna.get_all_study_names(storage.backend)
        if name not in known:
            shown = ", ".join(known) or "none"
            raise ConfigurationError(f"There is no sweep '{name}' in this storage. There are: {shown}.")
        definition = optuna.load_study(study_name=name, storage=storage.backend).user_attrs.get(DEFINITION)
        if definition is None:
            raise ConfigurationError(f"The study '{name}' was not made by a sweep of Fontanel.")
        return cls(name, storage, int(definition.get("seed", 0))), definition

    def study(self, sweep: Sweep | None = None, number: int = 0) -> optuna.Study:
        """Return the study as Optuna has it, with the sampler and the pruner of a sweep.

        Args:
            sweep: Names them.
            number: Number of the trial that is to be sampled: every trial has a seed of its own.
        """
        if sweep is None:
            return optuna.load_study(study_name=self.name, storage=self.storage.backend)
        sampler, pruner = make_sampler(sweep.sampler, self.seed + number), make_pruner(sweep.pruner)
        return optuna.load_study(study_name=self.name, storage=self.storage.backend, sampler=sampler, pruner=pruner)

    def fill(self, num_trials: int) -> None:
        """Let trials wait until there are so many, retries apart; none are taken away."""
        with self.storage.lock:
            self._fill(num_trials)

    def _fill(self, num_trials: int) -> None:
        study = self.study()
        slots = {trial.user_attrs[SLOT] for trial in study.get_trials(deepcopy=False) if SLOT in trial.user_attrs}
        for slot in range(num_trials):
            if slot not in slots:
                _add_waiting(study, slot)

    def set_budget(self, num_trials: int | None, max_hours: float | None) -> None:
        """Say for all workers how many trials there are in all, and how long from now trials are started."""
        until = None if max_hours is None else time.time() + 3600 * max_hours
        self.study().set_user_attr(BUDGET, {"num_trials": num_trials, "until": until})
        if num_trials is not None:
            self.fill(num_trials)

    def budget(self) -> tuple[int | None, float | None]:
        """Return how many trials there are in all, and for how many hours trials are started; None without end."""
        known = self.study().user_attrs.get(BUDGET, {"num_trials": None, "until": time.time()})
        until = known["until"]
        return known["num_trials"], None if until is None else max(0.0, until - time.time()) / 3600

    def extend(self) -> None:
        """Let one trial more wait."""
        with self.storage.lock:
            _add_waiting(self.study(), 1 + max((slot_of(trial) for trial in self.trials()), default=-1))

    def take(self, sweep: Sweep) -> Trial | None:
        """Take the next trial that waits; None where there is none."""
        for waiting in self.trials(TrialState.WAITING):
            trial_id = waiting._trial_id
            if not self._claim(trial_id):
                continue
            trial = Trial(self.study(sweep, waiting.number), trial_id)
            trial.set_user_attr(OWNER, myself())
            self.beat(trial)
            return trial
        return None

    def _claim(self, trial_id: int) -> bool:
        """Set a waiting trial to running; False where somebody else has."""
        with self.storage.lock:
            try:
                if self.storage.backend.get_trial(trial_id).state != TrialState.WAITING:
                    return False
                return self.storage.backend.set_trial_state_values(trial_id, state=TrialState.RUNNING)
            except UpdateFinishedTrialError:
                return False

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in some states, the oldest first; all by default."""
        return self.study().get_trials(deepcopy=False, states=states or None)

    @staticmethod
    def beat(trial: Trial) -> None:
        """Give a sign of life."""
        trial.set_user_attr(BEAT, time.time())

    def finish(self, number: int, values: Sequence[float] | None, state: TrialState, why: str = "") -> bool:
        """End a trial; False where somebody else has ended it."""
        study = self.study()
        try:
            with self.storage.lock:
                if why:
                    self.storage.backend.set_trial_user_attr(self._id(number), WHY, why)
                study.tell(number, values, state)
        except (UpdateFinishedTrialError, ValueError, RuntimeError):
            if self.state(number) in OVER:
                return False
            raise
        return True

    def retry(self, trial: FrozenTrial | Trial, why: str, *, counts: bool = True) -> None:
        """End a trial that came to nothing by no fault of its own, and let it wait again.

        Args:
            trial: The trial.
            why: What happened.
            counts: Whether this is one of its few attempts; not where the user has stopped it.
        """
        attributes = trial.user_attrs
        if not self.finish(trial.number, None, TrialState.FAIL, why):
            return
        attempt = int(attributes.get(ATTEMPT, 0)) + counts
        if attempt <= MAX_RETRIES:
            chosen = attributes.get(CHOSEN, {})  # its parameters, which may not all be in the storage yet
            kept = {SLOT: attributes[SLOT], ATTEMPT: attempt, CHOSEN: chosen, FOLDER: attributes.get(FOLDER)}
            if chosen:
                self.study().enqueue_trial(chosen, user_attrs=kept)
            else:
                _add_waiting(self.study(), attributes[SLOT], attempt)

    def reap(self, mine: Sequence[int] = ()) -> list[int]:
        """End the trials of workers that are gone, and let them wait again.

        Args:
            mine: Numbers of trials that this process works on.

        Returns:
            Numbers of the trials.
        """
        found = []
        for trial in self.trials(TrialState.RUNNING):
            if trial.number not in mine and self._is_dead(trial):
                self.retry(trial, "its worker is gone")
                found.append(trial.number)
        return found

    def _is_dead(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(OWNER, {})
        if owner.get("host") == socket.gethostname():
            return not _lives(owner)
        beat, now = trial.user_attrs.get(BEAT), time.monotonic()
        if self._hearts.get(trial.number, (None, 0.0))[0] != beat or trial.number not in self._hearts:
            self._hearts[trial.number] = (beat, now)  # clocks of machines differ; what counts is that it changes
        return now - self._hearts[trial.number][1] > GRACE

    def _id(self, number: int) -> int:
        study_id = self.storage.backend.get_study_id_from_name(self.name)
        return self.storage.backend.get_trial_id_from_study_id_trial_number(study_id, number)

    def state(self, number: int) -> TrialState:
        """Return the state of a trial."""
        return self.storage.backend.get_trial(self._id(number)).state


def _add_waiting(study: optuna.Study, slot: int, attempt: int = 0) -> None:
    """Let a trial wait whose arguments are sampled when it is taken; `enqueue_trial` would take none of a grid."""
    study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING, user_attrs={SLOT: slot, ATTEMPT: attempt}))


def slot_of(trial: FrozenTrial | Trial) -> int:
    """Return which of the asked trials this is; its retries have the same slot."""
    return int(trial.user_attrs.get(SLOT, trial.number))


def myself() -> dict[str, Any]:
    """Return what tells this process from all others, on any machine, at any time."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _lives(owner: Mapping[str, Any]) -> bool:
    return owner.get("started") is not None and _started(int(owner["pid"])) == owner["started"]


def _started(pid: int) -> str | None:
    """Return when a process of this machine was started, and since which boot; None where it is gone."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return None if facts[0] == "Z" else f"{boot} {facts[19]}"


def _difference(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    changed = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
    shown = (
        f"{name} was {json.dumps(known.get(name))[:200]} and is {json.dumps(wanted.get(name))[:200]}"
        for name in changed
    )
    return "; ".join(shown)
