"""The loss: which bins count, that the truth costs nothing, and the auxiliary loss against waveforms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from diffvocsep.config import AudioConfig, Config, DataConfig
from diffvocsep.counterfactual import generate
from diffvocsep.denoiser import Denoiser
from diffvocsep.training import objective as objective_module
from diffvocsep.training.objective import Objective

PREDICTION_TYPES = ["epsilon", "v", "x_0", "residual"]
RATE, N_FFT, HOP = 44100, 512, 128
BIN_HZ = RATE / N_FFT


def make_objective(**sections: dict) -> Objective:
    """At n_fft 512, 96 bins; every section's keys may be changed."""
    config = Config(
        audio=AudioConfig(n_fft=N_FFT, hop_length=HOP, win_length=N_FFT), data=DataConfig(segment_seconds=0.1)
    )
    sections = {"diffusion": {"terminal_share": 0.0}} | sections
    return Objective(replace(config, **{name: replace(getattr(config, name), **s) for name, s in sections.items()}))


def make_batch(items: int = 2, gain: float = 1.0, **changes: Tensor) -> dict[str, Tensor]:
    """Noisy waveforms, `(B, 2, 4410)`, each item of its own loudness."""
    generator = torch.Generator().manual_seed(0)
    loudness = gain * 0.05 * 2.0 ** torch.arange(items).reshape(-1, 1, 1)
    vocals, accompaniment = (loudness * torch.randn(items, 2, 4410, generator=generator) for _ in range(2))
    batch = {
        "vocals": vocals,
        "accompaniment": accompaniment,
        "source_rate": torch.full((items,), float(RATE)),
        "level_db": torch.zeros(items),
    }
    return batch | changes


class Network:
    """Stands in for the UNet: says what it is told, as a leaf whose gradient can be read, and remembers its input."""

    def __init__(self, answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self.answer = answer

    def __call__(self, x_t: Tensor, mixture: Tensor, t: Tensor, guessed: Tensor) -> Tensor:
        self.x_t, self.mixture, self.t, self.guessed = x_t, mixture, t, guessed
        self.output = self.answer(x_t, mixture, t).detach().clone().requires_grad_()
        return self.output


def noise_for(objective: Objective, items: int, seed: int = 5) -> Tensor:
    return torch.randn(items, *objective.shape(), generator=torch.Generator().manual_seed(seed))


def evaluate(
    objective: Objective, batch: dict[str, Tensor], answer: Callable | None = None
) -> tuple[dict[str, Tensor], Network]:
    """The loss terms of `answer`, by default of an output that is random, and the stand-in that gave it."""
    items = len(batch["vocals"])
    network = Network(answer or (lambda x_t, mixture, t: noise_for(objective, items, seed=6)))
    uniform = torch.linspace(0.1, 0.4, items)[:, None].expand(-1, 2)
    return objective(network, batch, uniform, noise_for(objective, items)), network


def spectra(objective: Objective, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """STFTs of mixture and accompaniment up to the modelled bins, from torch."""
    window = torch.hann_window(N_FFT)
    made = []
    for waveform in (batch["vocals"] + batch["accompaniment"], batch["accompaniment"]):
        padded = torch.nn.functional.pad(waveform, (0, -waveform.shape[-1] % HOP))
        stft = torch.stft(padded.flatten(0, 1), N_FFT, HOP, window=window, pad_mode="constant", return_complex=True)
        made.append(stft.unflatten(0, (-1, 2))[:, :, : objective.frontend.bins] / window.square().sum().sqrt())
    return made[0], made[1]


def truth(objective: Objective, batch: dict[str, Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What a perfect network outputs, from the definitions of the prediction types."""
    mixture, accompaniment = spectra(objective, batch)
    representation, noise = objective.frontend.representation, noise_for(objective, len(batch["vocals"]))
    statistics = representation.statistics(mixture)
    x_mixture, x_0 = (representation.encode(s, statistics) for s in (mixture, accompaniment))

    def answer(x_t: Tensor, _: Tensor, t: Tensor) -> Tensor:
        signal_power = objective.diffusion.alphas_cumprod[t].float().reshape(-1, 1, 1, 1)
        velocity = signal_power.sqrt() * noise - (1 - signal_power).sqrt() * x_0
        targets = {"epsilon": noise, "v": velocity, "x_0": x_0, "residual": x_mixture - x_0}
        return targets[objective.diffusion.prediction_type]

    return answer


def gradient(term: Tensor, network: Network) -> Tensor:
    return torch.autograd.grad(term, network.output, retain_graph=True)[0]


# The truth


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("representation", ["complex", "magnitude"])
def test_a_perfect_network_has_no_diffusion_loss(prediction_type, representation):
    objective = make_objective(
        audio={"representation": representation},
        diffusion={"prediction_type": prediction_type, "terminal_share": 0.0},
    )
    batch = make_batch()
    terms, _ = evaluate(objective, batch, truth(objective, batch))
    assert terms["diffusion"] < 1e-5
    terms, _ = evaluate(objective, batch)
    assert terms["diffusion"] > 0.5


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_network_has_no_vocal_loss(prediction_type):
    objective = make_objective(diffusion={"prediction_type": prediction_type, "terminal_share": 0.0})
    batch = make_batch()
    right, _ = evaluate(objective, batch, truth(objective, batch))
    answer = truth(objective, batch)
    wrong, _ = evaluate(objective, batch, lambda *inputs: answer(*inputs) * 1.1)
    assert right["vocals"] < 1e-4
    assert wrong["vocals"] > 1e-2


def test_the_network_sees_the_forward_process_and_the_mixture():
    objective, batch = make_objective(), make_batch()
    _, network = evaluate(objective, batch)
    mixture, accompaniment = spectra(objective, batch)
    statistics = objective.frontend.representation.statistics(mixture)
    x_mixture, x_0 = (objective.frontend.representation.encode(s, statistics) for s in (mixture, accompaniment))
    assert network.t.tolist() == [100, 400]
    signal_power = objective.diffusion.alphas_cumprod[network.t].float().reshape(-1, 1, 1, 1)
    x_t = signal_power.sqrt() * x_0 + (1 - signal_power).sqrt() * noise_for(objective, 2)
    torch.testing.assert_close(network.mixture, x_mixture, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(network.x_t, x_t, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n_fft", [512, 401])
def test_shape_is_that_of_the_networks_input(n_fft):
    objective = make_objective(audio={"n_fft": n_fft, "hop_length": 100, "win_length": n_fft})
    _, network = evaluate(objective, make_batch())
    assert network.mixture.shape == (2, *objective.shape())


# Bins that a source does not hold


@pytest.mark.parametrize("representation", ["complex", "magnitude"])
def test_bins_above_the_source_rate_carry_no_loss(representation):
    """0.45 x 16 kHz = 7.2 kHz for the second item; the first holds all modelled bins."""
    objective = make_objective(audio={"representation": representation})
    terms, network = evaluate(objective, make_batch(source_rate=torch.tensor([44100.0, 16000.0])))
    first_untrusted = int(7200 / BIN_HZ) + 1
    assert first_untrusted < objective.frontend.bins
    for name in ("diffusion", "vocals"):
        touched = gradient(terms[name], network).abs().amax(dim=(1, 3)) > 0
        assert touched[0].sum() >= objective.frontend.bins - 1  # the vocal loss may miss a bin by a clamped magnitude
        assert touched[1, first_untrusted - 1]
        assert not touched[1, first_untrusted:].any()


def test_the_diffusion_loss_is_the_mean_over_trusted_bins():
    objective = make_objective()
    batch = make_batch(source_rate=torch.tensor([44100.0, 8000.0]))
    target = truth(objective, batch)
    terms, network = evaluate(objective, batch)
    error = (network.output - target(network.x_t, network.mixture, network.t)).detach().double().numpy()
    distance = np.abs(error) + error**2
    expected = [distance[0].mean(), distance[1, :, : int(3600 / BIN_HZ) + 1].mean()]
    np.testing.assert_allclose(terms["per_item"].numpy(), expected, rtol=1e-4)
    assert terms["diffusion"].item() == pytest.approx(np.mean(expected), rel=1e-4)


# Own guesses


def test_x_t_is_made_of_the_guess_from_the_same_noise_where_the_draw_says_so():
    """What DDIM with one step to t hands the network: the guess from pure noise in the place of the truth."""
    objective = make_objective(train={"refine_share": 0.5})
    batch, noise = make_batch(items=4), noise_for(objective, 4)
    seen = []

    def network(x_t: Tensor, mixture: Tensor, t: Tensor, guessed: Tensor) -> Tensor:
        seen.append((x_t, mixture, t, guessed))
        return 0.1 * mixture + 0.01 * x_t

    timesteps = [300, 300, 999, 999]
    uniform = torch.tensor([[t / 1000 + 5e-4, draw] for t, draw in zip(timesteps, (0.2, 0.6, 0.2, 0.6), strict=True)])
    terms = objective(network, batch, uniform, noise)
    (from_noise, _, first, none), (x_t, x_mixture, t, guessed) = seen
    assert terms["t"].tolist() == t.tolist() == timesteps and guessed.tolist() == [1, 0, 0, 0]
    assert torch.equal(from_noise, noise[:1]) and first.tolist() == [999] and none is None
    signal_power = objective.diffusion.alphas_cumprod[300].float()
    x_0 = x_mixture[0] - (0.1 * x_mixture[0] + 0.01 * noise[0])  # residual
    expected = signal_power.sqrt() * x_0 + (1 - signal_power).sqrt() * noise[0]
    torch.testing.assert_close(x_t[0], expected, rtol=1e-5, atol=1e-6)
    plain = make_objective()
    plain(network, batch, uniform, noise)
    assert torch.equal(x_t[1:], seen[-1][0][1:]) and not seen[-1][3].any() and len(seen) == 3


TEMPERATURES = [(2, 0), (4, 1), (8, 0.25)]  # by the number of steps
SECOND_STEPS = [(sampler, *setting, 2) for sampler in ("ddim", "dpmpp") for setting in TEMPERATURES]
THIRD_STEPS = [("ddim", 4, 1, 3), ("ddim", 8, 0, 3)]  # that of dpmpp looks back at the first


@pytest.mark.parametrize(("sampler", "steps", "temperature", "step"), SECOND_STEPS + THIRD_STEPS)
def test_a_guess_is_what_the_sampler_hands_the_network_in_its_next_step(sampler, steps, temperature, step):
    """The same x_t, at the same timestep, with the same flag; half of the guesses are those of a second step."""
    diffusion = {"temperature": temperature, "terminal_share": 0.0}
    objective = make_objective(train={"refine_share": 1.0}, diffusion=diffusion)
    timestep = round(1000 * (steps - step + 1) / steps) - 1
    batch, noise, seen = make_batch(), noise_for(objective, 2), []

    def network(x_t: Tensor, mixture: Tensor, t: Tensor, guessed: Tensor) -> Tensor:
        seen.append((x_t, mixture, t, guessed))
        return 0.3 * mixture + 0.1 * x_t + 0.001 * t.reshape(-1, 1, 1, 1)

    objective(network, batch, torch.tensor([[(timestep + 0.5) / 1000, (step - 2) / 2]] * 2), noise)
    trained = seen.copy()
    settings = replace(objective.config.diffusion, sampler=sampler, ddim_steps=steps)
    seen.clear()
    generate(Denoiser(network, objective.diffusion), trained[0][1], settings, lambda step: noise)
    for here, there in zip(trained, seen, strict=False):
        for one, other in zip(here, there, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert len(trained) == step and len(seen) == steps and trained[-1][2].tolist() == [timestep] * 2


def test_a_guess_begins_where_averaged_draws_do():
    """With all of the noise, though the temperature is 0: draws to be averaged must differ."""
    diffusion = {"temperature": 0.0, "samples": 2, "terminal_share": 0.0}
    objective = make_objective(train={"refine_share": 1.0}, diffusion=diffusion)
    noise, seen = noise_for(objective, 2), []

    def network(x_t: Tensor, mixture: Tensor, t: Tensor, guessed: Tensor) -> Tensor:
        seen.append(x_t)
        return 0.3 * mixture

    objective(network, make_batch(), torch.full((2, 2), 0.3), noise)
    assert len(seen) == 2 and torch.equal(seen[0], noise)
    generate(Denoiser(network, objective.diffusion), noise, objective.config.diffusion, lambda step: noise)
    assert torch.equal(seen[-1], noise)


def test_no_step_that_refines_a_guess_is_taken_at_pure_noise():
    """Not even where t is the next to last, and nothing lies between."""
    objective, seen = make_objective(train={"refine_share": 1.0}), []

    def network(x_t: Tensor, mixture: Tensor, t: Tensor, guessed: Tensor) -> Tensor:
        seen.append((t.tolist(), None if guessed is None else guessed.tolist()))
        return 0.3 * mixture

    objective(network, make_batch(), torch.tensor([[0.9985, 0.9]] * 2), noise_for(objective, 2))
    assert seen == [([999, 999], None), ([998, 998], [1, 1]), ([998, 998], [1, 1])]


def test_no_gradient_runs_through_the_guess():
    """It is that of a network which is handed the guess from outside."""
    objective = make_objective(train={"refine_share": 1.0})
    weight, seen = torch.tensor([0.3, 0.2], requires_grad=True), []

    def network(x_t: Tensor, mixture: Tensor, t: Tensor, guessed: Tensor) -> Tensor:
        seen.append(x_t)
        return weight[0] * mixture + weight[1] * x_t

    uniform, noise = torch.full((2, 2), 0.3), noise_for(objective, 2)
    objective(network, make_batch(), uniform, noise)["loss"].backward()
    (_, guess), gradient = seen, weight.grad
    assert gradient.abs().min() > 0 and not guess.requires_grad

    plain, weight.grad = make_objective(), None
    terms = plain(lambda x_t, *inputs: network(guess, *inputs), make_batch(), uniform, noise)
    terms["diffusion"].backward()
    weight_vocals = plain.config.train.loss_voc_weight
    assert weight_vocals and not torch.allclose(gradient, weight.grad)  # the vocals' loss is the rest
    no_vocals = make_objective(train={"refine_share": 1.0, "loss_voc_weight": 0.0})
    expected, weight.grad = weight.grad, None
    no_vocals(network, make_batch(), uniform, noise)["loss"].backward()
    torch.testing.assert_close(weight.grad, expected)


# The same music under another voice


TWINS = [1, 2]  # of four items


def twin_batch(**changes: Tensor) -> dict[str, Tensor]:
    batch = make_batch(items=4)
    batch["twin_vocals"] = batch["vocals"].clone()
    batch["twin_vocals"][1] *= 2
    batch["twin_vocals"][2] = 0
    return batch | changes


def hears(answer: Callable[[Tensor, Tensor, Tensor], Tensor], share: float = 0.5, **how) -> tuple[dict, Network]:
    """The terms of `answer` for four items at falling noise, two of them with a twin."""
    objective = make_objective(train={"consistency_share": share})
    network = Network(answer)
    for name, value in how.pop("attributes", {}).items():
        setattr(network, name, value)
    uniform = torch.tensor([[0.9995, 0], [0.6, 0], [0.3, 0], [0.1, 0]])
    return objective(network, how.get("batch", twin_batch()), uniform, noise_for(objective, 4)), network


def half(x_t: Tensor, mixture: Tensor, t: Tensor) -> Tensor:
    """Half of the mixture is the voice."""
    return 0.5 * mixture


def test_a_network_that_ignores_the_voice_is_consistent():
    terms, network = hears(lambda x_t, mixture, t: mixture - 0.7 * x_t)  # residual: x_0 is 0.7 x_t
    assert len(network.x_t) == 6 and terms["consistency"] < 1e-7
    assert torch.equal(network.x_t[4:], network.x_t[TWINS]) and torch.equal(network.t[4:], network.t[TWINS])
    assert not torch.equal(network.mixture[4:], network.mixture[TWINS])
    assert hears(half)[0]["consistency"] > 0.01


def test_a_network_that_knows_the_truth_pays_nothing_for_its_twins():
    objective = make_objective()
    noise = noise_for(objective, 4)[[0, 1, 2, 3, *TWINS]]

    def truth(x_t: Tensor, mixture: Tensor, t: Tensor) -> Tensor:
        signal_power = objective.diffusion.alphas_cumprod[t].float().reshape(-1, 1, 1, 1)
        x_0 = (x_t - (1 - signal_power).sqrt() * noise) / signal_power.sqrt().clamp_min(1e-3)
        return mixture - x_0

    terms, _ = hears(truth)
    ends = terms["per_item"][1:]  # x_t of the first says nothing
    assert ends.max() < 1e-4 and terms["consistency"] < 1e-5
    gap = terms["loss"] - terms["diffusion"] - 0.3 * terms["vocals"] - terms["consistency"]
    assert gap < 1e-4  # the twins' own


def test_the_consistency_is_the_distance_of_both_estimates_and_pulls_at_both():
    terms, network = hears(half)
    apart = (0.5 * (network.mixture[4:] - network.mixture[TWINS])).double()
    per_twin = (apart.square() + apart.abs()).mean(dim=(1, 2, 3))
    assert terms["consistency"].item() == pytest.approx(per_twin.sum().item() / 4, rel=1e-4)
    slope = gradient(terms["consistency"], network)
    assert not slope[[0, 3]].any() and slope[[*TWINS, 4, 5]].abs().amax(dim=(1, 2, 3)).min() > 0
    torch.testing.assert_close(slope[4:], -slope[TWINS])


def test_a_twin_counts_like_an_item():
    """Its own error stands in the loss beside those of the items; the curves are of the items alone."""
    terms, network = hears(half)
    x_0 = network.mixture[TWINS].double() - 0.5 * network.mixture[TWINS]
    own = terms["loss"] - terms["diffusion"] - 0.3 * terms["vocals"] - terms["consistency"]
    swapped = twin_batch()
    swapped["vocals"][TWINS], swapped["twin_vocals"][TWINS] = swapped["twin_vocals"][TWINS], swapped["vocals"][TWINS]
    other, _ = hears(half, batch=swapped)
    assert x_0.any() and own.item() == pytest.approx(other["per_item"][TWINS].sum().item() / 4, rel=1e-4)
    assert other["consistency"].item() == pytest.approx(terms["consistency"].item(), rel=1e-5)
    assert len(terms["per_item"]) == len(terms["t"]) == 4


def test_a_twin_that_is_none_changes_nothing():
    batch = twin_batch()
    batch["twin_vocals"] = batch["vocals"]
    alike, network = hears(half, batch=batch)
    without, _ = hears(half, share=0.0, batch=make_batch(items=4))
    assert alike.pop("consistency") == 0 and len(network.x_t) == 4
    assert alike.keys() == without.keys() and all(torch.equal(alike[name], without[name]) for name in without)


def test_where_shapes_are_fixed_the_terms_are_the_same():
    """Every item is computed with a twin then."""
    fixed, network = hears(half, attributes={"fixed_shapes": True})
    chosen, _ = hears(half)
    assert len(network.x_t) == 8
    for name in chosen:
        torch.testing.assert_close(fixed[name], chosen[name], rtol=1e-5, atol=1e-6)
    assert not gradient(fixed["consistency"], network)[[0, 3, 4, 7]].any()


def test_where_sizes_matter_batches_come_in_eights(monkeypatch):
    """As on CUDA: what is computed beyond what is needed changes nothing; twins beyond those expected are none."""
    expected, _ = hears(half)
    monkeypatch.setattr(objective_module, "sizes_matter", lambda device: True)
    padded, network = hears(half)
    assert len(network.x_t) == 4 + 4  # eight, were there so many items
    for name in expected:
        torch.testing.assert_close(padded[name], expected[name], rtol=1e-5, atol=1e-6)

    chosen = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1.0])
    rows = objective_module.rows_to_compute(chosen, network)
    assert len(rows) == len(set(rows.tolist())) == 8 and {1, 2, 4, 11} < set(rows.tolist())
    assert len(objective_module.rows_to_compute(torch.ones(12), network, most=8)) == 8
    assert len(objective_module.rows_to_compute(torch.zeros(12), network)) == 0


@pytest.mark.parametrize("items", [8, 32, 64])
@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.9, 1.0])
def test_where_sizes_matter_hardly_a_twin_is_left_out(share, items):
    drawn = np.random.default_rng(0).binomial(items, share, 100_000)
    kept = np.minimum(drawn, objective_module.most_twins(share, items))
    assert kept.mean() > 0.99 * drawn.mean()


def test_more_twins_than_the_mean_are_heard_where_sizes_matter(monkeypatch):
    """Of 32 items with a share of 0.25, eleven."""
    monkeypatch.setattr(objective_module, "sizes_matter", lambda device: True)
    batch, network = make_batch(items=32, gain=1e-9), Network(half)
    batch["twin_vocals"] = batch["vocals"].clone()
    batch["twin_vocals"][:11] = 0
    objective = make_objective(train={"consistency_share": 0.25})
    terms = objective(network, batch, torch.full((32, 2), 0.5), noise_for(objective, 32))
    assert len(network.x_t) == 32 + 16
    assert gradient(terms["consistency"], network)[:32].abs().amax(dim=(1, 2, 3)).count_nonzero() == 11


@pytest.mark.parametrize("representation", ["complex", "magnitude"])
def test_a_twin_over_silence_is_as_loud_as_a_song(representation):
    """What is divided by is the level of both together, not that of the silent one."""
    objective = make_objective(audio={"representation": representation}, train={"consistency_share": 1.0})
    batch = make_batch()
    batch["twin_vocals"] = batch["vocals"].clone()
    batch["vocals"][:], batch["accompaniment"][:] = 0, 0
    terms, network = evaluate(objective, batch, half)
    assert terms["loss"].isfinite() and network.mixture.abs().max() < 20 and network.mixture[2:].std() > 0.1


# The vocals' loss


@pytest.mark.parametrize("log_weight", [0.0, 0.7])
@pytest.mark.parametrize("bandwidth", [8270.0, 0.0])
def test_the_vocal_loss_equals_one_computed_from_waveforms(bandwidth, log_weight):
    """From torch.istft at the full rate. The first 96 bins are synthesised at half the rate, where the same unit-power
    spectrum gives a waveform sqrt(2) times as large."""
    objective = make_objective(audio={"bandwidth": bandwidth}, train={"loss_log_weight": log_weight})
    batch = make_batch(source_rate=torch.full((2,), 4.0 * RATE))  # every bin counts
    terms, network = evaluate(objective, batch)
    mixture, accompaniment = spectra(objective, batch)
    statistics = objective.frontend.representation.statistics(mixture)
    x_0 = network.mixture - network.output.detach()  # residual
    estimate = mixture - objective.frontend.representation.decode(x_0, statistics, mixture)
    level = mixture.abs().square().mean(dim=(1, 2, 3), keepdim=True).sqrt()

    def waveform(spectrum: Tensor) -> Tensor:
        missing = N_FFT // 2 + 1 - objective.frontend.bins
        padded = torch.nn.functional.pad(spectrum, (0, 0, 0, missing)).flatten(0, 1)
        window = torch.hann_window(N_FFT)
        full = torch.istft(padded * window.square().sum().sqrt(), N_FFT, HOP, window=window)
        return full[:, ::2] * 2**0.5 if bandwidth else full

    ours, wanted = waveform(estimate / level), waveform((mixture - accompaniment) / level)
    expected = (ours - wanted).abs().mean()
    for n in (256, 1024):
        window = torch.hann_window(n)
        padded = [torch.nn.functional.pad(w, (0, -w.shape[-1] % (n // 2))) for w in (ours, wanted)]
        options = dict(window=window, pad_mode="constant", return_complex=True)
        unit_power = window.square().sum().sqrt()
        magnitudes = [torch.stft(w, n, n // 2, **options).abs() / unit_power for w in padded]
        expected += (magnitudes[0] - magnitudes[1]).abs().mean() / 2
        logarithms = [(magnitude + 0.002).log() for magnitude in magnitudes]
        expected += log_weight * (logarithms[0] - logarithms[1]).abs().mean() / 2
    assert terms["vocals"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_total_is_the_weighted_sum():
    for weight in (0.3, 2.0):
        terms, _ = evaluate(make_objective(train={"loss_voc_weight": weight}), make_batch())
        assert terms["loss"].item() == pytest.approx((terms["diffusion"] + weight * terms["vocals"]).item(), rel=1e-6)


def test_without_weight_there_is_no_vocal_loss():
    terms, _ = evaluate(make_objective(train={"loss_voc_weight": 0.0}), make_batch())
    assert "vocals" not in terms
    assert torch.equal(terms["loss"], terms["diffusion"])


@pytest.mark.parametrize("representation", ["complex", "magnitude"])
def test_the_vocal_loss_pulls_elsewhere_than_the_diffusion_loss(representation):
    """A second loss whose gradient is parallel to the first would be a learning rate."""
    objective = make_objective(audio={"representation": representation})
    batch = make_batch()
    answer, error = truth(objective, batch), 0.1 * noise_for(objective, 2, seed=9)
    terms, network = evaluate(objective, batch, lambda *inputs: answer(*inputs) + error)
    main, vocals = (gradient(terms[name], network).flatten() for name in ("diffusion", "vocals"))
    cosine = torch.nn.functional.cosine_similarity(main, vocals, dim=0).item()
    print(f"\n{representation}: cosine of the two gradients {cosine:.2f}")
    assert 0 < cosine < 0.9


@pytest.mark.parametrize("how", ["complex", "mask", "magnitude", "normalized"])
@pytest.mark.parametrize("representation", ["complex", "magnitude"])
def test_every_subtraction_trains_even_on_silence(representation, how):
    objective = make_objective(audio={"representation": representation}, separation={"subtract": how})
    batch = make_batch()
    batch["vocals"][0], batch["accompaniment"][0] = 0, 0
    batch["vocals"][1, :, 2000:], batch["accompaniment"][1, :, 2000:] = 0, 0
    terms, network = evaluate(objective, batch)
    slope = gradient(terms["loss"], network)
    assert terms["loss"].isfinite() and slope.isfinite().all()
    assert gradient(terms["vocals"], network)[1].abs().max() > 0


# Loudness


@pytest.mark.parametrize("gain_db", [-12.0, 12.0])
@pytest.mark.parametrize("representation", ["complex", "magnitude"])
def test_the_loss_does_not_depend_on_loudness(representation, gain_db):
    objective = make_objective(audio={"representation": representation})
    before, _ = evaluate(objective, make_batch())
    after, _ = evaluate(objective, make_batch(gain=10 ** (gain_db / 20)))
    for name in ("loss", "diffusion", "vocals", "per_item"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0])
def test_level_db_is_how_much_louder_the_rest_of_the_song_is(exponent):
    """The level that everything is divided by rises by `level_db`; the truth still costs nothing."""
    objective, level_db = make_objective(audio={"compression": exponent}), torch.tensor([6.0, -3.0])
    batch = make_batch(level_db=level_db)
    _, plain = evaluate(objective, make_batch())
    factor = (10 ** (-exponent * level_db / 20)).reshape(-1, 1, 1, 1)
    residual = truth(objective, batch)(plain.x_t, plain.mixture, plain.t)
    terms, network = evaluate(objective, batch, lambda *_: residual * factor)
    torch.testing.assert_close(network.mixture, plain.mixture * factor, rtol=1e-4, atol=1e-5)
    assert terms["diffusion"] < 1e-4 and terms["vocals"] < 1e-4
