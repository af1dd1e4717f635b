"""Where parts plug in: the name that a config gives a part, and where the part is.

To add a part, write a file of its own and a line here; config files, command lines and benchmarks then know its name.
A setting of the part is one more key in config.py. Only names stand here, so that a config is checked and `--help` is
printed without waiting for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

NETWORKS = {  # torch modules, constructed with the Config; see `UNet` for what they take and return
    "unet": "diffvocsep.unet:UNet",
}
REPRESENTATIONS = {  # classes, see `Representation`; `from_config` is called with the AudioConfig
    "complex": "diffvocsep.spectrogram:ComplexSpectrogram",
    "magnitude": "diffvocsep.spectrogram:MagnitudeSpectrogram",
}
SAMPLERS = {  # functions like `ddim` in samplers.py
    "ddpm": "diffvocsep.samplers:ddpm",
    "ddim": "diffvocsep.samplers:ddim",
    "dpmpp": "diffvocsep.samplers:dpmpp",
}
DATASETS = {  # functions, (Config, "train" or "dev") -> list of Track: what train.py trains on
    "synthetic": "diffvocsep.data.synthetic.tracks:synthetic_tracks",
    "stems": "diffvocsep.data.sources:stem_tracks",
    "musdb": "diffvocsep.data.sources:musdb_tracks",
    "musdbhq": "diffvocsep.data.sources:musdbhq_tracks",
}
TEST_SETS = {  # functions, (folder, "test" or "valid") -> list of Track: what evaluate.py scores
    "synthetic": "diffvocsep.data.testsets:synthetic_songs",
    "stems": "diffvocsep.data.testsets:stem_songs",
    "musdb": "diffvocsep.data.testsets:musdb_songs",
    "musdbhq": "diffvocsep.data.testsets:musdbhq_songs",
}


def load(path: str) -> Any:
    """The class or function at `path`, "package.module:name"."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
