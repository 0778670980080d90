"""A clinical table, joined to the participants of whom there are images: by participant, and session where both say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from datamodules.problems import CohortError, Problem, ProblemCode
from datamodules.raw_table import RawTable, Remark, safe_name
from datamodules.schema import NAMED_ROLES, Role, is_known


class Person(Protocol):
    """Somebody at one time."""

    @property
    def participant_id(self) -> str:
        """Who."""

    @property
    def session_id(self) -> str:
        """When, "" without sessions."""


def plain_names(name: str, session: str) -> tuple[str, str]:
    """Return participant and session of a row, in the one form that names are compared in.

    BIDS writes `sub-` and `ses-` before names, and tables often leave them out; names of files may have spaces.

    >>> plain_names("sub-01", "ses-a"), plain_names("p 01", "n/a")
    (('01', 'a'), ('p-01', ''))
    """
    known = [safe_name(text) if is_known(text) else "" for text in (name, session)]
    return known[0].removeprefix("sub-"), known[1].removeprefix("ses-")


class ClinicalTable:
    """What a table says of each visit.

    A row without a session, or of a participant whose images have none, is about all visits of the participant.

    Args:
        raw: The table.
        visits: All visits that have an image.
        names: Participant and session that two cells mean, also applied to the visits.

    Raises:
        CohortError: When no column names participants.
    """

    def __init__(
        self, raw: RawTable, visits: Sequence[Person], names: Callable[[str, str], tuple[str, str]] = plain_names
    ) -> None:
        self.raw = raw
        self.problems: list[Problem] = list(raw.problems)
        self.remarks: list[Remark] = []
        self.rows: dict[Person, int] = {}
        self._plain = _Plain.of(visits, names)
        self._key = self._key_column(names)
        self._session = _column_of(raw, "session")
        self._site = _column_of(raw, "site")
        keys = {self._key, self._session, self._site, _column_of(raw, "dataset")}
        self.columns = [name for name in raw.columns if name and name not in keys]
        for index, cells in enumerate(raw.cells):
            session = cells[raw.columns.index(self._session)] if self._session else ""
            self._place(index, *names(cells[raw.columns.index(self._key)], session))
        self.remarks += [
            Remark("/".join(part for part in (visit.participant_id, visit.session_id) if part), self._no_row, False)
            for visit in visits
            if visit not in self.rows
        ]

    @property
    def _no_row(self) -> str:
        return f"has images, but no row in {self.raw.path.name}; its columns are empty"

    def value(self, visit: Person, column: str) -> str:
        """Return what is known of a visit, "" where nothing is."""
        row = self.rows.get(visit)
        return "" if row is None else self.raw.cells[row][self.raw.columns.index(column)]

    def site(self, visit: Person) -> str:
        """Return the site of a visit, "" where the table does not say."""
        return self.value(visit, self._site) if self._site else ""

    def _place(self, index: int, participant_id: str, session_id: str) -> None:
        """Give a row to the visits that it names: one, or all of a participant."""
        named = [
            visit
            for visit, own_session in self._plain.visits.get(participant_id, [])
            if "" in (session_id, own_session) or session_id == own_session
        ]
        who = "/".join(part for part in (participant_id, session_id) if part)
        number = self.raw.numbers[index]
        if not who:
            self._report(index, None, "missing_value", "There is no identifier. Give the row one, or remove it.")
        elif not named:
            message = f"There is no image of {who}. Correct the name, add the images, or remove the row."
            problem = Problem(number, participant_id, self._key, "missing_file", message)
            self.remarks.append(Remark(who, f"is in {self.raw.path.name}, but has no images", problem=problem))
        elif repeated := [self.rows[visit] for visit in named if visit in self.rows]:
            other = self.raw.numbers[repeated[0]]
            message = f"{who} is already in row {other} of {self.raw.path.name}. Remove one of them."
            self._report(index, participant_id, "duplicate_row", message)
        else:
            self.rows |= dict.fromkeys(named, index)

    def _report(self, index: int, participant_id: str | None, code: ProblemCode, message: str) -> None:
        self.problems.append(Problem(self.raw.numbers[index], participant_id, self._key, code, message))

    def _key_column(self, names: Callable[[str, str], tuple[str, str]]) -> str:
        """Return the column whose cells name participants: the identifier, or the first that does."""
        key = _column_of(self.raw, "id")
        if key is not None:
            return key
        for name in self.raw.columns:
            if any(names(cell, "")[0] in self._plain.visits for cell in self.raw.values(name)):
                return name
        example = next(iter(self._plain.visits), "01")
        message = (
            f"No column of {self.raw.path.name} names participants; it has {', '.join(self.raw.columns)}. Add a column "
            f"participant_id with names such as {example}."
        )
        raise CohortError.single(message, "missing_column")


class _Plain(NamedTuple):
    """The visits of each participant, by the form that names are compared in, with their sessions."""

    visits: dict[str, list[tuple[Person, str]]]

    @classmethod
    def of(cls, visits: Sequence[Person], names: Callable[[str, str], tuple[str, str]]) -> _Plain:
        found: dict[str, list[tuple[Person, str]]] = {}
        for visit in visits:
            participant_id, session_id = names(visit.participant_id, visit.session_id)
            found.setdefault(participant_id, []).append((visit, session_id))
        return cls(found)


def _column_of(raw: RawTable, role: Role) -> str | None:
    return next((name for name in raw.columns if NAMED_ROLES.get(name.casefold()) == role), None)
