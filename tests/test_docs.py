"""The pages: every link leads somewhere, what they name is there, every warning is explained."""

import re
from pathlib import Path

import pytest

from benchmarks.readme import with_table
from numpyro_onestep.diagnostics.codes import CODES

ROOT = Path(__file__).parent.parent
VERDICT = ROOT / "docs" / "reading_the_verdict.md"
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


def warnings() -> dict[str, str]:
    """The section of each warning, by its code."""
    pages = "".join(page.read_text() for page in sorted(ROOT.glob("docs/warnings/*.md")))
    sections = re.split(r"^#{1,3} ", pages, flags=re.MULTILINE)
    found = [(re.match(r"([\w-]+): ", section), section) for section in sections]
    return {code[1]: section for code, section in found if code}


def test_every_warning_has_a_section_of_its_code():
    assert sorted(warnings()) == sorted(CODES)
    headings = re.findall(r"^\| \[`([\w-]+)`\]", VERDICT.read_text(), flags=re.MULTILINE)
    assert sorted(headings) == sorted(CODES)


@pytest.mark.parametrize("code", CODES)
def test_every_warning_is_provoked_and_mended_where_it_is_explained(code):
    section = warnings()[code]
    assert "**Remedy.**" in section
    cells = re.findall(r"```{code-cell}.*?\n(.*?)```", section, flags=re.DOTALL)
    checks = [cell for cell in cells if "remove-cell" in cell]
    assert len(cells) > len(checks) > 0
    assert f'[{code}]"' in checks[-1]
    assert "not mended.messages" in checks[-1] or "not none" in checks[-1]


def test_no_page_with_code_is_longer_than_a_file_may_be():
    pages = [page for page in PAGES if "file_format: mystnb" in page.read_text()]
    assert len(pages) > 10
    assert [page.name for page in pages if len(page.read_text().splitlines()) > 400] == []
