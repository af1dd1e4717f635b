"""The path of a song: what goes in comes out, whatever the length, the rate, the channels and the chunks."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import (
    RATE,
    Stub,
    audible,
    db,
    nobody_plays,
    nobody_sings,
    random_separator,
    random_unet,
    song,
    stubbed,
    tiny_config,
    worst_db,
)

from diffvocsep import separator as separator_module
from diffvocsep.audio import read
from diffvocsep.audio.resampling import resample
from diffvocsep.checkpoint import save_checkpoint
from diffvocsep.chunks import line_up, stitch
from diffvocsep.config import Config, load_config, to_dict
from diffvocsep.separator import Separator
from diffvocsep.unet import UNet
from diffvocsep.util.errors import UserError
from diffvocsep.util.rng import frame_noise


@pytest.fixture(scope="module")
def separator() -> Separator:
    """A random network; one step from noise."""
    return random_separator()


def sine(seconds: float, channels: int, sample_rate: int = RATE):
    t = torch.arange(round(seconds * sample_rate)).double() / sample_rate  # in float32, the phase itself is noisy
    return torch.stack([0.5 * torch.sin(2 * torch.pi * (331.7 + 100 * c) * t + c) for c in range(channels)]).float()


# --- reconstruction across every joint ---------------------------------------------------------------------------


@pytest.mark.parametrize("model_channels", [1, 2])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_sine_survives_every_joint(channels, model_channels):
    mixture = sine(3.0, channels)  # 12 chunks
    settings = f"audio.channels={model_channels}"
    vocals, accompaniment = stubbed(nobody_sings, settings).separate(mixture, RATE)
    assert worst_db(accompaniment - mixture, mixture) < -100
    assert worst_db(vocals, mixture) < -100
    vocals, accompaniment = stubbed(nobody_plays, settings).separate(mixture, RATE)
    assert worst_db(vocals - mixture, mixture) < -100
    assert worst_db(accompaniment, mixture) < -100


@pytest.mark.parametrize("subtract", ["complex", "mask", "magnitude", "normalized"])
def test_every_way_to_subtract_reconstructs(subtract):
    mixture = song(1.5)
    settings = f"separation.subtract={subtract}"
    assert worst_db(stubbed(nobody_sings, settings).separate(mixture, RATE)[0], mixture) < -100
    assert worst_db(stubbed(nobody_plays, settings).separate(mixture, RATE)[1], mixture) < -100
    settings = [settings, "audio.representation=magnitude"]
    assert worst_db(stubbed(nobody_sings, *settings).separate(mixture, RATE)[0], mixture) < -90  # log1p costs a little


@pytest.mark.parametrize("bandwidth", [1500, 3999])
def test_the_band_above_the_network_joins_without_a_seam(bandwidth):
    mixture = song(1.5)
    assert worst_db(stubbed(nobody_sings, f"audio.bandwidth={bandwidth}").separate(mixture, RATE)[0], mixture) < -100
    assert worst_db(stubbed(nobody_plays, f"audio.bandwidth={bandwidth}").separate(mixture, RATE)[1], mixture) < -100


@pytest.mark.parametrize("sample_rate", [16000, 11025, 6000])
def test_another_sample_rate_costs_what_resampling_costs_and_nothing_at_the_joints(sample_rate):
    mixture = sine(3.0, 2, sample_rate)
    there_and_back = resample(resample(mixture, sample_rate, RATE), RATE, sample_rate)[:, : mixture.shape[-1]]
    vocals, accompaniment = stubbed(nobody_plays).separate(mixture, sample_rate)
    assert worst_db(vocals - there_and_back, mixture) < -100
    assert worst_db(vocals + accompaniment - mixture, mixture) < -135
    inside = slice(sample_rate // 10, -sample_rate // 10)  # where the song begins and ends, so does the filter
    assert worst_db((vocals - mixture)[:, inside], mixture) < -100
    assert worst_db(stubbed(nobody_sings).separate(mixture, sample_rate)[0], mixture) < -100


@pytest.mark.parametrize("sample_rate", [RATE, 11025, 22050, 4000])
def test_parts_add_up_and_have_the_length_of_the_song(separator, sample_rate):
    for length in [0, 1, 2, 15, 63, 64, 65, 2047, 2049, 5001]:
        for channels in [1, 3]:
            mixture = song(1.0, channels, sample_rate)[:, :length]
            vocals, accompaniment = separator.separate(mixture, sample_rate)
            assert vocals.shape == accompaniment.shape == mixture.shape
            assert vocals.dtype == torch.float32
            torch.testing.assert_close(vocals + accompaniment, mixture, atol=1e-7, rtol=2e-7)
            assert length < 2 or vocals.abs().max() > 0


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [3, 1, 30, 6], [2]])
def test_synthesis_in_pieces_is_the_inverse_of_the_whole(separator, sizes):
    """Up to the last frame's centre: past it, only the edge of one window is left, and dividing by it would amplify
    whatever a network put there. The resampling filter would then carry that back into the song."""
    spectra = torch.randn(2, 2, 33, sum(sizes), dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    stft = separator.frontend.stft
    whole = stft.inverse(spectra, (sum(sizes) - 1) * 16).flatten(0, 1)
    pieces = torch.cat(list(stitch(spectra.split(sizes, dim=-1), stft)), dim=-1)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=0)


# --- chunks -------------------------------------------------------------------------------------------------------


MULTISTEP = ["diffusion.sampler=ddpm", "diffusion.ddim_steps=3"]


@pytest.mark.parametrize(
    "settings",
    [
        [],
        *(
            pytest.param(others, marks=pytest.mark.slow)
            for others in (MULTISTEP, ["audio.bandwidth=2000"], ["audio.representation=magnitude"])
        ),
    ],
)
def test_chunks_leave_no_trace(settings):
    mixture = song(1.5)

    def vocals(seconds: float, margin: float) -> torch.Tensor:
        chunks = [f"separation.chunk_seconds={seconds}", f"separation.margin_seconds={margin}"]
        # With weights of seed 0 one bin of this song lies so near zero that rounding alone reaches -67 dB.
        return random_separator(*settings, *chunks, seed=1).separate(mixture, RATE)[0]

    whole = vocals(10.0, 0.4)
    assert db(whole, mixture) > -30  # the network does say something
    # At the steep zero of |X|^0.5 rounding becomes loud; how loud shows one chunk with one margin and with another.
    rounding = worst_db(vocals(10.0, 0.8) - whole, mixture)
    for seconds in [0.1, 0.4]:
        # A margin beyond three times the network's reach.
        assert worst_db(vocals(seconds, 0.4) - whole, mixture) < max(-70, rounding + 10)
        # One pass reaches that far, but ddpm makes three, and the gain above the band looks farther.
        assert db(vocals(seconds, 0.13) - whole, mixture) < -50
    assert worst_db(vocals(0.1, 0.0) - whole, mixture) > -60  # with the smallest margin, this test would see the joints


@pytest.mark.parametrize(("seconds", "below"), [("1.5", -50), ("2.6", -110)])
def test_what_a_chunk_keeps_hardly_knows_where_it_ended(seconds, below):
    """The default network reaches 103 frames, 2.4 s, to each side. What lies beyond the default margin of 1.5 s hardly
    counts, even with random weights; with 2.6 s there is nothing beyond it."""
    assert float(seconds) in (Config().separation.margin_seconds, 2.6)
    overrides = ["model.base_channels=4", "train.amp=none", f"separation.margin_seconds={seconds}"]
    config = load_config(None, overrides)
    separator = Separator(random_unet(config), config)
    more, kept = 8 * separator.model.time_stride, slice(separator.grid.margin, -separator.grid.margin)
    frames = separator.model.time_stride + 2 * separator.grid.margin + 2 * more
    x = torch.randn(1, 4, separator.frontend.bins, frames, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = separator.model(x, x, torch.tensor([99]))[..., more:-more][..., kept]
        chunk = x[..., more:-more]
        assert db(separator.model(chunk, chunk, torch.tensor([99]))[..., kept] - whole, whole) < below


def test_a_late_start_changes_nothing_but_the_noise():
    """Silence before the song, by whole strides of the network: the grid shifts, and so does the noise of a frame."""
    mixture, shift = audible(song(2.0), RATE), 5 * 8 * 16  # strides * frames * samples
    late = torch.cat([torch.zeros(2, shift), mixture], dim=-1)

    deaf = tiny_config()
    model = random_unet(deaf)
    ignores_noise = Stub(lambda x_t, x_mixture, t: model(torch.zeros_like(x_t), x_mixture, t))
    separator = Separator(ignores_noise, deaf)
    shifted, vocals = separator.separate(late, RATE)[0][:, shift:], separator.separate(mixture, RATE)[0]
    assert db(vocals, mixture) > -30
    assert db(shifted - vocals, mixture) < -40
    assert worst_db((shifted - vocals)[:, 32:], mixture) < -55  # half a window: frames before the song begin to count


def test_where_a_song_is_cut_is_not_heard_with_the_shipped_model():
    """Its margins are shorter than its reach and than the default ones; what lies beyond hardly counts."""
    root = Path(__file__).parents[1]
    mixture, sample_rate = read(root / "data" / "demo" / "song.ogg")
    mixture = mixture[:, : 9 * sample_rate]
    shipped = Separator.from_checkpoint(root / "checkpoints" / "pretrained.safetensors", "cpu")
    whole, cut = (
        shipped.configured(None, ["train.amp=none", f"separation.chunk_seconds={seconds}"]) for seconds in (20, 3)
    )
    vocals = whole.separate(mixture, sample_rate)[0]
    assert db(vocals, mixture) > -30
    assert db(cut.separate(mixture, sample_rate)[0] - vocals, mixture) < -70


# --- level and silence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("representation", ["complex", "magnitude"])
@pytest.mark.parametrize("gain", [0.25, 4.0])
def test_12_db_more_in_is_12_db_more_out(representation, gain):
    separator = random_separator(f"audio.representation={representation}")
    mixture = song(1.0)
    vocals, _ = separator.separate(mixture, RATE)
    scaled, _ = separator.separate(gain * mixture, RATE)
    assert db(scaled - gain * vocals, gain * vocals) < -80


@pytest.mark.slow
def test_what_nobody_hears_changes_no_vocals():
    """An offset and a rumble louder than the music: the song is separated as without, and they are in the rest."""
    root = Path(__file__).parents[1]
    mixture, sample_rate = read(root / "data" / "demo" / "song.ogg")
    mixture = audible(mixture[:, : 6 * sample_rate], sample_rate)
    shipped = Separator.from_checkpoint(root / "checkpoints" / "pretrained.safetensors", "cpu")
    shipped = shipped.configured(None, ["train.amp=none"])
    vocals, _ = shipped.separate(mixture, sample_rate)
    t = torch.arange(mixture.shape[-1]) / sample_rate
    rumble = 0.4 * torch.cos(2 * torch.pi * 5 * t + 1)
    assert db(rumble.expand_as(mixture), mixture) > 6
    little = torch.tensor([[-0.01], [0.0]])  # no louder than those of voices, which belong to them
    for added in (torch.tensor(0.5), torch.tensor([[-0.15], [0.0]]), rumble, 0.2 - rumble, little):
        found, rest = shipped.separate(mixture + added, sample_rate)
        assert db(found - vocals, vocals) < (-25 if added is little else -40)
        torch.testing.assert_close(found + rest, mixture + added, atol=2e-7, rtol=2e-7)


@pytest.mark.parametrize("sample_rate", [RATE, 11025])
def test_silence_is_silence(separator, sample_rate):
    silence = torch.zeros(2, sample_rate)
    vocals, accompaniment = separator.separate(silence, sample_rate)
    assert torch.equal(vocals, silence)
    assert torch.equal(accompaniment, silence)


@pytest.mark.parametrize("sample_rate", [RATE, 16000])
def test_silence_inside_a_song_stays_silent(separator, sample_rate):
    mixture = song(3.0, 2, sample_rate)
    mixture[:, sample_rate : 2 * sample_rate] = 0
    vocals, accompaniment = separator.separate(mixture, sample_rate)
    inside = slice(sample_rate + sample_rate // 20, 2 * sample_rate - sample_rate // 20)  # beyond window and filter
    assert not vocals[:, inside].any()
    assert not accompaniment[:, inside].any()
    assert vocals[:, : sample_rate // 2].abs().max() > 0


def test_what_is_invented_in_silence_takes_no_treble_from_the_sound_beside_it():
    """Above the band the vocals' share is an average over 0.3 s, which may reach into a gap."""
    mixture = song(1.5)
    mixture[:, RATE // 2 : RATE] = 0

    def invents(x_t, mixture, t):
        silent = (mixture == 0).all(dim=1, keepdim=True).all(dim=2, keepdim=True)
        return 10.0 * silent.expand_as(mixture)

    vocals = stubbed(invents, "audio.bandwidth=1500").separate(mixture, RATE)[0]
    assert worst_db(vocals, mixture) < -100


def test_a_silent_channel_pair_is_silent_beside_a_sounding_one(separator):
    mixture = song(1.0, 4)
    mixture[2:] = 0
    vocals, _ = separator.separate(mixture, RATE)
    assert not vocals[2:].any()
    assert vocals[:2].abs().max() > 0


def test_the_doubled_last_channel_of_an_odd_number_is_separated_as_mono(separator):
    mixture = song(1.0, 3)
    together, _ = separator.separate(mixture, RATE)
    pair, _ = separator.separate(mixture[:2], RATE)
    torch.testing.assert_close(together[:2], pair, atol=1e-6, rtol=0)


# --- seeds, batches, blocks ---------------------------------------------------------------------------------------


def test_temperature_is_the_share_of_noise_that_sampling_starts_from(monkeypatch):
    """At 0 no seed matters, for there is no noise, and none is drawn. Averaged draws must differ: then 0 is 1."""

    def with_noise(x_t, mixture, t):
        return 0.5 * mixture + 0.1 * x_t

    def vocals(*settings: str, seed: int = 0) -> torch.Tensor:
        return stubbed(with_noise, *settings).separate(song(0.5), RATE, seed=seed)[0]

    cold, half = "diffusion.temperature=0", "diffusion.temperature=0.5"
    assert torch.equal(vocals(cold), vocals(cold, seed=1)) and not torch.equal(vocals(), vocals(seed=1))
    without = vocals(cold)
    assert 3 < db(vocals() - without, vocals(half) - without) < 9  # about half as far
    draws = "diffusion.samples=2"
    assert torch.equal(vocals(draws, cold), vocals(draws)) and not torch.equal(vocals(draws), vocals())
    monkeypatch.setattr(separator_module, "frame_noise", None)
    assert torch.equal(vocals(cold), without)


def test_the_seed_decides(separator):
    mixture = song(1.0)
    first, _ = separator.separate(mixture, RATE, seed=3)
    separator.separate(song(0.5, seed=9), RATE, seed=8)  # another song in between changes nothing
    torch.manual_seed(1234)
    again, _ = separator.separate(mixture, RATE, seed=3)
    other, _ = separator.separate(mixture, RATE, seed=4)
    assert torch.equal(first, again)
    assert db(first - other, first) > -30
    default, _ = separator.separate(mixture, RATE)
    seed, _ = separator.separate(mixture, RATE, seed=separator.config.train.seed)
    assert torch.equal(default, seed)


@pytest.mark.parametrize("settings", [[], MULTISTEP])
@pytest.mark.parametrize("channels", [2, 3])
def test_batches_change_nothing(settings, channels):
    mixture = song(1.5, channels)
    one, four = (random_separator(*settings, f"separation.batch_chunks={n}").separate(mixture, RATE)[0] for n in (1, 4))
    assert worst_db(one - four, mixture) < -110


@pytest.mark.parametrize("sample_rate", [RATE, 11025])
def test_a_stream_is_the_whole_whatever_its_blocks(separator, sample_rate):
    mixture = song(1.3, 2, sample_rate)
    whole, rest = separator.separate(mixture, sample_rate)
    for size in [97, 4096, 10**6]:
        blocks = mixture.split(size, dim=-1)
        pairs = list(separator.separate_stream(lambda blocks=blocks: iter(blocks), sample_rate))
        assert [v.shape for v, _ in pairs] == [b.shape for b in blocks]
        assert worst_db(torch.cat([v for v, _ in pairs], dim=-1) - whole, mixture) < -110
        assert worst_db(torch.cat([a for _, a in pairs], dim=-1) - rest, mixture) < -110


def test_a_stream_yields_before_it_has_read_everything(separator):
    mixture, read = song(4.0), []

    def blocks():
        read.clear()
        for index, block in enumerate(mixture.split(1000, dim=-1)):
            read.append(index)
            yield block

    next(separator.separate_stream(blocks, RATE))
    assert max(read) < 10  # of 32


def test_a_song_that_grows_while_it_is_read_is_one_sentence():
    with pytest.raises(UserError, match="became longer"):
        list(line_up([torch.zeros(2, 50)], [torch.zeros(2, 40), torch.zeros(2, 40)]))


def test_empty_blocks_are_allowed(separator):
    mixture = song(0.5)
    blocks = [mixture[:, :0], mixture[:, :100], mixture[:, 100:100], mixture[:, 100:]]
    pairs = list(separator.separate_stream(lambda: iter(blocks), RATE))
    assert worst_db(torch.cat([v for v, _ in pairs], -1) - separator.separate(mixture, RATE)[0], mixture) < -110


# --- options ------------------------------------------------------------------------------------------------------


def test_samples_are_averaged(separator, monkeypatch):
    mixture = song(1.0)
    average, _ = separator.separate(mixture, RATE, samples=3)
    single = []
    for k in range(3):

        def kth(channels, bins, first, frames, seed, group, _, draw, k=k):
            return frame_noise(channels, bins, first, frames, seed, group, k, draw)

        monkeypatch.setattr(separator_module, "frame_noise", kth)
        single.append(separator.separate(mixture, RATE, samples=1)[0])
    assert db(single[0] - single[1], single[0]) > -30
    assert worst_db(average - sum(single) / 3, mixture) < -110


def test_sampler_steps_and_eta_reach_the_sampler():
    calls = []

    def answer(x_t, mixture, t):
        calls.append(int(t[0]))
        return 0.5 * mixture + 0.1 * x_t

    separator, mixture = stubbed(answer, "separation.chunk_seconds=1"), song(0.5)
    results = []
    for options in [
        dict(sampler="ddim", steps=4, eta=0.0),
        dict(sampler="ddim", steps=4, eta=1.0),
        dict(sampler="ddpm", steps=4),
        dict(sampler="dpmpp", steps=4),
        dict(sampler="ddim", steps=1),
    ]:
        calls.clear()
        results.append(separator.separate(mixture, RATE, **options)[0])
        assert calls == ([99, 74, 49, 24] if options["steps"] == 4 else [99])
    deterministic, eta_1, ddpm, dpmpp, one_step = results
    assert worst_db(eta_1 - ddpm, mixture) < -100  # Song et al. 2021: DDIM with eta 1 is DDPM
    different = combinations([deterministic, ddpm, dpmpp, one_step], 2)
    assert all(db(a - b, a) > -80 for a, b in different)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (dict(steps=101), "ddim_steps"),
        (dict(steps=0), "ddim_steps"),
        (dict(samples=0), "samples"),
        (dict(eta=1.5), "eta"),
        (dict(sampler="euler"), "sampler"),
        (dict(seed=-1), "seed"),
    ],
)
def test_an_impossible_option_is_refused_by_name(separator, options, key):
    with pytest.raises(UserError, match=key):
        separator.separate(song(0.1), RATE, **options)


def test_epsilon_from_pure_noise_is_refused_with_the_reason():
    separator = stubbed(nobody_sings, "diffusion.prediction_type=epsilon")
    with pytest.raises(UserError, match="epsilon .*pure noise"):
        separator.separate(song(0.1), RATE)


@pytest.mark.parametrize(
    ("sampler", "eta", "flags"),
    [
        ("ddpm", 0.0, [0, 0, 0]),
        ("ddim", 0.0, [0, 1, 1]),
        ("ddim", 5e-324, [0, 0, 0]),  # however little
        ("ddim", 0.5, [0, 0, 0]),
        ("dpmpp", 0.5, [0, 1, 1]),
    ],
)
def test_the_network_is_told_what_holds_its_own_guess(sampler, eta, flags):
    """As it was in training (`train.refine_share`): noise alone is no guess, and fresh noise draws a sample."""
    seen = []

    class Told(Stub):
        def forward(self, x_t, mixture, t, guessed):
            seen.append([0, 0] if guessed is None else guessed.tolist())
            return self.function(x_t, mixture, t)

    separator = Separator(Told(nobody_sings), tiny_config("separation.chunk_seconds=1"))
    separator.separate(song(0.5, 4), RATE, sampler=sampler, steps=3, eta=eta)  # four channels are two groups
    assert seen == [[flag, flag] for flag in flags]


def test_ddim_with_eta_one_separates_as_ddpm():
    """The two are one sampler, so the network must be told the same: here its answer depends on that."""

    class Told(Stub):
        def forward(self, x_t, mixture, t, guessed):
            return self.function(x_t, mixture, t) + (0 if guessed is None else 0.3 * guessed.view(-1, 1, 1, 1) * x_t)

    def half(x_t, mixture, t):
        return 0.5 * mixture + 0.1 * x_t

    separator = Separator(Told(half), tiny_config("separation.chunk_seconds=1"))
    ddim, ddpm = (
        separator.separate(song(0.5, 2), RATE, sampler=name, steps=4, eta=1.0)[0] for name in ("ddim", "ddpm")
    )
    torch.testing.assert_close(ddim, ddpm)


def test_settings_that_the_weights_are_bound_to_are_refused(separator):
    with pytest.raises(UserError, match=r"audio\.n_fft"):
        separator.configured(None, ["audio.n_fft=128"])
    with pytest.raises(UserError, match=r"diffusion\.prediction_type"):
        separator.configured(None, ["diffusion.prediction_type=v"])


def test_too_little_memory_is_one_sentence():
    def greedy(x_t, mixture, t):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nand so on")

    with pytest.raises(UserError, match=r"chunk_seconds.*batch_chunks"):
        stubbed(greedy).separate(song(0.1), RATE)


def test_too_little_memory_of_a_computer_is_one_sentence_too():
    greedy = stubbed(lambda x_t, mixture, t: torch.empty(2**60))  # as torch says it
    with pytest.raises(UserError, match=r"'cpu' .*batch_chunks=1; set them lower or close other programs$"):
        greedy.separate(song(0.1), RATE)


def test_an_error_that_is_not_for_want_of_memory_stays_what_it_is():
    def broken(x_t, mixture, t):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="^mat1"):
        stubbed(broken).separate(song(0.1), RATE)


# --- songs of a low sample rate -----------------------------------------------------------------------------------


FINE = ["audio.n_fft=512", "audio.win_length=512", "audio.hop_length=128", "separation.chunk_seconds=1"]


def test_near_the_nyquist_frequency_of_a_low_rate_the_gain_rule_takes_over():
    """A network that hears vocals below 1800 Hz only, and a song of 4 kHz: from 0.45 * 4000 = 1800 Hz on, the share of
    the vocals in the band below (all of it) is carried upward."""

    def deaf_above_1800_hz(x_t, mixture, t):
        heard = (torch.arange(mixture.shape[2]) * RATE / 512 < 1800).float()
        return mixture * heard[:, None]

    separator = stubbed(deaf_above_1800_hz, *FINE)

    def share_of_high_tone_in_vocals(sample_rate: int) -> float:
        t = torch.arange(2 * sample_rate) / sample_rate
        high = torch.sin(2 * torch.pi * 1850 * t)
        vocals, _ = separator.separate((high + torch.sin(2 * torch.pi * 1200 * t))[None], sample_rate)
        return float(vocals @ high / (high @ high))

    assert share_of_high_tone_in_vocals(RATE) == pytest.approx(0.0, abs=0.02)
    assert share_of_high_tone_in_vocals(4000) == pytest.approx(1.0, abs=0.02)


def test_at_its_own_rate_a_network_of_the_whole_band_decides_in_every_bin():
    """The rule for low rates must not take the top of the band from a model that was trained on it."""

    def deaf_below_3700_hz(x_t, mixture, t):
        return mixture * (torch.arange(mixture.shape[2]) * RATE / 512 > 3700).float()[:, None]

    t = torch.arange(2 * RATE) / RATE
    high = torch.sin(2 * torch.pi * 3850 * t)
    vocals, _ = stubbed(deaf_below_3700_hz, *FINE).separate((high + torch.sin(2 * torch.pi * 3000 * t))[None], RATE)
    assert db(vocals[0] - high, high) < -35


@pytest.mark.parametrize(("shape", "rate", "said"), [
    ((3 * RATE, 2), RATE, "channels, samples"), ((0, 100), RATE, "channels, samples"), ((2, 100), 0, "resample"),
    ((2, 100), 400_000, "resample"), ((2, 100), 8000.0, "whole number"), ((2, 100), "8000", "whole number"),
])  # fmt: skip
def test_a_waveform_that_is_none_is_one_sentence(separator, shape, rate, said):
    with pytest.raises(UserError, match=said):
        separator.separate(torch.zeros(shape), rate)


@pytest.mark.parametrize(("rate", "value", "said"), [
    (999, 0.0, "resample"), (8000.0, 0.0, "whole number"), (RATE, torch.nan, "not finite"), (RATE, torch.inf, "not"),
])  # fmt: skip
def test_a_stream_that_is_none_is_one_sentence(separator, rate, value, said):
    with pytest.raises(UserError, match=said):
        next(separator.separate_stream(lambda: [torch.full((2, 100), value)], rate))


def test_numbers_of_every_kind_and_place_come_back_as_float32_on_the_cpu(separator):
    class Elsewhere:  # in the place of a GPU, all that a tensor there is good for before it was moved
        def to(self, device, dtype):
            return mixture.to(device, dtype)

    mixture = song(0.5)
    vocals, _ = separator.separate(mixture, RATE)
    ((streamed, rest),) = separator.separate_stream(lambda: [Elsewhere()], RATE)
    assert torch.equal(streamed, vocals) and rest.dtype == torch.float32 and rest.device.type == "cpu"
    assert torch.equal(separator.separate(mixture.double().numpy(), np.int64(RATE))[0], vocals)


def test_samples_that_are_no_numbers_are_refused():
    mixture = song(0.5)
    mixture[0, 100] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        random_separator().separate(mixture, RATE)


def test_a_precision_that_was_chosen_for_another_machine_does_not_bind_this_one(tmp_path):
    for amp, own in (("fp16", "auto"), ("bf16", "auto"), ("none", "none")):
        config = tiny_config(f"train.amp={amp}")
        weights = UNet(config).state_dict()
        save_checkpoint(tmp_path / "a.pt", {"config": to_dict(config), "ema": weights, "model": weights, "step": 1})
        separator = Separator.from_checkpoint(tmp_path / "a.pt", "cpu")
        assert separator.config.train.amp == own
        assert separator.configured(None, ["train.amp=bf16"]).denoiser.dtype == torch.bfloat16
