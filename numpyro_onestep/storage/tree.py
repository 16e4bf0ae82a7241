"""A result as plain data: nested lists and dicts of JSON, and a list of arrays; and the way back.

Objects are written as the name of their class and the values of their fields.  Only the classes in
the table below can be read, and reading sets their fields and calls nothing of theirs.  So a file
can do nothing but give wrong numbers.
"""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from numpyro_onestep import flow, settings
from numpyro_onestep.checks.coverage import Missed
from numpyro_onestep.checks.line_scan import Scan
from numpyro_onestep.corrections import Corrected
from numpyro_onestep.flow import base_distribution, conditional, gaussian
from numpyro_onestep.given_draws.agreement import Agreement
from numpyro_onestep.importance.evidence import Evidence, WeightedPool
from numpyro_onestep.importance.pool import Pool
from numpyro_onestep.initialise.best_fit import Fit
from numpyro_onestep.result import Result
from numpyro_onestep.structure.running_sums import RunningSums
from numpyro_onestep.structure.structure import Structure
from numpyro_onestep.target import Axes, Site
from numpyro_onestep.target.completion import Completion
from numpyro_onestep.target.precision import PrecisionError
from numpyro_onestep.training.course import Course
from numpyro_onestep.training.loop import TrainingResult
from numpyro_onestep.training.progress import Place
from numpyro_onestep.training.stages import Records
from numpyro_onestep.training.stopping import Judgement

_CLASSES: dict[str, Any] = {
    one.__name__: one
    for one in (
        Agreement,
        Axes,
        base_distribution.NormalMixture,
        base_distribution.ProductMixture,
        base_distribution.ScaleMixture,
        base_distribution.StandardNormal,
        Completion,
        conditional.Conditional,
        conditional.Linear,
        conditional.SharedNetwork,
        Corrected,
        Course,
        Evidence,
        Fit,
        flow.FlowMap,
        flow.ResidualVelocity,
        flow.StructuredMap,
        gaussian.GaussianPreconditioner,
        gaussian.LowRankPreconditioner,
        gaussian.StructuredPreconditioner,
        gaussian.SummedPreconditioner,
        Judgement,
        Missed,
        Place,
        Pool,
        PrecisionError,
        Records,
        Result,
        RunningSums,
        Scan,
        settings.DrawSettings,
        settings.FlowSettings,
        settings.LossSettings,
        settings.ScheduleSettings,
        settings.Settings,
        Site,
        Structure,
        TrainingResult,
        WeightedPool,
    )
} | {"Layer": eqx.nn.Linear}
_NAMES = {one: name for name, one in _CLASSES.items()}


def encoded(value: Any, arrays: list[np.ndarray]) -> Any:
    """The value as JSON; its arrays are appended to a list, and stand in it as their numbers.

    Raises:
        TypeError: the value holds an object of another class.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, np.generic):
        # JSON has no infinite numbers.
        return value if math.isfinite(value) else {"number": repr(value)}
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        arrays.append(np.asarray(value))
        kind = "jax" if isinstance(value, jax.Array) else "array"
        return {"scalar" if isinstance(value, np.generic) else kind: len(arrays) - 1}
    name = _NAMES.get(type(value))
    if name is not None:
        fields = {key: encoded(getattr(value, key), arrays) for key in _fields(type(value))}
        return {"class": name, "fields": fields}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: encoded(one, arrays) for key, one in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [encoded(one, arrays) for one in value]}
    raise TypeError(
        f"save() cannot write a {type(value).__name__}: values of sites and of a potential_fn must "
        "be arrays, or dicts, lists or tuples of arrays. pickle can keep such a sampler."
    )


def decoded(tree: Any, arrays: list[np.ndarray]) -> Any:
    """The value that was encoded.

    Raises:
        ValueError: the tree is none that `encoded` writes.
    """
    if not isinstance(tree, dict):
        return tree
    if set(tree) == {"class", "fields"}:
        one = _CLASSES.get(tree["class"])
        # An earlier version has not written fields that were added since with a default.
        defaults = {} if one is None else _defaults(one)
        written, known = set(tree["fields"]), set() if one is None else set(_fields(one))
        if one is None or not known - set(defaults) <= written <= known:
            raise ValueError(f"it holds a {tree['class']} that this version does not know")
        fields = {key: decoded(value, arrays) for key, value in tree["fields"].items()}
        fields = {key: defaults[key] for key in _fields(one) if key not in fields} | fields
        if hasattr(one, "_fields"):
            return tuple.__new__(one, [fields[key] for key in one._fields])
        new = object.__new__(one)
        for key, value in fields.items():
            object.__setattr__(new, key, value)
        return new
    ((kind, value),) = tree.items()
    if kind == "number":
        return float(value)
    if kind == "array":
        return arrays[value]
    if kind == "scalar":
        return arrays[value][()]
    if kind == "jax":
        return jnp.asarray(arrays[value])
    if kind == "dict":
        return {key: decoded(one, arrays) for key, one in value.items()}
    if kind in ("list", "tuple"):
        parts = [decoded(one, arrays) for one in value]
        return tuple(parts) if kind == "tuple" else parts
    raise ValueError(f"it holds a {kind} that this version does not know")


def _fields(one: Any) -> tuple[str, ...]:
    """The names of the fields that a class is written by; a result's target is written apart."""
    if hasattr(one, "_fields"):
        return one._fields
    names = (field.name for field in dataclasses.fields(one))
    return tuple(name for name in names if name != "problem")


def _defaults(one: Any) -> dict[str, Any]:
    """The fields that have default values."""
    if hasattr(one, "_fields"):
        return dict(one._field_defaults)
    fields = dataclasses.fields(one)
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
