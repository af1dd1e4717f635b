"""A released network with more residual blocks at each scale, which at first does what the one before does.

    python -m scripts.deepen checkpoints/pretrained.safetensors DEEPER.safetensors --blocks 2
    python train.py --resume DEEPER.safetensors ... model.blocks=2

The added blocks add zero until training changes that (Net2DeeperNet: Chen et al. 2016, section 2.3).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from diffvocsep.checkpoint import config_in, load_any, release
from diffvocsep.config import load_config, to_dict
from diffvocsep.unet import UNet
from diffvocsep.util.cli import main
from diffvocsep.util.errors import UserError


def run(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Give a network more blocks that do nothing yet.")
    parser.add_argument("model", type=Path, help="last.pt, best.pt or a .safetensors; its averaged weights")
    parser.add_argument("deeper", type=Path, help="the .safetensors to write")
    parser.add_argument("--blocks", type=int, required=True, help="model.blocks of the deeper network")
    args = parser.parse_args(argv)
    state = load_any(args.model)
    before = config_in(args.model, state["config"])
    if args.blocks <= before.model.blocks:
        raise UserError(f"--blocks {args.blocks} adds none; '{args.model}' has {before.model.blocks}")
    after = load_config(None, [f"model.blocks={args.blocks}"], base=before)
    torch.manual_seed(after.train.seed)
    weights = UNet(after).state_dict()
    for name in weights:
        block = re.search(r"\.blocks\.(\d+)\.conv2\.", name)
        if block and int(block[1]) >= before.model.blocks:
            weights[name].zero_()
    weights |= state["ema"]
    release({"ema": weights, "config": to_dict(after), "step": state["step"]}, args.deeper)
    print(f"{args.deeper}: {sum(weight.numel() for weight in weights.values()) / 1e6:.2f} M parameters")
    return 0


if __name__ == "__main__":
    main(run)
