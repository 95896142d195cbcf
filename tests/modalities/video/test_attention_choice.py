"""The attention kernel is measured for the shapes of a stream, and only where that decides anything."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.core import attention as module
from fewstep.modalities.video.acceleration import SWITCHES
from fewstep.modalities.video.attention_choice import choose_attention, stream_shapes
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.random_weights import SHAPES, random_model

MakeModel = Callable[..., VideoModel]


def large() -> VideoModel:
    """Of the real shape, without a weight."""
    shape = SHAPES["wan2.1-1.3b"]
    return random_model(shape, recipe_name="reward-forcing", light=True, device="meta", dtype=torch.bfloat16)


def test_the_shapes_are_those_of_the_papers_chunk() -> None:
    """Three frames of 1560 tokens over nine, and over 512 tokens of text; 12 heads of 128."""
    over_window, over_text = stream_shapes(large(), text=512)
    assert (over_window.queries, over_window.keys) == (3 * 1560, 9 * 1560)
    assert (over_text.queries, over_text.keys) == (3 * 1560, 512)
    assert {(shape.heads, shape.dim, shape.batch) for shape in (over_window, over_text)} == {(12, 128, 1)}


def test_they_are_those_that_a_stream_really_asks_for(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = make_model(), set()
    kernel = module._KERNELS["sdpa"]

    def watched(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        seen.add((q.shape[1], k.shape[1], q.shape[2], q.shape[3]))
        return kernel(q, k, v, mask)

    features = torch.randn(4, 8)
    stream = model.stream(features)
    for _ in range(5):
        stream.step()  # the window is full
    monkeypatch.setitem(module._KERNELS, "sdpa", watched)
    stream.step()
    shapes = stream_shapes(model, text=4)
    assert {(shape.queries, shape.keys, shape.heads, shape.dim) for shape in shapes} <= seen


def test_the_models_stream_takes_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_usable", {torch.device("meta"): ("sdpa", "cudnn")})
    times = iter([3.0, 1.0, 2.0, 1.0])  # two shapes each
    choice = choose_attention(large(), timer=lambda run: next(times))
    assert (choice.backend, dict(choice.milliseconds)) == ("cudnn", {"sdpa": 4.0, "cudnn": 3.0})
    assert module.available_backends("meta") == ("cudnn", "sdpa")


def never(run: Callable[[], Tensor]) -> float:
    raise AssertionError("measured")


def test_nothing_is_measured_on_a_cpu(make_model: MakeModel) -> None:
    assert choose_attention(make_model(), timer=never).backend is None


def test_nothing_is_measured_for_compiled_layers_which_take_sdpa() -> None:
    model = large()
    model.acceleration = SWITCHES["compiled"]
    assert choose_attention(model, timer=never).backend is None
