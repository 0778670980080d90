"""The audit of a tiny cohort, against pretrained checkpoints that nobody had to train."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from datamodules import BrainAgeDataModule, Preprocessing
from datamodules.verify import verify_cohort, write_manifest
from experiments.audit_facts import gather
from experiments.audit_pretraining import check_pretraining
from experiments.cli import main
from experiments.leakage import TESTED_PARTS, LeakageError, read_pretraining, require_disjoint
from experiments.study import read_study
from tracking.checkpoints import CheckpointError, save_checkpoint
from tracking.contract import CONTRACT, CheckpointContract
from tracking.paths import keep_paths

CONFIG = Path(__file__).parent.parent / "conf" / "brain_age_regression.yaml"
STRANGERS = {"far": ["elsewhere/sub-00", "elsewhere/sub-01"]}


def datamodule(table, **changes):
    sizes = {"val_fraction": 0.25, "test_fraction": 0.25, "preprocessing": Preprocessing((4.0, 4.0, 4.0), (32, 32, 32))}
    data = BrainAgeDataModule(table=table, **(sizes | {"held_out_sites": ["west"]} | changes))
    data.assign_splits()
    return data


@pytest.fixture(scope="module")
def data(tiny_cohort):
    return datamodule(tiny_cohort)


@pytest.fixture
def pretrained(tmp_path):
    """Write a checkpoint of a training that never was, and return its path."""

    def write(name="source", train=STRANGERS, images=("0" * 64,), config="{}"):
        split = {"parts": {"train": train, "val": {}, "test": {"far": ["elsewhere/sub-09"]}}}
        contract = CheckpointContract(config, f"{name}-id", "study", name, split, list(images))
        folder = tmp_path / name / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        keep_paths(folder.parent, config)
        save_checkpoint({CONTRACT: contract.as_dict()}, folder / f"{name}.ckpt")
        return folder / f"{name}.ckpt"

    return write


def audit(capsys, table, *words, config=CONFIG):
    """Run the verb and return its exit code and its findings by name."""
    code = main(["audit", "--config", str(config), "--data.table", str(table), "--json", *map(str, words)])
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] == (code == 0)
    return code, {finding["check"]: finding for finding in answer["findings"]}


def first_of(data, part):
    sample = data.part(part)[0]
    return sample, f"{sample.dataset}/{sample.participant_id}"


def test_a_clean_cohort(tiny_cohort, pretrained, capsys):
    code, found = audit(capsys, tiny_cohort, "--pretraining", f"ixi={pretrained()}")
    assert code == 0
    assert found["participants across splits"]["numbers"] == {"participants": 30, "splits": 1, "shared": 0}
    assert found["pretraining ixi"]["status"] == "ok"
    assert found["pretraining ixi"]["numbers"]["pretrained"] == 2
    assert found["pretraining ixi: heads"]["status"] == "unknown"  # its configuration names no table
    assert found["age from headers"]["numbers"]["permutations"] == 200
    assert found["age from intensities"]["numbers"]["r2"] > 0.5  # the radius of the ball is the age
    assert found["site from intensities"]["numbers"]["chance"] == pytest.approx(1 / 3)
    assert {name for name, finding in found.items() if finding["status"] == "leak"} == set()


def test_a_participant_of_the_pretraining_must_not_be_tested(tiny_cohort, data, pretrained, capsys):
    tested, key = first_of(data, "test")
    source = pretrained(train=STRANGERS | {tested.site: [key]})
    code, found = audit(capsys, tiny_cohort, "--pretraining", source)
    assert code == 1
    assert found[f"pretraining {source}"]["status"] == "leak"
    assert key in found[f"pretraining {source}"]["found"]
    with pytest.raises(LeakageError, match=f"has seen 1 participant who would be tested: {key}. Pretrain again"):
        require_disjoint(read_pretraining(source), data, TESTED_PARTS)


def test_who_is_only_trained_on_may_have_been_pretrained_on(tiny_cohort, data, pretrained, tmp_path, capsys):
    trained, key = first_of(data, "train")
    source = pretrained(train={trained.site: [key]})
    require_disjoint(read_pretraining(source), data, TESTED_PARTS)
    with pytest.raises(LeakageError, match=key):
        require_disjoint(read_pretraining(source), data)  # a cross-validation tests everybody
    arms = {"scratch": {}, "old": {"model.transfer.source": str(source)}}
    study = {"base": "fit.yaml", "protocol": "k-fold", "arms": arms}
    (tmp_path / "fit.yaml").write_text(CONFIG.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    code, found = audit(capsys, tiny_cohort, config=tmp_path / "study.yaml")
    assert (code, found["pretraining old"]["status"]) == (1, "leak")
    assert found["participants across splits"]["numbers"]["splits"] == 5
    code, found = audit(capsys, tiny_cohort, "--protocol", "holdout", config=tmp_path / "study.yaml")
    assert (code, found["pretraining old"]["status"]) == (0, "ok")


def test_who_a_fold_does_not_use_is_in_no_part(data, tmp_path):
    (tmp_path / "study.yaml").write_text(f"{{base: {CONFIG}, protocol: same-site}}", encoding="utf-8")
    divisions = gather(data, read_study(tmp_path / "study.yaml")).divisions
    assert [set(division) for division in divisions] == [{"train", "val", "test", ""}] * 15  # 5 folds of 3 sites


def test_an_image_is_known_again_under_another_name(data, pretrained):
    tested, key = first_of(data, "external")
    source = read_pretraining(pretrained(images=data.image_hashes(tested)))
    with pytest.raises(LeakageError, match=rf"{key} \(image images/.*gz under another name\)"):
        require_disjoint(source, data, TESTED_PARTS)
    unverified = datamodule(data.tables[0], allow_unverified=True)  # files are hashed without a manifest
    with pytest.raises(LeakageError, match=key):
        require_disjoint(source.contracts[0], unverified)


def test_a_file_that_the_model_does_not_read_counts_too(make_tiny_cohort, tmp_path, pretrained):
    table = make_tiny_cohort(tmp_path / "tiny", 30)
    frame = pd.read_csv(table, sep="\t")
    frame["flair"] = frame["t1w"].str.replace("T1w", "FLAIR")
    for index, (t1w, flair) in enumerate(zip(frame["t1w"], frame["flair"], strict=True)):
        image = nib.load(table.parent / t1w)
        data = np.asarray(image.dataobj) + 1 + index
        nib.save(nib.Nifti1Image(data, image.affine), table.parent / flair)
    frame.to_csv(table, sep="\t", index=False)
    write_manifest(verify_cohort(table))
    data = datamodule(table)
    seen = data.cache.content_hash(table.parent / frame["flair"][7])
    with pytest.raises(LeakageError, match=r"tiny/sub-07 \(image images/sub-07_FLAIR"):
        require_disjoint(read_pretraining(pretrained(images=[seen])), data)


def test_foreign_weights_are_unknown_and_never_passed(tiny_cohort, data, tmp_path, pretrained):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    for name, reason in (("foreign.ckpt", "not from a Fontanel run"), ("model.safetensors", "holds weights alone")):
        source = read_pretraining(tmp_path / name)
        (finding,) = check_pretraining(source, data, gather(data, None), everybody=True)
        assert (finding.status, source.contracts) == ("unknown", ())
        assert reason in finding.found
    silent = read_pretraining(pretrained(train={}, images=()))
    assert "does not record who" in silent.gap
    statuses = {item.status for item in check_pretraining(silent, data, gather(data, None), everybody=True)}
    assert statuses == {"unknown"}
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        read_pretraining(tmp_path / "absent.ckpt")


def test_what_the_source_started_from_counts_too(data, pretrained):
    tested, key = first_of(data, "val")
    first = pretrained("first", train={tested.site: [key]})
    config = yaml.safe_dump({"model": {"init_args": {"transfer": {"source": str(first)}}}})
    chain = read_pretraining(pretrained("second", config=config))
    assert [contract.run_name for contract in chain.contracts] == ["second", "first"]
    with pytest.raises(LeakageError, match=rf"\(run first\) has seen 1 participant who would be tested: {key}"):
        require_disjoint(chain, data, TESTED_PARTS)
    first.unlink()
    assert "started from" in read_pretraining(pretrained("second", config=config)).gap


def test_a_scan_in_two_splits_under_another_name_and_compression(make_tiny_cohort, tmp_path, capsys):
    table = make_tiny_cohort(tmp_path / "tiny", 30)
    data = datamodule(table, allow_unverified=True)
    (ours, key), (theirs, other) = first_of(data, "train"), first_of(data, "test")
    nib.load(ours.files.images[0]).to_filename(tmp_path / "plain.nii")
    nib.load(tmp_path / "plain.nii").to_filename(theirs.files.images[0])
    code, found = audit(capsys, table, "--allow-unverified")
    assert (code, found["duplicate images"]["status"]) == (1, "leak")
    assert key in found["duplicate images"]["found"]
    assert other in found["duplicate images"]["found"]


def test_stripped_heads_known_voxels_and_shared_anatomies(tiny_cohort, data, make_tiny_cohort, tmp_path, pretrained):
    table = make_tiny_cohort(tmp_path / "stripped", 6)
    frame = pd.read_csv(table, sep="\t").assign(dataset="stripped", anatomy_id="head-1")
    for name in frame["t1w"][1:]:
        image = nib.load(table.parent / name)
        voxels = np.asarray(image.dataobj)
        nib.save(nib.Nifti1Image(np.where(voxels > 300, voxels, 0), image.affine), table.parent / name)
    frame.to_csv(table, sep="\t", index=False)
    write_manifest(verify_cohort(table))
    config = yaml.safe_dump({"data": {"init_args": {"table": str(table), "image": "t1w"}}})
    keys = [f"stripped/{name}" for name in frame["participant_id"]]
    source = read_pretraining(pretrained(train={"north": keys}, config=config), name="old")
    facts = gather(data, None)
    rows = facts.rows.assign(anatomy_id=["head-1"] * 3 + ["head-2"] * 27)
    facts = replace(facts, rows=rows, identities=("anatomy_id",))
    found = {item.check: item for item in check_pretraining(source, data, facts, everybody=True)}
    assert found["pretraining old"].status == "ok"
    assert found["pretraining old: heads"].status == "warning"
    assert found["pretraining old: heads"].numbers == {"pretraining_stripped": pytest.approx(5 / 6), "stripped": 0.0}
    assert found["pretraining old: anatomy_id"].status == "warning"
    voxels = found["pretraining old: voxels"]  # the first image is that of the tiny cohort, and was not changed
    assert (voxels.status, voxels.numbers["shared"]) == ("leak", 1)
    assert "tiny/sub-00 is stripped/sub-00" in voxels.found
    other = read_pretraining(pretrained(train={"north": [*keys, "stripped/gone"]}, config=config), name="old")
    (_, unknown) = check_pretraining(other, data, facts, everybody=True)
    assert "has 6 of the 7 participants" in unknown.found


def test_usage(capsys):
    assert main(["audit", "--config", str(CONFIG), "--permutations", "100"]) == 2
    assert main(["audit"]) == 2
    assert "give at least 199" in capsys.readouterr().err
