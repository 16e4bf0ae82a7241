"""The README's table, made of the rows that the pages in docs/ are made of.

    python -m benchmarks.readme

writes it anew between its two marks.  It has rows where NUTS is faster, since those exist.
"""

import re

import numpy as np

from benchmarks.store import RESULTS, ROOT, Row, Store
from benchmarks.tables import table

README = ROOT / "README.md"
BEGIN, END = "<!-- made by `python -m benchmarks.readme` -->\n", "\n<!-- end -->"
# What it is in words, its suite, its name there.
SHOWN = (
    ("eight schools", "posteriors", "eight_schools"),
    ("eight schools, centred", "posteriors", "eight_schools_centered"),
    ("random effects logistic regression (seeds)", "posteriors", "seeds"),
    ("logistic regression, 61 coefficients (sonar)", "posteriors", "sonar"),
    ("random intercepts and slopes, 176 groups", "structure", "slopes_176_centred"),
    ("pupils in classes in schools, 50 x 6", "structure", "tree_50x6_centred"),
    ("Poisson counts in 300 groups", "structure", "poisson_300_centred"),
    ("random intercepts, 6000 groups", "structure", "intercepts_6000_centred"),
)


def readme_table() -> str:
    """Medians over three seeds, compilation included."""
    lines = [_line(*shown) for shown in SHOWN]
    return table(lines, {heading: (heading, None) for heading in lines[0]})


def _line(words: str, suite: str, name: str) -> Row:
    by = "posterior" if suite == "posteriors" else "problem"
    rows = [row for row in Store(RESULTS / f"{suite}.json").rows if row[by] == name]
    line: Row = {"posterior": words}
    for heading, figures, digits in (
        ("seconds", ("seconds",), 1),
        ("mean off by (sd)", ("mean_error", "global_mean_error", "latent_mean_error"), 2),
    ):
        for title, method in (("OneStep", "onestep"), ("NUTS", "nuts")):
            of_method = [row for row in rows if row["method"] == method]
            value = np.median([max(r[f] for f in figures if f in r) for r in of_method])
            line[f"{title}: {heading}"] = f"{value:.{digits}f}"
    return line


def with_table(text: str) -> str:
    """The README with its table made anew."""
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}",
        lambda _: BEGIN + readme_table() + END,
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
