"""The build takes the released weights into the package; all else stands in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

WEIGHTS = ("checkpoints/pretrained.safetensors", "checkpoints/LICENSE")


class BuildWithWeights(build_py):
    """Copies `WEIGHTS` to `diffvocsep/weights/`. An editable install finds them in the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._weights().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return super().get_outputs(include_bytecode) + ([] if self.editable_mode else [*self._weights().values()])

    def _weights(self) -> dict[str, str]:
        return {path: str(Path(self.build_lib, "diffvocsep", "weights", Path(path).name)) for path in WEIGHTS}


setup(cmdclass={"build_py": BuildWithWeights})
