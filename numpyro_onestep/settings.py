"""Every setting of the sampler, its default, and the check that it makes sense.

Settings come in groups by what they are for.  `LossSettings` is the only group that a compiled
program depends on: any other setting can change without anything being compiled anew.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_type_hints

import numpy as np

from numpyro_onestep import limits

# Public names that have changed, and what they are called now.
_RENAMED = {
    "many_modes": "multimodal",
    "num_moves": "num_rejuvenation_steps",
    "tail_fraction": "langevin_fraction",
}
_WIDE, _NARROW = 256, 64  # units of the hidden layer
_REJUVENATION_STEPS = 25  # steps of HMC in a round
_MOST_REJUVENATION_ROUNDS = 4


@dataclass(frozen=True)
class DrawSettings:
    """How many draws `run` makes, and how they are corrected; see `Settings`."""

    num_samples: int = 4000
    num_flow_steps: int | None = None
    correction: str | None = "psis"
    multimodal: bool = False
    target_precision: Literal["auto", "single", "double"] = "auto"
    num_rejuvenation_steps: int | None = None
    pool_size: int | None = None
    batch_bytes: int = 2**26
    progress_bar: bool = True

    def __post_init__(self):
        _require(self, _is_count, "a positive integer", "num_samples", "batch_bytes")
        _require(
            self,
            lambda v: v is None or v == 0 or _is_count(v),
            "None, zero or a positive integer",
            "num_rejuvenation_steps",
        )
        _require(self, lambda v: isinstance(v, bool), "True or False", "multimodal")
        _require(
            self,
            lambda v: v in ("auto", "single", "double"),
            "'auto', 'single' or 'double'",
            "target_precision",
        )
        _require(
            self,
            lambda v: v is None or (_is_count(v) and v >= self.num_samples),
            f"an integer no smaller than num_samples={self.num_samples}",
            "pool_size",
        )

    @property
    def num_pool(self) -> int:
        """Draws that are weighed for the evidence and the correction."""
        return 10 * self.num_samples if self.pool_size is None else self.pool_size

    def num_pool_in(self, d: int, num_numbers: int = 1) -> int:
        """The same in d dimensions, where memory or time may not suffice for as many.

        An evaluation of the target computes `num_numbers` numbers.
        """
        if self.pool_size is not None:
            return self.pool_size
        most = min(limits.POOL_NUMBERS // d, limits.EVALUATED_NUMBERS // num_numbers)
        return min(self.num_pool, max(2 * self.num_samples, most))

    def num_first_pool_in(self, d: int, num_numbers: int = 1) -> int:
        """Draws weighed at first, which are enough where their weights are even."""
        full = self.num_pool_in(d, num_numbers)
        if self.pool_size is not None:
            return full
        return min(full, max(2 * self.num_samples, limits.EVEN_POOL_NUMBERS // d))

    def rejuvenation(self, d: int) -> tuple[int, int]:
        """Steps of a round of HMC rejuvenation in d dimensions, and the most rounds."""
        if self.num_rejuvenation_steps is not None:
            return self.num_rejuvenation_steps, _MOST_REJUVENATION_ROUNDS
        if d <= limits.REJUVENATION:
            return _REJUVENATION_STEPS, _MOST_REJUVENATION_ROUNDS
        return max(1, round(_REJUVENATION_STEPS * limits.REJUVENATION / d)), 1


@dataclass(frozen=True)
class FlowSettings:
    """The flow's network and its grid of times; see `Settings`."""

    num_grid_steps: int = 16
    horizon: float = 3.0
    width: int | None = None
    structure: Any = "auto"

    def __post_init__(self):
        _require(
            self,
            _is_structure,
            '"auto", None, or the names of the sites that all others depend on',
            "structure",
        )
        _require(self, _is_count, "a positive integer", "num_grid_steps")
        _require(self, lambda v: v > 0, "a positive number", "horizon")
        _require(self, lambda v: v is None or _is_count(v), "None or a positive integer", "width")
        _require(
            self,
            lambda v: v & (v - 1) == 0,
            "a power of two, so that steps can be halved down to the grid",
            "num_grid_steps",
        )

    def network_width(self, d: int) -> int:
        """Units of the hidden layer in d dimensions."""
        return self.width or (_WIDE if d <= limits.WIDE_NETWORK else _NARROW)


@dataclass(frozen=True)
class LossSettings:
    """What one training step computes: compiled programs depend on these, and on no other group."""

    path_weight: float = 1.0
    state_weight: float = 1.0
    volume_weight: float = 0.1
    distillation_batch_size: int = 64
    volume_batch_size: int = 16
    ema_decay: float = 0.99
    elbo_weight: float = 1.0
    batch_size: int = 32
    langevin_fraction: float = 0.25
    force_clip: float = 10.0
    gradient_clip: float = 1.0

    def __post_init__(self):
        counts = "distillation_batch_size", "volume_batch_size", "batch_size"
        _require(self, _is_count, "a positive integer", *counts)
        _require(self, lambda v: v > 0, "a positive number", "force_clip", "gradient_clip")
        weights = "path_weight", "state_weight", "volume_weight", "elbo_weight"
        _require(self, lambda v: v >= 0, "zero or a positive number", *weights)
        fractions = "ema_decay", "langevin_fraction"
        _require(self, lambda v: 0 <= v < 1, "a number in [0, 1)", *fractions)

    @property
    def num_chains(self) -> int:
        """Langevin chains in each batch of the evidence stage."""
        return int(self.langevin_fraction * self.batch_size)

    @property
    def num_own(self) -> int:
        """The flow's own draws in each batch of the evidence stage."""
        return self.batch_size - self.num_chains


@dataclass(frozen=True)
class ScheduleSettings:
    """How long training goes on, and at which learning rate; see `Settings`."""

    num_distillation_steps: int = 0
    max_steps: int = 10_000
    tolerance: float = 0.02
    learning_rate: float = 5e-3

    def __post_init__(self):
        _require(self, _is_count, "a positive integer", "max_steps")
        _require(self, lambda v: v > 0, "a positive number", "tolerance", "learning_rate")
        _require(
            self,
            lambda v: v == 0 or _is_count(v),
            "zero or a positive integer",
            "num_distillation_steps",
        )


@dataclass(frozen=True)
class Settings:
    """Settings of `OneStep`, given there as keyword arguments.

    **Results** (`Settings.draws`)

    - `num_samples`: number of posterior draws that `get_samples` returns. Default 4000.
    - `num_flow_steps`: steps k of the deterministic flow that makes a draw: one network evaluation
      each. Must divide `num_grid_steps`. Default None: 1. Where the ESS of the pool is then below
      15% of its draws (below 60% with Pareto k near its limit or above), training begins again
      with 2 steps (up to 128 dimensions).
    - `correction`: how the flow's draws become draws of the posterior.  `"psis"` (default)
      draws a pool, weighs it exactly, Pareto-smooths the weights and resamples without
      replacement; `"imh"` runs independence Metropolis-Hastings through the pool, `"nuts"` runs
      NUTS in the space the flow starts from, and `"pgibbs"` runs particle Gibbs over the
      diffusion's path, four chains each, with R-hat; `None` returns the flow's own draws.
      Chains want `num_samples` to be a multiple of 4.
    - `multimodal`: say True where the posterior may have several modes: tempered SMC then finds
      them, and the flow starts from a mixture. Up to 128 dimensions, and not with
      `correction="nuts"` or `"pgibbs"`. Default False.
    - `target_precision`: `"single"` or `"double"` floats for the target's log density in a session
      of single precision; the network stays in single precision. Default `"auto"`: double
      precision where some hundred points show that errors of single precision would matter; the
      summary then says so.
    - `num_rejuvenation_steps`: steps of Hamiltonian Monte Carlo in a round of HMC rejuvenation,
      with `correction="psis"`. A round is made where Pareto k is above 0.4 and the gap above 0.01
      nats (from d = 50 on d / 5000). Up to four rounds are made, as long as they change a standard
      deviation or where k is near its limit. 0 leaves the draws where they are. Default None: 25;
      above d = 512, where a step takes long, 25 * 512 / d, once, where k is near its limit.
    - `pool_size`: draws weighed for the evidence and the correction, at least `num_samples`.
      Default None: 10 for each sample; down to 2 with tens of thousands of rows of data, in
      thousands of dimensions, and in hundreds where the weights are even.
    - `batch_bytes`: memory that one batch of Jacobians may take, in bytes. Default 2**26 (64 MiB).
    - `progress_bar`: show in a terminal or notebook what `run` is doing. Default True.

    **Flow** (`Settings.flow`)

    - `num_grid_steps`: K, intervals of the noise schedule. A power of two; default 16.
    - `horizon`: T, total time of the noising process. Default 3.
    - `structure`: `"auto"` (default) finds which coordinates interact; in a hierarchy or a series
      most are independent of each other given a few, and the map then has that structure
      (`sampler.structure`; docs/structured.md). None takes the dense map. Names of sites, such as
      `["mu", "tau"]`, are coordinates that all others may depend on, whatever is found. With
      `multimodal=True`, with a distillation stage, and below 48 dimensions (8 where sites are
      named, or the dense map's result is doubted) the map is dense.
    - `width`: units of the network's hidden layer. Default None: 256 up to 128 dimensions, 64
      above, where the cost of a step goes with the square of the smaller of the two.

    **What a training step computes** (`Settings.losses`), in the distillation stage

    - `path_weight`, `state_weight`, `volume_weight`: weights of the three losses in the total.
      Defaults 1, 1, 0.1.
    - `distillation_batch_size`: paths in each iteration. Default 64.
    - `volume_batch_size`: states in each iteration whose exact volumes are compared. Default 16.

    and in the evidence stage (exact-volume ELBO of the k-step map, path gradients)

    - `elbo_weight`: weight of this loss; 0 leaves the stage out. Default 1.
    - `batch_size`: draws in each iteration. Default 32.
    - `langevin_fraction`: fraction of each batch that follows Langevin chains instead of the base
      distribution, so that the flow is also right where its draws are rare. Default 0.25.
    - `force_clip`: largest norm of a draw's force, in whitened units. Default 10.

    and in both

    - `ema_decay`: decay of the teacher's moving average. Default 0.99.
    - `gradient_clip`: largest global norm of a gradient. Default 1.

    **How long, and how fast** (`Settings.schedule`)

    - `num_distillation_steps`: iterations of the distillation stage. Default 0, since on unimodal
      targets the evidence stage reaches the same evidence without it (docs/measured.md has the
      ablation).
    - `max_steps`: most iterations of the evidence stage; it stops earlier once the ELBO has
      stopped rising. Default 10000.
    - `tolerance`: training has converged when the rise of the ELBO over the last quarter of the
      iterations, plus its standard error, is below this (nats). Where a fifth of the gap is more,
      the limit is that fifth, up to four times the tolerance. Default 0.02.
    - `learning_rate`: Adam's step size before the final decay. Default 5e-3.

    Attributes:
        draws: the settings under "Results".
        flow: the settings under "Flow".
        losses: the settings under "What a training step computes".
        schedule: the settings under "How long, and how fast".

    Raises:
        ValueError: a value out of range; the message names the setting and what it must be.

    Example:
        >>> from numpyro_onestep import Settings
        >>> Settings.of(num_samples=1000).draws.num_pool
        10000
    """

    draws: DrawSettings = field(default_factory=DrawSettings)
    flow: FlowSettings = field(default_factory=FlowSettings)
    losses: LossSettings = field(default_factory=LossSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)

    def __post_init__(self):
        _require(
            self.draws,
            lambda v: not (v and self.schedule.num_distillation_steps),
            "False with num_distillation_steps: paths of the distillation stage end in a Gaussian, "
            "and several modes need a mixture. Take multimodal=True with num_distillation_steps=0",
            "multimodal",
        )
        grid = self.flow.num_grid_steps
        _require(
            self.draws,
            lambda v: v is None or (_is_count(v) and grid % v == 0),
            f"None or a divisor of num_grid_steps={grid}",
            "num_flow_steps",
        )

    @classmethod
    def of(cls, **given: Any) -> "Settings":
        """Settings from the keyword arguments of `OneStep`, whichever group they belong to.

        Raises:
            TypeError: a name that is no setting; the message offers the closest one.
            ValueError: a value out of range.
        """
        groups = get_type_hints(cls)
        known = {f.name: name for name, group in groups.items() for f in fields(group)}
        for name in given:
            if name not in known:
                raise TypeError(_unknown(name, list(known)))
        return cls(
            **{
                name: group(
                    **_as_counts(group, {k: v for k, v in given.items() if known[k] == name})
                )
                for name, group in groups.items()
            }
        )

    def of_structured_map(self, d: int) -> "Settings":
        """The settings of a structured map's training in d dimensions.

        Each draw trains all nodes, so that fewer draws suffice.  The norm of a force grows with the
        square root of d.
        """
        losses = self.losses
        batch_size = min(losses.batch_size, max(limits.SMALLEST_BATCH, limits.BATCH_NUMBERS // d))
        clip = losses.force_clip * max(1.0, math.sqrt(d / limits.FEW_DIMENSIONS))
        return replace(self, losses=replace(losses, batch_size=batch_size, force_clip=clip))

    def step_budgets(self, d: int) -> tuple[int, ...]:
        """The numbers of flow steps to try, one after the other, in d dimensions."""
        if self.draws.num_flow_steps is not None:
            return (self.draws.num_flow_steps,)
        # Without the evidence stage the flow is trained for all budgets at once.
        is_trained_for_one = self.losses.elbo_weight > 0 and self.flow.num_grid_steps > 1
        return (1, 2) if is_trained_for_one and d <= limits.SECOND_STEP else (1,)


def _unknown(name: str, known: list[str]) -> str:
    if name in _RENAMED:
        return f"OneStep's setting {name!r} is now called {_RENAMED[name]!r}: use that name."
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Known settings: {', '.join(known)}."
    return f"OneStep has no setting {name!r}. {hint}"


def _as_counts(group: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Whole numbers as ints where the group asks for one, whatever type they were given in."""
    whole = {f.name for f in fields(group) if f.type in (int, int | None)}
    counts = {name: as_count(given[name]) for name in whole & set(given)}
    return given | {name: count for name, count in counts.items() if count is not None}


def as_count(value: Any) -> Any:
    """A whole number as an int, whatever type it was given in; None for any other value."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return int(value) if value == int(value) else None
    except (TypeError, ValueError, OverflowError):
        return None


def require_count(name: str, value: Any) -> int:
    """A number of draws, given as 1000 or as 1e3, as an int.

    Raises:
        ValueError: it is no positive whole number.
    """
    number = as_count(value)
    if number is None or number < 1:
        raise ValueError(f"{name} must be a positive number of draws, but is {value!r}.")
    return number


def _is_structure(value: Any) -> bool:
    if isinstance(value, str):
        return value == "auto"
    return value is None or all(isinstance(name, str) for name in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _require(group: Any, holds: Callable[[Any], bool], what: str, *names: str) -> None:
    """Raise a ValueError unless the settings of these names are as they must be."""
    for name in names:
        require(name, getattr(group, name), what, holds)


def require(name: str, value: Any, what: str, holds: Callable[[Any], bool]) -> None:
    """Raise a ValueError that names the setting and what it must be, unless that holds."""
    try:
        fine = bool(holds(value))
    except TypeError:
        fine = False
    if not fine:
        raise ValueError(f"{name}={value!r} is not possible: it must be {what}.")
