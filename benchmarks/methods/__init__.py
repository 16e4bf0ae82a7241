"""The methods that the suite of reference posteriors compares, by name.

To add one: write a file here with a function as `benchmarks.methods.base.Method` describes it,
import the file, and add one line to `METHODS`. The method then has its rows, its lines in the
table, and its colour and marker in the picture.
"""

from benchmarks.methods import autoguides, nuts, onestep, pathfinder
from benchmarks.methods.base import Method

METHODS: dict[str, Method] = {
    "onestep": onestep.run,
    "nuts": nuts.run,
    "mvn": autoguides.multivariate_normal,
    "iaf": autoguides.inverse_autoregressive,
    "bnaf": autoguides.block_neural_autoregressive,
    "pathfinder": pathfinder.run,
}
