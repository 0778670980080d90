"""A promoted model is found by its alias, and an alias moves."""

from experiments.cli import main
from experiments.runtime import locate_weights
from tracking.store import Store


def test_an_alias_stands_for_the_weights_of_a_run(fitted, capsys):
    output, run_id = fitted
    place = ["--output-dir", str(output)]
    store = Store(f"sqlite:///{output / 'mlflow.db'}", output)
    assert main(["promote", run_id, "--alias", "champion", "--name", "brain-age", *place]) == 0
    assert "Version 1 of brain-age is now champion: models:/brain-age@champion" in capsys.readouterr().out
    weights = locate_weights("models:/brain-age@champion", store)
    assert weights == output / "runs" / run_id / "checkpoints" / "best.ckpt"
    assert locate_weights("models:/brain-age/1", store) == weights
    assert main(["promote", run_id, "--alias", "second", "--name", "brain-age", *place]) == 0
    assert "Version 1 of brain-age is now second" in capsys.readouterr().out, "the same run is the same version"
    assert main(["promote", run_id[:8], "--alias", "champion", *place]) == 0
    assert "models:/conf-brain_age_regression@champion" in capsys.readouterr().out


def test_what_cannot_be_promoted_is_refused(fitted, capsys):
    output, run_id = fitted
    place = ["--output-dir", str(output)]
    assert main(["promote", "nobody", "--alias", "champion", *place]) == 1
    assert main(["promote", run_id, "--alias", "champion", "--name", "a/b", *place]) == 1
    assert "register run" in capsys.readouterr().err
