"""Notebooks of the gallery: they have small outputs without errors, and import what exists."""

import ast
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 400_000  # bytes


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_complete_and_in_the_gallery(path):
    cells = json.loads(path.read_text())["cells"]
    outputs = [each for cell in cells for each in cell.get("outputs", [])]
    assert any("image/png" in each.get("data", {}) for each in outputs)
    assert not [each for each in outputs if each["output_type"] == "error"]
    assert path.stat().st_size < LARGEST
    assert (ROOT / "docs/gallery" / path.name).resolve() == path
    assert f"<{path.stem}>" in (ROOT / "docs/gallery/index.md").read_text()
    lines = [
        line
        for cell in cells
        if cell["cell_type"] == "code"
        for line in [*"".join(cell["source"]).splitlines(), ""]
        if not line.startswith("%")
    ]
    nodes = ast.walk(ast.parse("\n".join(lines)))
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    exec(compile(ast.Module(imports, []), str(path), "exec"), {})
