"""What a command loads before it does anything: seconds that nobody would see in another test."""

import subprocess
import sys

SCRIPT = """
import sys
from pathlib import Path
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

def loaded(*names):
    print(*[name for name in names if name in sys.modules])

bootstrap_project(Path.cwd())
loaded("torch", "submanifold.settings")
with KedroSession.create(env="test", runtime_params={"device": "cpu"}) as session:
    catalog = session.load_context().catalog
    list(catalog.items())  # as kedro-mlflow does, which makes each dataset
loaded("matplotlib", "scipy.special", "scipy.stats", "sklearn", "sympy", "torch", "torch._dynamo",
       "torchvision")
"""


def test_a_run_loads_nothing_heavy_before_its_first_node(project):
    command = [sys.executable, "-c", SCRIPT]
    ran = subprocess.run(command, cwd=project.path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-2:] == ["submanifold.settings", "torch"]
