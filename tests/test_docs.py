"""The pages: every link leads somewhere, what they name is there, every warning is explained."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")])
FILE = re.compile(
    r"`((?:_util|target|structure|flow|optimise|mcmc|importance|initialise|multimodal|training"
    r"|corrections|checks|diagnostics|given_draws|integrations|storage)/[\w/]+\.py)`"
)


def anchors(page: Path) -> set[str]:
    """What a link may name after its #: headings in lower case, words joined by hyphens."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} in {page.name}"
        if anchor:
            assert anchor in anchors(linked), f"{target} in {page.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_the_package_that_a_page_names_is_there(page):
    named = {ROOT / "numpyro_onestep" / path for path in FILE.findall(page.read_text())}
    assert [path for path in named if not path.exists()] == []


def warnings_of(path: Path) -> Iterator[str]:
    """The texts of a file that have several sentences, docstrings aside; 0 for what is filled in.

    Remedies and signs, of which warnings are made, have one sentence each.
    """
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    apart = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    apart |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(str(getattr(part, "value", "")) if _is_text(part) else "0" for part in parts)
        if id(node) not in apart and re.search(r"\. \(?[A-Z]", text):
            yield text


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


WARNINGS = sorted(
    text
    for path in (ROOT / "numpyro_onestep" / "diagnostics").glob("*.py")
    for text in warnings_of(path)
)


@pytest.mark.parametrize("text", WARNINGS, ids=lambda text: text[:40])
def test_every_warning_has_a_heading_of_its_first_words(text):
    page = (ROOT / "docs" / "reading_the_verdict.md").read_text()
    headings = re.findall(r"^### (.*)$", page, flags=re.MULTILINE)
    patterns = [re.escape(heading).replace(re.escape("..."), ".+") for heading in headings]
    assert sum(bool(re.match(pattern, text)) for pattern in patterns) == 1


def test_the_warnings_are_found():
    assert len(WARNINGS) > 20
