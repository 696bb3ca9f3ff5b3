"""README, CONTRIBUTING and the pages of docs/ lead to each other, and name what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
JOBS = {path.stem for path in (ROOT / "jobs").glob("[!_]*.py")}


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures within the repository; code blocks hold none."""
    text = re.sub(r"```.*?```|^ {4}.*?$|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """The names by which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_something(page: Path):
    broken = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_readme_links_every_page_of_the_documentation():
    assert {path.name for path in PAGES[2:]} == {
        Path(link).name for link in links(PAGES[0]) if link.startswith("docs/")
    }


def test_the_readmes_table_names_every_job_and_no_other():
    _, _, rest = PAGES[0].read_text().partition("\n## All jobs\n")
    rows = re.findall(r"^\| ([a-z, ]+) \|", rest.partition("\n## ")[0], flags=re.MULTILINE)
    named = [name for row in rows for name in row.split(", ")]
    assert named[0] == "job" and sorted(named[1:]) == sorted(JOBS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_scripts_that_a_page_calls_are_there(page: Path):
    called = set(re.findall(r"\bjobs/(\w+)\.py", page.read_text()))
    assert called <= JOBS
