"""Conditions against the pipelines' own ``encode_prompt``, called with its arguments written out."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

PROMPTS = ["a blue mug", "Two red chairs, seen from above"]
Conditions = dict[str, Tensor]


def expected(name: str, pipeline: Any) -> tuple[Conditions, Conditions]:
    """The conditions of the prompts, and of no prompt."""
    called = inspect.signature(type(pipeline).__call__).parameters
    match name:
        case "sd15":
            text, null = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
            return {"text": text}, {"text": null}
        case "sdxl" | "sd3":
            others = (None, None) if name == "sd3" else ()
            text, null, pooled, null_pooled = pipeline.encode_prompt(PROMPTS, *others)
            return {"text": text, "pooled": pooled}, {"text": null, "pooled": null_pooled}
        case "flux":
            text, pooled, _ = pipeline.encode_prompt(PROMPTS)
            null, null_pooled, _ = pipeline.encode_prompt([""])
            return {"text": text, "pooled": pooled}, {"text": null, "pooled": null_pooled}
        case "qwen_image":
            text, mask = pipeline.encode_prompt(PROMPTS)
            null, null_mask = pipeline.encode_prompt([" "])
            assert null_mask is None  # "nothing is padding"
            ones = torch.ones(null.shape[:2], dtype=torch.long)
            return {"text": text, "mask": mask}, {"text": null, "mask": ones}
        case _:
            settings: dict[str, Any] = {"clean_caption": True}
            if name == "sana":
                settings = {"complex_human_instruction": called["complex_human_instruction"].default}
            text, mask, null, null_mask = pipeline.encode_prompt(PROMPTS, **settings)
            return {"text": text, "mask": mask}, {"text": null, "mask": null_mask}


@torch.no_grad()
def test_conditions_are_those_of_the_pipeline(name: str, pipeline: Any, teacher: Any) -> None:
    conditions, nulls = expected(name, pipeline)
    encoded = teacher.encode_prompt(PROMPTS)
    assert set(encoded) == set(conditions) == set(nulls) == set(teacher.null_condition)
    for key, value in conditions.items():
        torch.testing.assert_close(encoded[key], value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(teacher.null_condition[key], nulls[key][:1], rtol=1e-5, atol=1e-5)
        assert (encoded[key][0] != encoded[key][1]).any()


def test_conditions_take_no_part_in_gradients(teacher: Any) -> None:
    assert not any(value.requires_grad for value in teacher.encode_prompt(["a"]).values())
    assert not any(p.requires_grad for module in teacher.text.modules for p in module.parameters())
    assert teacher.text.modules


def test_sdxl_is_guided_away_from_zeros(teacher_of: Callable[[str], Any]) -> None:
    assert all(not value.any() for value in teacher_of("sdxl").null_condition.values())


@torch.no_grad()
def test_sana_reads_the_instruction_its_pipeline_puts_before_a_prompt(
    teacher_of: Callable[[str], Any],
) -> None:
    teacher = teacher_of("sana")
    bare, *_ = teacher.text.pipeline.encode_prompt(PROMPTS)
    assert (teacher.encode_prompt(PROMPTS)["text"] - bare).abs().max() > 0.1


def test_no_prompts_are_refused(teacher_of: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match=r"prompts=\[\] encodes nothing"):
        teacher_of("sd15").encode_prompt([])
