"""From the rows of a cohort table to samples: files, labels, and who and where it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datamodules.cache import ImageFiles
from datamodules.cohort import Cohort
from datamodules.dataset import Sample
from datamodules.problems import CohortError, Problem


def list_samples(
    cohort: Cohort,
    hashes: Mapping[str, str],
    *,
    images: Sequence[str],
    mask: str | None,
    targets: Sequence[str],
    covariates: Sequence[str],
) -> list[Sample]:
    """Return one sample per row of a cohort, in its order; the split of all is `predict`.

    Args:
        cohort: The cohort, which has the columns.
        hashes: Path in the table -> sha256, as far as a manifest knows them.
        images: Columns with the images, in the order of the channels.
        mask: Column with the foreground mask, if there is one.
        targets: Target columns; NaN for one that the table does not have.
        covariates: Columns with numbers.
    """
    columns = [*images, *([mask] if mask else [])]
    scales = tuple(cohort.schema.column(name).scale or 1.0 for name in images)
    volumes = tuple(cohort.schema.column(name).volume for name in images)
    _refuse_gaps(cohort, columns)

    def files_of(row: Mapping[Any, Any]) -> ImageFiles:
        names = [row[name] for name in columns]
        paths = tuple(cohort.resolve(name) for name in names)
        sha256s = tuple(hashes[name] for name in names) if all(name in hashes for name in names) else None
        return ImageFiles(paths[: len(images)], paths[-1] if mask else None, sha256s, scales, volumes)

    return [
        Sample(
            participant_id=row["participant_id"],
            session_id=row["session_id"],
            image_id=row["image_id"],
            dataset=row["dataset"],
            site=row["site"],
            split="predict",
            files=files_of(row),
            targets={name: float(row.get(name, np.nan)) for name in targets},
            covariates=tuple(float(row[name]) for name in covariates),
        )
        for row in cohort.frame.to_dict("records")
    ]


def _refuse_gaps(cohort: Cohort, columns: Sequence[str]) -> None:
    """Refuse rows that lack a file, all at once.

    Raises:
        CohortError: With every such row.
    """
    problems = [
        Problem(int(row), who, name, "missing_value", "The row has no such image.")
        for name in columns
        for row, who, cell in zip(cohort.frame["row"], cohort.frame["participant_id"], cohort.frame[name], strict=True)
        if not cell
    ]
    if problems:
        lacking = " and ".join(f"{name} != ''" for name in dict.fromkeys(problem.column for problem in problems))
        advice = f'Leave these rows out with data.rows "{lacking}", or take other data.images.'
        raise CohortError.of(cohort.table.name, problems, advice)
