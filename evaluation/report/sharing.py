"""The form of a report that may leave the place where its participants are known, and what figures show of a part."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from evaluation.disclosure import ENOUGH, FEW, MIN_POSSIBLE, OLDER, SMALLEST, Sharing, suppress, top_coded
from evaluation.regression import nice_edges
from evaluation.report.crossval_sharing import require_enough
from evaluation.report.parts import Part, shared


def shared_parts(parts: Sequence[Part], sharing: Sharing) -> list[Part]:
    """Return the parts as a shared page has them; those of a few participants are left out.

    Raises:
        PredictionsError: None is left.
    """
    shown = [part for part in (shared(part, sharing) for part in parts) if part.shows("")]
    require_enough(bool(shown))
    return shown


def notices(sharing: Sharing | None) -> list[str]:
    """Say on top of a shared page that it is one, and what was changed."""
    if sharing is None:
        return []
    return [
        "Shared form of the report. The statistics were computed from all data and are unchanged.",
        "Participants are named by keyed codes; the key and the list of codes stay where the report was written.",
        f"Ages over 89 years are given as {OLDER}, and errors from which they would follow are left out.",
        f"Counts of fewer than {SMALLEST} participants, none included, are given as {FEW}. Where one could be computed "
        f"from others, further counts are hidden as {ENOUGH}, until {MIN_POSSIBLE} values of it are possible. Where "
        "counts are hidden, so are the metrics, because intervals would give the counts away.",
        "Images of participants and saliency maps over them are left out, because a face can be rebuilt from a head.",
        "Sessions, counts of images, the wording of an audit's findings and the folders of files are left out. Names "
        "of sites, datasets and columns are as in the table.",
        *sharing.notices,
    ]


def footer(sharing: Sharing | None) -> str:
    """Say who may have the page."""
    start = "Every number on this page was computed from the predictions table."
    if sharing is None:
        return f"{start} The page holds participant identifiers: share it as you would the table."
    return f"{start} The page holds no participant identifiers; rows of single participants are under codes."


def top_coded_rows(part: Part, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with targets and predictions above the largest that is printed as one value."""
    return rows.assign(**{name: top_coded(rows[name], part.oldest) for name in ("target", "prediction")})


def limit_text(part: Part) -> str:
    """Say where the drawn values end, empty where they end nowhere."""
    return "" if np.isinf(part.oldest) else f" Values above {part.oldest:g} are drawn at {part.oldest + 1:g}."


def bin_edges(part: Part) -> list[float]:
    """Return round edges of bins of the target, everything above the largest that is printed in one bin."""
    edges = nice_edges(part.assessment.rows["target"])
    limit = part.oldest + 1
    return edges if edges[-1] <= limit else [edge for edge in edges if edge <= limit] + edges[-1:]


def shown_bins(part: Part, bins: pd.DataFrame) -> pd.DataFrame:
    """Return bins with a `label` each; small ones of a shared page have neither size nor error.

    Args:
        part: The part.
        bins: As `evaluation.regression.mae_by_age_bin` gives them, of the edges above.
    """
    ends = zip(bins["start"].round(2), bins["stop"].round(2), strict=True)
    limit = part.oldest + 1
    named = bins.assign(label=[f"{start:g}+" if stop > limit else f"{start:g}\u2013{stop:g}" for start, stop in ends])
    if part.sharing is None:
        return named
    counts = {str(label): int(count) for label, count in zip(named["label"], bins["num_participants"], strict=True)}
    whole = part.assessment.num_participants
    marks = suppress({**counts, "": whole}, [("", list(counts))] if sum(counts.values()) == whole else [])
    values = [name for name in bins if str(name).startswith(("mae", "mean_bias"))]
    small = bins["num_participants"] < SMALLEST
    named.loc[small, values] = np.nan
    return named.assign(num_participants=[marks[label] for label in named["label"]])
