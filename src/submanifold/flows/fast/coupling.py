"""Affine couplings of images as matrix products, with explicit gradients.

A 3x3 convolution from few channels to many is a product with the unfolded neighbours of each pixel;
one from many channels to few is a product followed by a sum over neighbours. :mod:`.kernels`
computes the products and the operations between them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import make_dual, unpack_dual
from torch.autograd.function import once_differentiable

from submanifold.flows.fast import kernels


def supports(x: Tensor, nets: Iterable[nn.Module]) -> bool:
    """Whether :func:`flow_steps` accepts the input and the nets."""
    return (
        x.ndim == 4
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        # torch.func and torch.compile do not know the kernels
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.compiler.is_compiling()
        # tangents have no gradient
        and not (torch.is_grad_enabled() and _is_dual(x))
        and all(_is_glow_net(net, x) for net in nets)
        and kernels.has_steps(_dtype())
    )


def is_hooked(module: nn.Module) -> bool:
    """Whether a module has hooks, which only its call runs."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)


def flow_steps(
    x: Tensor,
    nets: Iterable[nn.Module],
    inverse: bool,
    matrices: Tensor | None = None,
    shifts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute affine couplings of the channels of images (B, C, H, W), or their inverses.

    The nets have convolutions of 3x3, 1x1 and 3x3 with ReLUs between them, and are in the order of
    their use. Under autocast their products are in bfloat16; images and log-determinants are
    float32. ``matrices`` (steps, C, C) and ``shifts`` (steps, C) are linear maps of the channels
    before each coupling, or after each inverse coupling, None the identity. Returns the output, and
    the log-determinant (B,) of the couplings in the computed direction.
    """
    parameters = [weight for net in nets for weight in _weights(net)]
    if _is_dual(x):
        return _dual_steps(x, _by_step(parameters, matrices, shifts), inverse)
    options = _dtype(), inverse, torch.is_grad_enabled()
    return Steps.apply(x, matrices, shifts, *options, *parameters)


class Steps(torch.autograd.Function):
    """Couplings and linear maps of the channels, by the kernels alone.

    A few images at a time pass through a step, so that they stay in the cache.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        matrices, shifts, dtype, inverse, save, *parameters = arguments
        y, log_det = x.permute(0, 2, 3, 1).contiguous(), x.new_zeros(len(x))
        ctx.steps = []
        for weights in _by_step(parameters, matrices, shifts):
            y, ld, saved = kernels.step(y, weights, dtype, inverse, save)
            log_det += ld
            ctx.steps.append(saved)
        z = y.permute(0, 3, 1, 2)
        # x and z have the memory of the first and the last of the steps: notice changes in place
        ctx.save_for_backward(x, z, matrices, shifts, *parameters)
        ctx.dtype, ctx.inverse = dtype, inverse
        return z, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dz, dlog_det = gradients[0].permute(0, 2, 3, 1).contiguous(), gradients[1].contiguous()
        _, _, matrices, shifts, *parameters = ctx.saved_tensors
        by_step: list[list[Tensor]] = []
        only_x = not any(_needs_gradient(node) for node, _ in ctx.next_functions[1:])
        options = ctx.dtype, ctx.inverse, only_x
        for index, weights in reversed([*enumerate(_by_step(parameters, matrices, shifts))]):
            saved = ctx.steps[index]
            dz, dweights = kernels.step_backward(dz, dlog_det, saved, weights, *options)
            if not only_x:  # rows of a Jacobian call this many times
                ctx.steps[index] = saved._replace(hidden=None)
            by_step.insert(0, dweights)
        dx = dz.permute(0, 3, 1, 2)
        if only_x:
            return (dx, *[None] * (5 + len(parameters)))
        of_nets = [gradient for dweights in by_step for gradient in dweights[:6]]
        of_maps = [torch.stack(gradients) for gradients in [*zip(*by_step, strict=True)][6:]]
        return dx, *(of_maps or (None, None)), None, None, None, *of_nets


@torch.no_grad()
def _dual_steps(
    x: Tensor, by_step: Sequence[Sequence[Tensor]], inverse: bool
) -> tuple[Tensor, Tensor]:
    """:func:`flow_steps` of a dual tensor; the weights have no tangents."""
    y, dy = (part.permute(0, 2, 3, 1).contiguous() for part in unpack_dual(x))
    log_det, dlog_det = x.new_zeros(len(x)), x.new_zeros(len(x))
    for weights in by_step:
        y, dy, ld, dld = kernels.dual_step(y, dy, weights, _dtype(), inverse)
        log_det, dlog_det = log_det + ld, dlog_det + dld
    y, dy = y.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)
    return make_dual(y, dy), make_dual(log_det, dlog_det)


def _by_step(
    parameters: Sequence[Tensor], matrices: Tensor | None, shifts: Tensor | None
) -> list[Sequence[Tensor]]:
    """Group the weights by step: six parameters of the net, and a matrix and a shift if given."""
    nets = [parameters[at : at + 6] for at in range(0, len(parameters), 6)]
    if matrices is None or shifts is None:
        return nets
    return [(*net, *linear) for net, *linear in zip(nets, matrices, shifts, strict=True)]


def _is_glow_net(net: nn.Module, x: Tensor) -> bool:
    """Whether the net has the layers, the shapes and the dtype that the kernels do not check."""
    if not isinstance(net, nn.Sequential):
        return False
    if [type(layer) for layer in net] != [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Conv2d]:
        return False
    if any(map(is_hooked, (net, *net))):
        return False
    convolutions: list[Any] = [*net][::2]
    weights, channels = _weights(net), x.shape[1]
    width = len(weights[0])
    shapes = [
        (width, channels // 2, 3, 3),
        (width,),
        (width, width, 1, 1),
        (width,),
        (channels, width, 3, 3),
        (channels,),
    ]
    return (
        channels % 2 == 0
        and all(weight is not None for weight in weights)  # convolutions may have no bias
        and [weight.shape for weight in weights] == shapes
        and all(weight.dtype == x.dtype and weight.device == x.device for weight in weights)
        and [conv.padding for conv in convolutions] == [(1, 1), (0, 0), (1, 1)]
        and all(conv.padding_mode == "zeros" for conv in convolutions)
    )


def _weights(net: Any) -> list[Tensor]:
    """Weights and biases of the convolutions, faster than ``net.parameters()``."""
    return [weight for conv in [*net][::2] for weight in (conv.weight, conv.bias)]


def _is_dual(x: Tensor) -> bool:
    """Whether x has a tangent of forward-mode differentiation."""
    return unpack_dual(x).tangent is not None


def _needs_gradient(node: Any) -> bool:
    """Whether the running backward pass needs the gradient that a node of the graph receives.

    ``ctx.needs_input_grad`` is True for all weights that require gradients, also in
    ``torch.autograd.grad(z, x)``, which needs the gradient of x only.
    """
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf whose gradient torch.autograd.grad returns
        return True


def _dtype() -> torch.dtype:
    enabled = torch.is_autocast_enabled("cpu")
    return torch.get_autocast_dtype("cpu") if enabled else torch.float32
