import json

import pytest
import torch
from safetensors.torch import save_file

from submanifold.common.errors import UserError
from submanifold.data import Batches
from submanifold.flows import FLOWS, Affine, RealNVP, build_flow
from submanifold.losses import Loss
from submanifold.models import Hierarchy, Model, Stage
from submanifold.models.io import load_tensors, save_tensors
from submanifold.training import Phase, TrainingSettings, fit


class Custom(Affine):
    """A user's flow, without type hints."""

    def __init__(self, dim, scale=2.0):
        super().__init__(dim)
        self.scale = scale


def test_a_flow_of_the_user_is_registered_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, rows = Hierarchy([Stage(Custom(4, 3.0), 2)]), torch.randn(64, 4).numpy()
    batches = Batches(rows, 32)
    arguments = Phase(model, Loss(), TrainingSettings(steps=2)), batches, batches
    for run in (lambda: fit(*arguments, "work"), lambda: model.save("model")):
        with pytest.raises(UserError, match=r'^flow: .*got Custom.*FLOWS\["<name>"\] = Custom'):
            run()
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"^flows: expected instances of .*Flow, got Linear"):
        Stage(torch.nn.Linear(4, 4), 2)
    monkeypatch.setitem(FLOWS, "custom", Custom)
    fit(*arguments, "work")  # a str, as any path
    model.save("model")
    loaded = Model.load("model")
    assert loaded.stages[0].flows[0].scale == 3.0
    assert torch.equal(loaded.log_prob(torch.ones(1, 4)), model.log_prob(torch.ones(1, 4)))


@pytest.mark.parametrize("device", ["cuda:99", torch.device("cuda:99"), "gpu", "meta"])
def test_an_unknown_device_is_refused(tmp_path, device):
    Hierarchy([Stage(Affine(4), 2)]).save(tmp_path / "model")
    with pytest.raises(UserError, match=f"^device: expected .*, got {device} "):
        Model.load(tmp_path / "model", device)


def flow(**arguments):
    return lambda header: header["config"]["stages"][0]["flows"][0].update(arguments)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda header: header.pop("format"), "format 1 instead of 4"),
        (lambda header: header.update(format=99), "format 99 instead of 4"),
        (flow(type="spline"), "type: expected one of .*, got spline. Register a flow of yours"),
        (flow(unknown=1), "unknown"),
        (flow(couplings=5), "do not match the config"),
        (flow(dim=9), "do not match the config"),
        (flow(hidden=10**9), "a config with more parameters than the file"),
        (flow(couplings=10**9), "a config with more parameters than the file"),
        (flow(dim=10**9, hidden=1), "a config with more parameters than the file"),
        (lambda header: header.update(config=[]), "list"),
        (lambda header: header["config"].pop("stages"), "stages"),
        (lambda header: header.pop("config"), "config"),
        (lambda header: header.pop("notes"), "notes"),
        (lambda header: header.pop("model"), "model"),
        (lambda header: header.update(model="vae"), "vae"),
    ],
)
def test_a_model_of_another_version_is_refused(tmp_path, change, reason):
    path = tmp_path / "model"
    Hierarchy([Stage(RealNVP(8), 4), Stage(RealNVP(4), 2)]).save(path)
    tensors, header = load_tensors(path)
    change(header)
    save_tensors(tensors, path, header)
    with pytest.raises(UserError, match=rf"^{path}: expected [^\n]*({reason})[^\n]*Pass a file"):
        Model.load(path)


def test_an_absurd_number_of_levels_is_refused():
    with pytest.raises(ValueError, match="levels"):  # 2^levels is not computed
        build_flow({"type": "glow", "shape": [3, 8, 8], "levels": 10**9})


def test_a_model_is_loaded_without_drawing_from_the_global_generator(tmp_path):
    Hierarchy([Stage(RealNVP(8), 4)]).save(tmp_path / "model")
    state = torch.get_rng_state()
    Model.load(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path, weight = tmp_path / "model", {"weight": torch.zeros(2)}
    Hierarchy([Stage(Affine(4), 2)]).save(path)
    content = path.read_bytes()
    header = {"model": '"hierarchy"', "config": json.dumps({}), "notes": "{}", "data": "{}"}
    save_file(weight, tmp_path / "plain")
    save_file(weight, tmp_path / "no checksum", header)
    save_tensors(weight, tmp_path / "a checkpoint", {"state": {}})
    (tmp_path / "changed").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "truncated").write_bytes(content[: len(content) // 2])
    (tmp_path / "folder").mkdir()
    for name in {each.name for each in tmp_path.iterdir()} - {"model"} | {"missing"}:
        with pytest.raises(UserError, match=rf"{tmp_path}/{name}: [^\n]*Pass a file[^\n]*$"):
            Model.load(tmp_path / name)
