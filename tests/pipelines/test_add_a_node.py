"""Nodes of a user: the page about them, outputs without a file, and inputs that are missing."""

import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from kedro.pipeline import Node, Pipeline

from submanifold import pipeline_registry
from submanifold.common.errors import UserError

pytestmark = pytest.mark.pipeline

PAGE = (Path(__file__).parents[2] / "docs/how-to/add-a-node.md").read_text()


@pytest.fixture
def register(monkeypatch):
    """Return a function that adds a pipeline and runs what it makes of the full one."""
    registered = pipeline_registry.register_pipelines

    def add(name, pipeline):
        def register_pipelines():
            pipelines = registered()
            return {**pipelines, name: pipelines["hierarchical"] + pipeline}

        monkeypatch.setattr(pipeline_registry, "register_pipelines", register_pipelines)

    return add


def run(project, name, **options):
    """Run a pipeline with conf/local, as `kedro run` does; return its run in MLflow."""
    from submanifold.runs.runner import RankRunner

    before = len(project.mlflow_runs())
    with project.session(env=None) as session:
        session.run(pipeline_names=[name], runner=RankRunner(), **options)
    return project.mlflow_runs()[before:]


def test_the_node_of_the_page_has_a_file_and_a_metric_in_mlflow(project, register):
    code, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (entries,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    conf = project.path / "conf"
    shutil.copy(conf / "test" / "parameters.yml", conf / "local")
    (conf / "local" / "catalog.yml").write_text(entries)
    module = ModuleType("sharpness")
    exec(compile(code, "add-a-node.md", "exec"), module.__dict__)
    register("sharpness", module.create_pipeline())
    with pytest.raises(UserError) as caught:
        run(project, "sharpness", tags=["sharpness"])
    assert caught.value.message == (
        "samples, x_test: not computed for the present code and settings. Compute with the same "
        "parameters: submanifold run --to-nodes=data.prepare_data,evaluation.draw_samples"
    )
    (part,) = run(project, "data")
    assert part.info.run_name.endswith(" (part)")
    (first,) = run(project, "sharpness", only_missing_outputs=True)
    assert "submanifold.part" not in first.data.tags
    assert part.data.tags["keys.model"] == first.data.tags["keys.model"]
    assert 0 < first.data.metrics["sharpness"] < 10
    assert {"core/BPD", "core/KID"} < first.data.metrics.keys()
    (table,) = project.path.glob("data/07_model_output/photos-H-MM-*/sharpness.csv")
    assert table.read_text().startswith("samples,test\n")
    (again,) = run(project, "sharpness", tags=["sharpness"])
    assert again.data.metrics.keys() == {"sharpness"}
    assert again.data.tags["mlflow.parentRunId"] == first.info.run_id
    assert run(project, "hierarchical", only_missing_outputs=True) == []
    code, output = project.kedro("run", "--pipeline=data", "--params=device=cpu,data.seed=7")
    assert code == 0, output
    assert "Replacing dataset" not in output


def test_a_node_without_files_runs_every_time_and_one_that_no_other_needs_does_not(
    project, register, caplog
):
    computed = []

    def compute(name):
        return lambda value: computed.append(name) or value

    register(
        "mine",
        Pipeline(
            [
                Node(compute("shown"), "metrics", "shown", name="show"),
                Node(compute("needed"), "manifest", "needed", name="need"),
                Node(compute("end"), "needed", "end", name="end"),
                Node(lambda value: computed.append("nothing"), "metrics", None, name="nothing"),
            ]
        ),
    )
    run(project, "mine", only_missing_outputs=True)
    lost = [line for line in caplog.messages if "not kept" in line]
    expected = "{}: computed, but not kept. Add it to conf/base/catalog.yml."
    assert lost == [expected.format("end"), expected.format("shown")]
    run(project, "mine", only_missing_outputs=True)
    assert sorted(computed) == sorted(["shown", "needed", "end", "nothing"] * 2)
    computed.clear()
    conf = project.path / "conf" / "local" / "catalog.yml"
    entry = "{type: json.JSONDataset, filepath: data/end.json}"
    conf.write_text(f"{conf.read_text()}\nend: {entry}\n")
    run(project, "mine", only_missing_outputs=True)
    run(project, "mine", only_missing_outputs=True)
    assert sorted(computed) == sorted(["shown", "nothing"] * 2 + ["needed", "end"])
