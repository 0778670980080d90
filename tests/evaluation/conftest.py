from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from evaluation.predictions import normalise_predictions
from evaluation.report.context import ReportContext
from evaluation.report.parts import parts_of

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects what the tests ask of a page, and refuses tags that do not close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.images, self.text, self.addresses, self.scopes, self.captions = [], [], "", [], [], 0
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.open += [] if tag in VOID else [tag]
        self.images += [found] if tag == "img" else []
        self.scopes += [found.get("scope")] if tag == "th" else []
        self.captions += tag == "caption"
        self.addresses += [value for name, value in attributes if name in {"src", "href", "action"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"style", "script"}:
            self.text += data


@pytest.fixture
def parse():
    """Read a page, as `Page` does."""
    return Page


@pytest.fixture
def simulate():
    """Make the table of a cross-site comparison: arms separate the classes by their number of standard deviations."""

    def table_of(sizes, arms, repeats=2, seeds=3, protocol="cross-site"):
        generator = np.random.default_rng(7)
        people = [(site, f"{site}{number:03d}") for site, size in sizes.items() for number in range(size)]
        frame = pd.DataFrame(people, columns=["site", "participant_id"])
        frame["target"] = (np.arange(len(frame)) % 5 < 2).astype(float)
        luck = generator.normal(size=len(frame))
        tables = []
        for arm, strength in arms.items():
            for repeat, seed in np.ndindex(repeats, seeds):
                noise = 0.8 * luck + 0.6 * generator.normal(size=len(frame))
                score = 1 / (1 + np.exp(-(strength * (frame["target"] - 0.4) + noise)))
                tables.append(frame.assign(arm=arm, repeat=repeat, seed=seed, prediction=score, threshold=0.45))
        table = pd.concat(tables, ignore_index=True)
        others = {site: "+".join(other for other in sizes if other != site) for site in sizes}
        return table.assign(
            protocol=protocol,
            split="external",
            fold=table["site"],
            train_sites=table["site"].map(others),
            dataset="newborns",
            output="outcome",
            score_0=1 - table["prediction"] ** 2,
            score_1=table["prediction"] ** 2,
        )

    return table_of


@pytest.fixture
def table():
    """A run's predictions: two training sites, one held-out site, 12 participants a site and split."""
    generator = np.random.default_rng(31)
    rows = [
        {
            "split": split,
            "site": site,
            "participant_id": f"{site}{split}{number}",
            "image_id": f"{site}{split}{number}_T1w",
        }
        for split, sites in {"test": "AB", "val": "AB", "external": "C"}.items()
        for site in sites
        for number in range(12)
    ]
    frame = pd.DataFrame(rows)
    age = generator.uniform(1, 88, len(frame))
    return frame.assign(
        protocol="holdout",
        arm="scratch",
        train_sites="A+B",
        dataset="phantom",
        output="age",
        target=age,
        prediction=40 + 0.8 * (age - 40) + generator.normal(0, 4, len(frame)),
        baseline=41.5,
    )


@pytest.fixture
def parts_from():
    """Assess the parts of a table with few replicates."""

    def assess_parts(frame, unit=None):
        return parts_of(normalise_predictions(frame), unit=unit, num_replicates=200, seed=0)

    return assess_parts


@pytest.fixture
def cohort():
    """The facts of the cohort that the table was predicted from."""
    ages = {"age": {"known": 12, "mean": 40.0, "sd": 9.0, "min": 2.0, "max": 80.0}}
    places = (("train", "A"), ("train", "B"), ("test", "A"), ("test", "B"), ("external", "C"))
    return {
        "tables": [{"name": "cohort.tsv", "dataset": "phantom", "sha256": "f" * 64}],
        "verified": True,
        "counts": [
            {"split": split, "site": site, "participants": 12, "images": 13, "targets": ages} for split, site in places
        ],
    }


@pytest.fixture
def context_with(cohort):
    """Make the context of a report, changed where a test wants it."""
    values = {
        "title": "age2hie/phantom: a run",
        "question": "Does it work?",
        "run_id": "abc123",
        "protocol": "holdout",
        "cohort": cohort,
        "split": {"protocol": "holdout", "seed": 3, "hash": "e" * 64},
        "config_yaml": "model: {width: 16}",
        "environment": {"python": "3.11.9", "packages": {"torch": "2.15.0"}},
        "history": pd.DataFrame({"key": "val/loss", "step": [1, 2], "value": [2.0, 1.0]}),
        "published": [{"metric": "mae", "value": 2.14, "unit": "years", "source": "Peng et al. 2021"}],
        "num_replicates": 200,
        "created": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    }
    return lambda **changes: ReportContext(**(values | changes))
