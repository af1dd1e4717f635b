"""Every key of the configuration changes something that can be observed, and ignored keys change nothing.

An observation is a fingerprint of what a config does: three training steps, a separation, the segments that are drawn,
the clips that decide, or what a run writes and when.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import benchmarks.diffusers_unet  # noqa: F401  the other network
from diffvocsep.config import KEYS, Config, ignored_keys, load_config
from diffvocsep.data import Segments, dev_tracks, musdb, train_tracks
from diffvocsep.data.synthetic import tracks as synthetic_tracks
from diffvocsep.separator import Separator
from diffvocsep.training.trainer import Trainer
from diffvocsep.training.validation import dev_clips
from diffvocsep.unet import UNet
from diffvocsep.util.device import fast_bf16
from diffvocsep.util.errors import UserError

CPU = torch.device("cpu")
BASE = """audio.sample_rate=8000 audio.n_fft=256 audio.hop_length=64 audio.win_length=256 audio.bandwidth=0
    data.synthetic_songs=2 data.synthetic_seconds=2 data.segment_seconds=0.3 model.base_channels=4
    train.batch_size=2 train.max_steps=6 train.steps_per_epoch=4 train.val_every_steps=3 train.val_batches=2
    train.val_seconds=0.5 train.warmup_steps=2 diffusion.terminal_share=0.25 log.every_steps=2 data.root='{folder}/a'
    data.dev_root='{folder}/dev_a' data.musdb_root='{folder}/mus_a' data.musdbhq_root='{folder}/hq_a'
    data.cache_dir='{folder}/cache' log.tb_log_dir='{folder}/run/tb' log.checkpoint_dir='{folder}/run/ck'"""
STEMS = ("data.dataset=stems",)
NOTHING = ("data.dataset=musdbhq", "data.musdbhq_root='{folder}/nothing'")
STEPS = ("diffusion.ddim_steps=3",)
CHUNKS = ("separation.chunk_seconds=0.5",)
OTHER_AMP = "none" if fast_bf16(CPU) else "bf16"


def fingerprint(*values: object) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()


# ---- observations --------------------------------------------------------------------------------------------------


@cache
def steps(config: Config) -> str:
    """The losses, weights and averaged weights of three optimizer steps."""
    trainer = Trainer(config, CPU, "none")
    stream = trainer.steps()
    terms = [trainer.optimize(next(stream)) for _ in range(3)]
    weights = [*trainer.model.state_dict().items(), *trainer.ema.items()]
    return fingerprint(
        *[v for term in terms for v in term.values()], *[v.float() for pair in weights for v in pair[1:]]
    )


@cache
def separation(config: Config) -> str:
    """What comes out of two seconds of noise, and the shapes in which the network saw them."""
    torch.manual_seed(0)
    model, shapes = UNet(config), []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    noise = np.random.default_rng(0).standard_normal((2, 16000), dtype=np.float32) / 10
    vocals, _ = Separator(model, config).separate(torch.from_numpy(noise), 8000)
    return fingerprint(vocals, shapes)


@cache
def segments(config: Config) -> str:
    """The first training segments."""
    items = Segments(train_tracks(config), config, 12)
    return fingerprint(*[value for i in range(12) for value in items[i].values()])


@cache
def clips(config: Config) -> str:
    """What validation separates."""
    return fingerprint(*[wave for pair in dev_clips(dev_tracks(config), config) for wave in pair])


@cache
def kept(config: Config) -> str:
    """The files that reading songs leaves behind."""
    folder = Path(config.log.tb_log_dir).parents[1]
    for path in folder.glob("cache*"):
        shutil.rmtree(path)
    segments.__wrapped__(config)
    return fingerprint(sorted(path.relative_to(folder).parts[:-1] for path in folder.glob("cache*/*")))


@cache
def written(config: Config) -> str:
    """Which files a run writes, and at which steps it logs and validates; the steps themselves are left out."""
    folder = Path(config.log.tb_log_dir).parents[1]
    for path in ("run", "elsewhere"):
        shutil.rmtree(folder / path, ignore_errors=True)
    trainer = Trainer(config, CPU, "none")
    trainer.progress.run_id = "now"
    validated = []

    def optimize(_) -> dict[str, Tensor]:
        trainer.progress.step += 1
        trainer.progress.seconds += 10
        return {"loss": torch.ones(())}

    def validate(_) -> None:
        validated.append(trainer.progress.step)
        trainer.progress.mark_validated()
        trainer.save("last.pt")

    trainer.optimize, trainer._validate = optimize, validate
    assert trainer.run() == 0
    files = {path.relative_to(folder).parent for name in ("run", "elsewhere") for path in (folder / name).rglob("*.*")}
    (events,) = folder.glob("*/tb*/now")
    logged = [event.step for event in EventAccumulator(str(events)).Reload().Scalars("train/loss")]
    weights = sorted(path.name for path in Path(config.log.checkpoint_dir).iterdir())
    return fingerprint(sorted(map(str, files)), weights, validated, logged, trainer.progress.step)


@cache
def fetched(config: Config) -> list[tuple[str, ...]]:
    """What is fetched where there are no songs, and from where."""
    from diffvocsep.data import download

    calls = []
    if config.data.musdbhq_root.endswith("nothing"):
        shutil.rmtree(config.data.musdbhq_root, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch, suppress(UserError, OSError):
        usage = namedtuple("usage", "free")
        patch.setattr(download.shutil, "disk_usage", lambda path: usage(1e12))
        patch.setattr(download, "fetch_gdrive", lambda file_id, target: calls.append(("gdrive", file_id)))
        patch.setattr(download, "fetch_http", lambda source, target: calls.append(("http", source.url)))
        train_tracks(config)
    return calls


@cache
def loading(config: Config) -> list[int]:
    """How many processes load the segments, if a loader does."""
    import diffvocsep.data.loader as module

    counts, loader = [], module.DataLoader
    module.DataLoader = lambda *args, num_workers, **options: (counts.append(num_workers), loader(*args, **options))[1]
    try:
        next(Trainer(config, CPU, "none").steps())
    finally:
        module.DataLoader = loader
    return counts


@cache
def layout(config: Config) -> str:
    """Where the weights of the convolutions lie in memory, and whether the network is compiled."""
    compiled, compile_ = [], torch.compile
    torch.compile = lambda model: (compiled.append("compiled"), model)[1]
    try:
        model = Trainer(config, CPU, "none").model
    finally:
        torch.compile = compile_
    return fingerprint([tuple(p.stride()) for p in model.parameters()], compiled)


# ---- the table: key -> another value, the settings under which it counts, what shows it ------------------------------

MAGNITUDE = ("audio.representation=magnitude",)
LINEAR = ("diffusion.beta_schedule=linear", "diffusion.zero_terminal_snr=false")
TABLE: dict[str, tuple[object, tuple[str, ...], Callable[[Config], object]]] = {
    "audio.sample_rate": (16000, (), separation),
    "audio.channels": (1, (), steps),
    "audio.n_fft": (512, (), steps),
    "audio.hop_length": (128, (), steps),
    "audio.win_length": (128, (), steps),
    "audio.representation": ("magnitude", (), steps),
    "audio.compression": (0.3, (), steps),
    "audio.log1p_scale": (10.0, MAGNITUDE, steps),
    "audio.statistics": ("batch", MAGNITUDE, steps),
    "audio.bandwidth": (2000.0, (), steps),
    "data.dataset": ("stems", (), segments),
    "data.root": ("'{folder}/b'", STEMS, segments),
    "data.dev_root": ("'{folder}/dev_b'", STEMS, clips),
    "data.musdb_root": ("'{folder}/mus_b'", ("data.dataset=musdb",), segments),
    "data.musdbhq_root": ("'{folder}/hq_b'", ("data.dataset=musdbhq",), segments),
    "data.download": (False, NOTHING, fetched),
    "data.download_source": ("zenodo", NOTHING, fetched),
    "data.download_id": ("other", NOTHING, fetched),
    "data.synthetic_songs": (3, (), segments),
    "data.synthetic_seconds": (3.0, (), segments),
    "data.held_out_voices": ("[tenor]", (), segments),
    "data.held_out_families": ("[drums]", (), segments),
    "data.segment_seconds": (0.4, (), segments),
    "data.cache": ("none", STEMS, kept),
    "data.cache_dir": ("'{folder}/cache 2'", STEMS, kept),
    "data.workers": (1, (), loading),
    "data.set_weights": ("{b: 9}", (*STEMS, "data.root='{folder}/sets'"), segments),
    "data.remix_probability": (0.0, (), segments),
    "data.gain_db": (0.0, (), segments),
    "data.channel_swap": (0.0, (), segments),
    "data.polarity_flip": (0.0, (), segments),
    "data.silent_vocals": (1.0, (), segments),
    "data.silent_accompaniment": (1.0, (), segments),
    "data.level_db": (0.0, (), steps),
    "data.speed_semitones": (3.0, (), segments),
    "data.equalizer_db": (3.0, (), segments),
    "data.reverb": (1.0, (), segments),
    "data.turn": (1.0, ("audio.channels=2",), segments),
    "data.pitch_semitones": (3.0, (), segments),
    "data.second_voice": (1.0, (), segments),
    "data.doubling": (1.0, (), segments),
    "data.harmony": (1.0, (), segments),
    "data.compressor": (1.0, (), segments),
    "data.saturation": (1.0, (), segments),
    "data.echo": (1.0, (), segments),
    "data.limiter": (1.0, (), segments),
    "model.network": ("diffusers_unet", ("model.base_channels=8",), steps),
    "model.base_channels": (8, (), steps),
    "model.channels_mult": ("[1, 1, 2]", (), steps),
    "model.blocks": (2, (), steps),
    "model.patch": ("[2, 2]", (), steps),
    "model.frequency_linear": (0, (), steps),
    "model.attention": ("[2]", (), steps),
    "model.attention_heads": (2, ("model.attention=[2]",), steps),
    "model.refine_rank": (2, ("train.refine_share=1", "diffusion.terminal_share=0"), steps),
    "diffusion.timesteps": (100, (), steps),
    "diffusion.beta_schedule": ("linear", (), steps),
    "diffusion.beta_start": (0.01, LINEAR, steps),
    "diffusion.beta_end": (0.05, LINEAR, steps),
    "diffusion.zero_terminal_snr": (False, (), steps),
    "diffusion.prediction_type": ("v", (), steps),
    "diffusion.terminal_share": (1.0, (), steps),
    "diffusion.sampler": ("dpmpp", STEPS, separation),
    "diffusion.use_ddim": (False, STEPS, separation),
    "diffusion.ddim_steps": (3, (), separation),
    "diffusion.eta": (1.0, STEPS, separation),
    "diffusion.temperature": (0.5, (), separation),
    "diffusion.samples": (2, (), separation),
    "separation.subtract": ("mask", (), separation),
    "separation.chunk_seconds": (0.5, (), separation),
    "separation.margin_seconds": (0.5, (), separation),
    "separation.batch_chunks": (2, CHUNKS, separation),
    "train.seed": (1, (), steps),
    "train.batch_size": (3, (), steps),
    "train.accumulate": (2, (), steps),
    "train.epochs": (2, ("train.max_steps=0",), written),
    "train.steps_per_epoch": (5, (), written),
    "train.max_steps": (7, (), written),
    "train.max_minutes": (0.5, (), written),
    "train.optimizer": ("adamw", (), steps),
    "train.lr": (0.01, (), steps),
    "train.weight_decay": (0.5, (), steps),
    "train.warmup_steps": (3, (), steps),
    "train.amp": (OTHER_AMP, (), steps),
    "train.grad_clip": (0.01, (), steps),
    "train.ema_decay": (0.1, (), steps),
    "train.loss_voc_weight": (0.0, (), steps),
    "train.loss_log_weight": (1.0, (), steps),
    "train.refine_share": (1.0, (), steps),
    "train.parts": ("refine", ("model.refine_rank=2", "train.refine_share=1", *STEPS), steps),
    "train.consistency_share": (1.0, (), steps),
    "train.val_every_steps": (5, (), written),
    "train.val_minutes": (0.2, (), written),
    "train.val_batches": (3, (), clips),
    "train.val_seconds": (0.25, (), clips),
    "train.channels_last": (not fast_bf16(CPU), (), layout),
    "train.compile": (True, (), layout),
    "log.tb_log_dir": ("'{folder}/run/tb 2'", (), written),
    "log.checkpoint_dir": ("'{folder}/elsewhere'", (), written),
    "log.every_steps": (3, (), written),
    "log.release_minutes": (1.0, (), written),
}

# Settings under which a key is ignored, where BASE itself is not such a setting.
IGNORING: dict[str, tuple[str, ...]] = {
    "audio.compression": MAGNITUDE,
    "data.synthetic_songs": STEMS,
    "data.synthetic_seconds": STEMS,
    "data.held_out_voices": STEMS,
    "data.held_out_families": STEMS,
    "data.cache_dir": (*STEMS, "data.cache=none"),
    "data.workers": ("data.cache=device",),
    "data.channel_swap": ("audio.channels=1",),
    "data.turn": ("audio.channels=1",),
    "diffusion.eta": ("diffusion.sampler=dpmpp", *STEPS),
    "train.loss_log_weight": ("train.loss_voc_weight=0",),
    "train.max_steps": ("train.max_minutes=0.5",),
}
USED_KEYS = sorted(key for key, one in KEYS.items() if one.metadata["used"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """Two small data sets of every kind, one thread, and every synthetic song made once."""
    root = tmp_path_factory.mktemp("every_key")
    for i, name in enumerate("ab"):
        for kind in ("", "dev_"):
            song(root / f"{kind}{name}" / "song", ("vocals", "accompaniment"), 10 * i)
        song(root / "sets" / name / "song", ("vocals", "accompaniment"), 10 * i)
        instruments = ("vocals", "drums", "bass", "other")
        song(root / f"hq_{name}" / "train" / "A - B", instruments, 10 * i)
        song(root / f"mus_{name}" / "decoded" / "A - B", instruments, 10 * i)
        (root / f"mus_{name}" / "train").mkdir()
        source = root / f"mus_{name}" / "train" / "A - B.stem.mp4"
        source.touch()  # decoded already
        (root / f"mus_{name}" / "decoded" / "A - B" / musdb.STAMP).write_text(musdb.stamp(source), encoding="utf-8")
    make_song = synthetic_tracks.make_song
    synthetic_tracks.make_song = cache(make_song)
    yield root
    synthetic_tracks.make_song = make_song


def song(folder: Path, stems: tuple[str, ...], seed: int) -> None:
    folder.mkdir(parents=True)
    for i, name in enumerate(stems):
        noise = np.random.default_rng(seed + i).uniform(-0.2, 0.2, (16000, 2))
        soundfile.write(folder / f"{name}.wav", noise, 8000)


def config(folder: Path, *overrides: str) -> Config:
    return load_config(None, [text.replace("{folder}", folder.as_posix()) for text in (*BASE.split(), *overrides)])


def test_the_table_holds_every_key():
    assert list(TABLE) == [f"{section.name}.{key.name}" for section in fields(Config) for key in
                           fields(getattr(Config(), section.name))]  # fmt: skip


@pytest.mark.parametrize("observe", sorted({row[2] for row in TABLE.values()}, key=lambda o: o.__name__))
def test_the_same_config_does_the_same(folder, observe):
    same = config(folder, *STEMS) if observe is kept else config(folder)
    assert observe.__wrapped__(same) == observe.__wrapped__(same)


@pytest.mark.parametrize("key", TABLE)
def test_the_key_changes_something(folder, key):
    value, needs, observe = TABLE[key]
    before, after = config(folder, *needs), config(folder, *needs, f"{key}={value}")
    assert key not in ignored_keys(before) and before != after
    assert observe(before) != observe(after)


@pytest.mark.parametrize("key", USED_KEYS)
def test_an_ignored_key_changes_nothing(folder, key):
    value, _, observe = TABLE[key]
    before = config(folder, *IGNORING.get(key, ()))
    after = config(folder, *IGNORING.get(key, ()), f"{key}={value}")
    assert key in ignored_keys(before) and before != after
    assert observe(before) == observe(after)
