"""All suites, by name. To add one: a file here, an import and a line below; `base` says how."""

from benchmarks.suites.ablation import Ablation
from benchmarks.suites.base import Suite
from benchmarks.suites.corrections import Corrections
from benchmarks.suites.cost import Cost
from benchmarks.suites.distil import Distil
from benchmarks.suites.held_out import HeldOut
from benchmarks.suites.high_dimension import HighDimension
from benchmarks.suites.import_time import ImportTime
from benchmarks.suites.mixtures import Mixtures
from benchmarks.suites.multimodal import Multimodal
from benchmarks.suites.paper import Paper
from benchmarks.suites.posteriors import Posteriors
from benchmarks.suites.refined import Refined
from benchmarks.suites.resampling import Resampling
from benchmarks.suites.step_budgets import StepBudgets
from benchmarks.suites.structure import Structure
from benchmarks.suites.verdicts import Verdicts

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Posteriors(),
        HeldOut(),
        Paper(),
        Mixtures(),
        Multimodal(),
        Corrections(),
        Verdicts(),
        HighDimension(),
        Structure(),
        Distil(),
        Ablation(),
        StepBudgets(),
        Refined(),
        Resampling(),
        ImportTime(),
        Cost(),
    )
}
