"""`fontanel preview`: what is on its page, in which order, and what must never be there."""

import html
import io
import json
import re
import shutil
import subprocess
from contextlib import redirect_stdout
from functools import partial
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from datamodules.phantoms.brain_age import BrainAgePhantom
from evaluation.wording import TIMES
from experiments.cli import main

SECRET = "Petronella Geheim"
WARD = "<script>document.title='owned'</script>"
SITE = "<script>document.title='owned'<script>"  # a site has no slash
CONFIG = """
model:
  class_path: lightning_modules.RegressionModule
  init_args:
    target: age
    network: {class_path: lightning_modules.networks.SFCN, init_args: {width: 4}}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
data:
  class_path: datamodules.BrainAgeDataModule
  init_args:
    table: another.tsv
    image: t1w
    preprocessing: {spacing: [6, 6, 6], shape: [32, 40, 32]}
    augmentation: {class_path: datamodules.Augmentation, init_args: {kernel: torch}}
trainer: {max_epochs: 1}
"""


def upside_down(data, affine):
    return np.flip(data, int(np.argmax(np.abs(affine[2, :3])))), affine


def other_contrast(data, affine):
    head = data > data.mean()
    return np.where(head, data[head].max() + data[head].min() - data, data), affine


def half_a_head(data, affine):
    axis = int(np.argmax(np.abs(affine[0, :3])))
    halves = np.array_split(data, 2, axis)
    return np.concatenate([np.zeros_like(halves[0]), halves[1]], axis), affine


def wrong_spacing(data, affine):
    return data, affine @ np.diag([1, 1, 1.6, 1])


def noisy(data, affine):
    return data + np.random.default_rng(0).normal(0, 0.25 * data.max(), data.shape), affine


PLANTED = {"sub-00002": upside_down, "sub-00004": other_contrast, "sub-00009": half_a_head}
PLANTED |= {"sub-00012": wrong_spacing, "sub-00016": noisy}


def change(path, function):
    image = nib.load(path)
    data, affine = function(np.asarray(image.dataobj, dtype=np.float64), image.affine)
    changed = nib.Nifti1Image(np.clip(np.round(data), 0, 32000).astype(np.int16), affine)
    changed.header["descrip"] = SECRET
    nib.save(changed, path)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A phantom cohort with planted outliers, names in headers, a hostile text, and two files that cannot be read."""
    folder = tmp_path_factory.mktemp("planted")
    table = BrainAgePhantom(21, 1, shape=(32, 40, 32)).write(folder, num_workers=0)
    frame = pd.read_csv(table, sep="\t", dtype=str)
    for person, path in zip(frame["participant_id"], frame["t1w"], strict=True):
        change(folder / path, PLANTED.get(person, lambda data, affine: (data, affine)))
    described = json.loads((folder / "cohort.tsv.json").read_text())
    described["columns"]["ward"] = {"role": "group", "kind": "text"}
    (folder / "cohort.tsv.json").write_text(json.dumps(described))
    frame["ward"] = ["" if index != 4 else WARD for index in range(len(frame))]
    frame["site"] = [SITE if site == "site-c" else site for site in frame["site"]]
    frame.to_csv(table, sep="\t", index=False)
    torn = folder / frame["t1w"][19]
    torn.write_bytes(torn.read_bytes()[:2000])
    (folder / frame["t1w"][20]).unlink()
    first = (folder / frame["t1w"][0]).with_name("sub-00001_T1w.json")
    facts = {"Manufacturer": "Siemens", "MagneticFieldStrength": 3, "RepetitionTime": 2.3, "InstitutionName": SECRET}
    first.write_text(json.dumps(facts | {"PatientName": SECRET, "AcquisitionDate": "19991231"}))
    (folder / "cohort.tsv.manifest.json").unlink()
    return table


@pytest.fixture(scope="module")
def page(planted, tmp_path_factory):
    """The page of that cohort as a configuration shows it."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "fit.yaml").write_text(CONFIG)
    words = ["preview", str(planted), "--config", str(folder / "fit.yaml"), "--data.seed", "3"]
    assert main([*words, "--output", str(folder / "deep" / "preview.html")]) == 0
    return folder / "deep" / "preview.html"


@pytest.fixture(scope="module")
def plain(planted, tmp_path_factory):
    """The page without a configuration, and what is printed as JSON."""
    path = tmp_path_factory.mktemp("plain") / "preview.html"
    with redirect_stdout(io.StringIO()) as printed:
        assert main(["preview", str(planted), "--json", "--output", str(path)]) == 0
    return path, json.loads(printed.getvalue())


def test_planted_outliers_come_first(plain):
    rows = plain[1]["rows"]
    assert [row["participant_id"] for row in rows[:2]] == ["sub-00020", "sub-00021"], "what cannot be read is first"
    assert [(row["readable"], row["score"]) for row in rows[:2]] == [(False, None)] * 2
    assert [row["problems"] for row in rows[:2]] == [["corrupt_gzip"], ["missing_file"]]
    assert {row["participant_id"] for row in rows[2:7]} == set(PLANTED)
    assert [row["score"] for row in rows[2:]] == sorted((row["score"] for row in rows[2:]), reverse=True)
    assert {row["participant_id"] for row in rows if row["outlying"]} == set(PLANTED)
    why = {row["participant_id"]: row["measure"] for row in rows}
    assert (why["sub-00012"], why["sub-00002"]) == ("voxel_volume", "similarity")
    assert plain[1]["limit"] == 3.5


PROBE = """
addEventListener("load", async () => {
  const images = [...document.images];
  for (const image of images) image.loading = "eager";  // those below the fold wait to be scrolled to
  while (!images.every((image) => image.complete)) await new Promise((after) => setTimeout(after, 20));
  const choose = (id, value) => {
    const control = document.getElementById(id);
    control.value = value;
    for (const kind of ["input", "change"]) control.dispatchEvent(new Event(kind));
  };
  const visible = () => [...document.querySelectorAll(".card")].filter((card) => !card.hidden);
  const found = {painted: images.filter((image) => image.naturalWidth > 0).length, images: images.length};
  found.requests = performance.getEntriesByType("resource").filter((entry) => !entry.name.startsWith("data:")).length;
  found.title = document.title;
  choose("state", "unreadable"); found.unreadable = visible().length;
  choose("state", "code:corrupt_gzip"); found.torn = visible().length;
  choose("state", ""); choose("site", "site-a"); found.site = visible().length;
  choose("site", ""); choose("sort", "name"); found.first = visible()[0].dataset.name;
  choose("who", "00007"); found.count = document.getElementById("count").value;
  document.body.dataset.found = JSON.stringify(found);
});
"""


class Cards(HTMLParser):
    """The cards of a page, and everything that could fetch or run something."""

    def __init__(self, text):
        super().__init__()
        self.order, self.images, self.addresses, self.scripts = [], {}, [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        if tag == "li" and "card" in (known.get("class") or "").split():
            self.order.append(known["data-name"])
        if tag == "img" and self.order:
            self.images.setdefault(self.order[-1], []).append(known["alt"])
        self.scripts += tag == "script"
        self.addresses += [known[name] for name in ("src", "href", "action", "data", "poster") if known.get(name)]


def test_the_page_holds_the_facts(page):
    text = page.read_text(encoding="utf-8")
    cards = Cards(text)
    assert cards.order[:2] == ["sub-00020", "sub-00021"]
    assert set(cards.order[2:7]) == set(PLANTED)
    assert len(cards.order) == 21
    alternatives = cards.images["sub-00001"]
    assert [alternative.split(", ")[2].partition(":")[0] for alternative in alternatives] == [
        "in the file",
        "network's input",
        "augmented",
    ]
    assert "sub-00021" not in cards.images
    assert all(address.startswith(("data:image/", "#")) for address in cards.addresses)
    card = re.search(r'data-name="sub-00001".*?</li>\n<li class="card', text, re.S)[0]
    sizes = (f"6{TIMES}6{TIMES}6 mm", f"32{TIMES}40{TIMES}32")
    for fact in (*sizes, "RAS", "int16", "Siemens 3 T", "<dt>TR</dt><dd>2300 ms</dd>", " years"):
        assert fact in card, fact
    torn = re.search(r'data-name="sub-00020".*?</li>\n<li class="card', text, re.S)[0]
    assert "<code>corrupt_gzip</code>" in torn
    assert "t1w: the file cannot be read." in torn
    assert str(page.parent.parent) not in text, "a path of the machine"


def test_names_are_not_on_the_page(page, planted):
    text = page.read_text(encoding="utf-8")
    assert SECRET.encode() in nib.load(planted.parent / "images/sub-00001_T1w.nii.gz").header.binaryblock
    assert SECRET not in text
    assert "19991231" not in text


def test_hostile_texts_are_shown_as_text(page, plain):
    for path, texts in ((plain[0], (WARD, SITE)), (page, (SITE,))):
        text = path.read_text(encoding="utf-8")
        assert Cards(text).scripts == 1
        for hostile in texts:
            assert hostile not in text
            assert html.escape(hostile) in text.replace("&#39;", "&#x27;")


@pytest.mark.services
def test_a_browser_paints_every_picture_and_asks_for_nothing(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    text = page.read_text(encoding="utf-8")
    policy = re.search(r"script-src 'sha256-[^']+'", text)[0]
    looked = tmp_path / "looked.html"
    looked.write_text(
        text.replace(policy, "script-src 'unsafe-inline'") + f"<script>{PROBE}</script>", encoding="utf-8"
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=20000", "--dump-dom"]
    run = partial(subprocess.run, capture_output=True, encoding="utf-8", timeout=120, check=True)
    controls = re.search(r'<form class="controls"[^>]*>', run([*command, page.as_uri()]).stdout)[0]
    assert "hidden" not in controls, "the page's own policy keeps its script from running"
    dom = run([*command, looked.as_uri()]).stdout
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', dom)[1]))
    assert found["painted"] == found["images"] == 3 * 19 + 1
    assert found["requests"] == 0
    assert found["title"] == "Preview of cohort.tsv"
    assert (found["unreadable"], found["torn"], found["site"]) == (2, 1, 7)
    assert (found["first"], found["count"]) == ("sub-00001", "1 of 21 shown")


def test_a_manifest_that_fits_is_believed(make_tiny_cohort, tmp_path, capsys, monkeypatch):
    table = make_tiny_cohort(tmp_path / "tiny", 6)
    assert main(["verify", str(table)]) == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["preview", str(table)]) == 0
    out, err = capsys.readouterr()
    assert "Verifying" not in err
    assert "of 6 rows (6 participants) stand" in out
    assert re.search(r"Page: preview\.html, 0\.\d MB, \d+ kB a row", out)
    assert "No augmentation: a configuration would name it." in (tmp_path / "preview.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "words", "code", "message"),
    [
        (None, [], 1, "the cohort table does not exist"),
        ("participant_id\tage\n1\t50\n", [], 1, "No column holds paths of images"),
        ("name\tt1w\n1\ta.nii.gz\n", [], 1, "No column identifies the participant"),
        ("participant_id\tt1w\n1\ta.nii.gz\n", ["--data.rows", "x"], 2, "Name one with --config"),
    ],
)
def test_what_cannot_be_shown_is_refused(content, words, code, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / "table.tsv").write_text(content)
    assert main(["preview", str(tmp_path / "table.tsv"), "--output", str(tmp_path / "p.html"), *words]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "p.html").exists()
