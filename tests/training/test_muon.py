"""Muon: torch.optim's own Muon and AdamW are the reference, where they do the same."""

import pytest
import torch
from torch import nn

from diffvocsep.training.muon import Muon, orthogonalize


def gradients(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> dict[str, torch.Tensor]:
    for step in range(steps):
        gradients(model, step)
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 30), (2, 30, 4)])
def test_orthogonalize_keeps_singular_vectors_and_makes_singular_values_nearly_equal(shape):
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.linspace(0.02, 1, u.shape[-1], dtype=torch.float64)
    core = u.mT @ orthogonalize(100 * u @ torch.diag(values) @ vh) @ vh.mT
    after = core.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(core, torch.diag_embed(after), atol=1e-9, rtol=0)
    assert after.min() > 0.68 and after.max() < 1.21


@pytest.mark.parametrize("size", [(24, 24), (6, 40), (40, 6)])
def test_matrices_move_as_torch_s_muon_moves_them(size):
    models = []
    for make in (
        lambda p: Muon(p, 0.02, 0.1),
        lambda p: torch.optim.Muon(p, 0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ):
        torch.manual_seed(9)
        model = nn.Linear(*size, bias=False)
        start = model.weight.detach().clone()
        models.append(train(model, make(model.parameters()))["weight"] - start)
    ours, theirs = models
    assert (ours - theirs).norm() < 0.02 * theirs.norm(), "theirs computes in bfloat16"


def test_what_is_no_matrix_moves_as_torch_s_adamw_moves_it():
    models = []
    for make in (lambda p: Muon(p, 0.02, 0.1), lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.1)):
        model = nn.GroupNorm(2, 8)
        models.append(train(model, make(model.parameters())))
    for name, tensor in models[0].items():
        torch.testing.assert_close(tensor, models[1][name])


def test_a_kernel_moves_as_the_matrix_of_its_rows_in_company_too():
    """Matrices of one shape are computed together; each must move as if it were alone."""
    torch.manual_seed(1)
    convolutions = nn.ModuleList(nn.Conv2d(3, 5, 2, bias=False) for _ in range(3))
    linear = nn.ModuleList(nn.Linear(12, 5, bias=False) for _ in range(3))
    for convolution, matrix in zip(convolutions, linear, strict=True):
        matrix.weight.data = convolution.weight.detach().flatten(1).clone()
    alone = [Muon(matrix.parameters(), 0.02, 0.1) for matrix in linear]
    together = Muon(convolutions.parameters(), 0.02, 0.1)
    for step in range(4):
        gradients(convolutions, step)
        for convolution, matrix, optimizer in zip(convolutions, linear, alone, strict=True):
            matrix.weight.grad = convolution.weight.grad.flatten(1).clone()
            optimizer.step()
        together.step()
    for convolution, matrix in zip(convolutions, linear, strict=True):
        torch.testing.assert_close(convolution.weight.flatten(1), matrix.weight)


def test_layout_does_not_matter_and_weights_without_gradient_stay():
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 3)).to(memory_format=memory_format)
        frozen, weight = model[1].weight.detach().clone(), model[0].weight
        optimizer = Muon(model.parameters(), 0.02, 0.1)
        for seed in range(3):
            gradients(model, seed)
            model[1].weight.grad = None
            assert optimizer.step(lambda: 1.5) == 1.5
        assert torch.equal(model[1].weight, frozen)
        assert weight.stride() == optimizer.state[weight]["exp_avg"].stride()
        results.append(weight.detach().contiguous())
    torch.testing.assert_close(*results)


def test_corrections_of_the_moments_never_become_the_constant_one(monkeypatch):
    """A TPU takes 0 and 1 for constants and compiles anew where they come; after 356 steps 1 - 0.9^n is 1."""
    seen = []
    divide = torch._foreach_div
    monkeypatch.setattr(torch, "_foreach_div", lambda x, y: seen.append(y) or divide(x, y))
    model = nn.GroupNorm(2, 8)
    optimizer = Muon(model.parameters(), 0.02, 0.1)
    train(model, optimizer, 1)
    for state in optimizer.state.values():
        state["step"] = 100_000
    train(model, optimizer, 1)
    assert len(seen) == 4 and all(0 < correction < 1 for correction in seen)
