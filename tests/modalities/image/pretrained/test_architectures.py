"""Which pipelines are known, and how latents become tokens."""

import inspect

import pytest
import torch

from fewstep.modalities.image.pretrained.architectures import ARCHITECTURES, pack, unpack


@pytest.mark.parametrize("pipeline", ARCHITECTURES)
def test_every_architecture_names_components_of_a_pipeline_of_diffusers(pipeline: str) -> None:
    import diffusers

    architecture = ARCHITECTURES[pipeline]
    components = inspect.signature(getattr(diffusers, pipeline).__init__).parameters
    assert {architecture.network, "vae", "scheduler", *architecture.text} <= set(components)
    encoders = {part for part in components if part.startswith(("tokenizer", "text_encoder"))}
    assert encoders == set(architecture.text)


def test_packing_is_that_of_diffusers() -> None:
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, 2, 3, 4, 6))
    assert torch.equal(unpack(pack(x), 4, 6), x)
