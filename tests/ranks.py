"""Float64 steps of a tiny run, alone or as one of torchrun's processes; the first writes what it has seen."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]


def train(folder: Path, batch: str, result: Path, *overrides: str) -> None:
    from trainers import tiny

    from diffvocsep.training.backends import find_backend
    from diffvocsep.training.trainer import Trainer

    torch.set_default_dtype(torch.float64)
    torch.compile = partial(torch.compile, backend="eager")  # what is traced, without the minutes of building kernels
    torch.Tensor.float = torch.Tensor.double  # the loss is computed in float32, whatever the weights are in
    config = tiny(folder, f"train.batch_size={batch}", "train.accumulate=2", "data.synthetic_songs=5", *overrides)
    trainer = Trainer(config, find_backend("cpu"), "none")
    assert isinstance(trainer.network, torch._dynamo.OptimizedModule) == config.train.compile
    seen = []
    for batches in trainer.steps():
        terms = trainer.optimize(
            [{k: v.double() if v.is_floating_point() else v for k, v in b.items()} for b in batches]
        )
        gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        items = sorted(zip(terms.pop("t").tolist(), terms.pop("per_item").tolist(), strict=True))
        seen.append({"terms": terms, "gradients": gradients, "items": items})
    if trainer.backend.main:
        torch.save({"steps": seen, "model": trainer.model.state_dict(), "ema": trainer.ema}, result)


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
