"""The code of each warning, which stands in brackets at its end and does not change with its words.

docs/warnings has a section for each: what it means, an input that provokes it, and a remedy that
is seen to work on that input.
"""

CODES = (
    "missed-modes",
    "conditionals",
    "edge",
    "step",
    "poor-fit",
    "tail",
    "interactions",
    "fold",
    "no-density",
    "not-a-number",
    "skipped-steps",
    "grain",
    "resolution",
    "short-training",
    "still-rising",
    "stalled",
    "interrupted",
    "r-hat",
    "divergences",
    "flat",
    "subsample",
    "given-draws",
    "step-budget",
    "head",
    "checkpoint",
)


def coded(message: str, code: str) -> str:
    """A warning with its code at the end, as in `... Raise max_steps. [still-rising]`."""
    if code not in CODES:
        raise ValueError(f"{code!r} is none of the codes of warnings.")
    return f"{message} [{code}]"
