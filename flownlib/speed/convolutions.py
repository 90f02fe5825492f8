"""Convolution and ReLU of many networks at once, with their backward passes spelt out: torch's numbers up to rounding, sooner.

`conv_relu` stands in for `networks.conv_relu`, where nearly all the time of training goes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flownlib import networks

_backward_of_convolution = torch.ops.aten.convolution_backward


class _ConvReLU(torch.autograd.Function):
    """relu(conv2d(x, kernel) + bias) with m groups, all in channels_last memory."""

    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor, bias: Tensor, stride: int, padding: int, groups: int) -> Tensor:
        """x [b, m c, h, w], kernel [m o, c, k, k], bias [m o] → [b, m o, h', w']."""
        x, kernel = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, kernel))
        out = F.conv2d(x, kernel, bias, stride, padding, groups=groups).relu_()
        ctx.save_for_backward(x, kernel, out)
        ctx.how = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, kernel and bias, each by its own call: together they take a quarter longer."""
        x, kernel, out = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        arguments = (gradient, x, kernel, [len(kernel)], *ctx.how)
        of_x = _backward_of_convolution(*arguments, [True, False, False])[0] if ctx.needs_input_grad[0] else None
        of_kernel = _backward_of_convolution(*arguments, [False, True, False])[1]
        return of_x, of_kernel, gradient.sum((0, 2, 3)), None, None, None


def _shared_conv_relu(x: Tensor, kernel: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """relu(conv2d(x, kernel) + bias) of images [b, c, h, w] that all networks see, as one matrix product over patches.

    A patch ends with a one, so that the bias is one more weight: adding it, and summing its gradient, cost no extra pass.
    The result [b, m o, h', w'] is channels_last, which the product's [positions, channels] is already.
    """
    size = kernel.shape[-1]
    patches = F.pad(x, [padding] * 4).unfold(2, size, stride).unfold(3, size, stride)  # [b, c, h', w', k, k]
    b, channels, height, width = patches.shape[:4]
    rows = x.new_ones(b, height, width, channels * size**2 + 1)
    rows[..., :-1].view(b, height, width, channels, size, size).copy_(patches.permute(0, 2, 3, 1, 4, 5))
    weights = torch.cat([kernel.flatten(1), bias[:, None]], dim=1)
    return (rows.flatten(0, 2) @ weights.t()).relu_().view(b, height, width, -1).permute(0, 3, 1, 2)


def conv_relu(x: Tensor, kernel: Tensor, bias: Tensor, conv: networks.Conv, groups: int | None) -> Tensor:
    """As `networks.conv_relu`: activations [b, m o, h', w']."""
    if groups is None:
        return _shared_conv_relu(x, kernel, bias, conv.stride, conv.padding)
    return _ConvReLU.apply(x, kernel, bias, conv.stride, conv.padding, groups)
