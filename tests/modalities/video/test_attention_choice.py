"""The attention kernel is measured for the shapes of a stream, and only where that decides anything."""

import inspect
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


def test_for_compiled_layers_only_what_the_compiler_knows_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_usable", {torch.device("meta"): ("flash_attn", "sdpa", "cudnn")})
    times = iter([3.0, 1.0, 2.0, 1.0])
    model = large()
    model.acceleration = SWITCHES["compiled"]
    choice = choose_attention(model, timer=lambda run: next(times))
    assert (choice.backend, choice.milliseconds.keys()) == ("cudnn", {"sdpa", "cudnn"})


@pytest.mark.parametrize(("dim", "taken"), [(128, "_scaled_dot_product_cudnn"), (384, "scaled_dot_product")])
def test_what_is_compiled_calls_the_kernel_that_was_measured(
    monkeypatch: pytest.MonkeyPatch, dim: int, taken: str
) -> None:
    """Traced without a number; in one graph, but for heads that the kernel does not take."""
    monkeypatch.setattr(module, "_usable", {torch.device("meta"): ("cudnn", "flash_attn", "sdpa")})
    monkeypatch.setattr(module, "_check_half_and_dense", lambda *args: None)  # "meta" is no CUDA device
    called: list[str] = []

    def noted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    q = torch.empty(1, 4, 2, dim, dtype=torch.bfloat16, device="meta")
    with torch.no_grad():
        plain = inspect.unwrap(module.attention)  # the suite's checks of shapes are not to be compiled
        out = torch.compile(plain, backend=noted, fullgraph=True)(q, q, q)
    assert out.shape == q.shape
    assert any(taken in name for name in called)
    assert any("cudnn" in name for name in called) == (dim == 128)


def test_the_autoencoders_one_wide_head_goes_to_a_kernel_that_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wan's has 384 numbers, more than the kernels that are the fastest for the transformer's 128 take."""
    model = random_model(
        SHAPES["wan2.1-1.3b"], recipe_name="reward-forcing", light=False, device="meta", dtype=torch.bfloat16
    )
    usable = {torch.device("meta"): ("cudnn", "flash_attn", "flex", "sdpa")}
    monkeypatch.setattr(module, "_usable", usable)
    seen: list[tuple[str, int]] = []
    for name in usable[torch.device("meta")]:

        def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, name: str = name) -> Tensor:
            seen.append((name, q.shape[-1]))
            assert {one.stride(-1) for one in (q, k, v)} == {1}
            return q

        monkeypatch.setitem(module._KERNELS, name, kernel)
    with torch.inference_mode():
        model.codec.decode(torch.empty(1, 1, 16, 60, 104, device="meta"))
        q = torch.empty(1, 4, 12, 128, device="meta", dtype=torch.bfloat16)
        module.attention(q, q, q)
    assert seen == [("sdpa", 384), ("cudnn", 128)]
