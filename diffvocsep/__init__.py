"""Vocal separation by counterfactual generation: a diffusion model imagines the song without the singer.

The path of a song is separator.py: chunks.py (cut, stitch) -> spectrogram.py (STFT; `encode` and `decode` normalize) ->
counterfactual.py (generate, subtract) -> samplers.py -> denoiser.py (the network's output -> x_0, by the formulas of
diffusion.py) -> unet.py.

Where else to look:

    a new network, representation, sampler or dataset    registry.py, which names them all
    a setting, its default and its limits                config.py
    what is saved in `last.pt`                           training/resume.py, `training_state`
    what is in released weights                          checkpoint.py, `release`
    CPU, GPU or Apple's MPS, and in which precision      util/device.py, `resolve_device` and `amp_dtype`
    TPUs                                                 train_tpu.py, training/xla.py
    the loss                                             training/objective.py
    the training step and the EMA of the weights         training/trainer.py, `optimize` and `update_ema`
    the learning rate, the decay of the EMA              training/schedule.py
    how a run is resumed exactly                         training/resume.py
    which voice is mixed over which music                data/mixing.py
    how voices and music are altered                     data/augment.py, data/voice_effects.py, drawn in data/mixing.py
    audio formats to read and to write                   audio/input_formats.py, audio/output_formats.py
    random numbers                                       util/rng.py
    SDR and the other scores                             evaluation/metrics.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import Config, load_config
from .util.errors import UserError

if TYPE_CHECKING:
    from .separator import Separator

__all__ = ["Config", "Separator", "UserError", "load_config"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Separator` needs torch, which takes seconds to import; `--help` and a misspelt option should not wait for it."""
    if name == "Separator":
        from .separator import Separator

        return Separator
    raise AttributeError(f"module 'diffvocsep' has no attribute '{name}'")
