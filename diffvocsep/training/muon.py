"""The optimizer: Muon for kernels and matrices, AdamW for the rest.

In as many steps it learns more than AdamW alone, or as much (docs/experiments.md). torch.optim.Muon takes only
matrices, and most weights of a UNet are kernels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

MOMENTUM = 0.95  # of Muon
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of AdamW
QUINTIC = (3.4445, -4.7750, 2.0315)  # of Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """`(N, R, C)` -> `(N, R, C)` with the same singular vectors, and singular values between 0.68 and 1.21 where they
    were at least 0.01 of the Frobenius norm; smaller ones stay smaller, some of them.

    The Newton-Schulz iteration of Jordan et al. 2024: x <- a x + b (x x^T) x + c (x x^T)^2 x.
    """
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Every weight of two or more dimensions, as a matrix `(R, C)` of its first dimension and all others, moves along
    its orthogonalized Nesterov momentum times 0.2 sqrt(max(R, C)), which is a step of about AdamW's size (Liu et al.
    2025, "Muon is scalable for LLM training", section 2.2). Biases and the scales of norms are AdamW's.

    Unlike in both papers, the first and the last layer, which here are as small as the others, are Muon's too. So are
    the row biases (`Stage.place`), and queries, keys and values (`Attention.qkv`), as one matrix.

    Args:
        parameters: of a network.
        lr: learning rate of both.
        weight_decay: decoupled, of both.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        parameters = list(parameters)
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "matrices": True},
            {"params": [p for p in parameters if p.ndim <= 1], "matrices": False},
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                updates = self._orthogonal(parameters) if group["matrices"] else self._adaptive(parameters)
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, updates, alpha=-group["lr"])
        return loss

    def _moments(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]

    def _orthogonal(self, parameters: list[Tensor]) -> list[Tensor]:
        gradients = [parameter.grad for parameter in parameters]
        moments = self._moments(parameters, "exp_avg")
        torch._foreach_lerp_(moments, gradients, 1 - MOMENTUM)
        directions = list(torch._foreach_lerp(gradients, moments, MOMENTUM))
        alike = defaultdict(list)  # matrices of one shape go through the iteration together
        for i, direction in enumerate(directions):
            alike[direction.flatten(1).shape].append(i)
        for shape, members in alike.items():
            together = orthogonalize(torch.stack([directions[i].flatten(1) for i in members]))
            together = together * (0.2 * max(shape) ** 0.5)
            for i, matrix in zip(members, together, strict=True):
                directions[i].copy_(matrix.view(directions[i].shape))  # in the memory layout of the weight
        return directions

    def _adaptive(self, parameters: list[Tensor]) -> list[Tensor]:
        """Kingma and Ba 2015, algorithm 1; all weights get their gradients together, so they have one count.

        The corrections never become exactly 1: a TPU would compile anew, for it takes 1 for a constant.
        """
        gradients = [parameter.grad for parameter in parameters]
        first, second = (self._moments(parameters, name) for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(first, gradients, 1 - BETAS[0])
        torch._foreach_lerp_(second, torch._foreach_mul(gradients, gradients), 1 - BETAS[1])
        count = self.state[parameters[0]].get("step", 0) + 1
        for parameter in parameters:
            self.state[parameter]["step"] = count
        scale = torch._foreach_div(second, 1 - max(BETAS[1] ** count, 1e-12))
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, EPSILON)
        updates = torch._foreach_div(first, 1 - max(BETAS[0] ** count, 1e-12))
        torch._foreach_div_(updates, scale)
        return updates
