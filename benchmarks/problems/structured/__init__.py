"""Posteriors with structure, by name: hierarchies, correlated or crossed effects, series, others.

``base`` says what a problem is, ``exact`` has the quadrature that answers are found by, and every
other file has one kind of problems.
"""

from benchmarks.problems.structured.base import Structured
from benchmarks.problems.structured.correlated import correlated
from benchmarks.problems.structured.counts import counts
from benchmarks.problems.structured.crossed import crossed
from benchmarks.problems.structured.hierarchies import hierarchies
from benchmarks.problems.structured.others import others
from benchmarks.problems.structured.series import series

STRUCTURED: dict[str, Structured] = {
    problem.name: problem
    for problem in (*hierarchies(), *correlated(), *counts(), *crossed(), *series(), *others())
}
