"""The modules as the command line sees them: class paths, documented arguments, and an optimizer that must be given."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentError
from pytorch_lightning.cli import LightningArgumentParser

from lightning_modules.base import BaseModule
from lightning_modules.networks import SFCN
from lightning_modules.regression import RegressionModule

OWN_ENCODER = '''
from torch import Tensor, nn

from lightning_modules.networks import Encoder


class OwnEncoder(Encoder):
    """An encoder outside the package.

    Args:
        in_channels: Number of image channels.
        size: Length of the feature vector.
    """

    def __init__(self, in_channels: int = 1, size: int = 8) -> None:
        super().__init__(in_channels, size)
        self.stem = nn.Conv3d(in_channels, size, kernel_size=3)

    def forward_features(self, image: Tensor) -> Tensor:
        return self.stem(image)
'''


@pytest.fixture
def parser():
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_lightning_class_args(BaseModule, "model", subclass_mode=True)
    return parser


def write(path: Path, **init_args) -> str:
    model = {"class_path": "lightning_modules.RegressionModule", "init_args": init_args}
    path.write_text(yaml.safe_dump({"model": model}))
    return str(path)


def test_own_encoder_and_optimizer_by_class_path(parser, tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN_ENCODER)
    monkeypatch.syspath_prepend(tmp_path)
    config = write(
        tmp_path / "fit.yaml",
        network={"class_path": "own_networks.OwnEncoder", "init_args": {"size": 4}},
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
        scheduler={"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 7}},
        head="soft_bins",
        bins={"low": 42, "high": 82},
    )
    arguments = parser.parse_args(
        ["--config", config, "--model.bins.width=2", "--model.network.init_args.in_channels=2"]
    )
    module = parser.instantiate(arguments).model
    assert isinstance(module, RegressionModule)
    assert type(module.network).__name__ == "OwnEncoder"
    assert (module.network.in_channels, module.network.num_features) == (2, 4)
    assert module.network.head.out_features == 20
    assert module(torch.zeros(1, 2, 7, 8, 9)).item() == pytest.approx(62, abs=10)
    optimizers = module.configure_optimizers()
    assert isinstance(optimizers["optimizer"], torch.optim.AdamW)
    assert optimizers["optimizer"].param_groups[0]["lr"] == 1e-3
    assert optimizers["lr_scheduler"]["scheduler"].T_max == 7


def test_dumped_configuration_builds_the_same_module(parser, tmp_path):
    config = write(
        tmp_path / "fit.yaml",
        network={"class_path": "lightning_modules.networks.SFCN", "init_args": {"width": 2}},
        optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}},
    )
    text = parser.dump(parser.parse_args(["--config", config]))
    resolved = yaml.safe_load(text)["model"]["init_args"]
    assert resolved["network"]["class_path"] == "lightning_modules.networks.SFCN"
    assert resolved["monitor"] == "val/mae"
    module = parser.instantiate(parser.parse_string(text)).model
    assert isinstance(module.network, SFCN)
    assert module.network.num_features == 4


def test_optimizer_has_no_default(parser, tmp_path):
    config = write(tmp_path / "fit.yaml", network={"class_path": "lightning_modules.networks.SFCN"})
    with pytest.raises(ArgumentError, match="following arguments are required: optimizer"):
        parser.parse_args(["--config", config])


def test_every_argument_has_a_help_text(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--model.help=lightning_modules.RegressionModule"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Name of the target's column. (type: str, default: age)" in text
    assert "required, because the learning rate is" in text
    assert "Standard deviation of the normal distribution around a target" in text
    assert "subclasses: lightning_modules.networks." in text


def test_networks_and_losses_import_torch_only():
    code = (
        "import sys, lightning_modules.networks, lightning_modules.losses;"
        "print([name for name in ('monai', 'timm', 'pytorch_lightning', 'evaluation') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, timeout=60)
    assert done.stdout.strip() == "[]"
