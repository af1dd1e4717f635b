"""The normalization of the network: GroupNorm of every frame by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def channels_stay_last(x: Tensor) -> bool:
    """Whether layers compute where the channels lie: last, as GPUs convolve fastest (`train.channels_last`)."""
    return x.device.type == "cuda" and x.is_contiguous(memory_format=torch.channels_last)


class FrameNorm(nn.GroupNorm):
    """GroupNorm over channels and frequency of every single frame of `(B, C, T, F)`.

    Statistics over time would make a frame depend on the whole chunk, and a song's chunks audible at their joints.
    The number of groups is the largest divisor of the channel count up to 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(max(g for g in range(1, 9) if channels % g == 0), channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, frames, bins = x.shape
        if not channels_stay_last(x):
            rows = x.transpose(1, 2).reshape(batch * frames, channels, 1, bins)
            return super().forward(rows).reshape(batch, frames, channels, bins).transpose(1, 2)
        # torch's own would move the channels and back, in float32, which takes longer than the convolutions.
        rows = x.permute(0, 2, 3, 1).unflatten(-1, (self.num_groups, -1))
        weight, bias = (values.view(self.num_groups, -1) for values in (self.weight, self.bias))
        with torch.autocast(x.device.type, enabled=False):
            return _Normalize.apply(rows, weight, bias, self.eps).flatten(-2).permute(0, 3, 1, 2)


class _Normalize(torch.autograd.Function):
    """GroupNorm of `(B, T, F, G, C / G)` over F and the channels of a group; `weight` and `bias` are `(G, C / G)`.

    In the number format of its input, with statistics in float32. Its gradient is that of Wu and He 2018, "Group
    Normalization", written out: autograd's would pass over the activations three times as often.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        mean = x.mean((2, 4), keepdim=True, dtype=torch.float32)
        norm = torch.linalg.vector_norm(x, dim=(2, 4), keepdim=True, dtype=torch.float32)
        variance = norm.square() / (x.shape[2] * x.shape[4]) - mean.square()
        inverse = (variance.clamp_min(0) + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse)
        scale = inverse * weight
        return torch.addcmul((bias - mean * scale).to(x.dtype), x, scale.to(x.dtype))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        # Sums over frequency of the gradient, and of the gradient times the normalized input.
        to_bias = gradient.sum(2, keepdim=True, dtype=torch.float32)
        to_weight = ((gradient * x).sum(2, keepdim=True, dtype=torch.float32) - mean * to_bias) * inverse
        number = x.shape[2] * x.shape[4]
        through_mean = inverse * (to_bias * weight).sum(4, keepdim=True) / number
        through_variance = inverse.square() * (to_weight * weight).sum(4, keepdim=True) / number
        constant, scale = through_variance * mean - through_mean, inverse * weight
        shared = torch.addcmul(constant.to(x.dtype), x, -through_variance.to(x.dtype))
        to_x = torch.addcmul(shared, gradient, scale.to(x.dtype))
        return to_x, to_weight.sum((0, 1, 2)), to_bias.sum((0, 1, 2)), None
