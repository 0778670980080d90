"""What a training takes is counted over all its processes, and named by node and device."""

from types import SimpleNamespace

import pytest
import torch

from tracking import resources
from tracking.resources import Resources, _points


class Log:
    def __init__(self):
        self.points = []

    def log_metrics(self, metrics, step):
        self.points.append((step, metrics))


def test_samples_are_those_of_the_batches_and_the_time_is_that_of_the_training(monkeypatch):
    clock = iter([100.0, 101.0, 104.0])
    monkeypatch.setattr(resources.time, "monotonic", lambda: next(clock))
    log = Log()
    module = SimpleNamespace(device=torch.device("cpu"))
    trainer = SimpleNamespace(node_rank=0, local_rank=0, world_size=1, global_step=7)
    callback = Resources(log)
    callback.on_train_epoch_start(trainer, module)
    for size in (4, 2):
        callback.on_train_batch_end(trainer, module, None, {"site": ["a"] * size, "image": torch.zeros(size, 1)}, 0)
    callback.on_train_epoch_end(trainer, module)
    ((step, metrics),) = log.points
    assert step == 7
    assert metrics["system/samples_per_second"] == pytest.approx(6 / 4)
    assert metrics["system/world_size"] == 1
    assert metrics["system/system_memory_usage_megabytes"] > 10
    assert not any("gpu" in name for name in metrics)


def test_an_epoch_without_a_batch_logs_nothing(monkeypatch):
    monkeypatch.setattr(resources.time, "monotonic", lambda: 1.0)
    callback = Resources(Log())
    callback.on_train_epoch_start(None, None)
    callback.on_train_epoch_end(None, None)
    assert callback.logger.points == []


def test_nodes_and_devices_are_named_where_there_are_several():
    taken = [
        {
            "node": node,
            "device": device,
            "cpu": 10.0 * node,
            "memory": 1.0,
            "gpu": 5.0 + device,
            "samples_per_second": 2.0,
        }
        for node in range(2)
        for device in range(2)
    ]
    points = _points(taken)
    assert points["system/samples_per_second"] == 8
    assert points["system/world_size"] == 4
    assert points["system/node_1/cpu_utilization_percentage"] == 10
    assert points["system/node_1/gpu_1_memory_peak_megabytes"] == 6
    assert "system/gpu_1_memory_peak_megabytes" in _points(taken[:2])
