"""All posteriors whose answers are known without any sampler, by name.

``answers`` says what an answer is and has the quadrature; every other file has one kind of
posteriors and ends in a dictionary of them. ``cases`` joins them with the other problems that
verdicts are judged on, and ``check`` compares the answers with importance sampling.
"""

from benchmarks.problems.verdicts.answers import collect
from benchmarks.problems.verdicts.counts import COUNTS
from benchmarks.problems.verdicts.edges import EDGES
from benchmarks.problems.verdicts.flat import FLAT_OR_PRECISE
from benchmarks.problems.verdicts.hierarchies import HIERARCHIES
from benchmarks.problems.verdicts.large import LARGE
from benchmarks.problems.verdicts.modes import MODAL
from benchmarks.problems.verdicts.ordinary import ORDINARY
from benchmarks.problems.verdicts.priors import PRIORS
from benchmarks.problems.verdicts.steps import STEPS
from benchmarks.problems.verdicts.tails import TAILED

_PARTS = (
    ORDINARY,
    HIERARCHIES,
    COUNTS,
    LARGE,
    TAILED,
    EDGES,
    STEPS,
    MODAL,
    FLAT_OR_PRECISE,
    PRIORS,
)
KNOWN = collect(*(one for part in _PARTS for one in part.values()))
