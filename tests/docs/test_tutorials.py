"""The code of the tutorials runs and prints what the page shows, up to numbers."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

TUTORIALS = Path(__file__).parents[2] / "docs/tutorials"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(\.\d+)?")


def test_python_tutorial(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (TUTORIALS / "python.md").read_text()
    page = re.sub(
        r"\bsteps(=|\": )\d{3}", r"steps\g<1>4", page
    )  # shorter trainings of fewer images
    page = page.replace("load_digits().images", "load_digits().images[:300]")
    page = page.replace("[1300, 1550]", "[200, 250]")
    shown, scope = [], {"__name__": "__main__"}
    for language, text in BLOCK.findall(page):
        if language == "python":
            exec(compile(text, "python.md", "exec"), scope)
        else:
            shown.append(text)
    assert shape("".join(shown)) == shape(capsys.readouterr().out)
    assert (tmp_path / "samples.png").exists()


def shape(text):
    """Numbers as #, and lists of numbers as one."""
    text = NUMBER.sub("#", text)
    return [
        " ".join(line.split()) for line in re.sub(r"#(, #)+\]", "#]", text).splitlines() if line
    ]
