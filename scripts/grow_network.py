"""A released network with more in it, which at first does what the one before does.

    python -m scripts.grow_network SMALLER.safetensors GROWN.safetensors model.blocks=2 "model.attention=[2]"
    python train.py --resume GROWN.safetensors ... model.blocks=2 "model.attention=[2]"

What is added adds zero until training changes that (Net2DeeperNet: Chen et al. 2016, section 2.3). With
`model.refine_rank=8`, one step stays as it is, and every further step begins as good as the first.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from diffvocsep.checkpoint import load_model_state, release, saved_config
from diffvocsep.config import key_of, load_config, to_dict
from diffvocsep.unet import UNet
from diffvocsep.util.cli import Parser, main
from diffvocsep.util.errors import UserError

GROW = ("model.blocks", "model.attention", "model.attention_heads", "model.refine_rank")


def run(argv: list[str] | None = None) -> int:
    parser = Parser(description="Give a network more parts that do nothing yet.")
    parser.add_argument("model", type=Path, help="last.pt, best.pt or a .safetensors; its averaged weights")
    parser.add_argument("grown", type=Path, help="the .safetensors to write")
    parser.add_argument(
        "overrides", nargs="*", metavar="model.key=value", help="more blocks, attention, or refine_rank"
    )
    args = parser.parse_args(argv)
    state = load_model_state(args.model)
    before = saved_config(args.model, state["config"])
    after = load_config(None, args.overrides, base=before)
    torch.manual_seed(after.train.seed)
    weights = UNet(after).state_dict()
    for name in weights:
        block = re.search(r"\.blocks\.(\d+)\.conv2\.(weight|bias)$", name)
        if block and int(block[1]) >= before.model.blocks:
            weights[name].zero_()
    if after.model.refine_rank and not before.model.refine_rank:
        del state["ema"]["guess"]  # how guesses were marked so far
    for name, weight in state["ema"].items():
        if name not in weights or weights[name].shape != weight.shape:
            raise UserError(f"these settings change or drop '{name}' of '{args.model}'; only {', '.join(GROW)} grow it")
    if others := [name for name in map(key_of, args.overrides) if name not in GROW]:
        raise UserError(f"{others[0]} makes another network, not a larger one; {', '.join(GROW)} grow it")
    weights |= state["ema"]
    release({"ema": weights, "config": to_dict(after), "step": state["step"]}, args.grown)
    print(f"{args.grown}: {sum(weight.numel() for weight in weights.values()) / 1e6:.2f} M parameters")
    return 0


if __name__ == "__main__":
    main(run)
