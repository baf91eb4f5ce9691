"""A device that computes on the CPU and refuses what CUDA refuses, for machines that have no GPU.

Its tensors are plain tensors on ``torch.device("sim:0")`` whose memory is the CPU's. Whatever has a
CPU kernel runs there, on the same memory, so numbers are the CPU's; but tensors of both devices do
not mix, ``numpy()`` is refused, and every wait of the host for the device can be counted:

    def test_something(accelerator):
        model.to(accelerator)
        with syncs() as count:
            model(x)
        assert count.total == 0, count.lines

What a non-blocking copy brings to the CPU is nonsense until something waits.

It differs from CUDA in a few things. ``Module.to`` puts new parameters in place of the old ones, so
an optimizer has to be made after it. A generator of this device is refused on the CPU only inside
the fixture. Memory is never pinned, streams and events do nothing, and nothing is out of memory.
"""

import contextlib
import ctypes
import sys
import weakref
from collections import Counter
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration

NAME = "sim"
CPU = torch.device("cpu")
SEED_OFFSET = 0x5DEECE66D  # one seed gives other numbers than on the CPU, as CUDA's does
PROGRAM = str(Path(find_spec("submanifold").origin).parent)
CPU_KERNELS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
AUTOCAST_ON_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

# of CUDA's lists (pytorch's aten/src/ATen/autocast_mode.h)
IN_LOWER_PRECISION = (
    "conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding conv_transpose1d "
    "conv_transpose2d.input conv_transpose3d.input linear matmul mm mv addmm addmv addr bmm "
    "addbmm baddbmm chain_matmul linalg_multi_dot linalg_vecdot prelu "
    "scaled_dot_product_attention"
)
IN_FLOAT32 = (
    "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan "
    "pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar softplus layer_norm group_norm "
    "cosine_similarity kl_div l1_loss smooth_l1_loss huber_loss mse_loss "
    "binary_cross_entropy_with_logits cdist renorm logsumexp prod prod.dim_int softmax.int "
    "log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm sum sum.dim_IntList "
    "norm.Scalar norm.ScalarOpt_dim"
)
IN_WIDEST = "addcdiv addcmul atan2 cross dot vdot index_put scatter_add stack cat"

# kernels of CUDA that look at their result on the host
WAITING = {"_linalg_svd", "linalg_eig", "linalg_lstsq", "histc"}
TAKE_CPU_SCALARS = {"fill", "fill_", "masked_fill", "masked_fill_", "index_fill", "index_fill_"}
INDEX_PUT = {"index_put", "index_put_", "_index_put_impl_"}


@dataclass(eq=False)
class Syncs:
    """Waits of the host for the device.

    Attributes:
        waits: (kind, where) of each. Kinds are ``item``, ``download`` (a blocking copy to the
            CPU), ``nonzero`` (a shape that depends on values), ``kernel`` and ``synchronize``;
            where is the innermost line of the program, such as ``training/trainer.py:128``, or "".
        uploads: Where each blocking copy to the device was made; CUDA waits for these as well.
        non_blocking: Copies, either way, that nothing waited for.
    """

    waits: list[tuple[str, str]] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    non_blocking: int = 0

    @property
    def total(self):
        """Waits without uploads."""
        return len(self.waits)

    @property
    def kinds(self):
        """Waits and uploads by kind."""
        return Counter([*(kind for kind, _ in self.waits), *("upload" for _ in self.uploads)])

    @property
    def lines(self):
        """Waits and uploads by kind and line of the program."""
        return Counter([*self.waits, *(("upload", where) for where in self.uploads)])


_open = []
_pending = []  # downloads that did not block, which the next wait completes


@contextlib.contextmanager
def syncs():
    """Count what happens inside."""
    count = Syncs()
    _open.append(count)
    try:
        yield count
    finally:
        _open.remove(count)


def _wait(kind):
    while _pending:
        target, source = _pending.pop(0)
        target.copy_(source)
    for count in _open:
        if kind == "upload":
            count.uploads.append(_where())
        else:
            count.waits.append((kind, _where()))


def _where():
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PROGRAM):
            return f"{Path(path).relative_to(PROGRAM).as_posix()}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


# the same memory as a tensor of the other device


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
    ]


DL_CPU, DL_EXTENSION = 1, 12
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _relabel(tensor, device_type):
    """Give the memory of a tensor to a tensor of another device, which keeps it alive."""
    capsule = torch._C._to_dlpack(tensor)
    header = _DLTensor.from_address(_pointer(capsule, b"dltensor"))
    header.device_type, header.device_id = device_type, 0
    for axis, stride in enumerate(tensor.stride()):
        header.strides[axis] = stride
    return torch._C._from_dlpack(capsule)


def _is_ours(x):
    return isinstance(x, torch.Tensor) and x.device.type == NAME


def _on_cpu(x):
    """Unwrap arguments of an operator for its CPU kernel."""
    if isinstance(x, torch.Tensor):
        return _relabel(x, DL_CPU) if x.device.type == NAME else x
    if isinstance(x, (list, tuple)):
        return type(x)(map(_on_cpu, x))
    return CPU if isinstance(x, torch.device) else x


def _on_device(x):
    """Wrap what a CPU kernel returned."""
    if isinstance(x, torch.Tensor):
        return _relabel(x, DL_EXTENSION)
    return type(x)(map(_on_device, x)) if isinstance(x, (list, tuple)) else x


# operators


class _Schema:
    """What matters of an operator's schema."""

    def __init__(self, op):
        schema = op._schema
        self.name = schema.name.partition("::")[2]
        self.names = [a.name for a in schema.arguments]
        self.out = [a.name for a in schema.arguments if a.is_out and str(a.type) == "Tensor"]
        self.written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
        aliases = [r.alias_info for r in schema.returns]
        self.is_view = any(alias and not alias.is_write for alias in aliases)
        # an operator that writes returns what it has written, in the order of its arguments
        self.returns_written = bool(aliases) and all(alias is not None for alias in aliases)
        self.is_random = "generator" in self.names
        self.takes_scalars = (
            torch.Tag.pointwise in op.tags
            or self.name.startswith("_foreach_")
            or self.name in TAKE_CPU_SCALARS | INDEX_PUT
        )
        self.waits_for = None
        if self.name in WAITING:
            self.waits_for = "kernel"
        elif torch.Tag.data_dependent_output in op.tags:
            self.waits_for = "item"
        elif torch.Tag.dynamic_output_shape in op.tags and self.name != "index":
            self.waits_for = "nonzero"


_schema = cache(_Schema)


def _tensors(x):
    if isinstance(x, torch.Tensor):
        return [x]
    return [t for each in x for t in _tensors(each)] if isinstance(x, (list, tuple)) else []


def _refuse_mixing(schema, arguments):
    """Raise what CUDA raises for tensors of two devices."""
    for name, x in arguments.items():
        foreign = [t for t in _tensors(x) if t.device.type != NAME]
        if schema.takes_scalars and name not in schema.written:
            foreign = [t for t in foreign if t.ndim]
        is_index = name == "indices" and schema.name in {"index", *INDEX_PUT}
        if foreign and not (is_index and _is_ours(arguments["self"])):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{NAME}:0 and {foreign[0].device}! (when calling aten::{schema.name})"
            )


def _kernel(op, *args, **kwargs):
    """Run the CPU kernel of any operator on the memory of the device's tensors."""
    schema = _schema(op)
    if schema.is_view:  # kernels of views look at sizes only, and share the storage
        return op.redispatch(CPU_KERNELS, *args, **kwargs)
    arguments = dict(zip(schema.names, args, strict=False)) | kwargs
    _refuse_mixing(schema, arguments)
    if schema.waits_for:
        _wait(schema.waits_for)
    if schema.name in INDEX_PUT:
        _wait_for_indices(**arguments)
    inner = {name: _on_cpu(x) for name, x in arguments.items()}
    if schema.is_random:
        inner["generator"] = _generator(arguments.get("generator"))
    for name in schema.out:
        if arguments[name].numel() == 0:  # to be resized, which memory of another owner cannot be
            inner[name] = torch.empty(0, dtype=arguments[name].dtype)
    with torch._C._ExcludeDispatchKeyGuard(AUTOCAST_ON_CPU):
        result = op(**inner)
    for name in schema.out:
        if arguments[name].data_ptr() != inner[name].data_ptr():
            _on_cpu(arguments[name].resize_(inner[name].shape)).copy_(inner[name])
    if not schema.returns_written:
        return _on_device(result)
    written = tuple(arguments[name] for name in schema.written)
    return written[0] if len(written) == 1 else written


def _wait_for_indices(indices, values, accumulate=False, **_):
    """Count what writing x[indices] waits for; a single number is written through a mask."""
    masks = [i for i in indices if i is not None and i.dtype in (torch.bool, torch.uint8)]
    if masks and (accumulate or values.numel() != 1):
        _wait("nonzero")
    for index in indices:
        if index is not None and index.device.type != NAME:
            _wait("upload")


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return _on_device(torch.empty(size, dtype=dtype, memory_format=memory_format))


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return _on_device(torch.empty_strided(size, stride, dtype=dtype))


def _zeros(size, *, dtype=None, layout=None, device=None, pin_memory=None):
    return _on_device(torch.zeros(size, dtype=dtype))


def _resize(self, size, *, memory_format=None):
    new = torch.empty(size, dtype=self.dtype, memory_format=memory_format)
    length = self.storage_offset() + new.numel()
    storage, grown = self.untyped_storage(), None
    if length * self.element_size() > storage.nbytes():
        grown = torch.empty(length, dtype=self.dtype)
        grown.view(torch.uint8)[: storage.nbytes()] = _bytes(storage)
        grown = _on_device(grown)
        storage = grown.untyped_storage()
    set_storage = torch.ops.aten.set_.source_Storage_storage_offset
    return set_storage.redispatch(
        CPU_KERNELS, self, storage, self.storage_offset(), new.shape, new.stride()
    )


def _set(op, *args, **kwargs):
    return op.redispatch(CPU_KERNELS, *args, **kwargs)


def _count_copy(source, target, non_blocking):
    if not non_blocking:
        _wait("download" if source.device.type == NAME else "upload")
        return
    for count in _open:
        count.non_blocking += 1
    if source.device.type == NAME:  # until somebody waits, what is there is anything
        _pending.append((target, _on_cpu(source).clone()))
        target.fill_(torch.nan if target.is_floating_point() else 77)


def _copy_from(self, dst, non_blocking=False):
    _on_cpu(dst).copy_(_on_cpu(self))
    if self.device != dst.device:
        _count_copy(self, dst, non_blocking)
    return dst


def _to_copy(self, *, device=None, non_blocking=False, pin_memory=None, **kwargs):
    device = device or self.device
    copy = torch.ops.aten._to_copy(_on_cpu(self), **kwargs)
    if self.device.type != device.type:
        _count_copy(self, copy, non_blocking)
    return _on_device(copy) if device.type == NAME else copy


def _copy_from_and_resize(self, dst):
    return _copy_from(self, dst.resize_(self.shape))


# autocast


def _cast(x, dtype):
    if _is_ours(x):
        eligible = x.is_floating_point() and x.dtype != torch.float64
        return x.to(dtype) if eligible else x
    return type(x)(_cast(each, dtype) for each in x) if isinstance(x, (list, tuple)) else x


def _autocast(op, choose_dtype):
    def kernel(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
            dtype = choose_dtype([*args, *kwargs.values()])
            args = [_cast(x, dtype) for x in args]
            return op(*args, **{name: _cast(x, dtype) for name, x in kwargs.items()})

    return kernel


def _widest(arguments):
    lower = torch.get_autocast_dtype(NAME)
    is_wide = any(t.dtype == torch.float32 for t in _tensors(arguments))
    return torch.float32 if is_wide else lower


# random numbers

_generators = set()


_CPUGenerator = torch._C.Generator


class _AnyGenerator(type(_CPUGenerator)):
    def __instancecheck__(cls, x):
        return isinstance(x, _CPUGenerator)


class Generator(_CPUGenerator, metaclass=_AnyGenerator):
    """What ``torch.Generator`` is once the device is registered: also one of the device.

    torch cannot make a generator for a device written in Python. This is one of the CPU that is
    known by its address, and that this device's operators accept.
    """

    def __new__(cls, device="cpu"):
        if torch.device(device).type != NAME:
            return _CPUGenerator(device)
        self = super().__new__(cls, "cpu")
        _generators.add(self._cdata)
        weakref.finalize(self, _generators.discard, self._cdata)
        return self.manual_seed(_CPUGenerator.initial_seed(self))

    @property
    def device(self):
        return torch.device(NAME, 0)

    def manual_seed(self, seed):
        self._seed = int(seed)
        super().manual_seed((self._seed + SEED_OFFSET) % 2**63)
        return self

    def initial_seed(self):
        return self._seed

    def seed(self):
        return self.manual_seed(super().seed()).initial_seed()


@cache
def _default_generator():
    return Generator(NAME)


def _generator(generator):
    if generator is None:
        return _default_generator()
    if generator._cdata not in _generators:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    return generator


class _RefuseGenerator(TorchFunctionMode):
    """Refuse this device's generators to the CPU's operators, which would take them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if generator is not None and generator._cdata in _generators:
            targets = [t.device for t in _tensors(args)] or [kwargs.get("device") or CPU]
            if torch.device(targets[0]).type != NAME:
                raise RuntimeError(f"Expected a 'cpu' device type for generator but found '{NAME}'")
        return func(*args, **kwargs)


# registration


class _Device:
    """The module ``torch.sim``."""

    _initialized = True
    is_available = is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    set_device = staticmethod(lambda device: None)
    device = staticmethod(lambda device: contextlib.nullcontext())
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])

    @staticmethod
    def synchronize(device=None):
        _wait("synchronize")

    @staticmethod
    def manual_seed_all(seed):
        _default_generator().manual_seed(seed)

    manual_seed = manual_seed_all

    @staticmethod
    def get_rng_state(device=None):
        return _default_generator().get_state()

    @staticmethod
    def set_rng_state(state, device=None):
        _default_generator().set_state(state)


def _bytes(storage):
    """The bytes of one of the device's storages, as a tensor on the CPU."""
    empty = torch.empty(0, dtype=torch.uint8, device=NAME)
    return _on_cpu(empty.set_(storage))


def _clone_storage(self, clone=torch.UntypedStorage.clone):
    if self.device.type != NAME:
        return clone(self)
    return _on_device(_bytes(self).clone()).untyped_storage()


def _overloads(names):
    for name in names.split():
        packet, _, overload = name.partition(".")
        yield name, getattr(getattr(torch.ops.aten, packet), overload or "default")


@cache
def register():
    """Make ``torch.device("sim")`` work in this process; CPU tensors behave as before."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Device())
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(_kernel, "PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    aten = torch.library.Library("aten", "IMPL")

    def implement(name, kernel, key="PrivateUse1"):
        aten.impl(name, kernel, key)

    implement("empty.memory_format", _empty)
    implement("empty_strided", _empty_strided)
    implement("_efficientzerotensor", _zeros)
    implement("resize_", _resize)
    implement("_copy_from", _copy_from)
    implement("_to_copy", _to_copy)  # torch's own pins memory
    implement("_copy_from_and_resize", _copy_from_and_resize)
    own = "set_.source_Storage_storage_offset set_.source_Tensor set_.source_Storage"
    for name, op in _overloads(own):
        implement(name, partial(_set, op))
    # torch computes these in other ways, and so rounds them otherwise, where it knows no kernel
    whole = "convolution convolution_backward pixel_shuffle pixel_unshuffle native_layer_norm"
    for name, op in _overloads(whole):
        implement(name, partial(_kernel, op))
    for names, choose in (
        (IN_LOWER_PRECISION, lambda _: torch.get_autocast_dtype(NAME)),
        (IN_FLOAT32, lambda _: torch.float32),
        (IN_WIDEST, _widest),
    ):
        for name, op in _overloads(names):
            implement(name, _autocast(op, choose), "AutocastPrivateUse1")
    torch.accelerator.synchronize = _Device.synchronize
    torch.Generator = Generator
    torch.UntypedStorage.clone = _clone_storage
    torch.Tensor.pin_memory = lambda self, device=None: self.clone()  # without a C++ allocator
    # threads for devices are started once, by the first backward pass, maybe before this device
    torch.autograd.set_multithreading_enabled(False)
    return everything, aten  # they unregister when they are collected


@pytest.fixture
def accelerator():
    """The simulated device."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch knows no devices written in Python")
    register()
    with _RefuseGenerator(), torch.autograd.set_multithreading_enabled(False):
        yield torch.device(NAME, 0)
    _pending.clear()
