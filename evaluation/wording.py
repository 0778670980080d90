"""Numbers and counts as a reader sees them."""

from evaluation.estimate import Estimate

MINUS = "\N{MINUS SIGN}"


def number_text(value: float, digits: int = 2) -> str:
    """Return a number with a true minus sign, and never a negative zero.

    >>> number_text(-0.04, 1)
    '0.0'
    >>> number_text(-2, 1) == MINUS + "2.0"
    True
    """
    text = f"{value:.{digits}f}"
    return text.replace("-", "" if float(text) == 0 else MINUS)


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


def with_unit(text: str, unit: str | None) -> str:
    """Return a label with its unit in brackets.

    >>> with_unit("Error", "years"), with_unit("Error", None)
    ('Error (years)', 'Error')
    """
    return f"{text} ({unit})" if unit else text


def join_words(words: list[str]) -> str:
    """Return words as a list in a sentence.

    >>> join_words(["A", "B", "C"])
    'A, B and C'
    """
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""
