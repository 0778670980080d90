"""Study files and the analysis lock: what is read, what is refused, and what may change after the first test score."""

import json

import pandas as pd
import pytest
import yaml

from experiments.lock import AnalysisLock, participants_hash, site_tags
from experiments.runtime import ConfigurationError
from experiments.study import SOURCE, Arm, as_word, read_study

LOCK = AnalysisLock("age2hie/crossval", "cross-site", "auroc", "f", "c", 3, {"scratch": {"seed_offset": 0}})


def write(folder, **content):
    (folder / "fit.yaml").write_text("model: {}\n", encoding="utf-8")
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"base": "fit.yaml", **content}, sort_keys=False), encoding="utf-8")
    return path


def enter(lock, folder):
    locked = lock.after(folder)
    locked.write(folder)
    return locked


def test_a_study_is_read_with_its_arms_in_order(tmp_path):
    arms = {
        "scratch": None,
        "again": {"seed_offset": 7},
        "old": {"baseline": ["age", "sex"]},
        "wide": {"model.x": [1, 2]},
    }
    study = read_study(write(tmp_path, arms=arms, protocol="same-site", label_fractions=[0.5, 1]))
    assert study.name == f"{tmp_path.name}/study"
    assert [arm.name for arm in study.arms] == ["scratch", "again", "old", "wide"]
    assert study.arms[1].seed_offset == 7
    assert study.arms[2].baseline == ("age", "sex")
    assert study.arms[3].words() == ["--model.x", "[1, 2]"]
    assert study.label_fractions == (0.5, 1)
    assert study.choose(["old", "scratch"]).arms == (study.arms[2], study.arms[0])


def test_a_fit_file_is_a_study_of_one_arm(tmp_path):
    write(tmp_path)
    study = read_study(tmp_path / "fit.yaml")
    assert study.arms == (Arm("scratch"),)
    assert study.base == (tmp_path / "fit.yaml").resolve()


def test_pretraining_names_the_arm(tmp_path):
    study = read_study(write(tmp_path, arms={"scratch": {}, "pretrained": {"model.transfer.strategy": "frozen"}}))
    filled = study.pretrain({"pretrained": "RUN", "other": "FILE"})
    assert {arm.name: arm.source for arm in filled.arms} == {"scratch": None, "pretrained": "RUN", "other": "FILE"}
    assert filled.arms[1].arguments == {"model.transfer.strategy": "frozen", SOURCE: "RUN"}
    filled.require_sources()
    with pytest.raises(ConfigurationError, match="--pretrained pretrained=RUN"):
        study.require_sources()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arm": {}}, "Did you mean 'arms'"),
        ({"arms": {"a@0.5": {}}}, "must not hold '@'"),
        ({"arms": {"a": ["x"]}}, "not a mapping"),
        ({"arms": {"a": {"baseline": ["x"], "model.y": 1}}}, "takes no model.y"),
        ({"num_seeds": 0}, "num_seeds is 0"),
        ({"protocol": "kfold"}, "Did you mean 'k-fold'"),
    ],
)
def test_what_no_study_has_is_refused(content, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        read_study(write(tmp_path, **content))


@pytest.mark.parametrize("value", [1, 0.5, True, None, "text", [1, 2.5], {"low": 0, "high": [1]}, 1e-5])
def test_a_word_is_read_as_the_value_it_was(value):
    assert yaml.safe_load(as_word(value)) == value


def test_a_lock_keeps_what_was_decided_and_records_what_is_added(tmp_path):
    first = enter(LOCK, tmp_path)
    assert first.locked
    assert first.deviations == ()
    more = AnalysisLock(**{**vars(LOCK), "arms": {"scratch": {"seed_offset": 0}, "late": {}}, "num_seeds": 5})
    second = enter(more, tmp_path)
    assert second.locked == first.locked
    assert [note.partition(": ")[2] for note in second.deviations] == [
        "arm late added after the lock",
        "5 seeds instead of 3",
    ]
    assert json.loads((tmp_path / "lock.json").read_text(encoding="utf-8"))["identity"] == LOCK.identity
    assert enter(LOCK, tmp_path).deviations == second.deviations  # fewer arms than before deviate from nothing
    other = AnalysisLock(**{**vars(LOCK), "arms": {"scratch": {"seed_offset": 1}}})
    with pytest.raises(ConfigurationError, match="another one when this analysis was locked"):
        enter(other, tmp_path)


@pytest.mark.parametrize("name", ["study", "protocol", "primary_metric", "folds", "config"])
def test_what_must_not_change_is_the_identity(name):
    assert AnalysisLock(**{**vars(LOCK), name: "other"}).identity != LOCK.identity


def test_a_site_is_told_by_the_participants_that_were_scored():
    rows = pd.DataFrame(
        {
            "split": ["test", "external", "val", "test"],
            "target": [1.0, 0.0, 1.0, None],
            "site": ["a", "b", "a", "a"],
            "dataset": "d",
            "participant_id": ["1", "2", "3", "4"],
        }
    )
    assert site_tags(rows) == {"tested/a": participants_hash(["d/1"]), "tested/b": participants_hash(["d/2"])}
    assert participants_hash(["x", "y", "x"]) == participants_hash(["y", "x"])
