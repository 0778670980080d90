"""From what was seen of each row to the page of `fontanel preview`: cards, figures, and words on the preprocessing."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from datamodules.cells import shorten
from datamodules.channel_view import ChannelView
from datamodules.cohort import Cohort
from datamodules.preprocessing import Preprocessing
from datamodules.schema import Column
from evaluation.contact_sheet import Card, Channel, Header, Sheet, write_sheet
from evaluation.figures.intensities import Intensities, intensities_by_site
from evaluation.outliers import score_images
from evaluation.report.page import Picture, picture
from evaluation.wording import TIMES, count_text, with_unit
from experiments.preview import Material

MAX_VALUES = 12  # columns of the table that a card shows
NORMALISATIONS = {
    "zscore": "normalised to z-scores of the foreground",
    "percentile": "normalised from percentiles to 0..1",
    "none": "left in the unit of the file",
}
FOREGROUNDS = {
    "mask": "inside the mask",
    "above-mean": "above the mean of the image",
    "nonzero": "not zero in the file",
}


def make_cards(material: Material, views: Sequence[Sequence[ChannelView]]) -> list[Card]:
    """Return the card of every row, in the order of the table.

    Args:
        material: The rows, and what is known of them.
        views: What was seen of each.
    """
    rows = material.cohort.frame.to_dict("records")
    measured = [{(view.column, name): value for view in row for name, value in view.measures.items()} for row in views]
    scores = score_images(measured, [row["site"] for row in rows])
    problems = defaultdict(list)
    for problem in material.problems:
        problems[problem.row].append((str(problem.code), problem.message))
    shown = _shown_columns(material)
    return [
        Card(
            row=int(row["row"]),
            participant_id=row["participant_id"],
            session_id=row["session_id"],
            site=row["site"],
            channels=[_channel(view) for view in seen],
            values=[(column.name, text) for column in shown if (text := _value_text(row[column.name], column))],
            problems=problems[int(row["row"])],
            reasons=[reason for view in seen for reason in view.reasons],
            score=score,
            image_id=row["image_id"],
        )
        for row, seen, score in zip(rows, views, scores, strict=True)
    ]


def build_page(material: Material, views: Sequence[Sequence[ChannelView]], cards: Sequence[Card]) -> str:
    """Return the page.

    Args:
        material: The rows, and what is known of them.
        views: What was seen of each.
        cards: The card of each.
    """
    return write_sheet(
        Sheet(
            title=material.cohort.table.name,
            cards=cards,
            table_problems=[(problem.code, problem.message) for problem in material.problems if problem.row is None],
            pictures=_pictures(material.cohort, views, cards),
            steps=_steps(material),
            augmented=material.recipe.augments,
            mask=material.recipe.mask,
            created=datetime.now(UTC),
        )
    )


def _shown_columns(material: Material) -> list[Column]:
    """Return the targets and covariates of a card: those of the configuration, else the first of the table."""
    data, cohort = material.recipe.datamodule, material.cohort
    columns = [column for column in cohort.schema.columns if column.kind != "path" and column.name in cohort.frame]
    if data is not None:
        named = {*data.targets, *data.covariates}
        return [column for column in columns if column.name in named]
    return [column for column in columns if column.role in ("target", "covariate", "group")][:MAX_VALUES]


def _channel(view: ChannelView) -> Channel:
    facts, header = view.facts, None
    if facts is not None:
        header = Header(facts.shape, facts.spacing, facts.orientation, facts.dtype, view.scanner)
    return Channel(view.column, header, view.native, view.network, view.augmented)


def _value_text(value: Any, column: Column) -> str:  # noqa: ANN401 - a cell
    if column.kind == "number":
        return "" if value != value else f"{value:g}" + (f" {column.unit}" if column.unit else "")
    return shorten(str(value))


def _pictures(cohort: Cohort, views: Sequence[Sequence[ChannelView]], cards: Sequence[Card]) -> list[Picture]:
    """Return one figure for each image column."""
    found = []
    for position, column in enumerate(view.column for view in views[0]):
        own = [(card.site, row[position]) for card, row in zip(cards, views, strict=True)]
        before = _by_site((site, view.before) for site, view in own)
        after = _by_site((site, view.after) for site, view in own)
        unit = cohort.schema.column(column).unit
        panels = [Intensities(with_unit("Intensity in the file", unit), before)]
        panels += [Intensities("Network's input", after)]
        number = count_text(len(before), "site")
        found.append(
            picture(
                intensities_by_site(panels),
                f"Distributions of the intensities of {column} by site, in the file and after preprocessing, {number}",
                f"Intensities of the foreground of {column} by site: in the file (left) and as the network is given "
                "them (right). Every image counts alike; n is the number of images. Smoothed over three bins.",
                "full",
            )
        )
    return found


def _by_site(pairs: Any) -> Mapping[str, Sequence[Any]]:  # noqa: ANN401
    found = defaultdict(list)
    for site, quantiles in pairs:
        if quantiles is not None:
            found[site].append(quantiles)
    return dict(sorted(found.items()))


def _steps(material: Material) -> list[str]:
    """Say what is done to the images."""
    recipe, data = material.recipe, material.recipe.datamodule
    listed = ", ".join(recipe.images)
    if data is None:
        given = f"{listed}: each image by itself, by the default preprocessing, as no configuration was named."
        return [given, _preprocessing_text(recipe.preprocessing), "No augmentation: a configuration would name it."]
    together = " together" if len(recipe.images) > 1 else ""
    steps = [f"{listed}{together}, as {material.source} has it.", _preprocessing_text(recipe.preprocessing)]
    if data.rows is not None:
        steps.append(f"Only rows for which {data.rows}.")
    if data.harmonisation != "none":
        steps.append("ComBat is fitted on the training part and is not in these pictures.")
    if not recipe.augments:
        steps.append("There is no augmentation in this configuration.")
    return steps


def _preprocessing_text(preprocessing: Preprocessing) -> str:
    size = TIMES.join(map(str, preprocessing.shape))
    spacing = preprocessing.spacing
    voxel = (
        "of the image's own size" if spacing is None else "of " + TIMES.join(f"{one:.3g}" for one in spacing) + " mm"
    )
    kinds = (
        [preprocessing.normalisation] if isinstance(preprocessing.normalisation, str) else preprocessing.normalisation
    )
    clip = (
        ""
        if preprocessing.clip is None
        else " after clipping at its percentiles {:g} and {:g}".format(*preprocessing.clip)
    )
    how = "; ".join(NORMALISATIONS[kind] for kind in kinds)
    return (
        f"Turned to RAS, {size} voxels {voxel} around the middle of the {preprocessing.centre}, {how}{clip}. "
        f"The foreground is what is {FOREGROUNDS[preprocessing.foreground]}."
    )
