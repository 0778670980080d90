"""What a page is made of: tables, pictures, boxes of a flow diagram, items of a checklist, and the templates."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from evaluation.figures.style import svg_data_uri

TEMPLATES = Path(__file__).parent / "templates"
MAX_LISTED = 8  # items of a list that a table of facts shows


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Args:
        caption: What it shows.
        columns: Heads of the columns.
        rows: Cells, the first of each row its head; a row of one cell is the head of the rows below it. A second line
            of a cell is its interval.
        num_text: Number of leading columns that hold text; the others hold numbers.
        note: What a reader must know to read it.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_text: int = 1
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Args:
        address: The figure as a data address.
        alternative: What it shows, for those who do not see it.
        caption: What it shows and what to look for.
        width: `half` or `full` of the text.
    """

    address: str
    alternative: str
    caption: str
    width: str = "half"


@dataclass(frozen=True)
class Box:
    """A box of the flow diagram.

    Args:
        title: What the box counts.
        count: The count.
        lines: What more there is to say.
    """

    title: str
    count: str
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Flow:
    """The flow of participants: where they come from, and the parts they went to.

    Args:
        source: All participants.
        parts: One box per part.
    """

    source: Box
    parts: Sequence[Box]


def picture(figure: Figure, alternative: str, caption: str, width: str = "half") -> Picture:
    """Return a figure with its words.

    Args:
        figure: The figure.
        alternative: What it shows, for those who do not see it.
        caption: What it shows and what to look for.
        width: `half` or `full` of the text.
    """
    return Picture(svg_data_uri(figure), alternative, caption, width)


def png_data_uri(path: Path) -> str:
    """Return a picture as a data address."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def facts_table(caption: str, facts: Mapping[str, Any]) -> Table:
    """Return nested facts as dotted names and values."""
    return Table(caption, ["Fact", "Value"], _flat(facts), 2)


def optional_facts(caption: str, facts: Mapping[str, Any] | None) -> Table | None:
    """Return a table of facts, None without any."""
    return facts_table(caption, facts) if facts else None


def render_page(template: str, **values: Any) -> str:
    """Fill a template; what comes from outside is escaped.

    Args:
        template: Name of a file in `evaluation/report/templates`.
        **values: What it asks for.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    rows: list[list[str]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value[:MAX_LISTED]):
                rows += _flat(item if isinstance(item, Mapping) else {"value": item}, f"{prefix}{name}.{number}.")
        elif isinstance(value, list) and value:
            more = f" and {len(value) - MAX_LISTED} more" if len(value) > MAX_LISTED else ""
            rows.append([f"{prefix}{name}", ", ".join(map(str, value[:MAX_LISTED])) + more])
        elif value is not None and value != []:
            rows.append([f"{prefix}{name}", str(value)])
    return rows
