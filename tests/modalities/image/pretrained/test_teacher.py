"""The teachers against diffusers' own pipelines, which are run as a user runs them."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.core.denoisers import Denoiser, FeatureDenoiser
from fewstep.core.paths import LinearPath
from fewstep.core.samplers import dpmpp_2m, euler

PROMPTS = ["a blue mug", "Two red chairs, seen from above"]  # the second is longer than the tiny CLIP reads
GUIDANCE_SCALE, NUM_STEPS = 3.0, 3
HEIGHT, WIDTH = 64, 32  # SANA takes only multiples of 32
# Both sides compute in float32, and w extrapolates the difference of two passes through a random network.
TOLERANCE = 2e-4
TIMES = torch.tensor([0.9, 0.3])

# of numpy, inside diffusers' DPM-Solver
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PACKED = ("flux", "qwen_image")
TRUE_GUIDANCE = {"true_cfg_scale": GUIDANCE_SCALE}
CALLS: dict[str, dict[str, Any]] = {
    "pixart_alpha": {"use_resolution_binning": False},
    "pixart_sigma": {"use_resolution_binning": False},
    "sana": {"use_resolution_binning": False},
    "flux": TRUE_GUIDANCE | {"negative_prompt": ["", ""], "guidance_scale": 3.5},
    "qwen_image": TRUE_GUIDANCE | {"negative_prompt": [" ", " "]},
}


@dataclass(frozen=True)
class Run:
    """What a real pipeline did: the noise it began with, the latents after every step, its images."""

    noise: Tensor
    latents: list[Tensor]
    images: Tensor


def pack(x: Tensor) -> Tensor:
    """As FLUX packs, written out place by place."""
    rows, columns = x.shape[2] // 2, x.shape[3] // 2
    tokens = [
        x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
        for row in range(rows)
        for column in range(columns)
    ]
    return torch.stack(tokens, 1)


def unpack(tokens: Tensor, shape: torch.Size) -> Tensor:
    x = torch.empty(shape)
    for index in range(tokens.shape[1]):
        row, column = divmod(index, shape[3] // 2)
        cell = tokens[:, index].reshape(shape[0], shape[1], 2, 2)
        x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = cell
    return x


@pytest.fixture(scope="module")
def noise(teacher: Any) -> Tensor:
    shape = (len(PROMPTS), *teacher.latent_shape(HEIGHT, WIDTH))
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def condition(teacher: Any) -> dict[str, Tensor]:
    return teacher.encode_prompt(PROMPTS)


@pytest.fixture(scope="module")
def run(name: str, pipeline: Any, noise: Tensor) -> Run:
    latents = []
    step = pipeline.scheduler.step

    @functools.wraps(step)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        latents.append(unpack(result[0], noise.shape) if name in PACKED else result[0])
        return result

    pipeline.scheduler.step = recorded
    images = pipeline(
        prompt=PROMPTS,
        latents=pack(noise) if name in PACKED else noise,
        num_inference_steps=NUM_STEPS,
        height=HEIGHT,
        width=WIDTH,
        output_type="pt",
        **{"guidance_scale": GUIDANCE_SCALE, **CALLS.get(name, {})},
    ).images
    del pipeline.scheduler.step
    return Run(noise, latents, images)


def one_step(
    teacher: Any, denoiser: Denoiser, x: Tensor, times: tuple[float, float], condition: dict[str, Tensor]
) -> Tensor:
    solver = euler if isinstance(teacher.path, LinearPath) else dpmpp_2m  # whose single step is DDIM's
    return solver(denoiser, x, times, condition)


def test_every_step_of_the_pipeline_is_reproduced(
    teacher: Any, run: Run, condition: dict[str, Tensor]
) -> None:
    guided = teacher.guided(GUIDANCE_SCALE)
    times = teacher.times(NUM_STEPS, run.noise)
    assert len(times) == NUM_STEPS + 1
    for step, (before, after) in enumerate(pairwise([run.noise, *run.latents])):
        x = one_step(teacher, guided, before, (times[step], times[step + 1]), condition)
        torch.testing.assert_close(x, after, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_wrong_time_weight_or_condition_would_be_noticed(
    teacher: Any, run: Run, condition: dict[str, Tensor]
) -> None:
    t, t_next, *_ = teacher.times(NUM_STEPS, run.noise)

    def error(w: float, shift: float, given: dict[str, Tensor]) -> float:
        class Shifted(torch.nn.Module):
            path = teacher.path

            def forward(self, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
                return teacher.guided(w)(x_t, t - shift, condition)

        x = one_step(teacher, Shifted(), run.noise, (t, t_next), given)
        return (x - run.latents[0]).abs().max().item()

    assert error(GUIDANCE_SCALE, 0.0, condition) < TOLERANCE
    assert error(GUIDANCE_SCALE + 0.1, 0.0, condition) > 10 * TOLERANCE
    assert error(GUIDANCE_SCALE, 0.01, condition) > 10 * TOLERANCE
    for key, value in condition.items():
        other = 1 - value if key == "mask" else value.flip(0)
        assert error(GUIDANCE_SCALE, 0.0, condition | {key: other}) > 10 * TOLERANCE, key


def test_the_images_of_the_pipeline_are_reproduced(teacher: Any, run: Run) -> None:
    images = teacher.decode(run.latents[-1])
    torch.testing.assert_close(images, run.images * 2 - 1, rtol=TOLERANCE, atol=TOLERANCE)
    assert images.std() > 0.1


def test_guidance_of_one_is_the_conditional_teacher(
    teacher: Any, noise: Tensor, condition: dict[str, Tensor]
) -> None:
    torch.testing.assert_close(
        teacher.guided(1.0)(noise, TIMES, condition), teacher(noise, TIMES, condition), rtol=0, atol=0
    )


def test_samples_of_a_batch_do_not_touch_each_other(
    teacher: Any, noise: Tensor, condition: dict[str, Tensor]
) -> None:
    both = teacher(noise, TIMES, condition)
    for row in range(2):
        one = {name: value[row : row + 1] for name, value in condition.items()}
        alone = teacher(noise[row : row + 1], TIMES[row : row + 1], one)
        torch.testing.assert_close(alone[0], both[row], rtol=TOLERANCE, atol=TOLERANCE)


def test_a_condition_of_one_row_holds_for_the_whole_batch(teacher: Any, noise: Tensor) -> None:
    null = teacher.null_condition
    repeated = {name: value.expand(2, *value.shape[1:]).clone() for name, value in null.items()}
    torch.testing.assert_close(teacher(noise, TIMES, null), teacher(noise, TIMES, repeated), rtol=0, atol=0)


def test_gradients_reach_the_input_and_the_weights(
    teacher: Any, noise: Tensor, condition: dict[str, Tensor]
) -> None:
    """The gradient by the input against a central difference."""
    precise = teacher.copy().double()
    x = noise.double().requires_grad_()
    rows = {name: value.double() if value.is_floating_point() else value for name, value in condition.items()}
    times = TIMES.double()
    direction = torch.randn_like(x)
    readout = torch.randn_like(x)
    (precise(x, times, rows) * readout).sum().backward()
    assert x.grad is not None
    first = precise.architecture.blocks(precise.network)[0]
    assert all(parameter.grad is not None for parameter in first.parameters())
    step = 1e-4  # no less: some networks compute parts in float32 whatever their dtype is
    with torch.no_grad():
        forward, backward = (precise(x + sign * step * direction, times, rows) for sign in (1, -1))
    slope = ((forward - backward) * readout).sum() / (2 * step)
    torch.testing.assert_close((x.grad * direction).sum(), slope, rtol=1e-2, atol=1e-2)


def middle(teacher: Any) -> torch.nn.Module:
    return teacher.architecture.blocks(teacher.network)[teacher.num_blocks // 2]


def test_a_copy_shares_all_but_the_network(teacher: Any, noise: Tensor, condition: dict[str, Tensor]) -> None:
    before = teacher(noise, TIMES, condition).detach()
    student = teacher.copy()
    assert student.codec is teacher.codec
    assert student.text is teacher.text
    assert {id(p) for p in student.parameters()}.isdisjoint({id(p) for p in teacher.parameters()})
    assert all(name.startswith("network.") for name in student.state_dict())
    torch.testing.assert_close(student(noise, TIMES, condition), before, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.1)
    torch.testing.assert_close(teacher(noise, TIMES, condition), before, rtol=0, atol=0)
    assert (student(noise, TIMES, condition) - before).abs().max() > 1e-3


def test_a_pair_of_teacher_and_guidance_is_copied_as_one(teacher: Any) -> None:
    guided = copy.deepcopy(teacher.guided(2.0))
    assert guided.denoiser.network is not teacher.network
    assert guided.denoiser.codec is teacher.codec


def test_a_saved_student_loads_with_diffusers_and_with_us(
    name: str, teacher: Any, folder: Path, noise: Tensor, condition: dict[str, Tensor], tmp_path: Path
) -> None:
    from fewstep.modalities.image.pretrained import load_teacher

    student = teacher.copy()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.01)
    expected = student(noise, TIMES, condition)
    assert student.save_student(tmp_path) == tmp_path / student.architecture.network
    again = load_teacher(folder, network=tmp_path, text_encoders=False)
    torch.testing.assert_close(again(noise, TIMES, condition), expected, rtol=0, atol=0)
    plain = type(student.network).from_pretrained(tmp_path, subfolder=student.architecture.network)
    for (key, value), other in zip(
        plain.state_dict().items(), student.network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, other, rtol=0, atol=0, msg=key)


def test_a_folder_saved_again_is_the_same_teacher(
    pipeline: Any, teacher: Any, noise: Tensor, condition: dict[str, Tensor], tmp_path: Path
) -> None:
    from fewstep.modalities.image.pretrained import load_teacher

    pipeline.save_pretrained(tmp_path)
    again = load_teacher(tmp_path)
    for name, value in again.encode_prompt(PROMPTS).items():
        torch.testing.assert_close(value, condition[name], rtol=0, atol=0)
    torch.testing.assert_close(
        again(noise, TIMES, condition), teacher(noise, TIMES, condition), rtol=0, atol=0
    )
    torch.testing.assert_close(again.decode(noise), teacher.decode(noise), rtol=0, atol=0)


def test_features_are_those_of_the_middle_block(
    teacher: Any, noise: Tensor, condition: dict[str, Tensor]
) -> None:
    seen = []
    handle = middle(teacher).register_forward_hook(lambda module, args, output: seen.append(output))
    plain = teacher(noise, TIMES, condition)
    handle.remove()
    assert isinstance(teacher, FeatureDenoiser)
    features = teacher.features(noise, TIMES, condition)
    image = seen[0][-1] if isinstance(seen[0], tuple) else seen[0]
    flat = image.flatten(2).transpose(1, 2) if image.ndim == 4 else image
    torch.testing.assert_close(features.flatten(1, 2), flat, rtol=0, atol=0)
    torch.testing.assert_close(teacher(noise, TIMES, condition), plain, rtol=0, atol=0)


def test_features_lie_where_the_latents_are(
    teacher: Any, noise: Tensor, condition: dict[str, Tensor]
) -> None:
    """A change of one corner of the latents shows most in that corner of the first block's map."""
    (before,) = teacher.block_features(noise, TIMES, condition, blocks=[0])
    changed = noise.clone()
    changed[:, :, -2:, :2] += 5.0
    (after,) = teacher.block_features(changed, TIMES, condition, blocks=[0])
    rows, columns = before.shape[1:3]
    assert noise.shape[2] % rows == 0
    assert noise.shape[3] % columns == 0
    place = (after - before).norm(dim=-1)[0].argmax().item()
    row, column = divmod(int(place), columns)
    assert row >= rows - 2 * rows // noise.shape[2] - 1
    assert column <= 2 * columns // noise.shape[3]


def test_gradients_pass_through_features(teacher: Any, noise: Tensor, condition: dict[str, Tensor]) -> None:
    x = noise.clone().requires_grad_()
    for features in teacher.block_features(x, TIMES, condition, blocks=[0, -1]):
        (gradient,) = torch.autograd.grad(features.square().sum(), x, retain_graph=True)
        assert gradient.abs().max() > 0


def test_gradient_checkpointing_changes_neither_output_nor_features_nor_gradients(
    teacher: Any, noise: Tensor, condition: dict[str, Tensor]
) -> None:
    student, saving = teacher.copy(), teacher.copy()
    saving.network.enable_gradient_checkpointing()
    for one in (student, saving):
        one.network.train()
        (features,) = one.block_features(noise, TIMES, condition, blocks=[-1])
        (one(noise, TIMES, condition).square().mean() + features.square().mean()).backward()
    for (key, expected), other in zip(student.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(other.grad, expected.grad, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_full_precision(
    dtype: torch.dtype, teacher_of: Callable[[str], Any], folder_of: Callable[[str], Path]
) -> None:
    from fewstep.modalities.image.pretrained import load_teacher

    full, half = teacher_of("sd3"), load_teacher(folder_of("sd3"), dtype=dtype)
    x = torch.randn(2, *full.latent_shape(HEIGHT, WIDTH))
    condition = full.encode_prompt(PROMPTS)
    x0 = half(x, TIMES, condition)
    assert x0.dtype == torch.float32
    assert half(x.to(dtype), TIMES, condition).dtype == dtype
    torch.testing.assert_close(x0, full(x, TIMES, condition), rtol=0.05, atol=0.05)
    assert {value.dtype for value in half.encode_prompt(PROMPTS).values()} == {dtype}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda teacher, x: teacher(x, TIMES, None), "condition=NoneType must be a dict with text, pooled"),
        (lambda teacher, x: teacher(x, TIMES, {"text": x}), r"condition=\['text'\] must be a dict"),
        (
            lambda teacher, x: teacher(x, TIMES, teacher.encode_prompt(["a", "b", "c"])),
            r"condition\['text'\] has 3 rows for 2 samples",
        ),
        (
            lambda teacher, x: teacher(x[..., 1:], TIMES, teacher.null_condition),
            "16x7 latents does not divide into patches of 2",
        ),
        (
            lambda teacher, x: teacher.block_features(x, TIMES, teacher.null_condition, blocks=[9]),
            r"blocks=\[9\] must name blocks below 3",
        ),
        (lambda teacher, x: teacher.latent_shape(30, 32), "height=30, width=32 must be multiples of 4"),
        (lambda teacher, x: teacher.times(0, x), "num_steps=0 generates nothing"),
    ],
)
def test_bad_input_is_named(
    call: Callable[[Any, Tensor], object], message: str, teacher_of: Callable[[str], Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        call(teacher_of("flux"), torch.randn(2, 4, 16, 8))
