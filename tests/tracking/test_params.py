from argparse import Namespace
from pathlib import Path

from tracking.params import MAXIMUM_PARAM, flatten_params


def test_nested_namespaces_and_lists() -> None:
    config = Namespace(
        model=Namespace(
            class_path="a.B", init_args=Namespace(lr=0.001, network={"class_path": "N", "init_args": {"w": 8}})
        ),
        trainer={"callbacks": [{"class_path": "C", "init_args": {}}, {"class_path": "D"}], "limits": {}},
        data=Path("a") / "b.tsv",
        _instantiator="jsonargparse",
    )
    assert flatten_params(config) == {
        "model.class_path": "a.B",
        "model.lr": "0.001",
        "model.network.class_path": "N",
        "model.network.w": "8",
        "trainer.callbacks.0.class_path": "C",
        "trainer.callbacks.1.class_path": "D",
        "trainer.limits": "{}",
        "data": "a/b.tsv",
    }


def test_numbers_stay_plain() -> None:
    values = {"a": 1e-05, "b": 3, "c": 2.5, "d": True, "e": None, "f": [1.0, 2], "g": "text", "h": float("nan")}
    assert list(flatten_params(values).values()) == ["1e-05", "3", "2.5", "true", "null", "[1.0, 2]", "text", "NaN"]


def test_secrets_are_redacted() -> None:
    assert flatten_params({"data": {"init_args": {"token": "abc"}}}) == {"data.token": "<redacted>"}


def test_long_values_are_cut_and_say_so() -> None:
    whole, cut = "x" * MAXIMUM_PARAM, flatten_params({"a": "x" * (MAXIMUM_PARAM + 1)})["a"]
    assert flatten_params({"a": whole})["a"] == whole
    assert len(cut) == MAXIMUM_PARAM
    assert cut.endswith("... [cut: 6001 characters, whole in config.yaml]")


def test_names_that_mlflow_would_refuse() -> None:
    assert flatten_params({"a[0]=ü?": 1, "b" * 300: 2}) == {"a_0__ü_": "1", "b" * 250: "2"}
