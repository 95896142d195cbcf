"""The fastest backend is taken, one that raises is dropped, and a CPU measures nothing."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from fewstep.core import attention as module
from fewstep.core.attention import Backend, prefer
from fewstep.core.attention_timing import AttentionShape, Timer, prefer_fastest

META = torch.device("meta")  # stands for a device that has kernels: shapes, no numbers
SHAPES = (
    AttentionShape(queries=6, keys=18, heads=2, dim=8),
    AttentionShape(queries=6, keys=5, heads=2, dim=8),
)
USABLE: tuple[Backend, ...] = ("flash_attn", "sdpa", "cudnn", "matmul")


@pytest.fixture(autouse=True)
def usable(monkeypatch: pytest.MonkeyPatch) -> dict[torch.device, tuple[Backend, ...]]:
    """Kernels that compute nothing, on a device where they all work."""
    for name in USABLE:
        monkeypatch.setitem(module._KERNELS, name, lambda q, k, v, mask: q.clone())
    found = {META: USABLE}
    monkeypatch.setattr(module, "_usable", found)
    return found


def taking(milliseconds: dict[str, float], called: list[str] | None = None) -> Timer:
    """A call takes what is written for its backend, times its keys."""

    def timer(run: Callable[[], Tensor]) -> float:
        assert isinstance(run, partial)
        run()
        if called is not None:
            called.append(run.keywords["backend"])
        return milliseconds[run.keywords["backend"]] * run.args[1].shape[1]

    return timer


def broken(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    raise RuntimeError("no kernel\nfor this shape")


@pytest.mark.parametrize("fastest", ["flash_attn", "sdpa", "cudnn"])
def test_the_fastest_is_taken_from_then_on(
    usable: dict[torch.device, tuple[Backend, ...]], fastest: Backend
) -> None:
    milliseconds = {"flash_attn": 3.0, "sdpa": 4.0, "cudnn": 5.0} | {fastest: 1.0}
    called: list[str] = []
    choice = prefer_fastest(SHAPES, device=META, dtype=torch.bfloat16, timer=taking(milliseconds, called))
    assert choice.backend == fastest
    assert choice.milliseconds == {name: (18 + 5) * each for name, each in milliseconds.items()}
    assert called == [name for name in ("flash_attn", "sdpa", "cudnn") for _ in SHAPES]  # never matmul
    q = torch.empty(1, 4, 2, 8, device=META, dtype=torch.bfloat16)
    assert module._choose(q, q, q, None) == fastest
    assert set(usable[META]) == set(USABLE)
    assert usable[META][0] == fastest


def test_what_the_fastest_cannot_take_goes_to_the_next_that_can() -> None:
    prefer("cudnn", META)
    half = torch.empty(1, 4, 2, 8, device=META, dtype=torch.bfloat16)
    mask = torch.empty(1, 1, 4, 4, device=META, dtype=torch.bool)
    assert module._choose(half, half, half, None) == "cudnn"
    assert module._choose(half, half, half, mask) == "sdpa"
    assert module._choose(half.float(), half.float(), half.float(), None) == "sdpa"


def test_a_backend_that_raises_is_left_out_however_fast_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._KERNELS, "flash_attn", broken)
    timer = taking({"flash_attn": 1.0, "sdpa": 4.0, "cudnn": 2.0})
    choice = prefer_fastest(SHAPES, device=META, dtype=torch.bfloat16, timer=timer)
    assert choice.backend == "cudnn"
    assert choice.milliseconds.keys() == {"sdpa", "cudnn"}
    assert choice.failures == {"flash_attn": "RuntimeError: no kernel"}


def test_where_all_raise_the_order_stays(
    usable: dict[torch.device, tuple[Backend, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in USABLE:
        monkeypatch.setitem(module._KERNELS, name, broken)
    choice = prefer_fastest(SHAPES, device=META, dtype=torch.bfloat16, timer=taking({}))
    assert choice.backend is None
    assert choice.failures.keys() == {"flash_attn", "sdpa", "cudnn"}
    assert usable[META] == USABLE


def test_a_programming_error_is_not_taken_for_a_missing_kernel() -> None:
    def wrong(run: Callable[[], Tensor]) -> float:
        raise TypeError("a mistake")

    with pytest.raises(TypeError, match="a mistake"):
        prefer_fastest(SHAPES, device=META, dtype=torch.bfloat16, timer=wrong)


def test_a_cpu_measures_nothing_and_goes_by_its_inputs(
    usable: dict[torch.device, tuple[Backend, ...]],
) -> None:
    def never(run: Callable[[], Tensor]) -> float:
        raise AssertionError("measured on a CPU")

    choice = prefer_fastest(SHAPES, device=torch.device("cpu"), dtype=torch.float32, timer=never)
    assert (choice.backend, choice.milliseconds, choice.failures) == (None, {}, {})
    assert usable == {META: USABLE}
    q = torch.zeros(1, 4, 2, 8)
    assert module._choose(q, q, q, None) == "sdpa"


def test_only_what_works_can_be_preferred() -> None:
    with pytest.raises(ValueError, match="attention: flex does not work on meta; choose one of flash_attn"):
        prefer("flex", META)


@pytest.mark.gpu
def test_on_a_gpu_the_choice_is_one_of_those_that_work() -> None:
    choice = prefer_fastest(SHAPES, device=torch.device("cuda", 0), dtype=torch.bfloat16)
    assert choice.backend in module.available_backends(torch.device("cuda", 0))
