"""What makes a stream faster leaves its frames alone, or says by how much it does not."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fewstep.modalities.video.acceleration import PLAIN, SWITCHES, Acceleration
from fewstep.modalities.video.fidelity import fidelity, psnr
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.stream_batch import StreamBatch

MakeModel = Callable[..., VideoModel]
CHUNKS = 12  # over a full window, evictions and a new count of positions
EXACT = ("fused_projections", "merged_passes", "static_steps", "overlapped_decoding", "default")


def words() -> torch.Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", EXACT)
def test_what_is_exact_changes_frames_by_rounding_at_most(make_model: MakeModel, name: str) -> None:
    found = fidelity(make_model(), make_model(SWITCHES[name]), words(), chunks=CHUNKS)
    assert found.velocity_error < 1e-6  # float32 through two layers; observed 3e-7
    assert found.levels <= 1
    assert found.psnr > 70.0


def test_keys_and_values_of_the_last_step_are_an_approximation(make_model: MakeModel) -> None:
    """The first chunk has no past, the second one sees the difference."""
    found = fidelity(make_model(), make_model(SWITCHES["last_step"]), words(), chunks=CHUNKS)
    assert (found.velocity_error, found.first_psnr) == (0.0, float("inf"))
    assert 10.0 < found.psnr < 60.0
    assert found.levels > 1


def test_keys_and_values_of_a_noiseless_last_step_at_the_context_time_are_exact(
    make_model: MakeModel,
) -> None:
    """Where the last step's input is the clean chunk itself, both ways write the same."""
    model = make_model(SWITCHES["last_step"])
    clean, kept = make_model().rollout(2), model.rollout(2)
    text = clean.network.text_keys_values(words()[None])
    stream = model.stream(words())
    with torch.inference_mode():
        x0 = torch.randn(1, 2, 4, 2, 4)
        t = 0.7
        expected = replace(clean, context_time=t)
        expected.commit(stream.cache, text, x0)
        made = stream.cache.sink
        stream.reset(0)
        _, fresh = kept._predict(None, 0, text, x0, t)
        stream.cache.commit(fresh, 2)
    torch.testing.assert_close(stream.cache.sink, made, atol=1e-6, rtol=1e-6)


def test_a_prompt_set_between_chunks_steers_static_steps_as_it_does_plain_ones(
    make_model: MakeModel,
) -> None:
    streams = [make_model(how).stream(words()) for how in (PLAIN, SWITCHES["static_steps"])]
    for chunk in range(8):
        if chunk == 5:
            for stream in streams:
                stream.set_prompt(-words(), refresh=True)
        plain, static = (stream.step().latents for stream in streams)
        torch.testing.assert_close(static, plain, atol=1e-5, rtol=1e-5)  # float32 over chunks; observed 2e-6


@pytest.mark.parametrize("name", ["static_steps", "last_step"])
def test_several_streams_at_once_are_accelerated_too(make_model: MakeModel, name: str) -> None:
    model = make_model(SWITCHES[name])
    batch = StreamBatch(model, words()[None].repeat(2, 1, 1), seeds=[3, 4], steps=2)
    alone = [model.stream(words(), seed=seed) for seed in (3, 4)]
    for _ in range(6):
        expected = np.stack([stream.step().frames for stream in alone])
        assert np.abs(batch.step().astype(int) - expected).max() <= 1  # products of other sizes


def test_an_accelerated_copy_leaves_the_model_as_it_was(make_model: MakeModel) -> None:
    model = make_model()
    before = [chunk.frames.tobytes() for chunk in (model.stream(words()).step(),)]
    other = model.with_acceleration(Acceleration())
    assert other.student is not model.student
    assert other.codec is model.codec
    assert [model.stream(words()).step().frames.tobytes()] == before
    assert (model.acceleration, other.acceleration) == (PLAIN, Acceleration())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"compiled": True}, "compiled needs passes whose shapes stay; switch static_steps on as well"),
        ({"cuda_graphs": True}, "cuda_graphs needs passes whose shapes stay"),
    ],
)
def test_switches_that_do_not_go_together_are_named(wrong: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Acceleration(**wrong)


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("quantization", "int3", "'none' or 'int8_weights'"),
        ("cache_from", "nowhere", "'clean' or 'last_step'"),
    ],
)
def test_unknown_ways_are_named_with_the_known_ones(name: str, value: str, known: str) -> None:
    how = Acceleration()
    object.__setattr__(how, name, value)  # the type checks of the tests would stop it earlier
    with pytest.raises(ValueError, match=f"{name}={value!r}: use {known}"):
        how.__post_init__()


@pytest.mark.parametrize("name", ["cuda_graphs", "fused_kernels", "fp8"])
def test_what_a_processor_cannot_do_is_refused_with_the_reason(make_model: MakeModel, name: str) -> None:
    with pytest.raises(ValueError, match=r"needs .*, not cpu"):
        make_model(SWITCHES[name])


def test_every_switch_is_measured_by_itself_against_nothing() -> None:
    for name in ("fused_projections", "merged_passes", "static_steps", "overlapped_decoding"):
        assert SWITCHES[name] == replace(PLAIN, **{name: True})


@pytest.mark.parametrize(
    ("chosen", "device", "merged"),
    [
        (None, "cpu", True),
        (None, "mps", True),
        (None, "cuda:1", False),
        (True, "cuda:1", True),
        (False, "cuda:1", False),
        (False, "cpu", False),
    ],
)
def test_passes_are_merged_where_it_helps_or_where_it_is_chosen(
    make_model: MakeModel, chosen: bool | None, device: str, merged: bool
) -> None:
    model = make_model(Acceleration(merged_passes=chosen))
    model.device = torch.device(device)  # nothing is computed there
    assert model.rollout(2).merged is merged


def test_psnr_is_that_of_the_definition() -> None:
    black, grey = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 51, np.uint8)
    assert psnr(grey, black) == pytest.approx(20 * np.log10(5.0))  # a fifth of the range everywhere
    assert psnr(black, black) == float("inf")
