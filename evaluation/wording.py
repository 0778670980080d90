"""Numbers and counts as a reader sees them."""

import math
from collections.abc import Iterable, Sequence

from evaluation.estimate import Estimate

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}"


def number_text(value: float, digits: int = 2) -> str:
    """Return a number with a true minus sign, and never a negative zero.

    >>> number_text(-0.04, 1)
    '0.0'
    >>> number_text(-2, 1) == MINUS + "2.0"
    True
    """
    text = f"{value:.{digits}f}"
    return text.replace("-", "" if float(text) == 0 else MINUS)


def signed_text(value: float, digits: int = 2) -> str:
    """Return a number with its sign, a plus as well.

    >>> signed_text(0.031), signed_text(-0.5, 1) == MINUS + "0.5", signed_text(0.001)
    ('+0.03', True, '0.00')
    """
    text = number_text(value, digits)
    return text if text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def p_text(value: float) -> str:
    """Return a p-value, empty where there is none.

    >>> p_text(0.0312), p_text(0.0002), p_text(float("nan"))
    ('0.031', '< 0.001', '')
    """
    if math.isnan(value):
        return ""
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"


def share_text(count: float | str, total: float | str) -> str:
    """Return a count with its share of a total; a mark in the place of either has no share.

    >>> share_text(3, 12), share_text(0, 0), share_text("<5", 12)
    ('3 (25 %)', '0', '<5')
    """
    if isinstance(count, str) or isinstance(total, str):
        return str(count)
    return f"{count:.0f} ({100 * count / total:.0f} %)" if total else f"{count:.0f}"


def enough_digits(values: Iterable[float | None], digits: int = 2) -> int:
    """Return as many decimals as show on which side of zero every value lies.

    >>> enough_digits([0.031, -0.004]), enough_digits([0.031, -0.04, None, 0.0])
    (3, 2)
    """
    known = [abs(value) for value in values if value is not None and math.isfinite(value) and value != 0]
    return digits + 1 if any(float(f"{value:.{digits}f}") == 0 for value in known) else digits


def capitalised(text: str) -> str:
    """Return a text with its first letter as a capital, the others as they are.

    >>> capitalised("sites A and B")
    'Sites A and B'
    """
    return text[:1].upper() + text[1:]


def interval_text(value: Estimate, digits: int = 2) -> str:
    """Return an estimate with its interval.

    >>> interval_text(Estimate(0.4, 0.3, 0.5), 1)
    '0.4 (0.3 to 0.5)'
    >>> interval_text(Estimate(float("nan")))
    'undefined'
    """
    if not value.defined:
        return "undefined"
    text = number_text(value.estimate, digits)
    if value.low is None or value.high is None:
        return text
    return f"{text} ({number_text(value.low, digits)} to {number_text(value.high, digits)})"


def count_text(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun.

    >>> count_text(1, "row"), count_text(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def people_text(count: int | str, noun: str = "participant") -> str:
    """Return a number of people with its noun; a shared page may have a mark in its place.

    >>> people_text(1), people_text(24), people_text("<5")
    ('1 participant', '24 participants', '<5 participants')
    """
    return f"{count} {noun}s" if isinstance(count, str) else count_text(count, noun)


def size_text(count: int | str) -> str:
    """Return the size of a group as a figure or the head of a column has it.

    >>> size_text(24), size_text("<5")
    ('n = 24', 'n < 5')
    """
    return f"n {count[0]} {count[1:]}" if isinstance(count, str) else f"n = {count}"


def with_unit(text: str, unit: str | None) -> str:
    """Return a label with its unit in brackets.

    >>> with_unit("Error", "years"), with_unit("Error", None)
    ('Error (years)', 'Error')
    """
    return f"{text} ({unit})" if unit else text


def join_words(words: Sequence[str]) -> str:
    """Return words as a list in a sentence.

    >>> join_words(["A", "B", "C"])
    'A, B and C'
    """
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""
