"""Names, shapes and counts of the released networks, at their real size."""

from dataclasses import replace

import pytest
import torch

from fewstep.modalities.protein.networks.transformer import ProteinTransformer, ProteinTransformerConfig
from fewstep.modalities.protein.released.manifests import RELEASED
from fewstep.modalities.protein.released.sizes import config_from_shapes

Shapes = dict[str, list[int]]


def built(config: ProteinTransformerConfig) -> ProteinTransformer:
    with torch.device("meta"):
        return ProteinTransformer(config)


def affine(name: str, rows: int, columns: int | None = None) -> Shapes:
    """A weight and a bias."""
    return {f"{name}.weight": [rows] if columns is None else [rows, columns], f"{name}.bias": [rows]}


def adaptive(name: str, dim: int, c: int) -> Shapes:
    return (
        affine(f"{name}.norm_cond", c)
        | affine(f"{name}.to_gamma.0", dim, c)
        | {f"{name}.to_beta.weight": [dim, c]}
    )


def published(
    d: int,
    layers: int,
    h: int,
    p: int,
    every: int | None,
    c: int = 512,
    labels: tuple[int, ...] = (4, 43, 1336),
) -> Shapes:
    """The list of names and shapes of the released files, written out, without the prefix ``nn.``."""
    shapes: Shapes = {
        "registers": [10, d],
        "linear_3d_embed.weight": [d, 3],
        "init_repr_factory.linear_out.weight": [d, 132],
        "cond_factory.linear_out.weight": [c, 1024],
        "pair_repr_builder.init_repr_factory.linear_out.weight": [p, 319],
        "pair_repr_builder.cond_factory.linear_out.weight": [c, 256],
        "coors_3d_decoder.1.weight": [3, d],
    }
    for level, count in zip("CAT", labels, strict=True):
        shapes[f"cond_factory.feat_creators.1.embedding_{level}.weight"] = [count + 1, 256]
    for number in (1, 2):
        shapes[f"transition_c_{number}.swish_linear.0.weight"] = [4 * c, c]
        shapes[f"transition_c_{number}.linear_out.weight"] = [c, 2 * c]
    shapes |= affine("pair_repr_builder.init_repr_factory.ln_out", p)
    shapes |= affine("pair_repr_builder.cond_factory.ln_out", c)
    shapes |= adaptive("pair_repr_builder.adaln", p, c)
    shapes |= affine("coors_3d_decoder.0", d)
    for layer in range(layers):
        block = f"transformer_layers.{layer}"
        mha = f"{block}.mhba.mha"
        shapes |= adaptive(f"{block}.mhba.adaln", d, c) | adaptive(f"{block}.transition.adaln", d, c)
        shapes |= affine(f"{mha}.to_qkv", 3 * d, d) | affine(f"{mha}.to_g", d, d)
        shapes |= affine(f"{mha}.to_out_node", d, d) | affine(f"{mha}.pair_norm", p)
        for norm in ("node_norm", "q_layer_norm", "k_layer_norm"):
            shapes |= affine(f"{mha}.{norm}", d)
        shapes[f"{mha}.to_bias.weight"] = [h, p]
        for part in ("mhba", "transition"):
            shapes |= affine(f"{block}.{part}.scale_output.to_adaln_zero_gamma.0", d, c)
        shapes[f"{block}.transition.transition.swish_linear.0.weight"] = [8 * d, d]
        shapes[f"{block}.transition.transition.linear_out.weight"] = [d, 4 * d]
    if every is not None:
        for layer in range(0, layers - 1, every):
            shapes |= update(f"pair_update_layers.{layer}", d, p)
        shapes |= affine("pair_head_prediction.0", p) | affine("pair_head_prediction.1", 64, p)
    return shapes


def update(name: str, d: int, p: int) -> Shapes:
    hidden = min(p, 196)
    shapes = affine(f"{name}.layer_norm_in", d) | {f"{name}.linear_x.weight": [2 * p, d]}
    for way in ("out", "in"):
        triangle = f"{name}.tri_mult_{way}"
        for layer in ("linear_a_p", "linear_a_g", "linear_b_p", "linear_b_g"):
            shapes |= affine(f"{triangle}.{layer}", hidden, p)
        shapes |= affine(f"{triangle}.linear_g", p, p) | affine(f"{triangle}.linear_z", p, hidden)
        shapes |= affine(f"{triangle}.layer_norm_in", p) | affine(f"{triangle}.layer_norm_out", hidden)
    shapes |= affine(f"{name}.transition_out.layer_norm", p)
    shapes |= affine(f"{name}.transition_out.linear_1", 2 * p, p)
    return shapes | affine(f"{name}.transition_out.linear_2", p, 2 * p)


PUBLISHED = {
    "60M_notri": published(512, 10, 8, 256, None),
    "60M_tri": published(512, 10, 8, 256, 2),
    "200M_notri": published(768, 15, 12, 512, None),
    "200M_tri": published(768, 15, 12, 512, 3),
    "400M_tri": published(1024, 18, 16, 512, 5),
}


@pytest.mark.parametrize("name", RELEASED)
def test_the_network_has_the_released_names_shapes_and_counts(name: str) -> None:
    released, network = RELEASED[name], built(RELEASED[name].config)
    state = network.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == PUBLISHED[name]
    assert len(state) == released.tensors
    assert sum(value.numel() for value in state.values()) == released.parameters


@pytest.mark.parametrize("name", RELEASED)
def test_the_configuration_is_found_again_in_the_shapes(name: str) -> None:
    config = RELEASED[name].config
    assert config_from_shapes(built(config).state_dict(), name) == (
        config if "notri" not in name else _without_what_is_not_there(config)
    )


def _without_what_is_not_there(config: ProteinTransformerConfig) -> ProteinTransformerConfig:
    return replace(config, triangles=False, distogram_bins=None)
