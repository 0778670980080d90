"""The configuration of a transfer, and what it makes of parameter groups, learning rates and the loss."""

from functools import partial

import pytest
import torch
import yaml
from pytorch_lightning.cli import LightningArgumentParser
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from lightning_modules.base import BaseModule
from lightning_modules.ledger import TransferError
from lightning_modules.networks import ModelError
from lightning_modules.regression import RegressionModule
from lightning_modules.transfer import Transfer

SGD = partial(torch.optim.SGD, lr=1.0, weight_decay=0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_loaded": 1.1}, "min_loaded is 1.1 and must be a share from 0 to 1"),
        ({"probe_epochs": 0}, "probe_epochs is 0 and must be 1 epoch or more"),
        ({"unfreeze_every": 0}, "unfreeze_every is 0"),
        ({"encoder_rate": 0.0}, "encoder_rate is 0.0 and must be above 0"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5 and must be above 0, to 1"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"source": " "}, "source is empty"),
    ],
)
def test_values_out_of_range_are_refused(wrong, message):
    with pytest.raises(TransferError, match=message):
        Transfer(**wrong)


@pytest.mark.parametrize(
    ("strategy", "frozen"),
    [
        ("full", [0, 0, 0, 0]),
        ("frozen", [2, 2, 2, 2]),
        ("linear-probe", [2, 2, 0, 0]),
        ("gradual", [2, 1, 0, 0]),
        ("discriminative", [0, 0, 0, 0]),
        ("l2-sp", [0, 0, 0, 0]),
    ],
)
def test_frozen_blocks_are_a_function_of_the_epoch(strategy, frozen):
    transfer = Transfer(source="RUN", strategy=strategy, probe_epochs=2)
    assert [transfer.num_frozen(epoch, 2) for epoch in range(4)] == frozen
    assert transfer.num_frozen(float("inf"), 2) == (2 if strategy == "frozen" else 0)


@pytest.mark.parametrize(
    ("configured", "words", "expected"),
    [
        ({}, [], None),
        ({"source": "a", "strategy": "frozen"}, [], Transfer("a", "frozen")),
        ({"strategy": "frozen"}, ["--model.transfer.source", "b"], Transfer("b", "frozen")),
        ({"source": "a"}, ["--model.transfer.min_loaded", "0.5"], Transfer("a", min_loaded=0.5)),
        ({"source": "a", "key_map": {"m.": ""}}, ["--model.transfer.batch_norm=keep"], None),
        ({"source": "a"}, ["--model.transfer", "null"], None),
    ],
)
def test_command_line_and_file_configure_it(tmp_path, configured, words, expected):
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_lightning_class_args(BaseModule, "model", subclass_mode=True)
    network = {"class_path": "lightning_modules.networks.SFCN", "init_args": {"width": 1}}
    arguments = {"network": network, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}}
    arguments |= {"transfer": configured} if configured else {}
    model = {"class_path": "lightning_modules.RegressionModule", "init_args": arguments}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump({"model": model}))
    parsed = parser.parse_args(["--config", str(tmp_path / "fit.yaml"), *words])
    module = parser.instantiate(parsed).model
    if "key_map" in configured:
        expected = Transfer("a", key_map={"m.": ""}, batch_norm="keep")
    assert module.transfer == expected
    assert parser.instantiate(parser.parse_string(parser.dump(parsed))).model.transfer == expected


def test_discriminative_rates_fall_towards_the_image(staged_encoder):
    network = staged_encoder()
    transfer = Transfer("RUN", "discriminative", encoder_rate=0.1, layer_decay=0.5)
    module = RegressionModule(network, SGD, partial(CosineAnnealingLR, T_max=2), transfer=transfer)
    configured = module.configure_optimizers()
    groups = configured["optimizer"].param_groups
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    assert {rates[parameter] for parameter in network.first.parameters()} == {0.05}
    assert {rates[parameter] for parameter in network.second.parameters()} == {0.1}
    assert {rates[parameter] for parameter in network.head.parameters()} == {1.0}
    assert len(rates) == len(list(module.parameters())) == sum(len(group["params"]) for group in groups)
    configured["optimizer"].step()
    configured["lr_scheduler"]["scheduler"].step()
    assert sorted(group["lr"] for group in groups) == pytest.approx([0.025, 0.05, 0.5])


def test_rates_and_spared_decay_go_together(staged_encoder):
    transfer = Transfer("RUN", "discriminative")
    module = RegressionModule(staged_encoder(), SGD, decay_norm_and_bias=False, transfer=transfer)
    groups = module.configure_optimizers().param_groups
    found = {(g["lr"], g["weight_decay"], tuple(sorted({p.ndim for p in g["params"]}))) for g in groups}
    assert found == {(0.1, 0.1, (5,)), (0.1, 0.0, (1,)), (1.0, 0.1, (2,)), (1.0, 0.0, (1,))}


def test_schedulers_that_level_the_rates_are_refused(staged_encoder):
    one_cycle = partial(OneCycleLR, max_lr=0.1, total_steps=10)
    module = RegressionModule(staged_encoder(), SGD, one_cycle, transfer=Transfer("RUN", "discriminative"))
    with pytest.raises(ModelError, match="OneCycleLR sets the learning rate of all parameters to one value"):
        module.configure_optimizers()
    RegressionModule(staged_encoder(), SGD, one_cycle, transfer=Transfer("RUN", "full")).configure_optimizers()


def test_l2_sp_pulls_towards_the_starting_point_instead_of_zero(staged_encoder, source):
    module = RegressionModule(staged_encoder(), SGD, transfer=Transfer(source, "l2-sp", alpha=0.3, beta=0.7))
    module.load_pretrained(source)
    assert {group["weight_decay"] for group in module.configure_optimizers().param_groups} == {0.0}
    start = {name: value.detach().clone() for name, value in module.network.named_parameters()}
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.add_(torch.randn_like(parameter))
    module.penalty().backward()
    for name, parameter in module.network.named_parameters():
        expected = 0.7 * parameter if name.startswith("head") else 0.3 * (parameter - start[name])
        torch.testing.assert_close(parameter.grad, expected.detach())
    assert "starting" not in " ".join(module.state_dict())


def test_without_a_source_nothing_is_loaded(staged_encoder, source):
    module = RegressionModule(staged_encoder(), SGD, transfer=Transfer(strategy="discriminative"))
    assert module.penalty() is None
    assert len(module.configure_optimizers().param_groups) == 1
    with pytest.raises(TransferError, match="No transfer is configured"):
        module.load_pretrained(source)


def test_running_statistics_that_do_not_exist_are_no_option(tiny_encoder, source):
    module = RegressionModule(tiny_encoder(), SGD, transfer=Transfer(source, batch_norm="recalibrate"))
    with pytest.raises(TransferError, match="this network has no running statistics"):
        module.load_pretrained(source)
