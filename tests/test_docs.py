"""The pages: every link leads somewhere, what they name is there, every warning is explained."""

import re
from pathlib import Path

import pytest

from benchmarks.readme import with_table
from numpyro_onestep.diagnostics.codes import CODES

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")])
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


def test_the_readme_has_the_figures_that_were_measured():
    text = (ROOT / "README.md").read_text()
    assert with_table(text) == text


def test_every_warning_has_a_heading_of_its_code():
    page = (ROOT / "docs" / "reading_the_verdict.md").read_text()
    headings = re.findall(r"^### ([\w-]+): ", page, flags=re.MULTILINE)
    assert sorted(headings) == sorted(CODES)
