import functools
import json
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from submanifold.common.errors import UserError
from submanifold.flows import Affine, Gaussianization, Glow, RealNVP, Zuko
from submanifold.models import Hierarchy, Mixture, Model, Stage
from submanifold.models.io import is_intact, load_tensors, save_tensors


def vectors():
    return Hierarchy([Stage(RealNVP(8), 4), Stage(RealNVP(4), 2)])


def images():
    return Hierarchy([Stage(Glow((3, 4, 4), 1, 1, 4), 20), Stage(RealNVP(20), 6)])


def rotated():
    hierarchy = Hierarchy([Stage(RealNVP(8), 4)])
    hierarchy.stages[0].add_rotation()
    return hierarchy


def test_equal_models_have_equal_files(tmp_path):
    model = images()
    model.notes = {"text": 'ä "quoted" \\ \n'}
    for number in range(5):
        model.save(tmp_path / str(number))
    assert len({(tmp_path / str(number)).read_bytes() for number in range(5)}) == 1
    with safe_open(tmp_path / "0", framework="pt") as file:
        assert {"model", "config", "notes", "data"} < file.metadata().keys()


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_respect_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        vectors().save(tmp_path / "model")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("device", ["cuda:99", torch.device("cuda:99"), "gpu", "meta"])
def test_an_unknown_device_is_refused(tmp_path, device):
    vectors().save(tmp_path / "model")
    with pytest.raises(UserError, match=f"^device: expected .*, got {device} "):
        Model.load(tmp_path / "model", device)


def test_a_model_of_another_kind_is_refused(tmp_path):
    vectors().save(tmp_path / "model")
    with pytest.raises(UserError, match=r"expected a mixture, got a hierarchy\. Use Model\.load"):
        Mixture.load(tmp_path / "model")


def test_a_new_kind_of_model_is_registered_by_its_definition(tmp_path):
    class Scaled(Model):
        """A normal density with a scale."""

        kind = "scaled"

        def __init__(self, size):
            super().__init__((size,), 1)
            self.scale = torch.nn.Parameter(torch.ones(()))

        @property
        def config(self):
            return {"size": self.event_dim}

        @classmethod
        def from_config(cls, size):
            return cls(size)

        def forward(self, x):
            normal = torch.distributions.Normal(0, self.scale)
            return x[:, :1], x[:, 1:], normal.log_prob(x).sum(1)

        def _decode(self, u, v):
            return torch.cat([u, torch.zeros(len(u), 2) if v is None else v], 1)

    try:
        Scaled(3).save(tmp_path / "model")
        assert isinstance(Model.load(tmp_path / "model"), Scaled)
        assert Model.load(tmp_path / "model").project(torch.ones(2, 3)).sum() == 2
    finally:
        del Model.kinds["scaled"]


def test_a_defect_of_the_program_is_not_reported_as_a_bad_file(tmp_path, monkeypatch):
    vectors().save(tmp_path / "model")

    @functools.wraps(RealNVP.__init__)
    def defect(self, **_settings):
        raise TypeError("a defect")

    monkeypatch.setattr(RealNVP, "__init__", defect)
    with pytest.raises(TypeError, match=r"^a defect$"):
        Model.load(tmp_path / "model")


def flow(number=0, **arguments):
    return lambda header: header["config"]["stages"][0]["bijections"][number].update(arguments)


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
        (vectors, flow(hidden=10**7)),
        (vectors, stage(dim=10**9)),
        (images, flow(width=10**6)),
        (images, flow(shape=[10**9, 4, 4])),
        (images, flow(shape=[3, 2**14, 2**14])),
        (lambda: Hierarchy([Stage(Affine(4), 2)]), flow(dim=10**6)),
        (rotated, flow(1, dim=10**7)),
        (lambda: Hierarchy([Stage(Gaussianization(4, 1, 2), 2)]), flow(layers=500)),
        (lambda: Hierarchy([Stage(Zuko(4), 2)]), flow(hidden=10**5)),
        (lambda: Hierarchy([Stage(Zuko(4), 2)]), flow(transforms=10**6)),
        (images, flow(steps=10**6)),
        (images, flow(steps=[10**6])),
        (vectors, flow(couplings=10**6)),
        (lambda: Hierarchy([Stage(Zuko(2, hidden=1), 2)]), flow(transforms=20_000)),
        (lambda: Mixture([vectors()]), config(charts=10**6)),
        (images, data(size=10**6, channels=3)),
        (images, data(size=8, channels=3)),
        (images, data(size=4, channels=3, margin=-(10**6))),
        (images, data(size=4, channels=3, margin=2)),
        (images, data(size=4, channels=3, margin="wide")),
        (images, data(size="large", channels=3)),
        (vectors, data(size=10**6, channels=3)),
        # no mappings
        (vectors, lambda header: header.update(data=None)),
        (vectors, lambda header: header.update(notes=[])),
        (vectors, lambda header: header.update(config=None)),
        (vectors, lambda header: header.pop("calibration")),
        # architectures that this version does not have
        (vectors, lambda header: header.pop("model")),
        (vectors, lambda header: header.update(model="spline")),
        (vectors, config(stages=[])),
        (vectors, config(charts=2)),
        (vectors, stage(dim=9)),
        (vectors, stage(dim="four")),
        (vectors, stage(bijections=[{}])),
        (vectors, stage(bijections=[])),
        (vectors, stage(unknown=1)),
        (vectors, flow(type="spline")),
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
