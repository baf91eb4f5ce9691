"""Disks that are full, may only be read, or turn bits, around whole runs."""

import logging

import pytest
from click import ClickException
from click.exceptions import Exit

STEPS = 12


@pytest.fixture(scope="module")
def finished(project):
    return project.run()


def test_a_finished_experiment_that_may_only_be_read_is_found(project, finished, read_only, caplog):
    runs = len(project.mlflow_runs())
    read_only(project.path / "data")
    with caplog.at_level(logging.INFO), pytest.raises(Exit) as caught:
        project.run()
    assert caught.value.exit_code == 0
    assert "All of it is there, and may only be read: nothing is made anew" in caplog.text
    assert f"The report is {finished.path('report')}" in caplog.text
    assert len(project.mlflow_runs()) == runs


def test_what_is_missing_cannot_be_made_where_data_may_only_be_read(project, finished, read_only):
    read_only(project.path / "data")
    with pytest.raises(ClickException, match=r"cannot be written: .*06_models may only be read"):
        project.run(seed=3)


def test_another_experiment_on_data_that_may_only_be_read(project, finished, read_only):
    read_only(project.path / "data" / "03_primary")
    again = project.run(seed=4, until="hierarchy")
    assert again.steps == {"phase_1": STEPS, "phase_2": STEPS}


def test_a_turned_bit_in_the_test_images_does_not_change_the_metrics(project, finished):
    path, before = finished.path("x_test"), finished.load("metrics")
    content = bytearray(path.read_bytes())
    content[-1000] ^= 128
    path.write_bytes(content)
    finished.path("metrics").unlink()
    again = project.run(only_missing_outputs=True)
    assert path.read_bytes() != bytes(content)
    assert again.load("metrics")["bits_per_dim"] == before["bits_per_dim"]
