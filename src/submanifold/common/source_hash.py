"""Hashes of packages: a result that code determines is computed again when the code changes."""

import ast
import hashlib
from functools import cache
from pathlib import Path
from typing import Any


@cache
def source_hash(folder: Path) -> str:
    """Hash the files of a package; of Python the syntax, without comments and docstrings."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.*")):
        if path.suffix == ".py":
            code = ast.unparse(_without_docstrings(ast.parse(path.read_bytes())))
            digest.update(f"{path.relative_to(folder).as_posix()} {code}".encode())
        elif path.suffix != ".pyc" and path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _without_docstrings(node: Any) -> Any:
    if ast.get_docstring(node, clean=False):
        node.body[:1] = [] if node.body[1:] else [ast.Pass(lineno=0, col_offset=0)]
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            _without_docstrings(child)
    return node
