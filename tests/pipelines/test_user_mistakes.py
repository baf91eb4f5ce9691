"""What cannot work ends in one message that says what is allowed, before anything is trained."""

import re

import numpy as np
import pytest
from click import ClickException
from PIL import Image

METHODS = "H-MM, H-MH, H-HM, H-HH, PR-D, PR-M, PR-H, EE-M, EE-H"


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"method": "H-XX"}, f"method=H-XX is not known. Known: {METHODS}"),
        ({"dataset": "minst"}, "dataset=minst is not known. Known: photos, celeba, lsun_bedroom"),
        ({"method": "PR-D"}, "method=PR-D trains its stages at once, which --pipeline=joint runs"),
        ({"stage_1": {"dims": 3}}, "stage_1.dims is not a setting; known: flow, then, dim, off_m"),
        ({"stage_1": {"dim": 193}}, "stage_1.dim: expected 1 to 192"),
        ({"stage_1": {"dim": 0}}, "stage_1.dim=0 cannot be used"),
        ({"stage_1": {"dim": "many"}}, "stage_1.dim=many cannot be used"),
        ({"stage_2": {"dim": 25}}, "stage_2.dim: expected 1 to 24"),
        (
            {"phase_1": {"reconstruction": {"penalty": "l1"}}},
            "penalty=l1 is not known",
        ),
        ({"stage_1": {"flow": {"widht": 3}}}, "stage_1.flow.widht is not a setting"),
        ({"data": {"size": 4}}, "data.size=4 is too small"),
        ({"stage_1": {"flow": {"type": "nice"}}}, "stage_1.flow.type=nice is not known. Known: gl"),
        (
            {"stage_1": {"flow": {"levels": 4}}},
            "stage_1.flow.levels=4: expected image sides divisible by 16",
        ),
        ({"stage_2": {"flow": {"type": "glow"}}}, "stage_2.flow.type: expected one of realnvp"),
        ({"phase_1": {"training": {"step": 3}}}, "phase_1.training.step is not a setting"),
        ({"phase_2": {"training": {"steps": 0}}}, "phase_2.training.steps=0 cannot be used"),
        ({"training": {"batchsize": 3}}, "phase_1.training.batchsize is not a setting"),
        ({"data": {"sizes": 3}}, "data.sizes is not a setting"),
        ({"data": {"channels": 2}}, "data.channels=2 is not known; known: 1 or 3"),
        ({"data": {"size": 256}}, "data.size: expected at most 128 with source=photos, got 256"),
        ({"data": {"path": "somewhere"}}, "data.path: expected none with source=photos"),
        ({"evaluation": {"sample": 3}}, "evaluation.sample is not a setting"),
        ({"evaluation": {"inception_weights": "w.pth"}}, "expected an existing file, got w.pth"),
        ({"sed": 3}, "sed is not a setting; known: dataset, method, seed, device"),
        ({"seed": -1}, "seed=-1 cannot be used"),
        ({"schedule": "joint"}, "schedule is not a setting"),
        ({"device": "tpu7"}, "device=tpu7 cannot be used here"),
        ({"device": "cuda:99"}, "device=cuda:99 cannot be used here"),
        (
            {"dataset": "folder"},
            "data.path: expected a folder, a zip or an LMDB folder of images with source=folder",
        ),
        ({"stage_4": {"dim": 3}}, "numbered from 1 without a gap, but these are set: stage_1, "),
        ({"stage_x": {"dim": 3}}, "numbered from 1 without a gap"),
        ({"stage_3": {"off_manifold_scale": 2.0}}, "stage_3.dim is missing"),
        ({"stage_1": {"delta": 0.1}}, "Set phase_<n>.reconstruction.delta of the phase that"),
        ({"phase_1": {"delta": 0.1}}, "phase_1.delta is not a setting; known: stages, input_no"),
        ({"sweep": "stage_1.dim"}, "sweep=stage_1.dim would have no effect"),
        ({"study": "first"}, "study=first would have no effect"),
        ({"stage_1": 5}, "stage_1=5 cannot be used: stage_1 is a group of settings"),
        ({"stage_3": None}, "stage_3=None cannot be used"),
        ({"stage_1": {"flow": "glow"}}, "stage_1.flow=glow cannot be used"),
        ({"stage_3": {"dim": 3, "flow": "affine"}}, "stage_3.flow=affine cannot be used"),
        ({"phase_2": {"training": 5}}, "phase_2.training=5 cannot be used"),
        ({"phase_2": 5}, "phase_2=5 cannot be used"),
        ({"data": "photos"}, "data=photos cannot be used"),
        ({"training": 300}, "training=300 cannot be used"),
        ({"evaluation": "all"}, "evaluation=all cannot be used"),
        ({"data": {"counts": 300}}, "data.counts=300 cannot be used"),
        ({"seed": True}, "seed=True cannot be used"),
        ({"seed": 1.5}, "seed=1.5 cannot be used"),
        ({"seed": 2**32}, "seed=4294967296 cannot be used"),
        ({"seed": "one"}, "seed=one cannot be used"),
        ({"device": "meta"}, "device=meta cannot be used here"),
        ({"device": ""}, "device= cannot be used here"),
        ({"dataset": None}, "dataset=None is not known"),
        ({"method": ["PR-D"]}, "method=['PR-D'] is not known"),
        ({"foo": 3}, "foo is not a setting; known: dataset, method, seed"),
        ({"stage_1": {"dim": True}}, "stage_1.dim=True cannot be used"),
        ({"stage_1": {"dim": 2.5}}, "stage_1.dim=2.5 cannot be used"),
        ({"stage_1": {"dim": float("inf")}}, "stage_1.dim=inf cannot be used"),
        ({"stage_1": {"off_manifold_scale": -1.0}}, "stage_1.off_manifold_scale=-1.0 cannot be"),
        ({"stage_1": {"off_manifold_scale": float("inf")}}, "off_manifold_scale=inf cannot be"),
        ({"stage_1": {"flow": {"steps": [1]}}}, "stage_1.flow.steps: expected one number or 2"),
        ({"stage_1": {"flow": {"steps": [1, True]}}}, "stage_1.flow.steps=[1, True] cannot be"),
        ({"stage_1": {"flow": {"width": 0}}}, "stage_1.flow.width=0 cannot be used"),
        ({"stage_1": {"flow": {"whiten": "often"}}}, "stage_1.flow.whiten=often cannot be used"),
        ({"stage_2": {"flow": {"couplings": -2}}}, "stage_2.flow.couplings=-2 cannot be used"),
        ({"stage_1": {"then": [{"type": "nice"}]}}, "stage_1.then.type=nice is not known"),
        ({"phase_1": {"training": {"learning_rate": 0}}}, "training.learning_rate=0 cannot be"),
        ({"phase_1": {"training": {"learning_rate": float("nan")}}}, "learning_rate=nan cannot"),
        ({"phase_1": {"training": {"muon_lr": -1.0}}}, "training.muon_lr=-1.0 cannot be"),
        ({"phase_1": {"training": {"batch_size": 0}}}, "training.batch_size=0 cannot be used"),
        ({"phase_1": {"training": {"warmup": -1}}}, "training.warmup=-1 cannot be used"),
        (
            {"phase_1": {"training": {"cooldown_fraction": 2.0}}},
            "training.cooldown_fraction=2.0 cannot be used",
        ),
        ({"phase_1": {"training": {"clip": 0.0}}}, "training.clip=0.0 cannot be used"),
        ({"phase_1": {"training": {"ema": 1.0}}}, "training.ema=1.0 cannot be used"),
        ({"phase_1": {"training": {"validate_every": 0}}}, "validate_every=0 cannot be used"),
        ({"phase_1": {"training": {"precision": "fp8"}}}, "training.precision=fp8 is not known"),
        (
            {"phase_1": {"training": {"activation_checkpointing": 7}}},
            "training.activation_checkpointing=7 cannot be used",
        ),
        ({"phase_1": {"stages": 3}}, "phase_1.stages=3 cannot be used"),
        ({"phase_1": {"stages": [2, 1]}}, "phase_1.stages=[2, 1] cannot be used"),
        ({"phase_1": {"stages": "both"}}, "phase_1.stages=both cannot be used"),
        ({"phase_4": {"stages": 1}}, "phase_4: phases have to be numbered from 1"),
        ({"phase_3": {"rotate": 3}}, "phase_3.rotate=3"),
        ({"phase_3": {"rotate": 1, "probes": 0}}, "phase_3.probes=0 cannot be used"),
        ({"phase_1": {"input_noise": -0.1}}, "phase_1.input_noise=-0.1 cannot be used"),
        ({"phase_1": {"likelihood": {"unit": "bytes"}}}, "likelihood.unit=bytes is not known"),
        ({"phase_1": {"likelihood": {"weight": -1}}}, "likelihood.weight=-1 cannot be used"),
        ({"phase_1": {"reconstruction": {"weight": 0}}}, "reconstruction.weight=0 cannot be"),
        ({"phase_1": {"reconstruction": {"delta": 0.1}}}, "phase_1.reconstruction.delta"),
        (
            {"phase_1": {"reconstruction": {"random_dim": 0.5}}},
            "reconstruction.random_dim=0.5 cannot be",
        ),
        ({"phase_1": {"reconstruction": {"through": -1}}}, "reconstruction.through=-1 cannot be"),
        ({"phase_1": {"reconstruction": {"target": {}}}}, "target needs mse or psnr"),
        ({"phase_1": {"reconstruction": {"target": {"psnr": -3}}}}, "target.psnr=-3 cannot be"),
        ({"phase_1": {"off_manifold": {"weight": "a"}}}, "off_manifold.weight=a cannot be used"),
        ({"data": {"seed": -1}}, "data.seed=-1 cannot be used"),
        ({"data": {"margin": 2}}, "data.margin: expected 0 with source=photos, got 2"),
        ({"data": {"split": "official"}}, "data.split: expected random with source=photos"),
        ({"data": {"labels": [0]}}, "data.labels: expected none with source=photos"),
        ({"data": {"crop": "round"}}, "data.crop=round is not known"),
        ({"data": {"url": "ftp://x"}}, "data.url=ftp://x cannot be used"),
        ({"data": {"counts": {"train": 0}}}, "data.counts.train=0 cannot be used"),
        ({"data": {"source": "photo"}}, "data.source: expected one of photos, celeba"),
        (
            {"dataset": "medmnist"},
            "data.path: expected an npz file of MedMNIST with source=medmnist",
        ),
        ({"dataset": "circle", "data": {"noise": float("inf")}}, "data.noise=inf cannot be used"),
        ({"dataset": "circle", "data": {"noise": -1.0}}, "data.noise=-1.0 cannot be used"),
        ({"evaluation": {"samples": 1}}, "evaluation.samples=1 cannot be used"),
        ({"evaluation": {"dequantizations": 0}}, "evaluation.dequantizations=0 cannot be used"),
        ({"register_as": ""}, "register_as= cannot be used"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_named_and_nothing_starts(project, params, said):
    with pytest.raises(ClickException) as caught:
        project.run(**params)
    assert said in str(caught.value)
    assert not (project.path / "data").exists()
    assert re.search(r"(Change|Set|Give|set|give) ", str(caught.value)), "says how to mend it"


def write_images(folder, good, broken):
    for number in range(good + broken):
        path = folder / f"{number}.png"
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
        if number >= good:
            path.write_bytes(b"no image")


def run_folder(project, path):
    return project.run(dataset="folder", data={"path": str(path), "size": 8})


def no_stage_was_touched(project):
    return not (project.path / "data" / "06_models").exists()


def test_a_path_that_does_not_exist_is_named(project, tmp_path):
    with pytest.raises(ClickException, match="nowhere"):
        run_folder(project, tmp_path / "nowhere")
    assert no_stage_was_touched(project)


def test_a_folder_without_images_is_named(project, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(ClickException, match="expected images"):
        run_folder(project, tmp_path)
    assert no_stage_was_touched(project)


def test_too_many_broken_images_stop_the_run(project, tmp_path):
    write_images(tmp_path, good=60, broken=11)
    with pytest.raises(ClickException, match="expected at most 10 broken images among 71, got 11"):
        run_folder(project, tmp_path)
    assert no_stage_was_touched(project)


def test_the_command_line_shows_the_message_alone(project):
    params = "dataset=folder,data.path=/no/such/pictures,data.size=8"
    code, output = project.kedro("run", "--env=test", f"--params={params}")
    assert code == 1
    assert "/no/such/pictures" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert "None" not in output
    assert no_stage_was_touched(project)


LOCAL = {
    "a tab": ("training:\n\tsteps: 3\n", "line 2 is not YAML: found character"),
    "a name twice": ("seed: 1\nseed: 2\n", "line 2 is not YAML: found duplicate key seed"),
    "a list": ("- a\n- b\n", "holds a list, but should be names and their values"),
    "words": ("just words\n", "just words is not a setting"),
    "an open bracket": ("data: [\n", "is not YAML"),
    "binary": ("\x00\x01", "is not YAML: unacceptable character"),
    "an unknown resolver": ("seed: ${nope:3}\n", "seed cannot be worked out: Unsupported interp"),
    "an unknown name": ("seed: ${missing}\n", "seed cannot be worked out: Interpolation key"),
    "a number for a row": ("datasets: {celeba: 3}\n", "datasets.celeba=3 cannot be used"),
    "a word for a table": ("methods: nothing\n", "methods=nothing cannot be used"),
    "a list for defaults": ("stage_defaults: [1]\n", "stage_defaults=[1] cannot be used"),
    "a row of a flow": ("stage_defaults: {glow: 3}\n", "stage_defaults.glow=3 cannot be used"),
    "training defaults": ("training_defaults: 3\n", "training_defaults=3 cannot be used"),
}


@pytest.fixture
def local(project):
    """The file of one's own settings, which is gone again after the test."""
    path = project.path / "conf" / "local" / "parameters.yml"
    yield path
    path.unlink()


@pytest.mark.parametrize("case", LOCAL)
def test_a_mistake_in_ones_own_settings_is_named_with_its_place(project, local, case):
    content, said = LOCAL[case]
    local.write_text(content)
    with pytest.raises(ClickException) as caught, project.session(env="local") as session:
        session.load_context()
    assert said in str(caught.value)
    assert no_stage_was_touched(project)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--env=test", "--params=method=H-XX"], f"method=H-XX is not known. Known: {METHODS}"),
    (["--env=tset"], "env=tset is not known"),
    (["--env=test", "--pipeline=hierarchicl"], "pipeline=hierarchicl is not known. Known: data, "),
    (["--env=test", "--nodes=phase_9.train"], "does not contain nodes named ['phase_9.train']"),
])  # fmt: skip
def test_what_is_not_there_is_named(project, arguments, said):
    code, output = project.typed("run", *arguments)
    assert code == 1
    assert said in output.splitlines()[-1]


def test_pipelines_of_images_are_known_where_the_configured_dataset_is_of_points(project, local):
    local.write_text("dataset: circle\n")
    code, output = project.typed("run", "--pipeline=ood", "--params=dataset=photos")
    assert code == 1
    assert "ood, dimension" in output.splitlines()[-1]
