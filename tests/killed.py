"""train.py for the tests of going on: kills itself (kill -9) halfway through its n-th checkpoint, takes its time, or
spawns loaders; and a dot stands for each of the pictures, which would take longer than all the rest."""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def kill_in_save(number: int) -> None:
    import torch

    save, count = torch.save, 0

    def half(state: object, file: io.BufferedWriter) -> None:
        nonlocal count
        count += 1
        if count < number:
            return save(state, file)
        whole = io.BytesIO()
        save(state, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        import psutil

        psutil.Process().kill()

    torch.save = half


def slow_steps(seconds: float) -> None:
    from diffvocsep.training.trainer import Trainer

    optimize = Trainer.optimize

    def slowly(self: Trainer, batches: list) -> dict:
        time.sleep(seconds)
        return optimize(self, batches)

    Trainer.optimize = slowly


def dots() -> None:
    import numpy as np

    import diffvocsep.training.monitor as monitor

    monitor.picture = lambda *_: np.zeros((1, 1, 3), np.uint8)


if __name__ == "__main__":
    import train

    dots()
    if "KILL_IN_SAVE" in os.environ:
        kill_in_save(int(os.environ["KILL_IN_SAVE"]))
    if "SLOW_STEPS" in os.environ:
        slow_steps(float(os.environ["SLOW_STEPS"]))
    if "START_METHOD" in os.environ:
        multiprocessing.set_start_method(os.environ["START_METHOD"])
    sys.exit(train.run())
