"""Affine couplings of images as matrix products, with explicit gradients.

A 3x3 convolution from few channels to many is a product with the unfolded neighbours of each pixel;
one from many channels to few is a product followed by a sum over neighbours. :mod:`.kernels`
computes the operations between the products, or all of them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import make_dual, unpack_dual
from torch.autograd.function import once_differentiable

from submanifold.flows.fast import kernels


def supports(x: Tensor, net: nn.Module) -> bool:
    """Whether :func:`affine_coupling` accepts the input and is faster than torch's modules."""
    return (
        x.ndim == 4
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and isinstance(net, nn.Sequential)
        and _is_glow_net(net, x)
        and not any(map(is_hooked, net.modules()))
        # torch.func and torch.compile do not know the kernels
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.compiler.is_compiling()
        and not isinstance(x.shape[0], torch.SymInt)
        and kernels.library() is not None
        # tangents have no gradient
        and not (torch.is_grad_enabled() and _is_dual(x))
        # products by torch are slower than its convolutions, except in bfloat16
        and (kernels.has_steps(_dtype()) or (_dtype() is torch.bfloat16 and not _is_dual(x)))
    )


def is_hooked(module: nn.Module) -> bool:
    """Whether a module has hooks, which only its call runs."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks,
             module._backward_pre_hooks)  # fmt: skip
    return any(hooks)


def supports_steps(x: Tensor, nets: Iterable[nn.Module]) -> bool:
    """Whether :func:`flow_steps` accepts the input and is faster than torch's modules."""
    return all(supports(x, net) for net in nets) and kernels.has_steps(_dtype())


def affine_coupling(
    x: Tensor, net: nn.Module, inverse: bool, checkpointing: bool
) -> tuple[Tensor, Tensor]:
    """Compute an affine coupling of the channels of images (B, C, H, W), or its inverse.

    The net has convolutions of 3x3, 1x1 and 3x3 with ReLUs between them. Under autocast its
    products are in bfloat16; images and log-determinants are float32. With ``checkpointing`` the
    backward pass recomputes the hidden layers. Returns the output, and the log-determinant (B,) of
    the computed direction.
    """
    if kernels.has_steps(_dtype()):
        return flow_steps(x, [net], inverse, checkpointing)
    return Coupling.apply(x, *net.parameters(), _dtype(), inverse, checkpointing)


def flow_steps(
    x: Tensor,
    nets: Sequence[nn.Module],
    inverse: bool,
    checkpointing: bool,
    matrices: Tensor | None = None,
    shifts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute couplings, each after a linear map of the channels, or inverse couplings before it.

    ``nets`` are in the order of their use; ``matrices`` (steps, C, C) and ``shifts`` (steps, C) are
    the linear maps, None the identity. The rest is that of :func:`affine_coupling`.
    """
    parameters = [parameter for net in nets for parameter in net.parameters()]
    if _is_dual(x):
        return _dual_steps(x, _by_step(parameters, matrices, shifts), inverse)
    options = _dtype(), inverse, checkpointing, torch.is_grad_enabled()
    return Steps.apply(x, matrices, shifts, *options, *parameters)


class Coupling(torch.autograd.Function):
    """A coupling whose matrix products are torch's.

    With y_a the first half of the channels of P = B H W pixels:

        u = unfold(y_a)          (P, 9 C / 2)
        h1 = relu(u w1' + b1)    (P, width)
        h2 = relu(h1 w2' + b2)   (P, width)
        raw, shift = fold(h2 w3') + b3
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        *parameters, dtype, inverse, checkpointing = arguments
        y = y.permute(0, 2, 3, 1).contiguous()
        w1, b1, w2, b2, w3, b3 = _as_matrices(parameters, dtype)
        u, h1, h2 = _hidden_layers(y, w1, b1, w2, b2)
        z, log_scale, log_det = kernels.couple(h2 @ w3.T, b3, y, inverse)
        ctx.layers = None if checkpointing else (u, h1, h2)
        ctx.save_for_backward(z if inverse else y, log_scale, *parameters)
        ctx.dtype, ctx.inverse = dtype, inverse
        return z.permute(0, 3, 1, 2), log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dz, dlog_det = gradients[0].permute(0, 2, 3, 1).contiguous(), gradients[1].contiguous()
        saved, log_scale, *parameters = ctx.saved_tensors
        w1, b1, w2, b2, w3, _ = _as_matrices(parameters, ctx.dtype)
        # the coupling does not change the first half, the input of the net
        u, h1, h2 = ctx.layers or _hidden_layers(saved, w1, b1, w2, b2)
        ctx.layers = None
        dy, dnet = kernels.couple_backward(dz, dlog_det, saved, log_scale, ctx.inverse)
        dv = kernels.unfold(dnet, dnet.shape[3], ctx.dtype, mirror=True)
        dh = dv @ w3
        db2 = kernels.relu_backward(dh, h2)
        dw3, dw2 = dv.T @ h2, dh.T @ h1
        dh = dh @ w2
        db1 = kernels.relu_backward(dh, h1)
        dw1 = dh.T @ u
        kernels.fold_onto(dh @ w1, dy)
        width, channels = w1.shape[0], dnet.shape[3]
        dw1 = dw1.view(width, 3, 3, -1).permute(0, 3, 1, 2).float()
        dw2 = dw2.view(width, width, 1, 1).float()
        dw3 = dw3.view(3, 3, channels, width).permute(2, 3, 0, 1).float()
        dy = dy.permute(0, 3, 1, 2)
        return dy, dw1, db1, dw2, db2, dw3, dnet.sum((0, 1, 2)), None, None, None


class Steps(torch.autograd.Function):
    """Couplings and linear maps of the channels, by the kernels alone.

    A few images at a time pass through a step, so that they stay in the cache.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        matrices, shifts, dtype, inverse, checkpointing, save, *parameters = arguments
        y, log_det = x.permute(0, 2, 3, 1).contiguous(), x.new_zeros(len(x))
        ctx.steps = []
        for weights in _by_step(parameters, matrices, shifts):
            y, ld, saved = kernels.step(y, weights, dtype, inverse, save, checkpointing)
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
            return (dx, *[None] * (6 + len(parameters)))
        of_nets = [gradient for dweights in by_step for gradient in dweights[:6]]
        of_maps = [torch.stack(gradients) for gradients in [*zip(*by_step, strict=True)][6:]]
        return dx, *(of_maps or (None, None)), None, None, None, None, *of_nets


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


def _hidden_layers(y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, ...]:
    u = kernels.unfold(y, y.shape[3] // 2, w1.dtype)
    h1 = torch.addmm(b1, u, w1.T).relu_()
    return u, h1, torch.addmm(b2, h1, w2.T).relu_()


def _as_matrices(parameters: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Reshape convolutions to matrices (width, 9 C / 2), (width, width), (9 C, width)."""
    w1, b1, w2, b2, w3, b3 = parameters
    w1, w3 = w1.permute(0, 2, 3, 1).flatten(1), w3.permute(2, 3, 0, 1).flatten(0, 2)
    # log-scales and shifts stay float32
    return [*(weight.to(dtype) for weight in (w1, b1, w2.flatten(1), b2, w3)), b3]


def _is_glow_net(net: nn.Sequential, x: Tensor) -> bool:
    """Whether the net has the layers, the shapes and the dtype that the kernels do not check."""
    if [type(layer) for layer in net] != [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Conv2d]:
        return False
    convolutions: list[Any] = [*net][::2]
    channels, width = x.shape[1], len(convolutions[0].weight)
    shapes = [(width, channels // 2, 3, 3), (width,), (width, width, 1, 1), (width,),
              (channels, width, 3, 3), (channels,)]  # fmt: skip
    weights = [*net.parameters()]
    return (
        channels % 2 == 0
        and [weight.shape for weight in weights] == shapes
        and all(weight.dtype == x.dtype and weight.device == x.device for weight in weights)
        and [conv.padding for conv in convolutions] == [(1, 1), (0, 0), (1, 1)]
        and all(conv.padding_mode == "zeros" for conv in convolutions)
    )


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
