"""The contact sheet of a cohort: one page with every image, the most outlying first, and the sites side by side."""

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from evaluation.outliers import LIMIT, MEASURES, Deviation, Score, describe, value_text
from evaluation.report.page import TEMPLATES, Picture, Table, render_page
from evaluation.wording import TIMES, count_text, number_text

SCRIPT = "preview.js"
MAKE = ("manufacturer", "model", "field strength")  # of what is known of a scanner, what it is called by
MAX_KINDS = 3  # that a cell of the table of sites names


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of an image.

    Args:
        content: A WebP file.
        width: In pixels.
        height: In pixels.
        kind: `volume` for three slices, the axis it is across for a single slice, `picture` for one without anatomy.
    """

    content: bytes
    width: int
    height: int
    kind: str

    @property
    def address(self) -> str:
        """The picture as a data address."""
        return f"data:image/webp;base64,{base64.b64encode(self.content).decode('ascii')}"


@dataclass(frozen=True)
class Header:
    """What is known of a file.

    Args:
        shape: Voxels per axis, in the file's own orientation.
        spacing: Length of a voxel along each axis, in mm.
        orientation: Directions that the axes point to, such as RAS.
        dtype: Type of the stored values.
        scanner: How it was acquired, label -> text.
    """

    shape: Sequence[int]
    spacing: Sequence[float]
    orientation: str
    dtype: str
    scanner: Mapping[str, str]

    @property
    def voxel_text(self) -> str:
        """The size of a voxel."""
        return TIMES.join(f"{length:.3g}" for length in self.spacing) + " mm" if self.spacing else "unknown"

    @property
    def scanner_text(self) -> str:
        """Maker, model and field strength, as far as they are known."""
        return " ".join(self.scanner[name] for name in MAKE if name in self.scanner)

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values, ready to be shown."""
        known = [
            ("voxel size", self.voxel_text),
            ("grid", TIMES.join(map(str, self.shape))),
            ("orientation", self.orientation or "unknown"),
            ("type", self.dtype),
        ]
        if self.scanner_text:
            known.append(("scanner", self.scanner_text))
        return [*known, *((name, text) for name, text in self.scanner.items() if name not in MAKE)]


@dataclass(frozen=True)
class Channel:
    """One image of a row.

    Args:
        column: Its column.
        header: What is known of the file; None where it cannot be read.
        native: As it is in the file.
        network: As the network is given it.
        augmented: As a training is given it.
    """

    column: str
    header: Header | None
    native: Thumbnail | None
    network: Thumbnail | None
    augmented: Thumbnail | None


@dataclass(frozen=True)
class Card:
    """What is shown of one row of the table.

    Args:
        row: 1-based data row.
        participant_id: Who it is of.
        session_id: Of which session, empty without.
        site: Where from.
        channels: Its images.
        values: Targets and covariates, name and text.
        problems: Codes and messages of what is wrong.
        reasons: Why there is no picture.
        score: How much it stands out.
        image_id: Its name for programs.
    """

    row: int
    participant_id: str
    session_id: str
    site: str
    channels: Sequence[Channel]
    values: Sequence[tuple[str, str]]
    problems: Sequence[tuple[str, str]]
    reasons: Sequence[str]
    score: Score
    image_id: str = ""

    @property
    def is_readable(self) -> bool:
        """Whether every image became an input of the network."""
        return all(channel.network is not None for channel in self.channels)

    @property
    def name(self) -> str:
        """Who and when."""
        return " · ".join(part for part in (self.participant_id or "without identifier", self.session_id) if part)

    @property
    def states(self) -> str:
        """What the page can be filtered by."""
        found = {"outlying": self.score.is_outlying, "problem": bool(self.problems), "unreadable": not self.is_readable}
        return " ".join(name for name, holds in found.items() if holds) or "fine"

    @property
    def score_text(self) -> str:
        """The score, a dash where there is none."""
        return "\N{EN DASH}" if math.isnan(self.score.value) else number_text(self.score.value, 1)

    @property
    def deviations(self) -> list[tuple[str, Deviation, str, str, str]]:
        """Column, deviation, measure, value and usual value of all that was measured."""
        return [
            (
                one.column,
                one,
                MEASURES[one.measure].label,
                value_text(one.value, MEASURES[one.measure]),
                value_text(one.median, MEASURES[one.measure]),
            )
            for one in self.score.deviations
        ]

    def reason(self) -> str:
        """Say what makes it stand out most, or that nothing does."""
        if not self.score.deviations:
            return ""
        return describe(self.score.deviations[0], several_columns=len(self.channels) > 1)


@dataclass(frozen=True)
class Sheet:
    """All that is on the page.

    Args:
        title: Name of the table.
        cards: One per row, in any order.
        table_problems: Codes and messages of what is wrong with the table as a whole.
        pictures: The figures that compare the sites.
        steps: What is done to the images, in sentences.
        augmented: Whether training images are changed at random.
        mask: Column whose mask is outlined, if any.
        created: When the page was made.
    """

    title: str
    cards: Sequence[Card]
    table_problems: Sequence[tuple[str, str]]
    pictures: Sequence[Picture]
    steps: Sequence[str]
    augmented: bool
    mask: str | None
    created: datetime


def order(cards: Iterable[Card]) -> list[Card]:
    """Return cards as they are shown: those that cannot be given to the network, then by falling score."""
    return sorted(cards, key=lambda card: (card.is_readable, -_or_zero(card.score.value), card.row))


def summary(cards: Sequence[Card]) -> str:
    """Say in a sentence how a cohort looks."""
    people = count_text(len({card.participant_id for card in cards}), "participant")
    outlying, unreadable, faulty = (
        sum(state in card.states.split() for card in cards) for state in ("outlying", "unreadable", "problem")
    )
    return (
        f"{outlying or 'None'} of {count_text(len(cards), 'row')} ({people}) {'stands' if outlying == 1 else 'stand'} "
        f"out; {unreadable or 'none'} cannot be given to the network; fontanel verify has found "
        f"{f'problems in {faulty}' if faulty else 'no problems in any'}."
    )


def write_sheet(sheet: Sheet) -> str:
    """Return the page: one HTML file that asks for nothing from anywhere.

    Args:
        sheet: What is on it.
    """
    script = (TEMPLATES / SCRIPT).read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    cards = order(sheet.cards)
    sites = sorted({card.site for card in cards})
    return render_page(
        "preview.html.j2",
        sheet=sheet,
        cards=cards,
        sites=sites,
        site_table=site_table(cards),
        codes=sorted({code for card in cards for code, _ in card.problems}),
        script=script,
        script_sha256=allowed,
        limit=LIMIT,
        summary=summary(cards),
        several=any(len(card.channels) > 1 for card in cards),
    )


def site_table(cards: Sequence[Card]) -> Table:
    """Return what tells the sites apart: how many, voxel sizes, orientations, scanners.

    Args:
        cards: One per row.
    """
    rows = []
    for site in sorted({card.site for card in cards}):
        own = [card for card in cards if card.site == site]
        headers = [channel.header for card in own for channel in card.channels if channel.header is not None]
        rows.append(
            [
                site,
                _kinds(headers, lambda header: header.voxel_text),
                _kinds(headers, lambda header: header.orientation),
                _kinds(headers, lambda header: header.dtype),
                _kinds(headers, lambda header: header.scanner_text),
                str(len({card.participant_id for card in own})),
                str(len(headers)),
                str(sum(card.score.is_outlying for card in own)),
                str(sum(bool(card.problems) for card in own)),
            ]
        )
    columns = ["Site", "Voxel size", "Orientation", "Type", "Scanner", "Participants", "Images", "Outlying", "Problems"]
    return Table("What the files of each site say; the number of images in brackets.", columns, rows, num_text=5)


def _kinds(headers: Iterable[Header], text_of: Callable[[Header], str]) -> str:
    """Return the most frequent texts with their numbers."""
    counts = Counter(text for header in headers if (text := text_of(header)))
    named = [f"{text} ({number})" if len(counts) > 1 else text for text, number in counts.most_common(MAX_KINDS)]
    more = len(counts) - MAX_KINDS
    return ", ".join(named) + (f" and {more} more" if more > 0 else "") or "not known"


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
