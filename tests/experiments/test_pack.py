"""A model handed to another hospital: the same predictions there, nobody's name on the way, and results that come back.

One run of a cohort in which every name is a canary serves all tests; its table and images are gone before they begin.
"""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from evaluation.predictions import read_predictions
from experiments.cli import main
from experiments.pack_onnx import first_image
from experiments.runtime import locate_checkpoint
from lightning_modules.sources import read_source
from tracking.checkpoints import CheckpointError
from tracking.packs import CONFIG, ONNX, read_pack, write_pack
from tracking.store import Store

CONF = Path(__file__).parent.parent / "conf" / "outcome_classification.yaml"
CANARY = "canary"  # in every planted name, in any case
# Nothing here may reach a network or a store: the interpreter itself refuses to connect.
OFFLINE = """
import sys
def watch(event, arguments):
    if event in {"socket.connect", "sqlite3.connect", "socket.getaddrinfo"}:
        raise RuntimeError(f"{event} {arguments}")
sys.addaudithook(watch)
from experiments.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory, make_tiny_cohort, make_database, harness):
    """A pack, the run's own predictions, and copies of images; the run's table and images are gone."""
    home = tmp_path_factory.mktemp("CanaryHospital")
    table = harness("canaries").plant(home / "cohort", make_tiny_cohort)
    output = home / "CanaryOutputs"
    make_database(output)
    (home / "CanaryStudy").mkdir()
    config = Path(shutil.copy(CONF, home / "CanaryStudy" / "canary_fit.yaml"))
    store = ["--output-dir", str(output)]
    words = ["--config", str(config), "--data.table", str(table), "--arm", "canary-arm", *store]
    words += ["--data.rows", "site != 'CanaryNowhere'", "--data.held_out_sites", "[CanaryWest]"]
    assert main(["verify", str(table)]) == 0
    assert main(["fit", *words]) == 0
    run = "canary-arm-holdout-0-r0-s3"
    assert main(["test", run, *store]) == 0
    pack = home / "model.fontanel"
    assert main(["pack", run, "-o", str(pack), "--license", "CC-BY-4.0", "--onnx", *store]) == 0
    (folder,) = [path for path in (output / "runs").iterdir() if path.is_dir() and not path.is_symlink()]
    own = read_predictions(folder / "predictions.parquet").set_index("participant_id")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    frame = pd.read_csv(table, sep="\t").set_index("participant_id")
    shutil.copytree(home / "cohort" / "images", elsewhere / "images")
    frame.reset_index().drop(columns="referred_by").to_csv(elsewhere / "new.tsv", sep="\t", index=False)
    shutil.rmtree(home / "cohort")
    return SimpleNamespace(pack=pack, own=own, frame=frame, elsewhere=elsewhere, run=run, store=store, home=home)


def images_of(lab, people):
    return [str(lab.elsewhere / lab.frame.loc[person, "t1w"]) for person in people]


def predictions_of(folder):
    return read_predictions(folder / "predictions.tsv")


def test_a_fresh_process_without_table_store_and_network_gives_the_same_bits(lab, tmp_path):
    people = list(lab.own.index)
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "FONTANEL_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    words = ["predict", str(lab.pack), *images_of(lab, people), "--output", "out"]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    frame = read_predictions(tmp_path / "out" / "predictions.parquet")
    sent = predictions_of(tmp_path / "out")
    for column in ("prediction", "score_0", "score_1", "threshold", "baseline"):
        assert frame[column].tolist() == lab.own.loc[people, column].tolist(), column
        assert sent[column].tolist() == frame[column].tolist(), "text loses no digit"
    assert frame["decision"].tolist() == lab.own.loc[people, "decision"].tolist()
    assert set(frame["split"]) == {"predict"}
    assert set(frame["arm"]) == {"model"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out"]
    assert not list(tmp_path.rglob("mlflow.db"))


def test_the_threshold_and_the_temperature_of_the_pack_decide(lab):
    (facts,) = read_pack(lab.pack).model["outputs"].values()
    assert np.allclose(lab.own["threshold"], facts["threshold"])
    logit = np.log(lab.own["score_1"] / lab.own["score_0"])
    assert np.allclose(lab.own["prediction"], 1 / (1 + np.exp(-logit / facts["temperature"])))
    assert facts["temperature"] != 1
    assert ((lab.own["prediction"] >= facts["threshold"]) == lab.own["decision"]).all()


def test_nobody_is_named_in_a_pack(lab):
    contents = [lab.pack.read_bytes()]
    with zipfile.ZipFile(lab.pack) as archive:
        contents += [archive.read(name) for name in archive.namelist()] + [str(archive.infolist()).encode()]
    assert ONNX in read_pack(lab.pack).members
    forbidden = [CANARY, str(lab.home), str(Path(__file__).parents[2]), "mlflow.db", "sqlite:", "new.tsv"]
    forbidden += [name for name in (platform.node(), socket.getfqdn()) if len(name) > 3]
    for content in contents:
        text = content.lower()
        found = [
            word for word in forbidden if word.lower().encode() in text or word.lower().encode("utf-16-le") in text
        ]
        assert not found
    files = [path for path in (lab.elsewhere / "images").rglob("*") if path.is_file()]
    assert sum(CANARY in str(path).lower() for path in files) > 20, "the canaries are in place"


def test_images_of_the_training_are_known_again_unless_their_hashes_were_left_out(lab, tmp_path):
    trained = [person for person in lab.frame.index if person not in lab.own.index][:3]
    shown = images_of(lab, [*trained, lab.own.index[0]])
    assert main(["predict", str(lab.pack), *shown, "--output", str(tmp_path / "a")]) == 0
    by_image = predictions_of(tmp_path / "a").set_index("image_id")["split"]
    assert sorted(by_image) == ["predict", "train", "train", "train"]
    bare = tmp_path / "bare.fontanel"
    assert main(["pack", lab.run, "-o", str(bare), "--no-image-hashes", *lab.store]) == 0
    assert main(["predict", str(bare), *shown, "--output", str(tmp_path / "b")]) == 0
    assert set(predictions_of(tmp_path / "b")["split"]) == {"predict"}


def test_the_other_hospital_adds_outcomes_and_sends_its_predictions_back(lab, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Store, "__init__", None)  # nothing on this road opens a store
    people = list(lab.own.index)
    out = tmp_path / "out"
    assert main(["predict", str(lab.pack), *images_of(lab, people), "--output", str(out)]) == 0
    table = out / "predictions.tsv"
    words = ["evaluate", str(table), "--task", "binary", "--num-replicates", "20"]
    assert main(words) == 1
    assert "no row has a target" in capsys.readouterr().err
    filled = pd.read_csv(table, sep="\t", dtype=str).assign(target=[str(int(x)) for x in lab.own["target"]])
    filled.to_csv(table, sep="\t", index=False)
    assert main([*words, "--json"]) == 0
    by_hand = json.loads(capsys.readouterr().out)["metrics"]["auroc"]["estimate"]
    by_table = tmp_path / "by_table"
    new = ["--data.table", str(lab.elsewhere / "new.tsv"), "--output", str(by_table)]
    assert main(["predict", str(lab.pack), *new]) == 0
    frame = predictions_of(by_table)
    assert (frame.set_index("participant_id")["target"] == lab.frame["outcome"]).all()
    words = ["evaluate", str(by_table / "predictions.tsv"), "--task", "binary", "--split", "predict"]
    capsys.readouterr()
    assert main([*words, "--num-replicates", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["auroc"]["estimate"] == by_hand
    pair = [str(by_table / "predictions.tsv"), str(by_table / "predictions.parquet"), "--split", "predict"]
    assert main(["compare", *pair, "--task", "binary", "--metric", "auroc", "--num-replicates", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["comparisons"]["auroc"]["difference"] == 0
    assert found["num_participants"] == len(people)


def test_verify_says_what_the_model_wants_and_gives_and_runs_nothing(lab, tmp_path, capsys):
    assert main(["verify", str(lab.pack)]) == 0
    text = capsys.readouterr().out
    for part in (
        "1 image per participant: t1w",
        "4 x 4 x 4 mm",
        "the decision is 1",
        "CC-BY-4.0",
        "differs from torch",
    ):
        assert part in text
    assert main(["verify", str(lab.pack), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"]["outcome"]["kind"] == "binary"
    broken = tmp_path / "broken.fontanel"
    broken.write_bytes(lab.pack.read_bytes()[:-1] + b"!")
    assert main(["verify", str(broken), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_a_byte_changed_anywhere_is_refused_by_verify_and_predict(lab, tmp_path, capsys):
    whole = lab.pack.read_bytes()
    broken, image = tmp_path / "broken.fontanel", images_of(lab, lab.own.index[:1])
    directory = whole.rindex(b"PK\x01\x02")
    places = [0, 3, 14, 30, directory, directory + 16, len(whole) - 90, len(whole) - 75, len(whole) - 1]
    places += np.linspace(1, len(whole) - 2, 50 - len(places)).astype(int).tolist()
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 0x20
        broken.write_bytes(changed)
        assert main(["verify", str(broken)]) == 1
        assert main(["predict", str(broken), *image, "--output", str(tmp_path / "out")]) == 1
        assert capsys.readouterr().err.count("Ask the sender for it again") == 2
    assert len(set(places)) == 50
    assert not list((tmp_path / "out").iterdir())


def test_code_from_elsewhere_runs_only_when_it_is_trusted(lab, tmp_path, monkeypatch, capsys):
    (tmp_path / "mylab_nets.py").write_text("from lightning_modules.networks import SFCN\nclass Net(SFCN):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    pack = read_pack(lab.pack)
    config = pack.text(CONFIG).replace("lightning_modules.networks.SFCN", "mylab_nets.Net")
    theirs = tmp_path / "theirs.fontanel"
    write_pack(theirs, {**pack.members, CONFIG: config.encode()}, {"name": "theirs"})
    people = lab.own.index[:2]
    words = ["predict", str(theirs), *images_of(lab, people), "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert "mylab_nets.Net" in capsys.readouterr().err
    assert main(["verify", str(theirs)]) == 0
    assert "--trust-code" in capsys.readouterr().out
    assert "mylab_nets" not in sys.modules
    assert main([*words, "--trust-code"]) == 0
    assert predictions_of(tmp_path / "out")["prediction"].tolist() == lab.own.loc[people, "prediction"].tolist()


def test_a_pack_is_evaluated_by_its_predictions_alone(lab, tmp_path, capsys):
    assert main(["test", str(lab.pack), "--output-dir", str(tmp_path)]) == 1
    assert "fontanel evaluate" in capsys.readouterr().err
    assert main(["pack", str(lab.pack), "-o", str(tmp_path / "b.fontanel")]) == 1
    assert "is a pack already" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_onnx_is_compared_on_an_image_that_is_named_where_the_training_table_is_gone(lab, tmp_path, capsys):
    words = ["pack", lab.run, "-o", str(tmp_path / "a.fontanel"), *lab.store]
    assert main([*words, "--onnx"]) == 1
    assert "--example" in capsys.readouterr().err
    (image,) = images_of(lab, lab.own.index[:1])
    assert main([*words, "--example", image]) == 1
    assert "Add --onnx" in capsys.readouterr().err
    output = Path(lab.store[1])
    store = Store(f"sqlite:///{output / 'mlflow.db'}", output)
    checkpoint = locate_checkpoint(lab.run, store)
    batch = first_image(str(checkpoint), [Path(image)], store, tmp_path)
    assert batch.shape == (1, 1, 32, 32, 32)
    assert batch.dtype == torch.float32
    assert abs(float(batch[batch != batch[0, 0, 0, 0, 0]].mean())) < 0.2, "normalised"


def test_a_transfer_from_a_pack_says_how_to_take_its_weights(lab, tmp_path):
    with pytest.raises(CheckpointError, match=r"unzip model\.fontanel weights\.safetensors"):
        read_source(lab.pack)
    with zipfile.ZipFile(lab.pack) as archive:
        archive.extract("weights.safetensors", tmp_path)
    assert "network.head.weight" in read_source(tmp_path / "weights.safetensors").tensors


def test_a_model_that_needs_more_than_one_image_asks_for_a_table(lab, tmp_path, capsys):
    words = ["predict", str(lab.pack), *images_of(lab, lab.own.index[:1]), "--output", str(tmp_path / "out")]
    assert main([*words, "--data.covariates", "[age]"]) == 1
    assert "more of each participant than one image: t1w, age" in capsys.readouterr().err
