"""New images and reports, from a finished run."""

import shutil
from pathlib import Path

import pandas as pd

from evaluation.predictions import read_predictions
from experiments.cli import main
from tracking.contract import read_contract

CONFIG = "tests/conf/brain_age_regression.yaml"


def test_the_report_of_a_run_is_written_again(fitted, tmp_path, capsys):
    output, run_id = fitted
    assert main(["test", run_id, "--output-dir", str(output)]) == 0
    capsys.readouterr()
    page = tmp_path / "page.html"
    assert main(["report", run_id, "--output", str(page), "--output-dir", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert run_id in page.read_text(encoding="utf-8")


def test_a_table_of_other_software_is_reported(tmp_path, capsys):
    table = tmp_path / "theirs.csv"
    table.write_text("participant_id,target,prediction\n" + "".join(f"p{i},{i},{i + i % 3}\n" for i in range(12)))
    assert main(["report", str(table)]) == 0
    assert "theirs" in Path(capsys.readouterr().out.strip()).read_text(encoding="utf-8")


def test_images_without_labels_are_predicted_from_a_run_and_from_a_checkpoint(fitted, tiny_cohort, tmp_path):
    output, run_id = fitted
    images = [str(tiny_cohort.parent / "images" / f"sub-{index:02d}_T1w.nii.gz") for index in (2, 5, 8)]
    by_run, by_file = tmp_path / "run", tmp_path / "file"
    assert main(["predict", run_id, *images, "--output", str(by_run), "--output-dir", str(output)]) == 0
    checkpoint = output / "runs" / run_id / "checkpoints" / "best.ckpt"
    assert (
        main(["predict", str(checkpoint), *images, "--output", str(by_file), "--output-dir", str(tmp_path / "new")])
        == 0
    )
    frames = [read_predictions(folder / "predictions.parquet") for folder in (by_run, by_file)]
    assert len(frames[0]) == 3
    assert frames[0]["target"].isna().all()
    assert set(frames[0]["split"]) == {"predict"}
    pd.testing.assert_series_equal(frames[0]["prediction"], frames[1]["prediction"])


def test_a_prediction_of_a_table_marks_those_trained_on(fitted, tiny_cohort, tmp_path):
    output, run_id = fitted
    words = [
        "predict",
        run_id,
        "--data.table",
        str(tiny_cohort),
        "--output",
        str(tmp_path),
        "--output-dir",
        str(output),
    ]
    assert main(words) == 0
    frame = read_predictions(tmp_path / "predictions.parquet")
    assert len(frame) == 30
    assert {"train", "val", "test", "external"} == set(frame["split"])


def test_a_bad_image_is_refused_before_any_prediction(fitted, tmp_path, capsys):
    output, run_id = fitted
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"not an image")
    assert main(["predict", run_id, str(broken), "--output", str(tmp_path / "out"), "--output-dir", str(output)]) == 1
    assert "broken.nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "out" / "predictions.parquet").exists()


def test_a_second_cohort_stands_beside_the_first_without_scans_of_the_training(tiny_cohort, tmp_path):
    where = ["--output-dir", str(tmp_path / "outputs")]
    assert main(["fit", "--config", CONFIG, "--data.table", str(tiny_cohort), *where]) == 0
    shutil.copytree(tiny_cohort.parent, tmp_path / "second")
    table = (tmp_path / "second" / "tiny.tsv").rename(tmp_path / "second" / "second.tsv")
    assert main(["verify", str(table)]) == 0
    words = ["test", "scratch-holdout-0-r0-s3", *where]
    assert main(words) == 0
    assert main([*words, "--data.table", str(table)]) == 0
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    frame = read_predictions(folder / "predictions.parquet")
    external = frame[frame["split"] == "external"].groupby("dataset")["participant_id"].unique().map(set)
    assert set(external.index) == {"second", "tiny"}
    parts = read_contract(folder).split["parts"]
    chosen = {key.partition("/")[2] for part in ("train", "val") for keys in parts[part].values() for key in keys}
    assert len(external["second"]) == 30 - len(chosen)
    assert not external["second"] & chosen, "a scan of the training is known again under another name"
