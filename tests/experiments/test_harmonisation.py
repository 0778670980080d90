"""A model trained on harmonised images: tested, predicted and resumed with the ComBat of its checkpoint, no other."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from datamodules.combat import HarmonisationError
from datamodules.harmonisation import SiteMaps
from experiments.cli import main
from experiments.runtime import FontanelCLI, restore, scratch_folder
from experiments.study import read_study
from tracking.checkpoints import load_checkpoint
from tracking.contract import newest_first
from tracking.store import Store

CONFIG = Path(__file__).parent.parent / "conf" / "outcome_classification.yaml"
STUDY = Path(__file__).parents[2] / "experiments" / "age2hie" / "harmonisation.yaml"
HARMONISED = ("--data.harmonisation", "combat", "--data.harmonise_covariates", "[age]")


@pytest.fixture(scope="module")
def trained(tiny_cohort, tmp_path_factory, make_database):
    """An output folder with a run of two epochs, and the run's folder."""
    output = tmp_path_factory.mktemp("harmonised")
    make_database(output)
    assert main(words_of("fit", tiny_cohort, output, *HARMONISED)) == 0
    return output, run_folder(output)


def words_of(verb, table, output, *more):
    return [verb, "--config", str(CONFIG), "--data.table", str(table), "--output-dir", str(output), *more]


def run_folder(output):
    store = Store(f"sqlite:///{output / 'mlflow.db'}", output)
    return store.folder(store.find_run("scratch-holdout-0-r0-s3").run_id)


def checkpoint(folder, name=None):
    return load_checkpoint(folder / "checkpoints" / name if name else newest_first(folder / "checkpoints")[0])


def predicted(output, folder, run_stage, *words):
    """Return the predictions of the test participants, by the trainer's method of that name."""
    store = Store(f"sqlite:///{output / 'mlflow.db'}", output)
    with scratch_folder() as scratch:
        cli, _, best = restore(folder.name, words, store, scratch)
        trainer = cli.make_trainer(logger=False)
        getattr(trainer, run_stage)(cli.model, datamodule=cli.datamodule, ckpt_path=str(best), weights_only=True)
        rows = cli.model.take_predictions()
    return rows[rows["split"] == "test"].set_index("participant_id")["prediction"]


def test_a_test_and_a_prediction_take_the_maps_of_the_checkpoint(trained, monkeypatch):
    state = checkpoint(trained[1], "best.ckpt")["HIEOutcomeDataModule"]["combat"]
    assert state["sites"] == ["north", "south", "west"]
    monkeypatch.setattr(SiteMaps, "fit", None)
    tested = predicted(*trained, "test")
    pd.testing.assert_series_equal(predicted(*trained, "predict"), tested)
    seen = []
    monkeypatch.setattr(SiteMaps, "apply", lambda maps, image, sites: seen.append(maps) or image.float())
    assert (predicted(*trained, "test") != tested).any(), "the maps do nothing"
    assert seen
    assert all(torch.equal(maps.shift, state["shift"]) and torch.equal(maps.scale, state["scale"]) for maps in seen)
    with pytest.raises(HarmonisationError, match=r"data.harmonisation would give it others"):
        predicted(*trained, "test", "--data.harmonisation", "none")


def test_a_resumed_training_goes_on_with_its_own_maps(trained, tiny_cohort, tmp_path, make_database, monkeypatch):
    make_database(tmp_path)
    assert main(words_of("fit", tiny_cohort, tmp_path, *HARMONISED, "--trainer.max_epochs", "1")) == 0
    folder = run_folder(tmp_path)
    monkeypatch.setattr(SiteMaps, "fit", None)
    words = ["fit", "--resume", folder.name, "--output-dir", str(tmp_path), "--trainer.max_epochs", "2"]
    assert main(words) == 0
    ours, whole = checkpoint(folder), checkpoint(trained[1])
    assert ours["global_step"] == whole["global_step"] > 0
    for part in ("inside", "scale", "shift"):
        assert torch.equal(*(one["HIEOutcomeDataModule"]["combat"][part] for one in (ours, whole)))
    for name, weights in whole["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], weights), name


def test_a_training_on_images_as_they_are_is_not_resumed_on_others(tiny_cohort, tmp_path, make_database, capsys):
    make_database(tmp_path)
    short = ("--trainer.max_epochs", "1")
    assert main(words_of("fit", tiny_cohort, tmp_path, *short)) == 0
    folder = run_folder(tmp_path)
    assert "HIEOutcomeDataModule" not in checkpoint(folder)
    capsys.readouterr()
    words = ["fit", "--resume", folder.name, "--output-dir", str(tmp_path), "--trainer.max_epochs", "2"]
    assert main([*words, "--data.harmonisation", "combat"]) == 1
    assert "the checkpoint holds no fitted ComBat" in capsys.readouterr().err


def test_a_held_out_site_is_refused_before_there_is_a_run(tiny_cohort, tmp_path, capsys):
    words = words_of("fit", tiny_cohort, tmp_path, *HARMONISED, "--data.held_out_sites", "[west]")
    assert main(words) == 1
    assert "has not seen" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_study_compares_images_of_three_kinds():
    study = read_study(STUDY)
    assert study.protocol == "multi-site"
    found = {arm.name: FontanelCLI(["--config", str(study.base), *arm.words()]).datamodule for arm in study.arms}
    kinds = {name: (data.preprocessing.normalisation, data.harmonisation) for name, data in found.items()}
    assert kinds == {"zscore": ("zscore", "none"), "percentile": ("percentile", "none"), "combat": ("zscore", "combat")}
    assert found["combat"].harmonise_covariates == ["gestational_age", "sex"]


def test_a_pack_takes_the_maps_along_when_it_may_name_the_sites(trained, tiny_cohort, tmp_path, capsys):
    output, folder = trained
    pack, store = tmp_path / "combat.fontanel", ["--output-dir", str(output)]
    assert main(["pack", folder.name, "-o", str(pack), *store]) == 1
    assert "--site-names" in capsys.readouterr().err
    assert main(["pack", folder.name, "-o", str(pack), "--site-names", *store]) == 0
    own = predicted(output, folder, "test")
    new = ["--data.table", str(tiny_cohort), "--output"]
    assert main(["predict", str(pack), *new, str(tmp_path / "out")]) == 0
    found = pd.read_parquet(tmp_path / "out" / "predictions.parquet").set_index("participant_id")["prediction"]
    assert found[own.index].tolist() == own.tolist()
    capsys.readouterr()
    assert main(["verify", str(pack)]) == 0
    assert "images of the sites north, south and west alone" in capsys.readouterr().out
    (image,) = tiny_cohort.parent.glob("images/sub-00*")
    assert main(["predict", str(pack), str(image), "--output", str(tmp_path / "other")]) == 1
    assert "unknown" in capsys.readouterr().err
