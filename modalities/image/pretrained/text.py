"""Prompts to the tensors a network is conditioned on, by the pipeline's own text encoders."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

CALL_SETTINGS = ("max_sequence_length", "clean_caption", "complex_human_instruction")


class PromptEncoder:
    """The text half of a pipeline: its tokenizers, its text encoders, and its ``encode_prompt``.

    Where ``encode_prompt`` and the pipeline's ``__call__`` differ in a default (SANA's instruction, the
    length of Qwen-Image's text), ``__call__`` counts: that is what the teacher's pictures are made with.

    Args:
        pipeline: a diffusers pipeline; only its text encoders and tokenizers need to be there.
        places: name -> where ``encode_prompt`` returns it, and where its value without a prompt; None where
            the pipeline encodes a null prompt like any other.
        null_prompt: for such a pipeline.
    """

    def __init__(
        self, pipeline: Any, places: Mapping[str, tuple[int, int | None]], *, null_prompt: str = ""
    ) -> None:
        self.pipeline = pipeline
        self._places = places
        self._null_prompt = null_prompt
        self._accepted = inspect.signature(pipeline.encode_prompt).parameters
        called = inspect.signature(type(pipeline).__call__).parameters
        self._settings = {
            name: called[name].default for name in CALL_SETTINGS if name in called and name in self._accepted
        }
        for module in self.modules:
            module.eval().requires_grad_(False)

    @property
    def modules(self) -> list[torch.nn.Module]:
        """The text encoders."""
        return [part for part in self.pipeline.components.values() if isinstance(part, torch.nn.Module)]

    def __call__(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        """One row per prompt under every name."""
        if not prompts:
            raise ValueError("prompts=[] encodes nothing; give at least one, '' for the null prompt")
        returned = self._encode(prompts, device, guided=False)
        return self._named(returned, {name: place for name, (place, _) in self._places.items()})

    def null(self, device: torch.device) -> dict[str, Tensor]:
        """What guidance steers away from, with one row."""
        nulls = {name: place for name, (_, place) in self._places.items() if place is not None}
        if not nulls:
            return self([self._null_prompt], device)
        return self._named(self._encode([""], device, guided=True), nulls)

    def _encode(self, prompts: list[str], device: torch.device, *, guided: bool) -> tuple[Any, ...]:
        self.pipeline.to(device)
        wanted = {"prompt_2": None, "prompt_3": None, "do_classifier_free_guidance": guided}
        known = {name: value for name, value in wanted.items() if name in self._accepted}
        returned = self.pipeline.encode_prompt(
            prompt=prompts, device=device, num_images_per_prompt=1, **known, **self._settings
        )
        return returned if isinstance(returned, tuple) else (returned,)

    def _named(self, returned: tuple[Any, ...], places: Mapping[str, int]) -> dict[str, Tensor]:
        named = {name: returned[place] for name, place in places.items()}
        if "mask" in named and named["mask"] is None:  # a pipeline's word for "nothing is padding"
            named["mask"] = torch.ones(named["text"].shape[:2], dtype=torch.long, device=named["text"].device)
        return named
