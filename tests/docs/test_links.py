"""Files outside docs/ name pages that exist. Sphinx checks the links between the pages."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
PAGE = re.compile(r"\bdocs/[\w./-]+\.(?:md|ipynb|png|py)\b")


@pytest.mark.parametrize("page", [path.name for path in sorted(ROOT.glob("*.md"))])
def test_links_of_root_pages(page):
    links = LINK.findall((ROOT / page).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_paths_in_code_and_configuration():
    files = [ROOT / "pyproject.toml", *ROOT.glob("conf/base/*.yml"), *ROOT.glob("src/**/*.py"),
             *ROOT.glob("src/**/*.html"), *ROOT.glob("benchmarks/**/*.py")]  # fmt: skip
    named = {(path.name, page) for path in files for page in PAGE.findall(path.read_text())}
    assert {each for each in named if not (ROOT / each[1]).exists()} == set()
