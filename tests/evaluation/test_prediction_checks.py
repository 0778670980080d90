import numpy as np
import pandas as pd
import pytest

from evaluation.prediction_checks import binary_problems
from evaluation.predictions import PredictionsError, normalise_predictions, read_predictions

FOREIGN = pd.DataFrame({"participant_id": ["007", "8"], "target": [3.5, 40.0], "prediction": [4.0, 39.0]})


def test_all_problems_come_at_once(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text("subject_id,target,prediction,seed\na,old,4,0\nb,n/a,5,x\nc,inf,high,1.5\nd,40 y,5,\n")
    with pytest.raises(PredictionsError) as caught:
        read_predictions(path)
    message = str(caught.value)
    assert len(caught.value.problems) == 6
    assert str(path) in message
    for words in (
        "'participant_id' is missing",
        "'target' holds text where a number belongs: row 1 'old', row 4 '40 y'",
        "'target' is infinite in row 3",
        "'prediction' holds text where a number belongs: row 3 'high'",
        "'seed' holds text where a number belongs: row 2 'x'",
        "'seed' needs whole numbers and has none in rows 3, 4",
    ):
        assert words in message


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"participant_id": ["a", "a"], "target": [1, 1]}, "the same key occurs more than once in rows 1, 2"),
        (
            {"participant_id": ["a", "a"], "image_id": ["1", "2"]},
            "differs within one participant and session in rows 1, 2",
        ),
        ({"prediction": [np.nan, 1]}, "a target but no prediction in row 1"),
        ({"participant_id": ["", "b"]}, "participant_id is missing in row 1"),
    ],
)
def test_rows_that_cannot_be_right_are_refused(columns, words):
    with pytest.raises(PredictionsError, match=words):
        normalise_predictions(FOREIGN.assign(**columns))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"participant_id,target,prediction\n", "it has no rows"),
        (b"participant_id,target,prediction\na,1\n", "row 1 has 2 fields"),
        (b"participant_id,target,target,prediction\na,1,1,2\n", "'target' occurs twice"),
        (b"PAR1 but not really", "does not read"),
        (b"\xff\xfe\x00", "does not read"),
    ],
)
def test_broken_files_are_refused_with_their_name(tmp_path, content, words):
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    with pytest.raises(PredictionsError, match=words) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)


def test_long_lists_of_rows_are_cut_and_counted():
    frame = pd.DataFrame({"participant_id": range(50), "target": ["?"] * 50, "prediction": 1.0})
    with pytest.raises(PredictionsError, match=r"row 8 '\?' and 42 more"):
        normalise_predictions(frame)


def test_target_rounded_to_single_precision_is_the_same_target():
    target = [87.123456789, float(np.float32(87.123456789))]
    frame = FOREIGN.assign(participant_id="a", image_id=["1", "2"], target=target)
    assert len(normalise_predictions(frame)) == 2


def test_rows_that_are_not_binary_are_named():
    frame = pd.DataFrame(
        {
            "participant_id": list("abcde"),
            "target": [0, 1, 2, np.nan, 0.5],
            "prediction": [0.0, 1.0, 0.5, 7, -0.1],
            "threshold": [0.5, np.nan, 0.5, np.nan, 1.5],
        }
    )
    assert binary_problems(normalise_predictions(frame)) == [
        "the target of a binary outcome is neither 0 nor 1 in rows 3, 5. "
        "Correct them, or evaluate another task (--task regression).",
        "the prediction is no probability between 0 and 1 in row 5. "
        "Correct them, or evaluate another task (--task regression).",
        "the threshold is no probability between 0 and 1 in rows 2, 5. "
        "Correct them, or evaluate another task (--task regression).",
    ]
    assert binary_problems(normalise_predictions(frame[:2].assign(threshold=np.nan))) == []
