"""Interrupted scorings are resumed, and end with the same file."""

import itertools

import pytest
from click.testing import CliRunner

from calibrated import calibrated_model, png, smooth_images
from submanifold.cli import cli
from submanifold.inference import score_file

COUNT, BATCH = 45, 8
UNREADABLE = (3, 20, 44)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "hierarchy.safetensors"
    calibrated_model().save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(smooth_images(COUNT, 2)):
        content = b"not an image" if number in UNREADABLE else png(image)
        (folder / f"{number:02d}.png").write_bytes(content)
    return folder


def score(model_file, folder, out, *options):
    command = ["score", model_file, folder, "--out", out, "--batch-size", BATCH, *options]
    return CliRunner().invoke(cli, [str(each) for each in command])


@pytest.fixture(scope="module")
def expected(model_file, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "scores.csv"
    result = score(model_file, folder, out, "--alpha=5%")
    assert result.exit_code == 0, result.output
    assert [path.name for path in out.parent.iterdir()] == ["scores.csv"]
    return out.read_text(), result.output.replace(str(out), "OUT")


@pytest.fixture
def interrupt(monkeypatch):
    """Return a function that lets the scoring of batch number `batch` fail."""

    def set_up(batch, original=score_file.score_event_batch):
        calls = itertools.count()

        def fail(*arguments):
            if next(calls) == batch:
                raise KeyboardInterrupt
            return original(*arguments)

        monkeypatch.setattr(score_file, "score_event_batch", fail)

    return set_up


@pytest.mark.parametrize("torn", [0, 1, 150, 400])
def test_resumed_file_equals_an_uninterrupted_one(
    model_file, folder, tmp_path, expected, interrupt, torn
):
    """Also if the last bytes were not written, whichever row they belong to."""
    out = tmp_path / "scores.csv"
    part = tmp_path / "scores.csv.part"
    interrupt(3)
    assert score(model_file, folder, out, "--alpha=5%").exit_code != 0
    assert not out.exists()
    part.write_bytes(part.read_bytes()[: -torn or None])
    interrupt(1)
    assert score(model_file, folder, out, "--alpha=5%", "--resume").exit_code != 0
    rows = part.read_text().count("\n") - 2
    assert rows == (4 if torn == 0 else 3) * BATCH, "each command scores one batch more"
    interrupt(None)
    result = score(model_file, folder, out, "--alpha=5%", "--resume")
    assert result.exit_code == 0, result.output
    assert out.read_text() == expected[0]
    assert result.output.replace(str(out), "OUT") == expected[1]
    assert not part.exists()


def test_other_options_or_images_are_not_resumed(model_file, folder, tmp_path, interrupt):
    out = tmp_path / "scores.csv"
    interrupt(2)
    score(model_file, folder, out)
    before = (tmp_path / "scores.csv.part").read_bytes()
    for content in (b"binary\xff\xfe\n" * 20, before):
        (tmp_path / "scores.csv.part").write_bytes(content)
        result = score(model_file, folder, out, "--resume", "--exact")
        assert "--resume: expected the model and the options of the interrupted" in result.output
    result = score(model_file, folder / "10.png", out, "--resume")
    assert f"got others: {folder}/00.png is missing" in result.output
    assert (tmp_path / "scores.csv.part").read_bytes() == before


def test_without_resume_a_command_starts_again(model_file, folder, tmp_path, expected, interrupt):
    out = tmp_path / "scores.csv"
    interrupt(2)
    score(model_file, folder, out)
    interrupt(None)
    assert score(model_file, folder, out, "--alpha=5%").exit_code == 0
    assert out.read_text() == expected[0]


def test_a_full_disk_is_reported_and_the_command_can_be_resumed(
    model_file, folder, small_disk, expected
):
    (small_disk / "rest").write_bytes(bytes(2**21 - 2 * 4096))
    out = small_disk / "scores.csv"
    result = score(model_file, folder, out, "--alpha=5%")
    assert result.output.startswith(f"Error: --out={out} cannot be written (No space left")
    (small_disk / "rest").unlink()
    result = score(model_file, folder, out, "--alpha=5%", "--resume")
    assert result.exit_code == 0, result.output
    assert out.read_text() == expected[0]
