"""Draws docs/decision_tree.svg, the picture of which_inference.md: `python docs/decision_tree.py`.

The list on that page is the same tree in words: change both.
"""

from pathlib import Path

import matplotlib.patches
from matplotlib.figure import Figure

# Each question with its answers: when (empty: simply yes), and what to take.
TREE = (
    (
        "Are the data too many\nfor memory, or one\nevaluation too slow?",
        (("", "SVI with minibatches"),),
    ),
    (
        "Does the density\nhave no gradient?",
        (("", "nested sampling, or\nsimulation-based inference"),),
    ),
    (
        "Do you have draws of\nNUTS already, and want\ntheir evidence, or more?",
        (("", "OneStep(model).distil"),),
    ),
    (
        "Do you need the\nlog evidence?",
        (
            ("one mode", "OneStep"),
            (
                "several modes, up to 128 dimensions",
                "OneStep(multimodal=True)\nand nested sampling",
            ),
            (
                "over 100 dimensions that all interact",
                "OneStep: look at\nthe gap and ESS first",
            ),
        ),
    ),
    (
        "Do you need\ndraws only?",
        (
            ("below 100 parameters, or a structure", "OneStep or NUTS"),
            ("a narrow neck that has to stay", 'OneStep(correction="nuts"),\ncompared with NUTS'),
            ("a thousand that all interact", "NUTS"),
            ("a rough idea, at once", "SVI with an autoguide"),
        ),
    ),
)
# In pixels of a picture that is 420 wide, the width of a telephone.
WIDTH, ROW, GAP, QUESTION, ANSWER = 420, 66, 14, (6, 168), (206, 208)
QUESTION_COLOUR, ANSWER_COLOUR, LINE = "#dbe9f6", "#fdebd0", "#555555"


def draw(path: Path) -> None:
    """Draw the tree: questions go down on the left, answers are on the right."""
    num_answers = sum(len(answers) for _, answers in TREE)
    height = num_answers * ROW + (len(TREE) - 1) * GAP + 8
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
    axis.set_axis_off()
    top, last = 4.0, None
    for question, answers in TREE:
        middles = [top + ROW * (i + 0.5) for i in range(len(answers))]
        at = middles[0]
        _box(axis, QUESTION, at, 54, question, QUESTION_COLOUR)
        if last is not None:
            arrow = {"arrowstyle": "-|>", "color": LINE}
            x = QUESTION[0] + 40
            axis.annotate("", (x, at - 27), (x, last + 27), arrowprops=arrow)
            axis.text(x + 6, at - 34, "no", fontsize=11, va="center", color=LINE)
        right, left = sum(QUESTION), ANSWER[0]
        axis.plot([right + 14] * 2, [middles[0], middles[-1]], color=LINE, lw=1)
        axis.plot([right, right + 14], [at, at], color=LINE, lw=1)
        for middle, (when, what) in zip(middles, answers, strict=True):
            arrow = {"arrowstyle": "-|>", "color": LINE, "shrinkA": 0, "shrinkB": 0}
            axis.annotate("", (left, middle), (right + 14, middle), arrowprops=arrow)
            _box(axis, ANSWER, middle, 58 if when else 42, what, ANSWER_COLOUR, when)
        axis.text(right + 3, at - 8, "yes", fontsize=11, va="center", color=LINE)
        top, last = middles[-1] + ROW / 2 + GAP, at
    with matplotlib.rc_context({"svg.hashsalt": "decision tree"}):
        figure.savefig(path, facecolor="white", metadata={"Date": None})


def _box(axis, across, middle, height, text, colour, when="") -> None:
    left, width = across
    bottom = middle - height / 2
    style = {"boxstyle": "round,pad=0,rounding_size=6", "ec": LINE, "fc": colour, "lw": 0.8}
    axis.add_patch(matplotlib.patches.FancyBboxPatch((left, bottom), width, height, **style))
    centre = left + width / 2
    if when:
        axis.text(centre, bottom + 10, when, fontsize=10, ha="center", va="center", color="#333333")
    weight = "bold" if across is ANSWER else "normal"
    y = middle + (8 if when else 0)
    axis.text(
        centre, y, text, fontsize=12, ha="center", va="center", weight=weight, linespacing=1.15
    )


if __name__ == "__main__":
    draw(Path(__file__).parent / "decision_tree.svg")
