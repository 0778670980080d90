"""What a run leaves names nobody whom its images name, and what is sent away shows nobody.

One training of a cohort in which headers, file names and DICOM tags hold names serves all tests.
"""

import base64
import contextlib
import gzip
import io
import re
import sqlite3
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from experiments.cli import main
from tracking.contract import read_contract
from tracking.images import read_withheld
from tracking.paths import HIDDEN, PATHS
from tracking.store import Store

CONFIG = Path(__file__).parent.parent / "conf" / "brain_age_regression.yaml"
HEADERS = ("Canarydescrip", "Canarydb_name", "Canaryaux_file", "Canaryintent_nam")
TAGS = tuple(f"Canary{name}" for name in ("Patient", "Number", "Institution", "Physician", "Station", "Description"))
FILES = ("CanaryDicom", "CanarySlice", *(f"CanaryFile_{number:02d}" for number in (*range(3), *range(4, 11))))
OTHERS = ("CanaryDoctor", "CanaryHospital")  # a column that nobody asked for, and a folder of this machine
PLANTED = (*HEADERS, *TAGS, *FILES, *OTHERS)
RUN = "scratch-holdout-0-r0-s3"
AT_HOME = {PATHS, "key", "codes.csv"}  # in a run's folder, and no artifacts


@pytest.fixture(scope="module")
def lab(tmp_path_factory, make_tiny_cohort, make_database, harness):
    """A run on images that name people, explained for a server elsewhere, and everything that it left and said."""
    home, output = tmp_path_factory.mktemp("CanaryHospital"), tmp_path_factory.mktemp("outputs")
    cache, said = tmp_path_factory.mktemp("cache"), io.StringIO()
    table = harness("canaries").plant(home / "cohort", make_tiny_cohort)
    make_database(output)
    store = ["--output-dir", str(output)]
    words = ["--config", str(CONFIG), "--data.table", str(table), "--data.cache", str(cache), *store]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert main(["verify", str(table)]) == 0
        said.seek(0)
        said.truncate()  # where a table lies is said to who verifies it
        assert main(["fit", *words, "--data.held_out_sites", "[CanaryWest]"]) == 0
        assert main(["test", RUN, *store]) == 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tracking.store.stays_here", lambda uri, artifacts: False)
            assert main(["saliency", RUN, "--num", "2", "--output", str(output / "maps"), *store]) == 0
    found = Store(f"sqlite:///{output / 'mlflow.db'}", output)
    run_id = found.find_run(RUN).run_id
    return SimpleNamespace(
        home=home,
        table=table,
        output=output,
        cache=cache,
        said=said.getvalue(),
        store=found,
        run_id=run_id,
        words=store,
    )


def texts(path):
    """Return all that a file says, and what it is called; what is packed in it unpacked."""
    content = path.read_bytes()
    yield str(path).encode()
    yield content
    if path.suffix == ".parquet":
        yield pd.read_parquet(path).to_csv().encode()
    if path.suffix == ".html":
        yield from map(base64.b64decode, re.findall(rb"base64,([\w+/=]+)", content))
    if path.suffix == ".gz":
        yield gzip.decompress(content)
    if path.suffix == ".db":
        with contextlib.closing(sqlite3.connect(path)) as database:
            yield "\n".join(database.iterdump()).encode()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield archive.read(name)


def leaks(files, names):
    """Return which names are in which files."""
    wanted = re.compile("|".join(sorted(names, key=len, reverse=True)).encode(), re.IGNORECASE)
    return sorted(
        {(path.name, found.decode()) for path in files for text in texts(path) for found in wanted.findall(text)}
    )


def files_of(*folders):
    return [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name not in AT_HOME]


def test_no_name_of_an_image_is_in_anything_that_a_run_leaves(lab):
    assert len(PLANTED) >= 20
    planted = {name for _, name in leaks(files_of(lab.home), PLANTED)}
    assert planted == set(PLANTED), "the names are in place"
    left = files_of(lab.output, lab.cache)
    kinds = {path.suffix for path in left}
    assert kinds >= {".db", ".ckpt", ".parquet", ".json", ".yaml", ".html", ".jsonl", ".safetensors"}
    assert len(files_of(lab.cache)) >= 20
    assert leaks(left, PLANTED) == []
    assert "epoch" in lab.said
    assert [name for name in PLANTED if name.lower() in lab.said.lower()] == []


def test_no_folder_of_this_machine_is_in_a_run(lab):
    run = lab.store.client.get_run(lab.run_id)
    assert run.data.params["data.table"] == f"{HIDDEN}/canary_table.tsv"
    assert run.data.params["data.cache"] == HIDDEN
    folders = (str(lab.home), str(lab.cache), str(lab.output), str(CONFIG.parent), str(Path.cwd()))
    tags = "\n".join([*run.data.params.values(), *run.data.tags.values()])
    assert [folder for folder in folders if folder in tags] == []
    kept = files_of(Path(run.info.artifact_uri.removeprefix("file://")))
    assert "best.ckpt" in {path.name for path in kept}
    contents = b"".join(text for path in kept for text in list(texts(path))[1:])
    assert [folder for folder in folders if folder.encode() in contents] == []
    best = lab.store.folder(lab.run_id) / "checkpoints" / "best.ckpt"
    known = yaml.safe_load(read_contract(best).config)["data"]["init_args"]
    assert (known["table"], known["cache"]) == (str(lab.table), str(lab.cache)), "this machine knows them again"


def test_a_shared_report_of_a_run_names_nobody_and_no_folder(lab, capsys):
    assert main(["report", lab.run_id, "--share", *lab.words]) == 0
    folder = lab.store.folder(lab.run_id)
    said = capsys.readouterr().out
    assert str(folder / "sharing") in said
    page = folder / "report-shared.html"
    assert leaks([page], (*PLANTED, "CanaryPerson")) == []
    text = page.read_text(encoding="utf-8")
    assert str(lab.output) not in text
    assert "data:image/png" not in text, "a picture of somebody"
    assert leaks([folder / "report.html"], ["CanaryPerson"]), "the whole report says who was most wrong"
    codes = pd.read_csv(folder / "sharing" / "codes.csv")
    assert codes["participant_id"].str.startswith("CanaryPerson").all()
    assert any(code in text for code in codes["code"])
    assert {path.stat().st_mode & 0o777 for path in (folder / "sharing").iterdir()} == {0o600}
    assert not [path for path in lab.store.client.list_artifacts(lab.run_id) if "shar" in path.path]


def test_pictures_of_participants_wait_until_they_are_asked_for(lab, capsys, monkeypatch):
    def artifacts():
        return {item.path for item in lab.store.client.list_artifacts(lab.run_id, "saliency")}

    monkeypatch.setattr("tracking.store.stays_here", lambda uri, artifacts: False)
    folder = lab.store.folder(lab.run_id)
    asked = f"fontanel sync {lab.run_id} --share-images"
    assert asked in lab.said
    assert artifacts() == {"saliency/saliency.tsv"}
    (kept,) = read_withheld(folder)
    assert main(["sync", *lab.words]) == 0
    said = capsys.readouterr().out
    assert asked in said
    assert "Everything is in" not in said
    assert artifacts() == {"saliency/saliency.tsv"}
    assert main(["report", lab.run_id, *lab.words]) == 0
    assert "data:image/png" in (folder / "report.html").read_text(encoding="utf-8"), "at home it is shown"
    assert main(asked.split()[1:] + lab.words) == 0
    assert "with 1 image that had been kept back" in capsys.readouterr().out
    assert artifacts() == {"saliency/saliency.tsv", kept.path}
    assert read_withheld(folder) == []
