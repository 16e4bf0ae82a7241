"""The house: folders by role, each importing only from those below it, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import numpyro_onestep

PACKAGE = Path(numpyro_onestep.__file__).parent
# From the ground up: a file imports only from parts that stand above its own in this list.
LAYERS = [
    "limits",
    "settings",
    "_util",
    "target",
    "structure",
    "flow",
    "optimise",
    "mcmc",
    "importance",
    "initialise",
    "multimodal",
    "training",
    "corrections",
    "checks",
    "problem",
    "starts",
    "given_draws",
    "result",
    "prediction",
    "prior",
    "density_head",
    "warm_start",
    "storage",
    "diagnostics",
    "integrations",
    "checkpoint",
    "inference",
    "readings",
    "composition",
    "budgets",
    "pictures",
    "sampler",
    "compare",
    "__init__",
]
MOST_LINES = 400


def part_of(module: str) -> str:
    """The folder or the file that a module of the package belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> set[str]:
    """The package's own modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            module = node.module or ""
            if module == "numpyro_onestep":
                found |= {f"{module}.{alias.name}" for alias in node.names}
            elif module.startswith("numpyro_onestep."):
                found.add(module)
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("numpyro_onestep")}
    return found


def test_every_part_imports_only_from_those_below_it():
    upwards, seen = [], set()
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE).with_suffix("")
        mine = relative.parts[0]
        seen.add(mine)
        for module in imports(path):
            theirs = part_of(module)
            if LAYERS.index(theirs) > LAYERS.index(mine):
                upwards.append(f"{relative} imports {module}")
    assert not upwards
    assert seen == set(LAYERS)  # no part has gone, and none stands outside of the order


def test_no_file_is_long():
    roots = [PACKAGE, PACKAGE.parent / "tests", PACKAGE.parent / "benchmarks"]
    lengths = {p: len(p.read_text().splitlines()) for root in roots for p in root.rglob("*.py")}
    assert {path: n for path, n in lengths.items() if n > MOST_LINES} == {}


def test_an_import_brings_in_nothing_that_is_used_later_or_seldom():
    # They take longer than all the rest: ArviZ with its plots as long as NumPyro and JAX together.
    late = ["arviz", "matplotlib", "optax", "pandas", "scipy.optimize", "sklearn", "xarray"]
    code = f"import sys, numpyro_onestep; print([m for m in {late} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
