"""Where parts plug in: the name that a config gives a part, and where the part is.

To add a part, write a file of its own and a line here; config files, command lines and benchmarks then know its name.
A setting of the part is one more key in config.py. Only names stand here, and what a config must know, so that it is
checked and `--help` is printed without waiting for torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal


@dataclass(frozen=True)
class Sampler:
    """Where a sampler is, and when it adds fresh noise: always, never, or `eta`, where that setting is above 0.

    One that adds any, however little, draws a sample. Under all others, x_t after the first step is a guess of the
    network's own, which it is told (`counterfactual.generate`).
    """

    path: str
    noise: Literal["always", "never", "eta"]

    @property
    def reads_eta(self) -> bool:
        return self.noise == "eta"

    def adds_noise(self, eta: float) -> bool:
        return self.noise == "always" or (self.reads_eta and eta > 0)


NETWORKS = {  # torch modules, constructed with the Config; see `make_network` in unet.py for what they offer
    "unet": "diffvocsep.unet:UNet",
}
REPRESENTATIONS = {  # classes, see `Representation`; `from_config` is called with the AudioConfig
    "complex": "diffvocsep.spectrogram:ComplexSpectrogram",
    "magnitude": "diffvocsep.spectrogram:MagnitudeSpectrogram",
}
SAMPLERS = {  # functions like `ddim` in samplers.py
    "ddpm": Sampler("diffvocsep.samplers:ddpm", noise="always"),
    "ddim": Sampler("diffvocsep.samplers:ddim", noise="eta"),
    "dpmpp": Sampler("diffvocsep.samplers:dpmpp", noise="never"),
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
