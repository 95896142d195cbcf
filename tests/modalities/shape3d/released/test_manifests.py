import pytest
import torch

from fewstep.modalities.shape3d.networks.structure_flow import StructureFlow, StructureFlowConfig
from fewstep.modalities.shape3d.released.manifests import RELEASED, built_without_memory, manifest_of


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_model_is_rebuilt_name_for_name(name: str) -> None:
    build, expected = RELEASED[name]
    network = built_without_memory(build)
    assert all(value.is_meta for value in network.state_dict().values())
    assert manifest_of(network) == expected


def test_a_manifest_tells_names_and_shapes_apart() -> None:
    def small(*, cond_channels: int) -> StructureFlow:
        config = StructureFlowConfig(
            model_channels=16, num_blocks=1, num_heads=2, resolution=2, cond_channels=cond_channels
        )
        return StructureFlow(config)

    one, other = manifest_of(small(cond_channels=8)), manifest_of(small(cond_channels=16))
    assert one.tensors == other.tensors
    assert one.digest != other.digest
    assert one == manifest_of(small(cond_channels=8))


def test_only_the_torso_is_in_half_precision() -> None:
    build, _ = RELEASED["structure flow, image-large"]
    dtypes = {name: value.dtype for name, value in built_without_memory(build).state_dict().items()}
    assert dtypes["blocks.0.mlp.mlp.0.weight"] == torch.float16
    full = (
        "input_layer.weight",
        "out_layer.weight",
        "t_embedder.mlp.0.weight",
        "blocks.0.norm2.weight",
        "pos_emb",
    )
    assert {dtypes[name] for name in full} == {torch.float32}
