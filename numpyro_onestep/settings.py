"""Every setting of the sampler, its default, and the check that it makes sense."""

import difflib
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

Correction = Literal["psis", "imh", "nuts"] | None
_CORRECTIONS = ("psis", "imh", "nuts", None)

# Up to here the network is wide, and a second step is tried where one is not enough.
_MODERATE_DIMENSION = 128
# Beyond, moves cost more than they mend: as a rule every one of its d terms takes d operations.
_HIGH_DIMENSION = 512


@dataclass(frozen=True)
class Settings:
    """Settings of `OneStep`, given there as keyword arguments.

    **Results**

    - `num_samples`: posterior draws that `run` leaves behind. Default 4000.
    - `num_flow_steps`: steps k of the deterministic flow that makes a draw: one network evaluation
      each. Must divide `num_grid_steps`. Default None: 1, and where the weights of its pool are
      worth less than 15% of it (less than 60% with Pareto k near its limit or above), training
      begins again with 2 (up to 128 dimensions).
    - `correction`: `"psis"` (default) draws a pool, weighs it exactly, Pareto-smooths the weights
      and resamples without replacement; `"imh"` runs independence Metropolis-Hastings through the
      pool, and `"nuts"` runs NUTS in the space the flow starts from, four chains each, with R-hat;
      `None` returns the flow's own draws. Chains want `num_samples` to be a multiple of 4.
    - `many_modes`: say True where the posterior may have several modes: a tempered population of
      particles then finds them, and the flow starts from a mixture. Up to 128 dimensions, and not
      with `correction="nuts"`. Default False.
    - `target_precision`: `"single"` or `"double"` floats for the target's log density in a session
      of single precision; the network stays in single precision. Default `"auto"`: double where
      some hundred points show that single precision would be off by more than counts, which the
      summary then says.
    - `num_moves`: steps of Hamiltonian Monte Carlo that corrected draws take where Pareto k is
      above 0.4 and the gap above 0.01 nats, and up to four times as many as long as these change
      their spread, or where k is near its limit; 0 leaves them where they are. Default None: 25,
      and above 512 dimensions, where a step takes long, 25 * 512 / d and no more.
    - `pool_size`: draws weighed for the evidence and the correction. Default 10 a sample.
    - `batch_bytes`: memory that one batch of Jacobians may take. Default 64 MiB.
    - `progress_bar`: show one while training. Default True.

    **Flow**

    - `num_grid_steps`: K, intervals of the noise schedule. A power of two; default 16.
    - `horizon`: T, total time of the noising process. Default 3.
    - `width`: units of the network's hidden layer. Default None: 256 up to 128 dimensions, 64
      above, where the cost of a step goes with the square of the smaller of the two.

    **Distillation stage** (path loss, state and volume consistency)

    - `num_distillation_steps`: iterations. Default 0, since on unimodal targets the last stage
      reaches the same evidence without it (docs/method.md has the ablation).
    - `path_weight`, `state_weight`, `volume_weight`: weights of the three losses in the total.
      Defaults 1, 1, 0.1.
    - `distillation_batch_size`: paths an iteration. Default 64.
    - `volume_batch_size`: states an iteration whose exact volumes are compared. Default 16.
    - `ema_decay`: decay of the teacher's moving average. Default 0.99.

    **Evidence stage** (exact-volume ELBO of the k-step map, path gradients)

    - `elbo_weight`: weight of this loss; 0 leaves the stage out. Default 1.
    - `max_steps`: most iterations; training stops earlier once the ELBO has stopped rising.
      Default 10000.
    - `tolerance`: rise of the ELBO over the last quarter of the iterations, its noise added, below
      which training has converged (nats): a fifth of the gap where that is more, up to four times
      the tolerance. Default 0.02.
    - `batch_size`: draws an iteration. Default 32.
    - `tail_fraction`: share of each batch that follows Langevin chains instead of the base, so that
      the flow is also right where its draws are rare. Default 0.25.
    - `force_clip`: largest norm of a draw's force, in whitened units. Default 10.

    **Both stages**

    - `learning_rate`: Adam's step size before the final decay. Default 5e-3.
    - `gradient_clip`: largest global norm of a gradient. Default 1.

    Raises:
        ValueError: a value out of range; the message names it and the remedy.
    """

    num_samples: int = 4000
    num_flow_steps: int | None = None
    correction: Correction = "psis"
    many_modes: bool = False
    target_precision: Literal["auto", "single", "double"] = "auto"
    num_moves: int | None = None
    pool_size: int | None = None
    batch_bytes: int = 2**26
    progress_bar: bool = True

    num_grid_steps: int = 16
    horizon: float = 3.0
    width: int | None = None

    num_distillation_steps: int = 0
    path_weight: float = 1.0
    state_weight: float = 1.0
    volume_weight: float = 0.1
    distillation_batch_size: int = 64
    volume_batch_size: int = 16
    ema_decay: float = 0.99

    elbo_weight: float = 1.0
    max_steps: int = 10_000
    tolerance: float = 0.02
    batch_size: int = 32
    tail_fraction: float = 0.25
    force_clip: float = 10.0

    learning_rate: float = 5e-3
    gradient_clip: float = 1.0

    def __post_init__(self):
        for name in (
            "num_samples",
            "num_grid_steps",
            "batch_bytes",
            "distillation_batch_size",
            "volume_batch_size",
            "max_steps",
            "batch_size",
        ):
            _require(name, getattr(self, name), "a positive integer", _is_count)
        for name in ("horizon", "force_clip", "learning_rate", "gradient_clip", "tolerance"):
            _require(name, getattr(self, name), "a positive number", lambda v: v > 0)
        for name in ("path_weight", "state_weight", "volume_weight", "elbo_weight"):
            _require(name, getattr(self, name), "zero or a positive number", lambda v: v >= 0)
        for name in ("ema_decay", "tail_fraction"):
            _require(name, getattr(self, name), "a number in [0, 1)", lambda v: 0 <= v < 1)
        _require(
            "num_distillation_steps",
            self.num_distillation_steps,
            "zero or a positive integer",
            lambda v: v == 0 or _is_count(v),
        )
        _require(
            "num_moves",
            self.num_moves,
            "None, zero or a positive integer",
            lambda v: v is None or v == 0 or _is_count(v),
        )
        _require(
            "width",
            self.width,
            "None or a positive integer",
            lambda v: v is None or _is_count(v),
        )
        _require(
            "many_modes",
            self.many_modes,
            "True or False, and with True num_distillation_steps=0: paths of the distillation "
            "stage end in a Gaussian",
            lambda v: isinstance(v, bool) and not (v and self.num_distillation_steps),
        )
        _require(
            "target_precision",
            self.target_precision,
            "'auto', 'single' or 'double'",
            lambda v: v in ("auto", "single", "double"),
        )
        _require(
            "correction",
            self.correction,
            "'psis', 'imh', 'nuts' or None, and not 'nuts' with many_modes=True: its chains stay "
            "in the modes they start in",
            lambda v: v in _CORRECTIONS and not (v == "nuts" and self.many_modes),
        )
        if self.correction in ("imh", "nuts"):
            _require(
                "num_samples",
                self.num_samples,
                f"a multiple of 4, from 16 on, for the four chains of correction="
                f"{self.correction!r}",
                lambda v: v % 4 == 0 and v >= 16,
            )
        _require(
            "num_grid_steps",
            self.num_grid_steps,
            "a power of two, so that steps can be halved down to the grid",
            lambda v: v & (v - 1) == 0,
        )
        _require(
            "num_flow_steps",
            self.num_flow_steps,
            f"None or a divisor of num_grid_steps={self.num_grid_steps}",
            lambda v: v is None or (_is_count(v) and self.num_grid_steps % v == 0),
        )
        if self.pool_size is not None:
            _require(
                "pool_size",
                self.pool_size,
                f"an integer no smaller than num_samples={self.num_samples}",
                lambda v: _is_count(v) and v >= self.num_samples,
            )

    @property
    def num_pool(self) -> int:
        """Draws that are weighed for the evidence and the correction."""
        return 10 * self.num_samples if self.pool_size is None else self.pool_size

    def network_width(self, d: int) -> int:
        """Units of the hidden layer in d dimensions."""
        return self.width or (256 if d <= _MODERATE_DIMENSION else 64)

    def moves(self, d: int) -> tuple[int, int]:
        """Steps of a round of moves in d dimensions, and the most rounds."""
        rounds = 4 if d <= _HIGH_DIMENSION or self.num_moves is not None else 1
        steps = max(1, round(25 * min(1, _HIGH_DIMENSION / d)))
        return (steps if self.num_moves is None else self.num_moves), rounds

    def step_budgets(self, d: int) -> tuple[int, ...]:
        """The numbers of flow steps to try, one after the other, in d dimensions."""
        if self.num_flow_steps is not None:
            return (self.num_flow_steps,)
        # The flow of the distillation stage alone is the same at every budget, and in high
        # dimension weights are worth little however many steps there are.
        second = self.elbo_weight and self.num_grid_steps > 1 and d <= _MODERATE_DIMENSION
        return (1, 2) if second else (1,)

    @property
    def num_chains(self) -> int:
        """Langevin chains in each batch of the evidence stage."""
        return int(self.tail_fraction * self.batch_size)

    @property
    def num_own(self) -> int:
        """The flow's own draws in each batch of the evidence stage."""
        return self.batch_size - self.num_chains

    @property
    def num_wide(self) -> int:
        """Draws of the pool that are made a little wider than the flow's own."""
        return self.num_pool // 10 if self.correction else 0


def make_settings(given: dict[str, Any]) -> Settings:
    """Settings from keyword arguments.

    Raises:
        TypeError: a name that is no setting; the message offers the closest one.
    """
    known = [field.name for field in fields(Settings)]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"Did you mean {close[0]!r}?" if close else f"Known settings: {', '.join(known)}."
            )
            raise TypeError(f"OneStep has no setting {name!r}. {hint}")
    whole = {field.name for field in fields(Settings) if field.type in (int, int | None)}
    counts = {name: as_count(given[name]) for name in whole & set(given)}
    return Settings(**given | {name: count for name, count in counts.items() if count is not None})


def as_count(value: Any) -> Any:
    """A whole number as an int, whatever type it was given in; None for what is none."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return int(value) if value == int(value) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _require(name: str, value: Any, what: str, holds) -> None:
    try:
        fine = bool(holds(value))
    except TypeError:
        fine = False
    if not fine:
        raise ValueError(f"{name}={value!r} is not possible: it must be {what}.")
