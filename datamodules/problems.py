"""What can be wrong with a cohort: a closed list of codes, and one error that carries all findings at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Self

ProblemCode = Literal[
    # The table.
    "empty_table",
    "missing_column",
    "unknown_column",
    "missing_value",
    "not_a_number",
    "out_of_range",
    "duplicate_row",
    "bad_identifier",
    # Its files.
    "missing_file",
    "path_escape",
    "unreadable",
    "corrupt_gzip",
    "bad_header",
    "too_large",
    "non_finite",
    "constant_image",
    "not_3d",
    "bad_affine",
    "grid_mismatch",
    "duplicate_content",
]


@dataclass(frozen=True)
class Problem:
    """One fault of a cohort, and how to mend it.

    Args:
        row: Data row of the table, counted from 1 below the header; None when the table as a whole is meant.
        participant_id: Whose row it is, as written in the table; None when unknown.
        column: Column of the table; None when no single one is meant.
        code: What kind of fault.
        message: What is wrong and what to do, in one or two sentences.
    """

    row: int | None
    participant_id: str | None
    column: str | None
    code: ProblemCode
    message: str

    def as_dict(self) -> dict[str, int | str | None]:
        """Return the problem with the keys of `fontanel verify --json`."""
        return asdict(self)

    def __str__(self) -> str:
        named = (("row", self.row), ("participant", self.participant_id), ("column", self.column))
        where = ", ".join(f"{name} {value}" for name, value in named if value is not None)
        return f"{where or 'table'}: {self.message} ({self.code})"


class CohortError(ValueError):
    """A cohort cannot be used as it is.

    Args:
        message: What is wrong, where, and what to do.
        problems: Every fault that was found.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)

    @classmethod
    def of(cls, source: str, problems: Sequence[Problem], advice: str = "") -> Self:
        """Return the error that lists every problem found in `source`, with a count of each kind first.

        Args:
            source: Name of the table or file.
            problems: What was found; at least one.
            advice: One sentence printed after the counts.
        """
        counts = ", ".join(f"{number} {code}" for code, number in Counter(problem.code for problem in problems).items())
        noun = "problem" if len(problems) == 1 else "problems"
        head = f"{source} has {len(problems)} {noun} ({counts})." + (f" {advice}" if advice else "")
        return cls("\n".join([head, *(f"  {problem}" for problem in problems)]), problems)

    @classmethod
    def single(cls, message: str, code: ProblemCode | None = None) -> Self:
        """Return the error of one fault that no row can be blamed for; with a `code` it is listed as a problem too."""
        return cls(message, () if code is None else (Problem(None, None, None, code, message),))

    def __reduce__(self) -> tuple[type[CohortError], tuple[str, tuple[Problem, ...]]]:
        # The default would drop the problems when a worker process raises.
        return type(self), (str(self), self.problems)
