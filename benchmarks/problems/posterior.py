"""A posterior with a reference: a NumPyro model, its data, and moments to compare draws with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Posterior:
    """A model whose data and reference moments lie in ``data/<name>.npz``.

    Attributes:
        name: of the posterior, and of its file.
        model: a NumPyro model.
        data: names of the model's positional arguments, stored in the file as ``data_<name>``.
        parameters: turns draws, as `get_samples` gives them, into the columns (draw, parameter)
            of the reference, in the reference's order.
        log_evidence: of the data (nats), where it is known.
    """

    name: str
    model: Callable
    data: tuple[str, ...]
    parameters: Callable
    log_evidence: float | None = None

    def args(self) -> tuple:
        """The model's positional arguments."""
        stored = np.load(DATA / f"{self.name}.npz")
        return tuple(stored[f"data_{key}"] for key in self.data)

    def reference(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Mean and standard deviation of every parameter, and the reference's effective size."""
        stored = np.load(DATA / f"{self.name}.npz")
        return stored["mean"], stored["sd"], int(stored["effective_size"])

    def errors(self, draws: dict) -> dict[str, float]:
        """Largest error of any parameter's mean, in standard deviations, and of any log sd."""
        mean, sd, _ = self.reference()
        values = np.asarray(self.parameters(draws), np.float64)
        return {
            "mean_error": float(np.abs((values.mean(0) - mean) / sd).max()),
            "log_sd_error": float(np.abs(np.log(values.std(0) / sd)).max()),
        }


def columns(*names: str) -> Callable:
    """For `Posterior.parameters`: these sites, in this order, each flattened.

    A name that ends in '+' stands for the logarithm of that site, which must be positive.
    """

    def parameters(sites):
        parts = []
        for name in names:
            value = sites[name.rstrip("+")]
            value = jnp.log(value) if name.endswith("+") else value
            parts.append(value.reshape(value.shape[0], -1))
        return jnp.concatenate(parts, axis=-1)

    return parameters
