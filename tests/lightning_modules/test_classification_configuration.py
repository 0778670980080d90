"""ClassificationModule as the command line sees it: rules and numbers in one argument, one target or several."""

import pytest
import yaml
from jsonargparse import ArgumentError
from pytorch_lightning.cli import LightningArgumentParser

from lightning_modules.base import BaseModule
from lightning_modules.classification import ClassificationModule

WORDS = [
    "--model=lightning_modules.ClassificationModule",
    "--model.network=lightning_modules.networks.SFCN",
    "--model.network.width=2",
    "--model.optimizer=torch.optim.SGD",
    "--model.optimizer.lr=0.01",
]


@pytest.fixture
def parser():
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_lightning_class_args(BaseModule, "model", subclass_mode=True)
    return parser


def build(parser, *words) -> ClassificationModule:
    """Build a module from words, and once more from the configuration that they resolve to."""
    text = parser.dump(parser.parse_args([*WORDS, *words]))
    module = parser.instantiate(parser.parse_string(text)).model
    assert isinstance(module, ClassificationModule)
    return module


def test_defaults(parser):
    module = build(parser)
    assert module.targets == ["outcome"]
    assert module.network.head.out_features == 1
    assert (module.monitor, module.monitor_mode) == ("val/auroc", "max")
    assert (module.operating_point.rule, module.operating_point.given) == ("youden", {})
    assert (module.labels.weighting, module.loss.label_smoothing) == ("none", 0.0)


def test_rules_and_numbers(parser):
    point = build(parser, "--model.threshold=sensitivity", "--model.sensitivity=0.8", "--model.temperature=1.5")
    assert (point.operating_point.rule, point.operating_point.sensitivity) == ("sensitivity", 0.8)
    assert point.operating_point.given == {"temperature": [1.5]}
    module = build(
        parser,
        "--model.targets=[death, deaf]",
        "--model.threshold=[0.2, 0.4]",
        "--model.class_weighting=[1.0, 3.5]",
        "--model.monitor=val/deaf/auprc",
    )
    assert module.targets == ["death", "deaf"]
    assert module.network.head.out_features == 2
    assert module.operating_point.given == {"threshold": [0.2, 0.4]}
    assert module.labels.weighting == [1.0, 3.5]
    assert build(parser, "--model.threshold=0.31").operating_point.given == {"threshold": [0.31]}
    assert build(parser, "--model.class_weighting=balanced").labels.weighting == "balanced"
    assert build(parser, "--model.transfer.strategy=frozen").transfer.strategy == "frozen"
    with pytest.raises(ArgumentError, match="youdon"):
        build(parser, "--model.threshold=youdon")


def test_one_target_from_a_file(parser, tmp_path):
    init = {
        "targets": "death",
        "network": {"class_path": "lightning_modules.networks.SFCN", "init_args": {"width": 2}},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}},
    }
    model = {"class_path": "lightning_modules.ClassificationModule", "init_args": init}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump({"model": model}), encoding="utf-8")
    module = parser.instantiate(parser.parse_args(["--config", str(tmp_path / "fit.yaml")])).model
    assert module.targets == ["death"]


def test_every_argument_has_a_help_text(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--model.help=lightning_modules.ClassificationModule"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Weight of the positives in the loss" in text
    assert "Smallest sensitivity in the validation rows" in text
    assert "required, because the learning rate is" in text
