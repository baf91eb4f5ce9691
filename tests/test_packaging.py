"""Declared dependencies, and the extra that a message names where a package is missing."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from commands import run
from conftest import REPOSITORY
from submanifold.common.errors import UserError
from submanifold.data.settings import ImageSettings
from submanifold.flows import build_flow


def test_imported_packages_are_declared():
    """In the dependencies, or in the extra that ``import_extra`` names."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = {None: project["dependencies"], **project["optional-dependencies"]}
    names = {extra: {canonicalize_name(Requirement(line).name) for line in lines}
             for extra, lines in declared.items()}  # fmt: skip
    imported = set()
    for path in (REPOSITORY / "src").rglob("*.py"):
        # studies/search.py is imported after import_extra("optuna", "search")
        extra = "search" if path.name == "search.py" else None
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {(alias.name, extra) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module, extra))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_extra":
                imported.add(tuple(ast.literal_eval(argument) for argument in node.args))
    assert imported >= {("numpy", None), ("zuko", "zuko")}
    distributions = packages_distributions()
    for module, extra in imported:
        if (package := module.split(".")[0]) not in {*sys.stdlib_module_names, "submanifold"}:
            providers = {*map(canonicalize_name, distributions[package])}
            assert providers & (names[None] | names[extra]), f"{package} is not declared"


@pytest.mark.parametrize(("package", "extra"), [
    ("gdown", "celeba"), ("lmdb", "lsun"), ("zuko", "zuko"), ("torch_fidelity", "fid"),
])  # fmt: skip
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, package, extra):
    def use():
        if package == "zuko":
            build_flow({"type": "zuko", "dim": 3})
        elif package == "torch_fidelity":
            inception = "--params=evaluation.inception_weights=download"
            raise UserError(run("run", "--pipeline=data", inception).output)
        else:
            (tmp_path / "data.mdb").touch()
            path = str(tmp_path) if package == "lmdb" else None
            ImageSettings(source="folder" if path else "celeba", path=path).open(tmp_path)

    monkeypatch.setitem(sys.modules, package, None)
    message = rf"(^|Error: ){package}: .*pip install 'submanifold\[{extra}\]'"
    with pytest.raises(UserError, match=message):
        use()
