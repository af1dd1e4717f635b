"""Too little memory and a full disk, as one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..config import Config
from ..util.errors import WorkFailed, out_of_room
from ..util.memory import is_out_of_memory


@contextmanager
def explained_failures(config: Config, device: torch.device) -> Iterator[None]:
    """Around a whole training: turns such errors into that sentence.

    Raises:
        WorkFailed: the disk is full, or the memory of the computer or of `device` is.
    """
    on = f"the same command goes on from the last.pt in '{config.log.checkpoint_dir}', if it has come to one"
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        where = f"the GPU ({device})" if isinstance(error, torch.OutOfMemoryError) else "the computer"
        batch = config.train.batch_size
        smaller = f"lower train.batch_size ({batch}) and raise train.accumulate as much, or " if batch > 1 else ""
        raise WorkFailed(
            f"the memory of {where} is full: {smaller}lower data.segment_seconds ({config.data.segment_seconds:g}) or "
            f"close other programs; {on}"
        ) from error
    except OSError as error:
        if not (said := out_of_room(error)):
            raise
        raise WorkFailed(f"{said}, and {on}") from error
