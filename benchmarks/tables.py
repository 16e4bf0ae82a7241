"""Tables in Markdown, made of rows.

A column is given by its heading, the name of the figure that it shows and the number of digits
after the point, or None for a figure that is shown as it is.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from benchmarks.store import Row

Columns = Mapping[str, tuple[str, int | None]]


def table(rows: Iterable[Row], columns: Columns) -> str:
    """A table with one line for each row."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [_cell(row.get(figure), digits) for figure, digits in columns.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value, digits: int | None) -> str:
    if value is None:
        return ""
    return str(value) if digits is None else f"{value:.{digits}f}"


def table_over_seeds(
    rows: list[Row],
    by: Mapping[str, str],
    columns: Mapping[str, tuple[str, int]],
    counts: Mapping[str, str],
) -> str:
    """A table with one line for all rows that differ only in their seed.

    Args:
        rows: in the order in which their lines shall stand.
        by: headings, and the figures in which the rows of one line agree.
        columns: figures of which a line shows the median and the range.
        counts: headings, and figures of which a line says in how many rows they are true.
    """
    heading = {column: (column, None) for column in (*by, "seeds", *columns, *counts)}
    lines = []
    for key in dict.fromkeys(tuple(row[figure] for figure in by.values()) for row in rows):
        some = [row for row in rows if tuple(row[figure] for figure in by.values()) == key]
        line = dict(zip(by, key, strict=True)) | {"seeds": len(some)}
        line |= {column: spread(some, *what) for column, what in columns.items()}
        for column, figure in counts.items():
            line[column] = f"{sum(bool(row[figure]) for row in some)} of {len(some)}"
        lines.append(line)
    return table(lines, heading)


def spread(rows: Iterable[Row], figure: str, digits: int) -> str:
    """The median of a figure, and its range where it varies; rows without the figure are left out.

    Nothing where no row has it.
    """
    values = [row[figure] for row in rows if row.get(figure) is not None]
    if not values:
        return ""
    median, low, high = (f"{v:.{digits}f}" for v in (np.median(values), min(values), max(values)))
    return median if low == high else f"{median} ({low} to {high})"


def in_order(rows: Iterable[Row], **orders: Iterable) -> list[Row]:
    """The rows sorted by the places that their values have in given orders.

    Rows that agree in all of these keep the order in which they were measured. A value that is in
    no order, such as the name of a problem that has been taken out, comes last.

    Args:
        rows: what to sort.
        **orders: for each figure to sort by, the most important first, its values in order.
    """
    places = {
        figure: {value: place for place, value in enumerate(order)}
        for figure, order in orders.items()
    }
    return sorted(
        rows,
        key=lambda row: [known.get(row[figure], len(known)) for figure, known in places.items()],
    )
