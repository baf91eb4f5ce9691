"""What every kind of model accepts and refuses, and its file."""

import functools
import json
import os
import re
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from strategies import assert_close, perturb
from submanifold.common.errors import UserError
from submanifold.data import dequantize
from submanifold.flows import Affine, Autoencoder, Gaussianization, Glow, Jet, RealNVP
from submanifold.models import Hierarchy, Mixture, Model, Stage
from submanifold.models.io import load_tensors, save_tensors

IMAGE = (3, 4, 4)


def rotated(stage):
    rotation = stage.add_rotation()
    size = rotation.event_shape[0]
    rotation.fit(torch.linalg.qr(torch.randn(size, size)).Q, torch.linspace(2, 1, size))
    return stage


MODELS = {
    "vectors": lambda: Hierarchy([Stage(RealNVP(8), 4), Stage(RealNVP(4), 2)]),
    "images": lambda: Hierarchy([Stage(Glow(IMAGE, 1, 1, 4), 20), Stage(RealNVP(20), 6)]),
    "patches": lambda: Hierarchy([Stage(Jet(IMAGE, 2, 2, 1, 4, 2), 20)]),
    "noisy": lambda: Hierarchy([Stage(Affine(8), 4), Stage(RealNVP(4), 4, noise=0.1)]),
    "rotated": lambda: Hierarchy([rotated(Stage(RealNVP(8), 4))]),
    "injection": lambda: Hierarchy([Stage(Autoencoder(IMAGE, 7, 4), 7), Stage(RealNVP(7), 5)]),
    "slice": lambda: Hierarchy(
        [rotated(Stage(Glow(IMAGE, 1, 1, 4), 9)), Stage(RealNVP(9), 9)]
    ).at_dim(12),
    "mixture": lambda: Mixture([Hierarchy([Stage(RealNVP(8), 3)]) for _ in range(2)]),
}

OF_EVENTS = {
    "forward": lambda model, x: model(x),
    "log_prob": lambda model, x: model.log_prob(x),
    "bits_per_dim": lambda model, x: model.bits_per_dim(x),
    "encode": lambda model, x: model.encode(x),
    "encode nearest": lambda model, x: model.encode(x, nearest=True),
    "project": lambda model, x: model.project(x),
    "project nearest": lambda model, x: model.project(x, steps=1),
    "rejection_map": lambda model, x: model.rejection_map(x),
}

WRONG_EVENTS = [
    (lambda x: (x * 9).byte(), "got uint8 of shape", ""),
    (lambda x: x.long(), "got int64 of shape", "x.to(torch.float32)"),
    (lambda x: x.double(), "got float64 of shape", "x.to(torch.float32)"),
    (lambda x: x.half(), "got float16 of shape", "x.to(torch.float32)"),
    (lambda x: x[0], "got float32 of shape", "x[None]"),
    (lambda x: x[None], "got float32 of shape (1, 3, ", ""),
    (lambda x: x.sum(), "got float32 of shape ()", ""),
    (lambda x: torch.cat([x, x], -1), "got float32 of shape", ""),
    (lambda x: x[..., :-2], "got float32 of shape", ""),
    (lambda x: x.numpy(), "got ndarray", "torch.as_tensor"),
]
WRONG = [
    (lambda code: code[:, :-1], "encode"),
    (lambda code: torch.cat([code, code], 1), "encode"),
    (lambda code: code[0], "encode"),
    (lambda code: code.double(), "torch.float32"),
    (lambda code: code.long(), "torch.float32"),
]
WRONG_COORDINATES = {"u": WRONG, "v": [*WRONG, (lambda code: code[:-1], "encode")]}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    torch.manual_seed(0)
    return perturb(MODELS[request.param](), 0.05).eval()


def events(model, rows=3):
    return torch.rand(rows, *model.event_shape) - 0.5


def test_every_kind_of_model_is_here():
    ours = {kind for kind, each in Model.kinds.items() if each.__module__.startswith("submanifold")}
    assert {MODELS[name]().kind for name in MODELS} == ours


@pytest.mark.parametrize("method", OF_EVENTS)
def test_events_of_another_shape_or_dtype_are_refused(model, method):
    if method in ("log_prob", "bits_per_dim") and not model.has_density:
        pytest.skip("no density on all of space")
    x, shape = events(model), ", ".join(map(str, model.event_shape))
    for change, given, fix in WRONG_EVENTS:
        with pytest.raises(UserError, match=r"^x: expected float32 .*, got .*\.") as caught:
            OF_EVENTS[method](model, change(x))
        assert f"of shape (batch, {shape}), got" in str(caught.value)
        assert given in str(caught.value)
        assert fix in str(caught.value)


@pytest.mark.parametrize("name", WRONG_COORDINATES)
def test_coordinates_of_another_shape_or_dtype_are_refused(model, name):
    u, v = (each.detach() for each in model.encode(events(model)))
    for change, fix in WRONG_COORDINATES[name]:
        both = (change(u), v) if name == "u" else (u, change(v))
        with pytest.raises(UserError, match=f"^{name}: expected float32 .*, got .*{fix}"):
            model.decode(*both)
        if name == "u":
            for method in (model.decode, model.code_log_prob):
                with pytest.raises(UserError, match=f"^u: expected float32 .*, got .*{fix}"):
                    method(change(u))


def test_a_message_states_what_was_expected_and_given_and_the_fix():
    model = MODELS["images"]()
    images = torch.zeros(5, *IMAGE, dtype=torch.uint8)
    expected = (
        "x: expected float32 of shape (batch, 3, 4, 4), got uint8 of shape (5, 3, 4, 4). "
        "Convert bytes with submanifold.data.dequantize(x)."
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        model.log_prob(images)
    assert model.log_prob(dequantize(images)).isfinite().all()


def test_a_model_in_double_precision_takes_double_precision():
    model = MODELS["vectors"]().double()
    assert model.log_prob(events(model).double()).dtype == torch.float64
    with pytest.raises(UserError, match=r"expected float64 .*, got float32 .*x.to\(torch.float64"):
        model.log_prob(events(model))


def test_the_checks_hold_under_autocast(model):
    x = events(model)
    with torch.autocast("cpu", torch.bfloat16):
        u, v, _ = model(x)
        assert model.decode(u, v).dtype == torch.float32
        with pytest.raises(UserError, match="got bfloat16"):
            model(x.bfloat16())


def test_the_checks_hold_in_torch_func_and_forward_mode(model):
    x = events(model)
    u = model.encode(x)[0].detach()
    tangent = torch.randn_like(u)
    _, pushed = torch.func.jvp(model.decode, (u,), (tangent,))
    with forward_ad.dual_level():
        dual = model.decode(forward_ad.make_dual(u, tangent))
        assert_close(forward_ad.unpack_dual(dual).tangent, pushed)
    if len(model.event_shape) == 1:  # vmap has no channels_last, which images have
        by_rows = torch.func.vmap(lambda row: model.decode(row[None])[0])(u)
        assert_close(by_rows, model.decode(u))
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(weights):
        return torch.func.functional_call(model, weights, (x,))[0].square().sum()

    assert torch.func.grad(loss)(weights).keys() == weights.keys()
    with pytest.raises(UserError, match=r"^u: expected"):
        torch.func.vmap(model.decode)(u)


@pytest.mark.parametrize("rows", [0, 3])
def test_the_checks_read_no_values_and_accept_no_rows(model, rows):
    with torch.device("meta"):
        model._check_events(torch.empty(rows, *model.event_shape))
        u, v = (torch.empty(rows, columns) for columns in model.code_dims)
        model._check_coordinates(u, v)


# ---- its file


def test_every_kind_of_model_is_the_same_behind_its_file(model, tmp_path):
    model.save(tmp_path / "model")
    x, loaded = events(model), Model.load(tmp_path / "model")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    for found, expected in zip(loaded(x), model(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_equal_models_have_equal_files(tmp_path):
    model = MODELS["images"]()
    model.notes, model.data = {"text": 'ä "quoted" \\ \n'}, {"size": 4, "channels": 3}
    for number in range(5):
        model.save(tmp_path / str(number))
    assert len({(tmp_path / str(number)).read_bytes() for number in range(5)}) == 1
    with safe_open(tmp_path / "0", framework="pt") as file:
        assert {"model", "config", "notes", "data"} < file.metadata().keys()
    assert Model.load(tmp_path / "0").notes == model.notes


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_has_the_mode_of_every_other_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        MODELS["vectors"]().save(tmp_path / "model")
        (tmp_path / "other").write_text("")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o666 & ~mask
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("device", ["cuda:99", torch.device("cuda:99"), "gpu", "meta"])
def test_a_device_that_is_not_there_is_one_line(tmp_path, device):
    MODELS["vectors"]().save(tmp_path / "model")
    with pytest.raises(UserError, match=r"^device: expected auto, cpu, [^\n]*$"):
        Model.load(tmp_path / "model", device)


def test_a_defect_of_ours_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    MODELS["vectors"]().save(tmp_path / "model")

    @functools.wraps(RealNVP.__init__)
    def defect(self, **_settings):
        raise TypeError("a defect")

    monkeypatch.setattr(RealNVP, "__init__", defect)
    with pytest.raises(TypeError, match=r"^a defect$"):
        Model.load(tmp_path / "model")


def forged(path, model, change):
    """A model's file whose architecture was changed, with a checksum that fits."""
    model.save(path)
    tensors, header = load_tensors(path)
    change(header)
    save_tensors(tensors, path, header)


def first_flow(number=0, **arguments):
    return lambda header: header["config"]["stages"][0]["bijections"][number].update(arguments)


def first_stage(**arguments):
    return lambda header: header["config"]["stages"][0].update(arguments)


def config(**arguments):
    return lambda header: header["config"].update(arguments)


def layered():
    return Hierarchy([Stage(Gaussianization(4, 1, 2), 2)])


def in_patches():
    return Hierarchy([Stage(Jet(IMAGE, 2, 2, 1, 4, 2), 20)])


class Allocations(TorchDispatchMode):
    """Counts the numbers of the largest tensor that is made on a device."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.device.type != "meta":
            self.largest = max(self.largest, made.untyped_storage().nbytes() // 4)
        return made


@pytest.mark.parametrize(
    ("build", "change"),
    [
        (MODELS["vectors"], first_flow(dim=3000)),
        (MODELS["vectors"], first_flow(dim=10**9)),
        (MODELS["vectors"], first_stage(dim=10**9)),
        (MODELS["vectors"], first_flow(hidden=10**7)),
        (MODELS["vectors"], first_flow(hidden=10**20)),
        (MODELS["vectors"], first_flow(couplings=10**5)),
        (MODELS["vectors"], first_flow(couplings=10**9)),
        (MODELS["images"], first_flow(width=10**6)),
        (MODELS["images"], first_flow(steps=10**7)),
        (MODELS["images"], first_flow(levels=10**9)),
        (MODELS["images"], first_flow(shape=[10**9, 4, 4])),
        (in_patches, first_flow(couplings=10**7)),
        (layered, first_flow(layers=10**7)),
        (MODELS["rotated"], first_flow(1, dim=10**7)),
        (MODELS["mixture"], config(charts=10**7)),
        (MODELS["slice"], config(dim=10**9)),
    ],
)  # fmt: skip
def test_a_header_that_asks_for_more_than_the_file_holds_is_refused(tmp_path, build, change):
    path = tmp_path / "model"
    forged(path, build(), change)
    numbers = path.stat().st_size // 4
    with Allocations() as allocations, pytest.raises(UserError, match=f"^{path}: .*Give a file"):
        Model.load(path)
    assert allocations.largest <= numbers


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.pop("model"),
        lambda header: header.pop("config"),
        lambda header: header.update(model="spline"),
        lambda header: header.update(model=["hierarchy"]),
        lambda header: header.update(config=[]),
        lambda header: header.update(notes=3),
        lambda header: header["config"].pop("stages"),
        config(stages=[]),
        config(stages=[1]),
        config(charts=2),
        first_stage(dim=9),
        first_stage(dim="four"),
        first_stage(dim=-1),
        first_stage(bijections=[]),
        first_stage(bijections=[{}]),
        first_stage(unknown=1),
        first_flow(type="spline"),
        first_flow(type=None),
        first_flow(dim=[4]),
        first_flow(dim=0),
        first_flow(dim=6),
        first_flow(couplings=-1),
        first_flow(couplings=5),
        first_flow(unknown=1),
        first_flow(mixing=True),
    ],
)
def test_an_architecture_that_is_none_of_this_version_is_refused(tmp_path, change):
    path = tmp_path / "model"
    forged(path, MODELS["vectors"](), change)
    with pytest.raises(UserError, match=f"^{path}: expected .*, got [^\n]*Give a file[^\n]*$"):
        Model.load(path)


def test_what_is_no_file_of_a_model_is_refused(tmp_path):
    path, weight = tmp_path / "model", {"weight": torch.zeros(2)}
    MODELS["vectors"]().save(path)
    header = {"model": '"hierarchy"', "config": json.dumps(MODELS["vectors"]().config)}
    whole = path.read_bytes()
    save_file(weight, tmp_path / "plain")
    save_file(weight, tmp_path / "no checksum", {**header, "notes": "{}", "data": "{}"})
    save_file(weight, tmp_path / "no json", {"model": "no json"})
    save_tensors(weight, tmp_path / "a checkpoint", {"state": {}})
    (tmp_path / "changed").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "noise").write_bytes(os.urandom(1000))
    (tmp_path / "torn").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder").mkdir()
    names = [each.name for each in tmp_path.iterdir() if each != path]
    assert len(names) == 9
    for name in [*names, "missing"]:
        with pytest.raises(UserError, match=rf"{tmp_path}/{name}[:.] [^\n]*Give a file[^\n]*$"):
            Model.load(tmp_path / name)
