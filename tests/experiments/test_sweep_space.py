"""What a sweep searches: ranges, choices, conditions, and every way of writing them wrongly."""

from pathlib import Path

import optuna
import pytest
import yaml

from experiments.runtime import ConfigurationError
from experiments.sweep_file import Sweep, make_pruner, make_sampler, read_sweep
from experiments.sweep_space import Space

FIT = Path(__file__).parent.parent / "conf" / "outcome_classification.yaml"
TEXT = """
a: {low: 1e-5, high: 1e-2, log: true}
b: {choices: [plain, [1, 2], null]}
c: {low: 2, high: 10, step: 4}
d: {low: 0.5, high: 1.5, when: {b: plain}}
e: {choices: [x, y], when: {b: [plain, null], c: 2}}
"""


def test_values_lie_where_they_should_and_conditions_hold():
    space = Space.read(yaml.safe_load(TEXT))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = []
    for _ in range(60):
        trial = study.ask()
        chosen = space.suggest(trial)
        assert list(trial.params) == list(chosen)
        assert 1e-5 <= chosen["a"] <= 1e-2
        assert chosen["b"] in ("plain", [1, 2], None)
        assert chosen["c"] in (2, 6, 10)
        assert isinstance(chosen["c"], int)
        assert ("d" in chosen) == (chosen["b"] == "plain")
        assert ("e" in chosen) == (chosen["b"] in ("plain", None) and chosen["c"] == 2)
        seen.append(chosen)
    assert sum(one["a"] < 10**-3.5 for one in seen) > 15, "the logarithm is uniform"
    assert {str(one["b"]) for one in seen} == {"plain", "[1, 2]", "None"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"a": {"low": 2, "high": 1}}, "does not rise"),
        ({"a": {"low": 0, "high": 1, "log": True}}, "above 0"),
        ({"a": {"low": 1, "hihg": 2}}, "Did you mean 'high'"),
        ({"a": {"low": "one", "high": 2}}, "no number low: 'one'"),
        ({"a": {"low": 1}}, "no number high"),
        ({"a": {"choices": ["x"]}}, "two or more"),
        ({"a": {"choices": ["x", "y"], "log": True}}, "neither range"),
        ({"a": {"low": 1, "high": 2, "step": -1}}, "not above 0"),
        ({"a": 3}, "is neither"),
        ({"a": {"low": 1, "high": 2, "when": {"b": 1}}}, "does not stand before it"),
        ({"a": {"choices": ["x", "y"]}, "b": {"low": 1, "high": 2, "when": {"a": "z"}}}, "a value that a never has: z"),
        ({}, "names no argument"),
    ],
)
def test_a_space_that_is_wrong_is_refused(entry, said):
    with pytest.raises(ConfigurationError, match=said):
        Space.read(entry)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"model.optimizer.lrr": {"low": 0.1, "high": 1.0}}, "no argument 'model.optimizer.lrr'. Did you mean"),
        ({"model.optimizer.init_args.lr": {"low": 1e-3, "high": 1.0}}, None),
        (
            {"model.network.dropout": {"low": 0.1, "high": 0.9}, "model.class_weighting": {"choices": ["none", "x"]}},
            "x",
        ),
    ],
)
def test_arguments_that_no_configuration_takes_are_refused_before_any_trial(space, said):
    words = ["--config", str(FIT)]
    if said is None:
        Space.read(space).require_arguments(words)
        return
    with pytest.raises(ConfigurationError, match=said):
        Space.read(space).require_arguments(words)


def sweep_file(folder, **changes):
    content = {
        "base": str(FIT),
        "metric": "val/loss",
        "space": {"model.optimizer.lr": {"low": 1e-3, "high": 1}},
        **changes,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in content.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampler": "TPESampel"}, "Did you mean 'TPESampler'"),
        ({"sampler": {"class_path": "TPESampler", "init_args": {"n_startup": 3}}}, "Did you mean 'n_startup_trials'"),
        ({"pruner": {"class_path": "MedianPruner", "init_args": {"n_startup_trials": -3}}}, "does not take"),
        ({"metrik": "x"}, "Did you mean 'metric'"),
        ({"metric": None}, "optimises nothing"),
        ({"metric": "val/something"}, "direction: maximize"),
        ({"direction": ["minimize", "maximize"]}, "1 metrics and 2 directions"),
        ({"direction": "minimise"}, "Did you mean 'minimize'"),
        ({"metric": ["val/loss", "val/auroc"], "pruner": "MedianPruner"}, "cannot prune"),
        ({"num_trials": 0}, "at least"),
        ({"base": "nowhere.yaml"}, "Mend `base`"),
        ({"space": None}, "it needs `base`, `space` and `metric`"),
    ],
)
def test_a_sweep_file_that_is_wrong_is_refused(changes, said, tmp_path):
    with pytest.raises(ConfigurationError, match=said):
        read_sweep(sweep_file(tmp_path, **changes))


def test_what_a_sweep_file_leaves_out_is_known(tmp_path):
    sweep = read_sweep(sweep_file(tmp_path, metric=["val/loss", "val/auroc"]))
    assert sweep.name == f"{tmp_path.name}/sweep"
    assert sweep.directions == ("minimize", "maximize")
    assert Sweep.from_json(sweep.as_json()) == sweep
    first, second = (make_sampler(sweep.sampler, seed) for seed in (1, 2))
    assert isinstance(first, optuna.samplers.TPESampler)
    assert first._rng.rng.random() != second._rng.rng.random()
    assert isinstance(make_pruner(None), optuna.pruners.NopPruner)
    pruner = make_pruner({"class_path": "optuna.pruners.WilcoxonPruner", "init_args": {"p_threshold": 0.2}})
    assert pruner._p_threshold == 0.2
