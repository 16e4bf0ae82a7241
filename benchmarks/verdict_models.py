"""All posteriors whose answers are known without any sampler, by name."""

from benchmarks.verdict_answers import collect
from benchmarks.verdict_models_counts import COUNTS
from benchmarks.verdict_models_edges import EDGES
from benchmarks.verdict_models_flat import FLAT_OR_PRECISE
from benchmarks.verdict_models_hierarchies import HIERARCHIES
from benchmarks.verdict_models_large import LARGE
from benchmarks.verdict_models_modes import MODAL
from benchmarks.verdict_models_ordinary import ORDINARY
from benchmarks.verdict_models_steps import STEPS
from benchmarks.verdict_models_tails import TAILED
from benchmarks.verdict_priors import PRIORS

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
