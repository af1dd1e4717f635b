"""What the backward pass of a training step keeps in memory, counted on the CPU:

    python -m benchmarks.memory --config configs/musdb18hq.yaml

Counts the tensors that autograd saves for one item and for two; the difference is what each further item takes. On a
GPU with bf16 autocast most of them are half as large; weights, optimizer, workspaces and fragmentation come on top.
"""

from __future__ import annotations

import argparse

import torch

from diffvocsep.config import Config, load_config
from diffvocsep.training.objective import Objective
from diffvocsep.unet import UNet
from diffvocsep.util.cli import main


def kept(config: Config, model: UNet, items: int, dtype: torch.dtype | None) -> int:
    """Bytes that autograd saves in the forward pass of `items` items, parameters left out."""
    objective, storages = Objective(config), {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    shape = items, config.audio.channels, round(config.data.segment_seconds * config.audio.sample_rate)
    batch = {"vocals": torch.randn(shape), "accompaniment": torch.randn(shape), "level_db": torch.zeros(items),
             "source_rate": torch.full((items,), 44100.0)}  # fmt: skip
    noise = torch.randn(items, *objective.shape())
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        objective(model, batch, torch.rand(items), noise, dtype)
    return sum(size for size, _ in storages.values())


def run(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--config", default="config.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.overrides)
    model = UNet(config)
    size = sum(p.numel() for p in model.parameters())
    muon = config.train.optimizer == "muon"
    moments = sum(p.numel() * (1 if muon and p.ndim > 1 else 2) for p in model.parameters())
    one, two = (kept(config, model, items, None) for items in (1, 2))
    batch = config.train.batch_size
    print(
        f"{size / 1e6:.1f} M parameters: {(8 * size + 4 * moments) / 1e9:.2f} GB with gradients and the moments of "
        f"{config.train.optimizer}, {4 * size / 1e9:.2f} GB EMA"
    )
    print(f"kept for the backward pass in float32: {(two - one) / 1e9:.2f} GB an item, "
          f"{(one + (batch - 1) * (two - one)) / 1e9:.1f} GB for a batch of {batch}")  # fmt: skip
    return 0


if __name__ == "__main__":
    main(run)
