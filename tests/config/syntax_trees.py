"""Digests of the code that each version in config/keys.py stands for.

    python tests/config/syntax_trees.py

records them. Comments, docstrings and the form of the text are no part of the code.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from submanifold.config import keys

RECORD = Path(__file__).with_suffix(".json")
PACKAGE = Path(keys.__file__).parents[1]
PACKAGES = {
    "DATA": ["data", "pipelines/data"],
    "TRAINING": ["common", "flows", "geometry", "losses", "models", "training"],
    "EVALUATION": [
        "evaluation",
        "inference/training_events.py",
        "pipelines/evaluation",
        "pipelines/ood/nodes.py",
        "pipelines/training",
    ],
    "REPORT": ["plots", "pipelines/ood/sections.py", "pipelines/reporting"],
}
"""The packages and modules on whose code the results of a version depend."""


def describe(name: str) -> dict[str, Any]:
    """Return a version, and the digests of its modules."""
    modules = {
        path.relative_to(PACKAGE).as_posix(): digest(path.read_text(encoding="utf-8"))
        for part in PACKAGES[name]
        for path in modules_of(PACKAGE / part)
    }
    return {"version": getattr(keys, name), "modules": dict(sorted(modules.items()))}


def modules_of(path: Path) -> Iterator[Path]:
    """Yield a module itself, or those of a package."""
    if path.suffix:
        yield path
    else:
        yield from path.rglob("*.py")


def digest(code: str) -> str:
    """Hash the syntax tree of a module; it is the same in all versions of Python."""
    return hashlib.sha256(repr(tree(ast.parse(code))).encode()).hexdigest()[:16]


def tree(node: Any) -> Any:
    """Return a syntax tree as nested lists, without docstrings and empty fields."""
    if isinstance(node, list):
        return [tree(each) for each in node]
    if not isinstance(node, ast.AST):
        return node
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        without = node.body[ast.get_docstring(node, clean=False) is not None :]
        fields = {**dict(ast.iter_fields(node)), "body": without}
    else:
        fields = dict(ast.iter_fields(node))
    filled = {name: value for name, value in fields.items() if value not in (None, [])}
    return [type(node).__name__, *([name, tree(value)] for name, value in filled.items())]


if __name__ == "__main__":
    record = {name: describe(name) for name in PACKAGES}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
