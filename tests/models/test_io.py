import functools
import json

import pytest
import torch
from safetensors.torch import save_file

from submanifold.common.errors import UserError
from submanifold.flows import Affine, Glow, RealNVP, Zuko
from submanifold.models import Hierarchy, Mixture, Model, Stage
from submanifold.models.io import is_intact, load_tensors, save_tensors


def vectors():
    return Hierarchy([Stage(RealNVP(8), 4), Stage(RealNVP(4), 2)])


def images():
    return Hierarchy([Stage(Glow((3, 4, 4), 1, 1, 4), 20), Stage(RealNVP(20), 6)])


@pytest.mark.parametrize("device", ["cuda:99", torch.device("cuda:99"), "gpu", "meta"])
def test_an_unknown_device_is_refused(tmp_path, device):
    vectors().save(tmp_path / "model")
    with pytest.raises(UserError, match=f"^device: expected .*, got {device} "):
        Model.load(tmp_path / "model", device)


def test_a_defect_of_the_program_is_not_reported_as_a_bad_file(tmp_path, monkeypatch):
    vectors().save(tmp_path / "model")

    @functools.wraps(RealNVP.__init__)
    def defect(self, **_settings):
        raise TypeError("a defect")

    monkeypatch.setattr(RealNVP, "__init__", defect)
    with pytest.raises(TypeError, match=r"^a defect$"):
        Model.load(tmp_path / "model")


def flow(number=0, **arguments):
    return lambda header: header["config"]["stages"][0]["flows"][number].update(arguments)


def stage(**arguments):
    return lambda header: header["config"]["stages"][0].update(arguments)


def config(**arguments):
    return lambda header: header["config"].update(arguments)


def data(**facts):
    return lambda header: header.update(data=facts)


@pytest.mark.parametrize(
    ("build", "change"),
    [
        # sizes that do not fit into memory
        (vectors, flow(dim=10**9)),
        (vectors, stage(dim=10**9)),
        (images, flow(width=10**6)),
        (images, flow(shape=[3, 2**14, 2**14])),
        (lambda: Hierarchy([Stage(Affine(4), 2)]), flow(dim=10**6)),
        (lambda: Hierarchy([Stage(Zuko(4), 2)]), flow(transforms=10**6)),
        (images, flow(steps=[10**6])),
        (vectors, flow(couplings=10**6)),
        (lambda: Hierarchy([Stage(Zuko(2, hidden=1), 2)]), flow(transforms=20_000)),
        (lambda: Mixture([vectors()]), config(charts=[{}] * 10**5)),
        (images, data(size=10**6, channels=3)),
        (images, data(size=4, channels=3, margin=-(10**6))),
        (vectors, data(size=10**6, channels=3)),
        # no mappings
        (vectors, lambda header: header.update(data=None)),
        (vectors, lambda header: header.update(config=None)),
        (vectors, lambda header: header.pop("calibration")),
        # architectures that this version does not have
        (vectors, lambda header: header.pop("model")),
        (vectors, lambda header: header.pop("format")),
        (vectors, lambda header: header.update(format=99)),
        (vectors, lambda header: header.update(model="spline")),
        (vectors, config(stages=[])),
        (vectors, config(view_dim=9)),
        (vectors, stage(dim=9)),
        (vectors, stage(flows=[{}])),
        (vectors, stage(flows=[])),
        (vectors, flow(couplings=5)),
        (vectors, flow(unknown=1)),
    ],
)
def test_a_config_that_does_not_match_is_refused(tmp_path, build, change):
    path = tmp_path / "model"
    build().save(path)
    tensors, header = load_tensors(path)
    change(header)
    save_tensors(tensors, path, header)
    with pytest.raises(UserError, match=f"^{path}: expected .*, got [^\n]*Pass a file[^\n]*$"):
        Model.load(path)


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
    intact = {each.name for each in tmp_path.iterdir() if is_intact(each)}
    assert intact == {"model", "a checkpoint"}
    for name in {each.name for each in tmp_path.iterdir()} - {"model"} | {"missing"}:
        with pytest.raises(UserError, match=rf"{tmp_path}/{name}: [^\n]*Pass a file[^\n]*$"):
            Model.load(tmp_path / name)
