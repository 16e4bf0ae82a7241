"""What a model's trace says about the axes of its sites: plates, events, loops over time."""

from typing import Any, NamedTuple


class Axes(NamedTuple):
    """What the model's trace says about the axes of a site's value.

    Attributes:
        plates: name, dimension (counted from the right of the batch, hence negative) and size of
            each plate around the site.
        event_dim: number of axes of one event, right of the batch; None where it is unknown, as
            for a deterministic site.
        event_names: the user's names for those axes, None for an axis without a name.
        num_loop_axes: number of axes of a loop over time, which are left of all plates' axes.
    """

    plates: tuple[tuple[str, int, int], ...] = ()
    event_dim: int | None = None
    event_names: tuple[str | None, ...] = ()
    num_loop_axes: int = 0


def axes_of(site: dict[str, Any]) -> Axes:
    """The axes of a site of a NumPyro trace."""
    frames = site.get("cond_indep_stack", ())
    is_sample = site["type"] == "sample"
    infer = site.get("infer") or {}
    names = infer.get("event_dims") or ()
    names = (names,) if isinstance(names, str) else names
    # NumPyro sets `_control_flow_done` in a branch (`cond`) too, which has no axis of time.  Only a
    # sample site tells the two apart.  For a deterministic site in a branch one plate's axis may
    # thus lose its name, which does no harm.
    is_scanned = "_scan_current_index" in infer if is_sample else "_control_flow_done" in site
    return Axes(
        plates=tuple((frame.name, frame.dim, frame.size) for frame in frames),
        event_dim=site["fn"].event_dim if is_sample else None,
        event_names=tuple(None if name is None else str(name) for name in names),
        num_loop_axes=int(is_scanned),
    )
