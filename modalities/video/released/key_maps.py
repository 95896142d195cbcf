"""Names of weights in Wan's own files and in those of diffusers and transformers, one to one."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

NUMBER = "{}"  # in a template, the index of a layer
ENDING = r"(\.(?:weight|bias|gamma))?"

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class KeyMap:
    """Templates of names, Wan's and the other library's; ``{}`` is a layer's number, endings stay.

    Args:
        pairs: every name fits exactly one of them.
        other: what the other library is called in error messages.
    """

    pairs: Pairs
    other: str

    @cached_property
    def _from_other(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(theirs), wan) for wan, theirs in self.pairs]

    @cached_property
    def _from_wan(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(wan), theirs) for wan, theirs in self.pairs]

    def to_wan(self, names: Iterable[str], where: str) -> dict[str, str]:
        """Other name -> Wan's; a ValueError lists names that are not of this network."""
        return _translated(names, self._from_other, f"{where}: not a name in {self.other}'s layout")

    def to_other(self, names: Iterable[str], where: str) -> dict[str, str]:
        """Wan's name -> the other library's."""
        return _translated(names, self._from_wan, f"{where}: not a name in Wan's layout")

    def renamed_to_wan(self, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """A state dict under Wan's names."""
        return {wan: state[theirs] for theirs, wan in self.to_wan(state, where).items()}

    def renamed_to_other(self, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """A state dict under the other library's names."""
        return {theirs: state[wan] for wan, theirs in self.to_other(state, where).items()}


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(re.escape(NUMBER), r"(\d+)") + ENDING)


def _translated(
    names: Iterable[str], templates: list[tuple[re.Pattern[str], str]], problem: str
) -> dict[str, str]:
    found, unknown = {}, []
    for name in names:
        for pattern, template in templates:
            match = pattern.fullmatch(name)
            if match is not None:
                *numbers, ending = match.groups()
                found[name] = template.format(*numbers) + (ending or "")
                break
        else:
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        raise ValueError(f"{problem}: {', '.join(unknown[:4])}{more}")
    return found


def _attention(wan: str, theirs: str) -> Iterator[tuple[str, str]]:
    for part in "qkv":
        yield f"blocks.{{}}.{wan}.{part}", f"blocks.{{}}.{theirs}.to_{part}"
    yield f"blocks.{{}}.{wan}.o", f"blocks.{{}}.{theirs}.to_out.0"
    for part in ("norm_q", "norm_k"):
        yield f"blocks.{{}}.{wan}.{part}", f"blocks.{{}}.{theirs}.{part}"


TRANSFORMER = KeyMap(
    (
        ("patch_embedding", "patch_embedding"),
        ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
        ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
        ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
        ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
        ("time_projection.1", "condition_embedder.time_proj"),
        ("head.modulation", "scale_shift_table"),
        ("head.head", "proj_out"),
        ("blocks.{}.modulation", "blocks.{}.scale_shift_table"),
        ("blocks.{}.norm3", "blocks.{}.norm2"),  # the affine one, which diffusers counts as the second
        ("blocks.{}.ffn.0", "blocks.{}.ffn.net.0.proj"),
        ("blocks.{}.ffn.2", "blocks.{}.ffn.net.2"),
        *_attention("self_attn", "attn1"),
        *_attention("cross_attn", "attn2"),
    ),
    "diffusers",
)
"""Wan's transformer and diffusers' ``WanTransformer3DModel``."""


RESIDUAL = (
    ("residual.0", "norm1"),
    ("residual.2", "conv1"),
    ("residual.3", "norm2"),
    ("residual.6", "conv2"),
    ("shortcut", "conv_shortcut"),
)


def _residual(wan: str, theirs: str) -> Iterator[tuple[str, str]]:
    for part, name in RESIDUAL:
        yield f"{wan}.{part}", f"{theirs}.{name}"


def _autoencoder(levels: int = 4, decoder_blocks: int = 3) -> Iterator[tuple[str, str]]:
    yield from (("conv1", "quant_conv"), ("conv2", "post_quant_conv"))
    for half in ("encoder", "decoder"):
        yield f"{half}.conv1", f"{half}.conv_in"
        for block in range(2):
            yield from _residual(f"{half}.middle.{2 * block}", f"{half}.mid_block.resnets.{block}")
        for part in ("norm", "to_qkv", "proj"):
            yield f"{half}.middle.1.{part}", f"{half}.mid_block.attentions.0.{part}"
        yield from ((f"{half}.head.0", f"{half}.norm_out"), (f"{half}.head.2", f"{half}.conv_out"))
    yield from _residual("encoder.downsamples.{}", "encoder.down_blocks.{}")
    for part in ("resample.1", "time_conv"):
        yield f"encoder.downsamples.{{}}.{part}", f"encoder.down_blocks.{{}}.{part}"
    for level in range(levels):
        first = level * (decoder_blocks + 1)
        for block in range(decoder_blocks):
            theirs = f"decoder.up_blocks.{level}.resnets.{block}"
            yield from _residual(f"decoder.upsamples.{first + block}", theirs)
        for part in ("resample.1", "time_conv"):
            theirs = f"decoder.up_blocks.{level}.upsamplers.0.{part}"
            yield f"decoder.upsamples.{first + decoder_blocks}.{part}", theirs


AUTOENCODER = KeyMap(tuple(_autoencoder()), "diffusers")
"""Wan's autoencoder, of two residual blocks per resolution, and diffusers' ``AutoencoderKLWan``."""


TEXT_ENCODER = KeyMap(
    (
        ("token_embedding", "shared"),
        ("norm", "encoder.final_layer_norm"),
        ("blocks.{}.norm1", "encoder.block.{}.layer.0.layer_norm"),
        ("blocks.{}.norm2", "encoder.block.{}.layer.1.layer_norm"),
        *((f"blocks.{{}}.attn.{p}", f"encoder.block.{{}}.layer.0.SelfAttention.{p}") for p in "qkvo"),
        (
            "blocks.{}.pos_embedding.embedding",
            "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias",
        ),
        ("blocks.{}.ffn.gate.0", "encoder.block.{}.layer.1.DenseReluDense.wi_0"),
        ("blocks.{}.ffn.fc1", "encoder.block.{}.layer.1.DenseReluDense.wi_1"),
        ("blocks.{}.ffn.fc2", "encoder.block.{}.layer.1.DenseReluDense.wo"),
    ),
    "transformers",
)
"""Wan's own file of UMT5 and transformers' ``UMT5EncoderModel``."""
