"""What the README prints works as it is printed."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.cli import VERBS, main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"^    (?:.*&& )?fontanel (.+?)(?:  +#.*)?$", re.MULTILINE)


def section(title):
    """Return the text below a heading."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)[1]


def test_every_verb_and_every_file_that_it_names_is_there():
    commands = [shlex.split(words) for words in COMMAND.findall(README)]
    assert {words[0] for words in commands} >= {"evaluate", "table", "quickstart"}
    assert {words[0] for words in commands} <= set(VERBS)
    files = {word for words in commands for word in words if word.startswith("experiments/")}
    assert files
    assert all((ROOT / name).is_file() for name in files)
    linked = re.findall(r"\]\(([^)#]+)[)#]", README)
    assert all((ROOT / name).exists() for name in linked if "://" not in name)


@pytest.mark.parametrize(
    "words", COMMAND.findall(section("I have predictions.csv")), ids=lambda words: words.split()[0]
)
def test_the_first_door_opens_with_nothing_but_a_table(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    target = generator.integers(0, 2, 60)
    for name, signal in {"predictions": 1.0, "ours": 1.5, "theirs": 0.5}.items():
        score = signal * (target - 0.5) + generator.normal(size=60)
        people = {"participant_id": [f"sub-{number:02d}" for number in range(60)], "site": ["a", "b"] * 30}
        table = pd.DataFrame({**people, "target": target, "prediction": 1 / (1 + np.exp(-score))})
        table.to_csv(f"{name}.csv", index=False)
    assert main(shlex.split(words)) == 0
    assert capsys.readouterr().out
    if words.startswith("report"):
        assert (tmp_path / "predictions.report.html").stat().st_size > 10_000
