import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib.image import imread

from evaluation.predictions import PredictionsError
from evaluation.report.run import ReportContext, render_report

BANNER = "phantom data: a software check, not evidence"


@pytest.fixture
def page(table, context_with):
    return render_report(table, context_with(phantom=True))


def test_page_is_whole_and_needs_no_network(page, parse):
    found = parse(page)
    assert all(address.startswith(("#", "data:image/svg+xml;base64,")) for address in found.addresses)
    assert {address[1:] for address in found.addresses if address[0] == "#"} <= set(re.findall(r'id="([a-z]+)"', page))
    for outside in ("http://", "https://", "url(", "@import", "<script", "<link"):
        assert outside not in page
    assert len(page) < 1_000_000


def test_page_is_accessible(page, parse):
    found = parse(page)
    assert len(found.images) == 8  # two parts of three figures, sites, learning curve
    assert all(image["alt"] for image in found.images)
    assert set(found.scopes) <= {"col", "row", "rowgroup"}
    assert found.captions == page.count("<table>")
    assert '<html lang="en">' in page
    assert "@media print" in page


def test_phantom_banner_only_over_phantoms_and_a_table_alone_is_enough(table, page, parse):
    assert BANNER in page
    foreign = table.loc[table["split"] == "test", ["participant_id", "target", "prediction"]]
    alone = render_report(foreign, ReportContext(title="theirs.csv", num_replicates=100))
    assert BANNER not in alone
    assert "24 participants the mean absolute error" in parse(alone).text


def test_everything_known_is_on_the_page(page, parse):
    text = parse(page).text
    for words in (
        *("60 participants", "every file verified", "scored: 24", "40.0 (9.0)"),
        *("2.14 years", "Measured on phantom", "Test (n = 24)", "External (n = 12)", "Largest errors: 10 of 36"),
        *("corrected: not a performance measure", "Beheshti 2019", "Fitted on 24 participants of the part “Validation"),
        *("200 bootstrap replicates", "with seed 3", "torch 2.15.0", "model: {width: 16}", "packages.torch", "abc123"),
        *("Ethical approval", "Every step is in", "02 January 2026"),
    ):
        assert words in text, words


def test_text_from_outside_is_escaped(table, context_with):
    hostile = "<script>alert(1)</script>"
    named = table.assign(participant_id=hostile + table["participant_id"], site=hostile)
    page = render_report(named, context_with(title=hostile, question=hostile, config_yaml=hostile, study=hostile))
    assert "<script" not in page


def test_table_without_targets_is_refused(table, context_with):
    with pytest.raises(PredictionsError, match="nothing to report"):
        render_report(table.assign(target=np.nan), context_with())


@pytest.mark.services
def test_browser_shows_the_page(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed, so the page cannot be rendered")
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    picture = tmp_path / "report.png"
    command = [
        browser,
        *options,
        "--hide-scrollbars",
        "--window-size=1200,5200",
        f"--screenshot={picture}",
        path.as_uri(),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = imread(picture)[..., :3]
    assert pixels.shape[:2] == (5200, 1200)
    accent = np.all(np.abs(pixels - np.array([0, 114, 178]) / 255) < 0.02, axis=-1)  # the figures' first colour
    assert accent.sum() > 500
    written = (pixels.min(axis=-1) < 0.5).any(axis=1)
    assert written[:4000].mean() > 0.4
    assert not (pixels[:, -40:].min(axis=-1) < 0.9).any()  # nothing runs over the right edge
