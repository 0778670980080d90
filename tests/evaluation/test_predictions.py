import numpy as np
import pandas as pd
import pytest

from evaluation.predictions import (
    KEY,
    PredictionsError,
    by_participant,
    normalise_predictions,
    read_predictions,
    require_single,
    scored_rows,
    select,
    write_predictions,
)

FOREIGN = pd.DataFrame({"participant_id": ["007", "8"], "target": [3.5, 40.0], "prediction": [4.0, 39.0]})


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".tsv"])
def test_written_table_reads_back_equal(tmp_path, table, ending):
    table.loc[3, "target"] = np.nan
    path = write_predictions(
        table.assign(score_10=0.1, score_2=0.9, mood="good"), tmp_path / f"new/predictions{ending}"
    )
    again = read_predictions(path)
    assert list(again.columns[: len(KEY)]) == list(KEY)
    assert list(again.columns[len(KEY) :]) == [
        *("site", "target", "prediction", "score_2", "score_10", "baseline", "run_id", "mood")
    ]
    pd.testing.assert_frame_equal(again, normalise_predictions(again))
    np.testing.assert_array_equal(again["target"], table["target"])
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("\ufeffparticipant_id;target;prediction\n007;3.5;4\n8;40;39\n", "excel.csv"),
        (" participant_id\ttarget\tprediction\n007\t3.5\t4.0\n8\t40\t3.9e1\n", "table.txt"),
        ('"prediction","participant_id","target"\r\n4,007,3.5\r\n39,8,40\r\n\r\n', "quoted.tsv"),
    ],
)
def test_text_of_any_software_is_read(tmp_path, text, name):
    path = tmp_path / name
    path.write_bytes(text.encode())
    frame = read_predictions(path)
    pd.testing.assert_frame_equal(frame[list(FOREIGN)], FOREIGN)
    assert frame[["repeat", "seed", "site", "session_id"]].drop_duplicates().to_numpy().tolist() == [
        [0, 0, "unknown", ""]
    ]


def test_numbers_as_participants_become_text_without_decimal_point():
    frame = normalise_predictions(FOREIGN.assign(participant_id=[7.0, 8.0], fold=[1, 2]))
    assert frame["participant_id"].tolist() == ["7", "8"]
    assert frame["fold"].tolist() == ["1", "2"]


def test_absent_file_and_unknown_ending_are_refused(tmp_path):
    with pytest.raises(PredictionsError, match="no such file"):
        read_predictions(tmp_path / "none.csv")
    with pytest.raises(PredictionsError, match=r"Use \.parquet"):
        write_predictions(FOREIGN, tmp_path / "p.xlsx")


def test_select_names_what_there_is(table):
    frame = normalise_predictions(table)
    assert set(select(frame, split="test", site=["A", "B"], arm=None)["site"]) == {"A", "B"}
    with pytest.raises(PredictionsError, match=r"no row has split 'tset'\. There are: 'external', 'test', 'val'"):
        select(frame, split="tset")
    with pytest.raises(PredictionsError, match="no row has all the values"):
        select(frame, split="test", site="C")


def test_mixtures_are_refused_with_choices_and_flags(table):
    frame = normalise_predictions(pd.concat([table, table.assign(arm="pretrained")]))
    with pytest.raises(PredictionsError) as caught:
        require_single(frame)
    assert [text.partition(":")[0] for text in caught.value.problems] == [
        "it holds several values of 'arm'",
        "it holds several values of 'split'",
    ]
    assert "'pretrained', 'scratch'. Choose one with --arm" in str(caught.value)


def test_training_sites_are_refused_only_where_they_share_participants(table):
    test = normalise_predictions(table[table["split"] == "test"])
    with pytest.raises(PredictionsError, match="--train-sites"):
        require_single(pd.concat([test, test.assign(train_sites="D")]))
    apart = test.assign(train_sites=test["site"])
    assert require_single(apart) is apart


def test_images_are_averaged_inside_a_session_only():
    rows = [("a", "1", "x", 0, 10), ("a", "1", "y", 0, 20), ("a", "2", "x", 0, 40), ("a", "1", "x", 1, 99)]
    frame = pd.DataFrame(rows, columns=["participant_id", "session_id", "image_id", "seed", "prediction"])
    units = by_participant(normalise_predictions(frame.assign(target=30.0, decision="yes")))
    assert units[["seed", "session_id", "prediction", "num_images"]].to_numpy().tolist() == [
        [0, "1", 15, 2],
        [0, "2", 40, 1],
        [1, "1", 99, 1],
    ]
    assert "decision" not in units


def test_folds_are_pooled_unless_they_share_participants(table):
    test = table[table["split"] == "test"].reset_index(drop=True)
    partition = normalise_predictions(test.assign(fold=test.index % 3))
    assert scored_rows(partition)["run"].nunique() == 1
    shared = normalise_predictions(pd.concat([test.assign(fold=fold, seed=seed) for fold in "ab" for seed in (0, 1)]))
    assert scored_rows(shared)["run"].nunique() == 4


def test_rows_without_a_target_do_not_count(table):
    test = table[table["split"] == "test"].reset_index(drop=True)
    test.loc[0, "target"] = np.nan
    assert len(scored_rows(normalise_predictions(test))) == 23
    with pytest.raises(PredictionsError, match="no row has a target"):
        scored_rows(normalise_predictions(test.assign(target=np.nan)))


def test_decision_is_taken_again_from_averaged_prediction_and_threshold():
    rows = [("a", "x", 0.2, 0.4, 0), ("a", "y", 0.7, 0.4, 1), ("b", "x", 0.4, 0.4, 0), ("c", "x", 0.4, None, 1)]
    frame = pd.DataFrame(rows, columns=["participant_id", "image_id", "prediction", "threshold", "decision"])
    units = by_participant(normalise_predictions(frame.assign(target=1.0)))
    assert units["prediction"].tolist() == pytest.approx([0.45, 0.4, 0.4])
    assert units["decision"].tolist()[:2] == [1, 1]
    assert np.isnan(units["decision"][2])
    table = normalise_predictions(frame.assign(target=1, score_1=0.5, score_0=0.5))
    order = ["prediction", "score_0", "score_1", "threshold", "decision", "baseline"]
    assert [name for name in table.columns if name in order] == order
