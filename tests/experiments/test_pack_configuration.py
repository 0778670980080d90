"""The configuration in a pack: nothing of the machine it is from, and no class that nobody has looked at."""

import pytest
import yaml

from experiments.pack_configuration import foreign_classes, portable, require_nobody
from tracking.packs import PackError

NETWORK = {"class_path": "lightning_modules.networks.Timm2D", "init_args": {"name": "resnet18.a1_in1k"}}
MODEL = {
    "network": {**NETWORK, "init_args": {**NETWORK["init_args"], "weights": "/home/ann/w.pth", "pretrained": True}},
    "optimizer": {"class_path": "mylab.Optimizer", "init_args": {"lr": 1.0}},
    "scheduler": {"class_path": "mylab.Scheduler"},
    "transfer": {"source": "/home/ann/best.ckpt"},
    "monitor": "val/auroc",
    "targets": ["outcome"],
}
DATA = {
    "table": "/home/ann/cohort.tsv",
    "images": ["scans.t1w"],
    "root": "/home/ann",
    "rows": "site != 'north'",
    "held_out_sites": ["north"],
    "split_file": "folds.json",
    "cache": "/scratch/ann",
    "torchio_transforms": [{"class_path": "torchio.Lambda", "init_args": {"function": "os.system"}}],
    "batch_size": 4,
}


def configuration(trainer=None, model=None, data=None):
    values = {
        "seed_everything": 3,
        "trainer": {
            "accelerator": "gpu",
            "default_root_dir": "/home/ann",
            "callbacks": ["mylab.Spy"],
            **(trainer or {}),
        },
        "model": {"class_path": "lightning_modules.ClassificationModule", "init_args": {**MODEL, **(model or {})}},
        "data": {"class_path": "datamodules.HIEOutcomeDataModule", "init_args": {**DATA, **(data or {})}},
        "ckpt_path": "/home/ann/last.ckpt",
        "num_threads": None,
    }
    return yaml.safe_dump(values, sort_keys=False)


def test_only_what_a_prediction_needs_stays():
    text = portable(configuration(trainer={"precision": "32-true"}), 2)
    values = yaml.safe_load(text)
    for gone in ("ann", "north", "mylab", "os.system", "folds.json", "gpu"):
        assert gone not in text
    assert values["trainer"] == {"accelerator": "auto", "precision": "32-true"}
    assert values["num_threads"] == 2
    assert values["data"]["init_args"]["batch_size"] == 4
    assert values["model"]["init_args"]["network"]["init_args"]["pretrained"] is False
    assert portable(text, 2) == text
    assert foreign_classes(text) == []


@pytest.mark.parametrize(
    ("model", "data", "named"),
    [
        ({"atlas": "/home/ann/atlas.nii"}, {}, "model.init_args.atlas"),
        ({"network": {**NETWORK, "init_args": {"name": "hf-hub:ann/net"}}}, {}, "hf-hub:ann/net"),
        ({}, {"template": "~/mni.nii"}, "data.init_args.template"),
        ({}, {"options": {"file": "C:\\scans"}}, "data.init_args.options.file"),
    ],
)
def test_what_names_a_place_is_refused(model, data, named):
    with pytest.raises(PackError, match="on one machine only") as caught:
        portable(configuration(model=model, data=data), 1)
    assert named in str(caught.value)


def test_an_argument_that_names_a_site_is_refused_but_a_column_may_be_called_as_one():
    text = portable(configuration(data={"images": ["north"], "reference_site": "south"}), 1)
    require_nobody(text, {"north"})
    with pytest.raises(PackError, match=r"data\.init_args\.reference_site \(south\)|data\.reference_site \(south\)"):
        require_nobody(text, {"north", "south"})


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ({"network": {"class_path": "mylab.Net", "init_args": {}}}, ["mylab.Net"]),
        ({"network": {**NETWORK, "init_args": {"activation": "os.system"}}}, ["os.system"]),
        ({"network": {"class_path": "torch.hub.load", "init_args": {}}}, ["torch.hub.load"]),
        ({"network": {"class_path": "Net", "init_args": {}}}, ["Net"]),
        ({"network": {"class_path": "torch.nn.Sequential", "init_args": {}}}, []),
        ({}, []),
    ],
)
def test_classes_from_elsewhere_are_found(model, found):
    assert foreign_classes(portable(configuration(model=model), 1)) == found


def test_a_text_that_grows_when_it_is_read_is_refused():
    bomb = "a: &a [1, 2]\nb: [*a, *a]\n"
    for function in (foreign_classes, lambda text: portable(text, 1)):
        with pytest.raises(PackError, match="aliases"):
            function(bomb)
    with pytest.raises(PackError, match="which class model is"):
        portable("seed_everything: 1\n", 1)
