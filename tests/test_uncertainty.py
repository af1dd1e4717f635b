"""What tells how far the vocals may be wrong: it changes nothing, lies where it says, and goes with its model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import t as students_t
from test_inference import assert_one_sentence, names
from test_inference import call as call  # a fixture
from tiny import RATE, db, random_unet, song, tiny_config

from diffvocsep import checkpoint
from diffvocsep.audio import read, write
from diffvocsep.audio.channel_groups import GROUP_SIZE
from diffvocsep.config import Config, to_dict
from diffvocsep.separator import Separator
from diffvocsep.uncertainty import ScaleHead, load_uncertainty
from diffvocsep.uncertainty.head import levels, octaves
from diffvocsep.util.errors import UserError


def random_head(config: Config, seed: int = 1) -> ScaleHead:
    torch.manual_seed(seed)
    head = ScaleHead(config)
    with torch.no_grad():
        head.log_factor.normal_()
    head.sdr.copy_(torch.tensor([1.0, 0.5, -2.0, 3.0]))
    return head


def separator(*overrides: str) -> Separator:
    config = tiny_config(*overrides)
    return Separator(random_unet(config), config, head=random_head(config))


def measured(one: Separator, mixture: torch.Tensor, **options):
    uncertainty = one.uncertainty()
    vocals, _ = one.separate(mixture, RATE, uncertainty=uncertainty, **options)
    return vocals, uncertainty


@pytest.fixture(scope="module")
def found():
    one, mixture = separator(), 0.3 * song(0.9)  # four chunks
    return one, mixture, *measured(one, mixture)


@pytest.fixture
def knowing(tmp_path):
    """The file of a model that has a head."""
    config, path = tiny_config(), tmp_path / "knowing.safetensors"
    state = {"ema": random_unet(config).state_dict(), "head": random_head(config).state_dict(), "step": 1}
    checkpoint.release(state | {"config": to_dict(config)}, path)
    return path


def test_to_measure_changes_no_vocals(found):
    one, mixture, vocals, _ = found
    assert torch.equal(one.separate(mixture, RATE)[0], vocals)


def test_each_bin_of_each_channel_has_a_scale(found):
    one, mixture, _, uncertainty = found
    values, audio = uncertainty.values(), one.config.audio
    spectrum = one.frontend.modelled(mixture[None])[0]
    assert values["scale"].shape == spectrum.shape == (2, len(values["frequency"]), len(values["time"]))
    assert values["frequency"][1] == RATE / audio.n_fft and values["time"][1] == audio.hop_length / RATE
    assert (values["scale"] > 0).all() and len(np.unique(values["scale"])) > 1000


def test_a_chunk_more_or_less_is_not_heard(found):
    _, mixture, _, uncertainty = found
    whole = measured(separator("separation.chunk_seconds=2"), mixture)[1].scale.float()
    assert db(uncertainty.scale.float() - whole, whole) < -40


def test_a_louder_song_has_larger_errors_and_the_same_sdr(found):
    one, mixture, _, uncertainty = found
    _, louder = measured(one, 4 * mixture)
    assert torch.allclose(louder.scale.float(), 4 * uncertainty.scale.float(), rtol=0.02, atol=1e-5)
    assert louder.sdr() == pytest.approx(uncertainty.sdr(), abs=0.02)


def test_a_song_as_quiet_as_80_db_down_has_the_same_doubt(found):
    one, mixture, _, uncertainty = found
    _, quiet = measured(one, 1e-4 * mixture)
    assert quiet.scale.count_nonzero() == uncertainty.scale.count_nonzero()
    assert torch.allclose(quiet.scale, 1e-4 * uncertainty.scale, rtol=0.02)
    assert quiet.sdr() == pytest.approx(uncertainty.sdr(), abs=0.02)


def test_settings_that_change_the_errors_are_told_from_those_that_do_not():
    one = separator()
    assert one.head.settings_not_fitted(one.settings(steps=2, samples=3)) == [
        "diffusion.ddim_steps",
        "diffusion.samples",
    ]
    masked = one.configured(None, ["separation.subtract=mask", "separation.chunk_seconds=2", "train.seed=7"])
    assert masked.head.settings_not_fitted(masked.settings()) == ["separation.subtract"]
    assert one.head.settings_not_fitted(one.settings()) == []


def test_a_measured_song_tells_which_settings_the_head_was_not_fitted_to():
    one, mixture = separator(), 0.3 * song(0.2)
    assert measured(one, mixture)[1].not_fitted == one.uncertainty(seed=3).not_fitted == []
    assert one.uncertainty(steps=2).not_fitted == ["diffusion.ddim_steps"]
    assert measured(one, mixture, steps=2)[1].not_fitted == ["diffusion.ddim_steps"]  # though made for one step


def test_silence_is_certain():
    mixture = 0.3 * song(0.9)
    mixture[:, 2000:5000] = 0
    _, uncertainty = measured(separator(), mixture)
    silent = uncertainty.scale[..., 2064 // 16 : 4936 // 16]
    assert not silent.any() and uncertainty.scale.any()
    assert np.isnan(measured(separator(), torch.zeros(2, 4000))[1].sdr()).all()


def test_the_predicted_sdr_is_the_line_of_the_energies(found):
    one, mixture, _, uncertainty = found
    spectra: list[torch.Tensor] = []
    stitch = one.frontend.stft.overlap_add
    one.frontend.stft.overlap_add = lambda spectrum: (spectra.append(spectrum), stitch(spectrum))[1]
    try:
        one.separate(mixture, RATE)
    finally:
        del one.frontend.stft.overlap_add
    vocals = torch.cat(spectra, dim=-1).abs().square().sum()
    implied = 10 * np.log10(float(vocals / uncertainty.scale.double().square().sum()))
    assert uncertainty.sdr() == pytest.approx([1 + 0.5 * implied + off for off in (0, -2, 3)], abs=0.01)


def test_intervals_are_those_of_student(found):
    uncertainty = found[-1]
    draws = students_t.rvs(uncertainty.freedom, size=200_000, random_state=0)
    for coverage in (0.5, 0.9):
        inside = np.abs(draws) < uncertainty.half_width(coverage)
        assert inside.mean() == pytest.approx(coverage, abs=0.005)


def test_octaves_and_levels_are_where_they_say():
    hertz = np.arange(768) * 44100 / 4096
    expected = np.digitize(hertz, [125, 250, 500, 1000, 2000, 4000])
    assert octaves(768, Config().audio).tolist() == expected.tolist()
    mixture = torch.tensor([0.001, 0.17, 0.19, 0.9, 1.1, 5.5, 5.8])[None, None, :, None] * 3j
    assert levels(mixture, torch.full((1, 1, 1, 1), 3.0)).flatten().tolist() == [0, 0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("overrides", [
    ("audio.channels=1",), ("audio.representation=magnitude", "separation.subtract=normalized"),
    ("diffusion.ddim_steps=3", "diffusion.samples=2"), ("separation.batch_chunks=3",),
])  # fmt: skip
def test_every_kind_of_model_can_know(overrides):
    mixture = torch.cat([0.3 * song(0.6)] * 2)[:3]  # an odd channel is doubled
    vocals, uncertainty = measured(separator(*overrides), mixture)
    assert vocals.shape == mixture.shape and (uncertainty.scale > 0).all()
    assert len(uncertainty.scale) == (3 if "audio.channels=1" in overrides else 4)


# --- checkpoints --------------------------------------------------------------------------------------------------


def test_the_head_goes_with_its_model(knowing, found):
    one, mixture, vocals, uncertainty = found
    loaded = Separator.from_checkpoint(knowing, "cpu").configured(None, ["separation.batch_chunks=2"])
    again, numbers = measured(loaded, mixture)
    assert torch.allclose(again, vocals, atol=1e-5)
    assert torch.allclose(numbers.scale.float(), uncertainty.scale.float(), rtol=0.01)
    assert checkpoint.load_model(knowing)[0].state_dict().keys() == one.model.state_dict().keys()


def test_a_model_that_was_changed_loses_its_head(knowing, tmp_path):
    mean, alone = tmp_path / "mean.safetensors", tmp_path / "alone.safetensors"
    assert checkpoint.run([str(knowing), str(knowing), str(mean)]) == checkpoint.run([str(knowing), str(alone)]) == 0
    assert Separator.from_checkpoint(mean, "cpu").head is None and Separator.from_checkpoint(alone, "cpu").head


def test_a_head_does_not_go_with_settings_it_was_not_fitted_to(knowing, tmp_path, capsys):
    same, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
    assert checkpoint.run([str(knowing), "--set", "separation.batch_chunks=2", str(same)]) == 0
    assert Separator.from_checkpoint(same, "cpu").head and not capsys.readouterr().err
    assert checkpoint.run([str(knowing), "--set", "diffusion.ddim_steps=4", str(other)]) == 0
    assert Separator.from_checkpoint(other, "cpu").head is None
    err = capsys.readouterr().err
    assert "diffusion.ddim_steps" in err and "scripts.fit_uncertainty" in err and err.count("\n") == 1


def test_a_head_of_another_model_is_refused(tmp_path):
    config, path = tiny_config(), tmp_path / "mixed.safetensors"
    head = ScaleHead(tiny_config("model.base_channels=4")).state_dict()
    checkpoint.release(
        {"ema": random_unet(config).state_dict(), "head": head, "config": to_dict(config), "step": 1}, path
    )
    with pytest.raises(UserError, match=r"uncertainty in '.*mixed\.safetensors' do not fit"):
        Separator.from_checkpoint(path, "cpu")


# --- inference.py -------------------------------------------------------------------------------------------------


def test_numbers_and_picture_of_a_song(call, folder, knowing):
    arguments = ["--input", "song.wav", "--output", "v.wav"]
    code, out, err = call(*arguments, "--uncertainty", "u 수.npz", "--plot", "p.png", use=knowing)
    assert (code, err) == (0, "") and " dB (in 8 songs of 10: " in out
    assert {"p.png", "song.wav", "u 수.npz", "v.wav"} <= set(names(folder))
    values = load_uncertainty(folder / "u 수.npz")
    assert values["scale"].shape == (2, len(values["frequency"]), len(values["time"])) and values["scale"].max() > 0
    assert values["coverage"].tolist() == [0.5, 0.8, 0.9] and (np.diff(values["half_width"]) > 0).all()
    middle, low, high = values["sdr"]
    assert low < middle < high and f"{middle:.1f} dB" in out
    before = read("v.wav")[0]
    assert call(*arguments, use=knowing)[0] == 0
    assert torch.equal(read("v.wav")[0], before)


def test_a_model_without_a_head_says_how_to_get_one(call, folder):
    arguments = ["--input", "song.wav", "--output", "v.wav"]
    assert_one_sentence(call(*arguments, "--uncertainty", "u.npz"), "python -m scripts.fit_uncertainty")
    assert names(folder) == ["song.wav"]
    assert call(*arguments, "--plot", "p.png")[0] == 0  # the picture does without


def test_a_model_without_a_head_fills_no_uncertainty_of_another(found):
    config = tiny_config()
    with pytest.raises(UserError, match="teach it with: python -m scripts.fit_uncertainty"):
        Separator(random_unet(config), config).separate(found[1], RATE, uncertainty=separator().uncertainty())


def test_under_other_settings_the_numbers_come_with_a_note(call, folder, knowing):
    arguments = ["--input", "song.wav", "--output", "v.wav", "--steps", "2"]
    code, _, err = call(*arguments, "--uncertainty", "u.npz", use=knowing)
    assert code == 0 and err.count("\n") == 1 and "note: the uncertainty was fitted under another diffusion.dd" in err
    code, out, err = call(*arguments, "--plot", "p.png", use=knowing)  # a picture for which nobody asked does without
    assert (code, err) == (0, "") and "SDR" not in out


def test_a_picture_of_more_channels_than_go_at_once(call, folder, knowing):
    write("many.wav", 0.05 * song(0.5)[:1].repeat(GROUP_SIZE + 1, 1), RATE)
    arguments = ["--input", "many.wav", "--output", "v.wav"]
    assert call(*arguments, "--plot", "p.png", use=knowing)[0] == 0 and "p.png" in names(folder)
    code, _, err = call(*arguments, "--uncertainty", "u.npz", use=knowing)
    assert code == 2 and err.count("\n") == 1 and "channels" in err


def test_other_bad_requests(call, folder):
    assert_one_sentence(call("--input", "song.wav", "--output", "v.wav", "--uncertainty", "u.csv"), "u.csv")
    both = ["--input", "song.wav", "song.wav", "--output", "out"]
    assert_one_sentence(call(*both, "--uncertainty", "u.npz"), "one song")
    (folder / "bad.npz").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match=r"bad\.npz"):
        load_uncertainty(folder / "bad.npz")


@pytest.mark.parametrize("spoil", ["cut", "npy"])
def test_a_file_that_is_none_is_one_sentence(tmp_path, spoil):
    path = tmp_path / "numbers.npz"
    with open(path, "wb") as file:
        np.savez_compressed(file, time=np.arange(1000.0)) if spoil == "cut" else np.save(file, np.zeros(3))
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"numbers\.npz"):
        load_uncertainty(path)
