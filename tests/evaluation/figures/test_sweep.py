"""The figures of a sweep show every trial, the best so far, and what was chosen."""

import numpy as np
import pandas as pd
import pytest

from evaluation.figures.sweep import history, importances, parallel_coordinates


@pytest.fixture
def trials():
    generator = np.random.default_rng(4)
    rate = 10 ** generator.uniform(-4, -2, 24)
    value = 0.5 + 0.1 * np.abs(np.log10(rate) + 3) + generator.normal(0, 0.02, 24)
    table = pd.DataFrame({"trial": np.arange(24), "value": value, "state": "complete", "model.optimizer.lr": rate})
    table["model.network.width"] = generator.choice([8, 16, 32], 24)
    table["model.transfer.strategy"] = generator.choice(["full", "discriminative", "l2-sp"], 24)
    encoder = np.where(table["model.transfer.strategy"] == "discriminative", generator.uniform(0, 1, 24), np.nan)
    table["model.transfer.encoder_rate"] = encoder
    table.loc[[5, 11], "state"] = "pruned"
    table.loc[7, ["state", "value"]] = ["fail", np.nan]
    return table


ARGUMENTS = ["model.optimizer.lr", "model.network.width", "model.transfer.strategy", "model.transfer.encoder_rate"]


@pytest.mark.parametrize("maximize", [False, True])
def test_the_best_so_far_only_gets_better_and_pruned_trials_do_not_count(trials, maximize):
    (axes,) = history(trials, metric="val/loss", maximize=maximize).axes
    best = axes.lines[0].get_ydata()
    assert (np.diff(best) >= 0).all() if maximize else (np.diff(best) <= 0).all()
    done = trials[trials["state"] == "complete"]["value"]
    assert best[-1] == (done.max() if maximize else done.min())
    assert [len(points.get_offsets()) for points in axes.collections] == [21, 2]


def test_every_trial_is_a_line_and_what_it_had_not_chosen_is_left_out(trials):
    done = trials[trials["state"] == "complete"]
    figure = parallel_coordinates(done, ARGUMENTS, metric="val/loss", maximize=False)
    axes = figure.axes[0]
    lines = [path.vertices for path in axes.collections[0].get_paths()]
    assert len(lines) == 21
    assert {len(line) for line in lines} == {3, 4}
    assert all(((line[:, 1] >= 0) & (line[:, 1] <= 1)).all() for line in lines)
    shown = {text.get_text() for text in axes.texts}
    assert {"full", "discriminative", "l2-sp", "8", "16", "32"} <= shown
    assert len(parallel_coordinates(done.head(1), ARGUMENTS, metric="val/loss", maximize=True).axes) == 2


def test_importances_stand_in_order():
    (axes,) = importances({"model.optimizer.lr": 0.7, "model.network.width": 0.2, "seed": 0.1}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "seed",
        "model.network.width",
        "model.optimizer.lr",
    ]
    assert [bar.get_width() for bar in axes.patches] == [0.1, 0.2, 0.7]
