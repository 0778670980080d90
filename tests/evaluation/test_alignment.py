import numpy as np
import pandas as pd
import pytest

from evaluation.alignment import aligned, share_runs
from evaluation.predictions import PredictionsError, normalise_predictions, scored_rows


def rows_of(runs=((0, 0), (0, 1)), dataset="d", session_id=""):
    """Scored rows of 12 participants at two sites."""
    frame = pd.DataFrame({"participant_id": [f"p{number:02}" for number in range(12)], "target": np.arange(12.0)})
    frame = frame.assign(site=["A", "B"] * 6, output="age", split="test", prediction=1.0)
    frame = frame.assign(dataset=dataset, session_id=session_id)
    frames = [frame.assign(repeat=repeat, seed=seed) for repeat, seed in runs]
    return scored_rows(normalise_predictions(pd.concat(frames, ignore_index=True)))


def refusal(a, b):
    with pytest.raises(PredictionsError) as caught:
        aligned(a, b)
    return str(caught.value)


def test_equal_sides_pass_and_share_their_runs():
    a, b = aligned(rows_of(), rows_of().sample(frac=1, random_state=0))
    assert share_runs(a, b)
    assert not share_runs(a, aligned(a, rows_of([(0, 0), (0, 2)]))[1])


def test_participants_of_one_side_are_named_and_counted():
    a = rows_of()
    text = refusal(a[a["participant_id"] != "p03"], a[~a["participant_id"].isin([f"p{n:02}" for n in range(4, 12)])])
    assert "scored participants differ: 8 in A alone ('d/p04', 'd/p05'" in text
    assert "1 in B alone ('d/p03'); 3 are in both" in text
    assert "1 in A alone ('p00')" in refusal(
        rows_of(dataset=""), rows_of(dataset="")[lambda b: b["participant_id"] != "p00"]
    )


def test_sessions_of_one_side_are_named():
    a, b = rows_of(session_id="1"), rows_of(session_id="2")
    assert "scored sessions differ: 12 in A alone ('d/p00/1'" in refusal(a, b)


@pytest.mark.parametrize("column", ["output", "split"])
def test_other_outputs_and_splits_are_refused_and_unnamed_ones_pass(column):
    a, b = rows_of(), rows_of()
    assert f"the {column} is '{a[column].iloc[0]}' in A and 'other' in B" in refusal(a, b.assign(**{column: "other"}))
    aligned(a, b.assign(**{column: ""}))


def test_other_targets_and_sites_are_named_at_once():
    a, b = rows_of(), rows_of()
    close = b.assign(target=b["target"] * (1 + 1e-7))
    aligned(a, close)
    b.loc[b["participant_id"] == "p05", "target"] = 5.5
    b.loc[b["participant_id"].isin(["p00", "p02"]), "site"] = "B"
    text = refusal(a, b)
    assert "the target of 1 of 12 participants differs between A and B: 'd/p05'" in text
    assert "the site of 2 of 12 participants differs between A and B: 'd/p00', 'd/p02'" in text


def test_a_table_of_other_software_takes_dataset_and_site_of_the_other():
    ours, theirs = rows_of(), rows_of(dataset="").assign(site="unknown")
    for a, b in (aligned(ours, theirs), reversed(aligned(theirs, ours))):
        assert set(b["participant"]) == set(a["participant"])
        assert (
            b.groupby("site")["participant"].agg(set).to_dict() == a.groupby("site")["participant"].agg(set).to_dict()
        )


def test_runs_must_score_the_same_participants():
    a, b = rows_of(), rows_of()
    missing = ~((b["seed"] == 1) & (b["participant_id"] == "p07"))
    assert "run 'repeat 0, seed 1' scores other participants in A than in B: 'd/p07'" in refusal(a, b[missing])
    others = rows_of([(0, 0), (5, 1)])
    holes = ~((others["repeat"] == 5) & (others["participant_id"] == "p07"))
    assert "run 'repeat 5, seed 1' of B scores 11 of 12 sessions" in refusal(a, others[holes])
