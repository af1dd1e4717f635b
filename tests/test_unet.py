"""The denoiser: shapes, what a frame may depend on, and its layers against torch's own."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diffvocsep import frame_norm
from diffvocsep.config import AudioConfig, Config, DataConfig, ModelConfig
from diffvocsep.frame_norm import FrameNorm
from diffvocsep.unet import (
    ATTENTION_SECONDS,
    Attention,
    DualPath,
    FrequencyLinear,
    ResBlock,
    UNet,
    magnitudes,
    rotate,
    timestep_embedding,
)

AUDIO = AudioConfig(n_fft=512, hop_length=128, win_length=512, bandwidth=3000.0)  # 34 bins
MODEL = ModelConfig(base_channels=16, channels_mult=(1, 2, 2), attention=(2,), attention_heads=2)


def make_unet(audio: dict | None = None, **model) -> UNet:
    config = Config(data=DataConfig(segment_seconds=0.1))
    return UNet(replace(config, audio=replace(AUDIO, **audio or {}), model=replace(MODEL, **model))).eval()


def perturbed(module: nn.Module) -> nn.Module:
    """Every parameter away from its initial value, so that nothing is hidden behind layers that start at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(model: UNet, frames: int, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    shape = (batch, 4, model.bins, frames)
    return tensor(*shape), tensor(*shape, seed=1), torch.full((batch,), 500)


# The network as a whole


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("representation", ["complex", "magnitude"])
@pytest.mark.parametrize(("bins", "frames"), [(34, 24), (34, 1), (33, 7), (1, 13), (20, 31)])
def test_any_number_of_bins_and_frames(channels, representation, bins, frames):
    model = perturbed(make_unet({"channels": channels, "representation": representation}))
    shape = (2, channels * (2 if representation == "complex" else 1), bins, frames)
    output = model(tensor(*shape), tensor(*shape, seed=1), torch.tensor([0, 999]))
    assert output.shape == shape
    assert output.isfinite().all() and output.std() > 0


def test_more_bins_than_modelled_are_refused():
    with pytest.raises(ValueError, match="models 34 frequency bins, but was given 35"):
        make_unet()(torch.zeros(1, 4, 35, 8), torch.zeros(1, 4, 35, 8), torch.tensor([0]))


@pytest.mark.parametrize(
    "model", [{"patch": (1, 1)}, {"patch": (3, 5)}, {"channels_mult": (1, 1, 2, 2)}, {"blocks": 2}]
)
def test_other_sizes(model):
    unet = perturbed(make_unet(attention=(), **model))
    assert unet(*inputs(unet, 11)).shape == (1, 4, 34, 11)
    assert unet.time_stride == unet.patches.time * 2 ** (len(model.get("channels_mult", (1, 2, 2))) - 1)


def test_the_untrained_network_outputs_zero():
    """So the residual prediction starts with the mixture as the accompaniment."""
    model = make_unet()
    assert (model(*inputs(model, 24)) == 0).all()


def receptive_field(model: UNet) -> int:
    """How many frames an output frame looks ahead or back, over all positions on the grid."""
    furthest = 0
    for frame in range(80, 80 + model.time_stride):
        x_t, mixture, t = (x.requires_grad_() if x.is_floating_point() else x for x in inputs(model, 168))
        model(x_t, mixture, t)[..., frame].square().sum().backward()
        seen = (x_t.grad.abs() + mixture.grad.abs()).amax(dim=(0, 1, 2)).nonzero()
        furthest = max(furthest, int((seen - frame).abs().max()))
    return furthest


@pytest.fixture
def short_attention(monkeypatch) -> int:
    """Attention along time with a window of 3 frames at scale 2: 24 of the input's, whose number is returned."""
    seconds = 24 * AUDIO.hop_length / AUDIO.sample_rate
    monkeypatch.setattr("diffvocsep.unet.ATTENTION_SECONDS", seconds)
    return 24


@pytest.mark.parametrize("attention", [(), (2,)])
def test_a_frame_depends_on_its_neighbourhood_only(attention, short_attention):
    """47 frames: two convolutions on each scale, down and up, and the grid; attention adds its window."""
    model = perturbed(make_unet(attention=attention))
    reach = receptive_field(model)
    most = 47 + (short_attention if attention else 0)
    assert (most - 24 if attention else 16) < reach <= most

    x_t, mixture, t = inputs(model, 168)
    frame, far = 80, torch.arange(168).sub(80).abs() > reach
    other_x_t, other_mixture = torch.where(far, 5 * tensor(168), x_t), torch.where(far, 0, mixture)
    one, other = model(x_t, mixture, t), model(other_x_t, other_mixture, t)
    assert (one[..., frame] - other[..., frame]).abs().max() < 1e-6 * one[..., frame].abs().max()
    assert (one[..., far] - other[..., far]).abs().max() > 0.1 * one.abs().max()


def test_the_window_of_attention_is_given_in_seconds():
    """At every scale: what a frame there stands for doubles from one to the next."""
    model = make_unet(attention=(0, 2))
    for i in (0, 2):
        frame = MODEL.patch[1] * 2**i * AUDIO.hop_length / AUDIO.sample_rate
        assert model.down[i].attention.time.window == pytest.approx(ATTENTION_SECONDS / frame, abs=0.5)
    assert model.down[0].attention.frequency.window is None


@pytest.mark.parametrize("attention", [(), (2,)])
def test_shifting_by_the_time_stride_shifts_the_output(attention, short_attention):
    model = perturbed(make_unet(attention=attention))
    x_t, mixture, t = inputs(model, 200)
    stride = model.time_stride
    whole, later = model(x_t, mixture, t), model(x_t[..., stride:], mixture[..., stride:], t)
    torch.testing.assert_close(later[..., 72:-72], whole[..., stride + 72 : -72], rtol=1e-5, atol=1e-5)
    off_grid = model(x_t[..., 1:], mixture[..., 1:], t)[..., 72:-72]
    assert (off_grid - whole[..., 73:-72]).abs().max() > 1e-3  # the grid is what makes the difference


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("representation", ["complex", "magnitude"])
def test_the_head_is_a_gain_on_each_input_and_an_offset(channels, representation):
    """Real and imaginary parts multiply as complex numbers; magnitudes multiply as they are."""
    model = make_unet({"channels": channels, "representation": representation})
    count, patch = channels * (2 if representation == "complex" else 1), math.prod(MODEL.patch)
    gain, gain_x, offset = (tensor(count, seed=seed) for seed in range(3))
    with torch.no_grad():
        model.head[-1].bias.copy_(torch.cat([gain, gain_x, offset]).repeat_interleave(patch))
    x_t, mixture = tensor(2, count, 33, 13), tensor(2, count, 33, 13, seed=1)
    output = model(x_t, mixture, torch.tensor([0, 999])).detach()

    def times(gain: Tensor, x: Tensor) -> Tensor:
        if representation == "magnitude":
            return x * gain[:, None, None]
        product = torch.complex(x[:, 0::2], x[:, 1::2]) * torch.complex(gain[0::2], gain[1::2])[:, None, None]
        return torch.stack([product.real, product.imag], dim=2).flatten(1, 2)

    expected = times(gain, mixture) + times(gain_x, x_t) + offset[:, None, None]
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_the_stem_sees_magnitudes():
    """Of left, right, their mean and half their difference; of the one channel in mono; magnitudes as they are."""
    left, right = (
        torch.complex(tensor(2, 5, 7), tensor(2, 5, 7, seed=1)),
        torch.complex(tensor(2, 5, 7), tensor(2, 5, 7)),
    )
    x = torch.stack([left.real, left.imag, right.real, right.imag], dim=1)
    expected = torch.stack([left, right, (left + right) / 2, (left - right) / 2], dim=1).abs()
    torch.testing.assert_close(magnitudes(x, parts=2), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(magnitudes(x[:, :2], parts=2), expected[:, :1], rtol=1e-4, atol=1e-4)
    assert magnitudes(x, parts=1).shape == (2, 0, 5, 7)
    silence = torch.zeros(1, 4, 5, 7, requires_grad=True)
    magnitudes(silence, parts=2).sum().backward()
    assert silence.grad.isfinite().all()


def test_items_do_not_see_each_other():
    model = perturbed(make_unet())
    x_t, mixture, _ = inputs(model, 24, batch=3)
    t = torch.tensor([0, 400, 999])
    together = model(x_t, mixture, t)
    alone = [model(x_t[i : i + 1], mixture[i : i + 1], t[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_the_output_depends_on_both_inputs_and_the_timestep():
    model = perturbed(make_unet())
    x_t, mixture, t = inputs(model, 24)
    output = model(x_t, mixture, t)
    for changed in [(mixture, mixture, t), (x_t, x_t, t), (x_t, mixture, t - 1), (x_t, mixture, t + 499)]:
        assert (model(*changed) - output).abs().max() > 1e-4


def test_the_network_is_told_which_x_t_was_guessed():
    """Item by item; None says that none was."""
    model = perturbed(make_unet())
    x_t, mixture, t = inputs(model, 24, batch=2)
    untold, told = model(x_t, mixture, t), model(x_t, mixture, t, torch.tensor([0.0, 1.0]))
    assert torch.equal(told[0], untold[0]) and (told[1] - untold[1]).abs().max() > 1e-4
    assert torch.equal(model(x_t, mixture, t, torch.zeros(2)), untold)


def test_weights_that_refine_begin_at_zero_noise_and_touch_nothing_but_guesses():
    """Item by item, bit for bit: until they are trained, a guess is not seen; then it is."""
    model, without = make_unet(refine_rank=2), perturbed(make_unet())
    shared = {name: weight for name, weight in without.state_dict().items() if name != "guess"}
    model.load_state_dict(model.state_dict() | shared)
    x_t, mixture, t = inputs(model, 24, batch=2)
    last, flags = torch.full_like(t, 999), torch.tensor([0.0, 1.0])
    zero_noise, unmarked = without(torch.zeros_like(x_t), mixture, last), without(x_t, mixture, t - 300)
    refined = model(x_t, mixture, t - 300, flags)
    assert torch.equal(refined[1], zero_noise[1]) and torch.equal(refined[0], unmarked[0])

    perturbed(model).load_state_dict(model.state_dict() | shared)
    refined = model(x_t, mixture, t - 300, flags)
    assert torch.equal(refined[0], unmarked[0]) and torch.equal(model(x_t, mixture, t - 300), unmarked)
    for other in (model(2 * x_t, mixture, t - 300, flags), model(x_t, mixture, t - 400, flags)):
        assert (refined[1] - other[1]).abs().max() > 1e-3


@pytest.mark.parametrize("rank", [0, 2])
def test_a_mark_of_zero_is_no_mark_in_bf16_too(rank):
    model = perturbed(make_unet(refine_rank=rank))
    x_t, mixture, t = inputs(model, 24, batch=2)
    kinds = []
    hook = model.down[0].register_forward_pre_hook(lambda _, values: kinds.append(values[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        unmarked, marked = model(x_t, mixture, t - 300), model(x_t, mixture, t - 300, torch.tensor([0.0, 1.0]))
    hook.remove()
    assert torch.equal(unmarked[0], marked[0]) and not torch.equal(unmarked[1], marked[1])
    assert kinds == [torch.bfloat16] * 2


def test_timesteps_count_relative_to_their_number():
    """t / T is what the network sees: with T = 100, timestep 50 looks like 500 of 1000."""
    model = perturbed(make_unet())
    short = copy.deepcopy(model)
    short.timesteps = 100
    x_t, mixture, t = inputs(model, 16)
    torch.testing.assert_close(short(x_t, mixture, t // 10), model(x_t, mixture, t))


@pytest.mark.parametrize("rank", [0, 2])
def test_every_parameter_learns(rank):
    model = perturbed(make_unet(attention=(0, 2), blocks=2, refine_rank=rank)).train()
    x_t, mixture, t = inputs(model, 24)
    (model(x_t, mixture, t, torch.ones(1)) - mixture).square().mean().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


def test_channels_last_changes_nothing():
    model = perturbed(make_unet())
    x_t, mixture, t = inputs(model, 24, batch=2)
    output = model(x_t, mixture, t)
    model = model.to(memory_format=torch.channels_last)
    again = model(*(x.to(memory_format=torch.channels_last) for x in (x_t, mixture)), t)
    torch.testing.assert_close(again, output, rtol=1e-5, atol=1e-5)


def test_bf16_autocast_is_close():
    model = perturbed(make_unet())
    x_t, mixture, t = inputs(model, 24)
    output = model(x_t, mixture, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x_t, mixture, t).float()
    error = ((rough - output).norm() / output.norm()).item()
    assert 0 < error < 0.05  # bf16 has 8 bits; 0 would mean that autocast did nothing


# Its parts


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (7, 7), (8, 8), (11, 1), (20, 5), (32, 8), (36, 6), (64, 8), (121, 1)]
)
def test_frame_norm_is_group_norm_of_each_frame(channels, groups):
    norm = perturbed(FrameNorm(channels))
    assert norm.num_groups == groups
    x = 3 * tensor(2, channels, 5, 9) + 1
    frames = [nn.functional.group_norm(x[:, :, k], groups, norm.weight, norm.bias, norm.eps) for k in range(5)]
    torch.testing.assert_close(norm(x), torch.stack(frames, dim=2), rtol=1e-4, atol=1e-5)


def test_timestep_embedding_is_the_formula():
    t, embedding = torch.tensor([0, 1, 37, 999]), timestep_embedding(torch.tensor([0, 1, 37, 999]), 64)
    for row, step in zip(embedding.tolist(), t.tolist(), strict=True):
        angles = [step / 10000 ** (i / 32) for i in range(32)]
        assert row == pytest.approx([math.cos(a) for a in angles] + [math.sin(a) for a in angles], abs=2e-4)
    assert torch.pdist(timestep_embedding(torch.arange(1000), 64)).min() > 0.1


def turned(x: Tensor) -> Tensor:
    """Rows `(L, D)`, D even, as complex numbers of first and second half, times e^{i position 10000^(-k / (D / 2))}."""
    half = x.shape[1] // 2
    angles = torch.tensor([[i * 10000 ** (-k / half) for k in range(half)] for i in range(len(x))])
    product = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([product.real, product.imag], dim=1)


@pytest.mark.parametrize("window", [None, 2])
def test_attention_is_softmax_over_the_places_within_the_window(window):
    channels, heads, length = 8, 2, 6
    layer = perturbed(Attention(channels, heads, window))
    rows = tensor(3, length, channels)
    expected = []
    for row in rows:
        normed = nn.functional.layer_norm(row, (channels,), layer.norm.weight, layer.norm.bias)
        q, k, v = (normed @ layer.qkv.weight.T + layer.qkv.bias).split(channels, dim=1)
        heard = []
        for head in range(heads):
            part = slice(head * channels // heads, (head + 1) * channels // heads)
            scores = turned(q[:, part]) @ turned(k[:, part]).T / math.sqrt(channels / heads)
            for i, j in [(i, j) for i in range(length) for j in range(length) if window and abs(i - j) > window]:
                scores[i, j] = -math.inf
            heard.append(torch.softmax(scores, dim=1) @ v[:, part])
        expected.append(row + torch.cat(heard, dim=1) @ layer.out.weight.T + layer.out.bias)
    torch.testing.assert_close(layer(rows), torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 6, 7])
def test_a_rotation_tells_how_far_apart_two_places_are_and_not_where(channels):
    q, k = tensor(20, channels), tensor(20, channels, seed=1)

    def score(first: int, second: int) -> Tensor:
        return (rotate(q, torch.arange(20) + first) * rotate(k, torch.arange(20) + second)).sum(-1)

    torch.testing.assert_close(score(0, 3), score(500, 503), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(rotate(q, torch.arange(20)).norm(dim=-1), q.norm(dim=-1))
    assert channels == 1 or (score(0, 3) - score(0, 4)).abs().max() > 0.1
    assert torch.equal(rotate(q, torch.arange(20))[:, 2 * (channels // 2) :], q[:, 2 * (channels // 2) :])


def test_dual_path_is_attention_within_frames_and_then_within_rows():
    layer = perturbed(DualPath(8, 2, window=2))
    x = tensor(2, 8, 7, 5)  # (B, C, T, F)
    frames = torch.stack([layer.frequency(x[:, :, k].mT).mT for k in range(7)], dim=2)
    rows = torch.stack([layer.time(frames[..., k].mT).mT for k in range(5)], dim=3)
    torch.testing.assert_close(layer(x), rows, rtol=1e-4, atol=1e-5)


def test_dual_path_hears_no_frame_outside_its_window():
    seen = reach(perturbed(DualPath(8, 2, window=2)), tensor(1, 8, 9, 5), frame=4, frequency=3)
    assert seen[2:7].all() and not seen[[0, 1, 7, 8]].any()


def reach(layer: nn.Module, x: Tensor, frame: int, frequency: int) -> Tensor:
    """`(T, F)`: which inputs the output at one place depends on."""
    x = x.clone().requires_grad_()
    layer(x)[:, :, frame, frequency].square().sum().backward()
    return x.grad.abs().amax(dim=(0, 1)) > 0


@pytest.mark.parametrize("kind", ["linear", "norm"])
def test_frequency_layers_see_all_bins_of_their_own_frame(kind):
    layers = {
        "linear": FrequencyLinear(8, 20, divisor=4),
        "norm": FrameNorm(16),  # two channels per group
    }
    layer = perturbed(layers[kind])
    seen = reach(layer, tensor(1, 16 if kind == "norm" else 8, 5, 20), frame=2, frequency=3)
    assert seen[2].all() and not seen[[0, 1, 3, 4]].any()


def test_frequency_linear_hears_another_bin_directly():
    """Not only through the normalization: without it, too, the far end of the spectrum arrives."""
    layer = perturbed(FrequencyLinear(8, 20, divisor=4))
    layer.norm = nn.Identity()
    assert reach(layer, tensor(1, 8, 5, 20), frame=2, frequency=3)[2].all()
    assert layer.down.out_features == 8  # at least, however large the divisor


@pytest.mark.parametrize("layer", [ResBlock(8, 8, 16), FrequencyLinear(8, 20, 4), DualPath(8, 2, 3)])
def test_layers_start_near_identity(layer):
    x = tensor(1, 8, 5, 20)
    if isinstance(layer, ResBlock):
        change = layer(x, tensor(1, 16)) - x  # nothing but the bias of the last convolution
        assert change.std(dim=(0, 2, 3)).max() < 1e-6
    else:
        assert torch.equal(layer(x), x)


def test_film_scales_and_shifts_each_channel():
    """With an embedding of zeros and a bias of zeros the block is plain; the scale multiplies, the shift adds."""
    block = perturbed(ResBlock(8, 8, 16))
    x, embedding = tensor(1, 8, 5, 20), tensor(1, 16)
    scale, shift = (block.film.weight @ embedding[0] + block.film.bias).reshape(2, 8, 1, 1)
    h = block.norm2(block.conv1(nn.functional.silu(block.norm1(x)))) * (1 + scale) + shift
    torch.testing.assert_close(block(x, embedding), x + block.conv2(nn.functional.silu(h)), rtol=1e-4, atol=1e-5)


def with_gradients(model: UNet, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """The output of a network, and the gradients of all its weights in a row."""
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        output = model(*inputs(model, 24), torch.ones(1)).float()
    output.square().mean().backward()
    return output.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().norm() / other.detach().norm())


def test_layers_that_keep_channels_last_compute_what_the_others_do(monkeypatch):
    """What GPUs compute, here on a CPU: in float32 the same, in bf16 as near to it as what CPUs compute in bf16."""
    model = perturbed(make_unet(base_channels=20)).to(memory_format=torch.channels_last)
    expected = with_gradients(model)
    on_cpu = with_gradients(model, torch.bfloat16)
    monkeypatch.setattr(frame_norm, "channels_stay_last", lambda x: True)
    layouts = set()
    for layer in model.modules():
        if isinstance(layer, (FrameNorm, FrequencyLinear, DualPath, ResBlock)):
            layer.register_forward_hook(
                lambda *args: layouts.add((args[-1].dtype, args[-1].is_contiguous(memory_format=torch.channels_last)))
            )
    same, rough = with_gradients(model), with_gradients(model, torch.bfloat16)
    assert layouts == {(torch.float32, True), (torch.bfloat16, True)}
    for i in range(2):
        assert distance(same[i], expected[i]) < 1e-5
        assert 0 < distance(rough[i], expected[i]) < 1.5 * distance(on_cpu[i], expected[i])


@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_a_frame_norm_that_keeps_channels_last_is_group_norm(offset, monkeypatch):
    norm = perturbed(FrameNorm(20))
    x = (tensor(2, 20, 5, 24) + offset).to(memory_format=torch.channels_last).requires_grad_()
    wanted = tensor(2, 20, 5, 24, seed=1)
    found = []
    for last in (False, True):
        monkeypatch.setattr(frame_norm, "channels_stay_last", lambda x, last=last: last)
        output = norm(x)
        found.append([output, *torch.autograd.grad((output * wanted).sum(), [x, norm.weight, norm.bias])])
    for one, other in zip(*found, strict=True):
        assert distance(one, other) < (1e-3 if offset else 1e-5)
