"""An affine coupling on images as matrix products, with a gradient of its own.

A 3x3 convolution of few channels to many is a matrix product with the unfolded neighbours of each
pixel; one of many channels to few, a product followed by a sum over neighbours. Between the
products stand the kernels of :mod:`.kernels`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import make_dual, unpack_dual
from torch.autograd.function import once_differentiable

from submanifold.flows.fast import kernels


def applies(x: Tensor, net: nn.Module) -> bool:
    """Whether :func:`couple` is the faster way: for images on a CPU that has what it takes."""
    return (
        x.ndim == 4
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and isinstance(net, nn.Sequential)
        and [_kind(layer) for layer in net] == [(3, 3), "relu", (1, 1), "relu", (3, 3)]
        and _fits(x, net)
        and not net._forward_hooks
        # torch.func and torch.compile know plain modules only
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.compiler.is_compiling()
        and kernels.library() is not None
        # tangents that are differentiated again are left to torch
        and not (torch.is_grad_enabled() and _is_dual(x))
        # in float32, torch's products and what is between them are slower than its convolutions
        and (kernels.has_steps(_dtype()) or (_dtype() is torch.bfloat16 and not _is_dual(x)))
    )


def applies_to_steps(x: Tensor, nets: Iterable[nn.Module]) -> bool:
    """Whether :func:`steps` is the faster way."""
    return all(applies(x, net) for net in nets) and kernels.has_steps(_dtype())


def couple(x: Tensor, net: nn.Module, inverse: bool, recompute: bool) -> tuple[Tensor, Tensor]:
    """Scale and shift the second half of the channels of x (B, C, H, W), or undo it.

    The net has convolutions of 3x3, 1x1 and 3x3, with a ReLU between them. Its matrices and hidden
    layers are bfloat16 under autocast; all that the density is made of is float32. To recompute is
    to compute the hidden layers again for the gradient.

    Returns:
        What x becomes, and the log-determinant (B,) of what was done.
    """
    if kernels.has_steps(_dtype()):
        return steps(x, [net], inverse, recompute)
    return Coupling.apply(x, *net.parameters(), _dtype(), inverse, recompute)


def steps(
    x: Tensor,
    nets: Sequence[nn.Module],
    inverse: bool,
    recompute: bool,
    matrices: Tensor | None = None,
    shifts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Couplings, with channels mixed before each; or their inverses, channels mixed after each.

    Args:
        x: Images (B, C, H, W).
        nets: The couplings' nets, in the order in which they are used.
        inverse: Whether couplings are undone.
        recompute: As in :func:`couple`.
        matrices: (steps, C, C), by which a pixel's channels are multiplied; None mixes nothing.
        shifts: (steps, C), added to the products.

    Returns:
        What x becomes, and the log-determinant (B,) of all couplings.
    """
    parameters = [each for net in nets for each in net.parameters()]
    if _is_dual(x):
        return _dual_steps(x, each_step(parameters, matrices, shifts), inverse)
    keep = torch.is_grad_enabled()
    return Steps.apply(x, matrices, shifts, _dtype(), inverse, recompute, keep, *parameters)


class Coupling(torch.autograd.Function):
    """The coupling and its net.

    In matrices, with y_a the first half of the channels and P = B H W pixels:

        u = unfold(y_a)          (P, 9 C / 2)
        h1 = relu(u w1' + b1)    (P, width)
        h2 = relu(h1 w2' + b2)   (P, width)
        raw, shift = fold(h2 w3') + b3
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Compute the coupling."""
        *parameters, dtype, inverse, recompute = arguments
        y = y.permute(0, 2, 3, 1).contiguous()
        w1, b1, w2, b2, w3, b3 = matrices(parameters, dtype)
        u, h1, h2 = hidden(y, w1, b1, w2, b2)
        z, log_scale, log_det = kernels.couple(h2 @ w3.T, b3, y, inverse)
        ctx.layers = None if recompute else (u, h1, h2)
        ctx.save_for_backward(z if inverse else y, log_scale, *parameters)
        ctx.dtype, ctx.inverse = dtype, inverse
        return z.permute(0, 3, 1, 2), log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients by y and by the net's parameters."""
        dz, dlog_det = gradients[0].permute(0, 2, 3, 1).contiguous(), gradients[1].contiguous()
        kept, log_scale, *parameters = ctx.saved_tensors
        w1, b1, w2, b2, w3, _ = matrices(parameters, ctx.dtype)
        # the first half, all that the net sees, is the same before and after
        u, h1, h2 = ctx.layers or hidden(kept, w1, b1, w2, b2)
        ctx.layers = None
        dy, dnet = kernels.couple_backward(dz, dlog_det, kept, log_scale, ctx.inverse)
        dv = kernels.unfold(dnet, dnet.shape[3], ctx.dtype, mirror=True)
        dh = dv @ w3
        db2 = kernels.relu_backward(dh, h2)
        dw3, dw2 = dv.T @ h2, dh.T @ h1
        dh = dh @ w2
        db1 = kernels.relu_backward(dh, h1)
        dw1 = dh.T @ u
        kernels.fold_onto(dh @ w1, dy)
        dw1, dw2, dw3 = as_convolutions(dw1, dw2, dw3)
        dy = dy.permute(0, 3, 1, 2)
        return dy, dw1, db1, dw2, db2, dw3, dnet.sum((0, 1, 2)), None, None, None


class Steps(torch.autograd.Function):
    """The same for many couplings and what mixes channels between them, all of it in C++.

    A few images at a time go through a step, and do not leave the cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        matrices: Tensor | None,
        shifts: Tensor | None,
        dtype: torch.dtype,
        inverse: bool,
        recompute: bool,
        keep: bool,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Compute the steps."""
        y, log_det = x.permute(0, 2, 3, 1).contiguous(), x.new_zeros(len(x))
        ctx.layers = []
        for net, mixing in each_step(parameters, matrices, shifts):
            y, each, kept = kernels.step(y, net, mixing, dtype, inverse, keep, recompute)
            log_det += each
            ctx.layers.append(kept)
        ctx.save_for_backward(matrices, shifts, *parameters)
        ctx.dtype, ctx.inverse = dtype, inverse
        return y.permute(0, 3, 1, 2), log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients by x, by what mixes and by the nets' parameters."""
        dz, dlog_det = gradients[0].permute(0, 2, 3, 1).contiguous(), gradients[1].contiguous()
        matrices, shifts, *parameters = ctx.saved_tensors
        found: list[list[Tensor]] = []
        alone = not any(_is_wanted(node) for node, _ in ctx.next_functions[1:])
        for index, step in reversed([*enumerate(each_step(parameters, matrices, shifts))]):
            kept = ctx.layers[index]
            dz, each = kernels.step_backward(
                dz, dlog_det, kept, *step, ctx.dtype, ctx.inverse, alone
            )
            if not alone:  # which is asked for again and again
                ctx.layers[index] = kept._replace(hidden=None)
            found.insert(0, each)
        if alone:
            return (dz.permute(0, 3, 1, 2), *[None] * (6 + len(parameters)))
        by_net = [each for gradients in found for each in gradients[:6]]
        by_mixing = [torch.stack(each) for each in [*zip(*found, strict=True)][6:]]
        dx = dz.permute(0, 3, 1, 2)
        return dx, *(by_mixing or (None, None)), None, None, None, None, *by_net


@torch.no_grad()
def _dual_steps(x: Tensor, each: Any, inverse: bool) -> tuple[Tensor, Tensor]:
    """The steps of :func:`steps`, and their tangents along that of x; weights have none."""
    y, dy = (part.permute(0, 2, 3, 1).contiguous() for part in unpack_dual(x))
    log_det, dlog_det = x.new_zeros(len(x)), x.new_zeros(len(x))
    for net, mixing in each:
        y, dy, one, tangent = kernels.dual_step(y, dy, net, mixing, _dtype(), inverse)
        log_det, dlog_det = log_det + one, dlog_det + tangent
    y, dy = y.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)
    return make_dual(y, dy), make_dual(log_det, dlog_det)


def each_step(
    parameters: Sequence[Tensor], matrices: Tensor | None, shifts: Tensor | None
) -> list[tuple[Sequence[Tensor], Sequence[Tensor]]]:
    """Divide what :class:`Steps` is given into a net and what mixes, or nothing, for each step."""
    nets = [parameters[at : at + 6] for at in range(0, len(parameters), 6)]
    if matrices is None or shifts is None:
        return [(net, ()) for net in nets]
    return [*zip(nets, zip(matrices, shifts, strict=True), strict=True)]


def hidden(y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, ...]:
    """Unfold the first half of y's channels, and compute the two hidden layers."""
    u = kernels.unfold(y, y.shape[3] // 2, w1.dtype)
    h1 = torch.addmm(b1, u, w1.T).relu_()
    return u, h1, torch.addmm(b2, h1, w2.T).relu_()


def matrices(parameters: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Turn convolutions into matrices (width, 9 C / 2), (width, width), (9 C, width)."""
    w1, b1, w2, b2, w3, b3 = parameters
    return (
        w1.permute(0, 2, 3, 1).flatten(1).to(dtype),
        b1.to(dtype),
        w2.flatten(1).to(dtype),
        b2.to(dtype),
        w3.permute(2, 3, 0, 1).flatten(0, 2).to(dtype),
        b3,  # is added to what makes the density, in float32
    )


def as_convolutions(w1: Tensor, w2: Tensor, w3: Tensor) -> tuple[Tensor, ...]:
    """Turn matrices back into float32 convolutions."""
    width, channels = w1.shape[0], w3.shape[0] // 9
    return (
        w1.view(width, 3, 3, -1).permute(0, 3, 1, 2).float(),
        w2.view(width, width, 1, 1).float(),
        w3.view(3, 3, channels, width).permute(2, 3, 0, 1).float(),
    )


def _fits(x: Tensor, net: nn.Module) -> bool:
    """Whether the net's weights have the sizes and the type that the kernels read unchecked."""
    channels, width = x.shape[1], len(net[0].weight)  # type: ignore[index]
    shapes = [(width, channels // 2, 3, 3), (width,), (width, width, 1, 1), (width,),
              (channels, width, 3, 3), (channels,)]  # fmt: skip
    weights = [*net.parameters()]
    return (
        channels % 2 == 0
        and [weight.shape for weight in weights] == shapes
        and all(weight.dtype == x.dtype and weight.device == x.device for weight in weights)
    )


def _is_dual(x: Tensor) -> bool:
    """Whether x carries a tangent of forward differentiation."""
    return unpack_dual(x).tangent is not None


def _is_wanted(node: Any) -> bool:
    """Whether the running backward pass needs the gradient that a node of the graph receives.

    ``ctx.needs_input_grad`` is True for all weights that require gradients, also in
    ``torch.autograd.grad(z, x)``, which needs x's alone.
    """
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError:  # of a leaf whose gradient torch.autograd.grad returns
        return True


def _dtype() -> torch.dtype:
    enabled = torch.is_autocast_enabled("cpu")
    return torch.get_autocast_dtype("cpu") if enabled else torch.float32


def _kind(layer: nn.Module) -> tuple[int, ...] | str | None:
    if isinstance(layer, nn.ReLU):
        return "relu"
    if not isinstance(layer, nn.Conv2d) or layer.bias is None or layer.padding_mode != "zeros":
        return None
    same = layer.stride == (1, 1) and layer.dilation == (1, 1) and layer.groups == 1
    padded = layer.padding == tuple(size // 2 for size in layer.kernel_size)
    return layer.kernel_size if same and padded else None
