import json
import subprocess
import sys

import pytest

from datamodules.cohort import read_cohort
from datamodules.verify import check_manifest
from experiments.cli import main

SMALL = ["--shape", "16", "18", "16"]


def test_a_cohort_is_made_verified_and_introduced(tmp_path, capsys):
    folder = tmp_path / "brain-age"
    words = ["make-cohort", "brain-age", str(folder), "--num-participants", "6", "--seed", "3", *SMALL]
    assert (
        main([*words, "--sites", "2", "--scenario", "confounded", "--age-range", "0", "97", "--num-workers", "0"]) == 0
    )
    output = capsys.readouterr()
    assert f"6 participants in {folder / 'cohort.tsv'}" in output.out
    assert "phantom_pretrain.yaml" in output.out
    assert "The hidden brain-age gap is" in output.out
    assert "Rendering and verifying images: 12 items" in output.err
    cohort = read_cohort(folder / "cohort.tsv")
    assert len(cohort.frame) == 6
    assert set(cohort.frame["site"]) <= {"site-a", "site-b"}
    assert len(check_manifest(cohort).files) == 6


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--shape", "8", "8", "8"], 1, "Change --shape"),
        (["--num-workers", "-1"], 1, "Change --num-workers"),
        (["--labels", "absent"], 1, "absent holds no label map"),
        (["--shape", "16"], 2, "expected 3 arguments"),
        (["--scenario", "other"], 2, "invalid choice"),
    ],
)
def test_wrong_words_are_explained(tmp_path, capsys, words, code, message):
    assert main(["make-cohort", "brain-age", str(tmp_path / "cohort"), *words]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "cohort").exists()


def test_an_existing_cohort_is_kept_unless_told_otherwise(tmp_path, capsys):
    (tmp_path / "cohort.tsv").write_text("mine")
    words = ["make-cohort", "brain-age", str(tmp_path), "--num-participants", "2", *SMALL]
    assert main(words) == 1
    assert "already there" in capsys.readouterr().err
    assert (tmp_path / "cohort.tsv").read_text() == "mine"
    assert main([*words, "--overwrite"]) == 0
    assert len(read_cohort(tmp_path / "cohort.tsv").frame) == 2


def test_newborns_are_introduced_with_the_best_auc_and_labelled_twice(tmp_path, capsys):
    folder = tmp_path / "hie"
    words = ["make-cohort", "hie-outcome", str(folder), "--num-participants", "6", "--seed", "3", *SMALL]
    assert main([*words, "--images", "adc", "--sites", "3", "--num-workers", "0"]) == 0
    output = capsys.readouterr()
    truth = json.loads((folder / "cohort.tsv.truth.json").read_text(encoding="utf-8"))
    for name in ("overall", "site-a", "site-b", "site-c"):
        best = truth["monte_carlo"][name]["bayes_auroc"]
        assert 0.8 < best < 0.95
        assert f"  {name}: {best:.3f} knowing everything" in output.out
    assert f"6 participants in {folder / 'cohort.tsv'}" in output.out
    assert "phantom_finetune.yaml" in output.out
    assert "Rendering and verifying images: 18 items" in output.err
    again = [*words, "--images", "adc", "--sites", "3", "--num-workers", "0", "--shared-factor", "off"]
    assert main([*again, "--reuse-images"]) == 0
    output = capsys.readouterr()
    assert "Verifying images: 12 items" in output.err
    assert "shared factor off" in output.out
    assert f"--data.table {folder / 'cohort_shared-factor-off.tsv'}" in output.out
    assert len(check_manifest(read_cohort(folder / "cohort_shared-factor-off.tsv")).files) == 12


def test_newborns_have_defaults_of_their_own(capsys):
    assert main(["make-cohort", "hie-outcome", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for default in ("participants (default: 160)", "sites (default: 2)", "(default: 40 48 40)", "120 x 140 x 120 mm"):
        assert default in words


def test_help_imports_nothing_heavy():
    program = """
import sys
from experiments.cli import main
code = main(["make-cohort", "brain-age", "--help"])
heavy = {"numpy", "torch", "nibabel", "scipy", "pandas"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=False)
    assert finished.returncode == 0, finished.stderr
    assert "--scenario" in finished.stdout
