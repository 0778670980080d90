"""The front door: what it prints, what it returns, and what it must not import."""

import subprocess
import sys

import pytest

from experiments import cli

HEAVY = ("torch", "numpy", "pandas", "mlflow", "pytorch_lightning", "monai", "timm", "torchio", "matplotlib")


def imported_by(*words: str) -> list[str]:
    code = (
        f"import sys; from experiments.cli import main; main({list(words)!r}); sys.stderr.write(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    return [name for name in HEAVY if name in done.stderr.split()]


@pytest.mark.parametrize("words", [["--help"], *[[verb, "--help"] for verb in cli.VERBS]], ids=lambda words: words[0])
def test_help_imports_nothing_heavy(words):
    assert imported_by(*words) == []


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: fontanel {verb}" in text
    assert cli.VERBS[verb] in text


def test_overview_lists_every_verb(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in cli.VERBS)


def test_a_misspelt_verb_is_wrong_usage_and_names_the_closest(capsys):
    assert cli.main(["verfy"]) == 2
    assert "Did you mean 'verify'?" in capsys.readouterr().err


def test_no_verb_is_wrong_usage():
    assert cli.main([]) == 2


def test_an_unknown_option_is_wrong_usage(capsys):
    assert cli.main(["verify", "table.tsv", "--fast"]) == 2
    assert "--fast" in capsys.readouterr().err


def test_an_error_is_one_paragraph_without_a_traceback(tmp_path, capsys):
    assert cli.main(["verify", str(tmp_path / "absent.tsv")]) == 1
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert "absent.tsv" in text
    assert "Traceback" not in text


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises((ValueError, OSError), match=r"absent\.csv"):
        cli.main(["--debug", "evaluate", str(tmp_path / "absent.csv"), "--task", "regression"])


def test_an_interruption_is_130(monkeypatch, capsys):
    from experiments import verify

    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "run", interrupted)
    assert cli.main(["verify", "table.tsv"]) == 130
    assert "interrupted" in capsys.readouterr().err
