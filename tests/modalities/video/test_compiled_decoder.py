"""Decoders through ``torch.compile``: the plain ones, in one graph, compiled before a stream begins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fewstep.modalities.video.acceleration import PLAIN, SWITCHES
from fewstep.modalities.video.codec import STRIDE
from fewstep.modalities.video.pipeline import VideoModel

COMPILED = """
import sys
import torch
from fewstep.modalities.video.codec import CodecConfig, VideoCodec
from fewstep.modalities.video.taehv import TAEHV, TAEHVConfig
from fewstep.modalities.video.wan_vae import WanVAE, WanVAEConfig
from torch._dynamo.utils import counters

torch.manual_seed(0)
wan = WanVAEConfig(width=8, channels=2, blocks=1, mean=(0.1, -0.1), std=(1.0, 2.0))
codec = {
    "own": lambda: VideoCodec(CodecConfig(channels=2, width=8, depth=1)),
    "taehv": lambda: TAEHV(TAEHVConfig(channels=2, widths=(8, 8, 8, 8), encoder_width=8)),
    "wan": lambda: WanVAE(wan),
}[sys.argv[1]]().eval()
chunks = torch.randn(5, 1, 3, 2, 4, 6)

def decoded():
    memory, made, graphs = codec.memory(1, 4, 6), [], []
    with torch.inference_mode():
        for chunk in chunks:
            pixels, memory = codec.decode_chunk(chunk, memory)
            made.append(pixels)
            graphs.append(counters["stats"]["unique_graphs"])
    return torch.cat(made, 1), graphs

plain, _ = decoded()
codec.decoder.compile(dynamic=False)
compiled, graphs = decoded()
assert not counters["graph_break"], counters["graph_break"]
torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-5)
print(*graphs)
"""


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["own", "taehv", "wan"])
def test_a_compiled_decoder_is_the_plain_one_and_ready_after_three_chunks(codec: str) -> None:
    """In a process without the suite's checks of shapes, which are not to be compiled."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMPILED, codec],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TORCHDYNAMO_VERBOSE": "0"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    graphs = [int(count) for count in done.stdout.split()]
    assert 1 <= graphs[2] <= 2
    assert graphs[-1] == graphs[2]


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Modules that were told to be compiled; none is."""
    modules: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: modules.append(self))
    return modules


def test_the_decoder_is_compiled_and_warmed_where_the_model_is_made(
    tiny_model_folder: Path, noted: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed: list[VideoModel] = []
    monkeypatch.setattr(VideoModel, "warm_decoder", lambda self: warmed.append(self))
    plain = VideoModel.load(tiny_model_folder, acceleration=PLAIN)
    assert (noted, warmed) == ([], [])
    compiled = plain.with_acceleration(SWITCHES["compiled"])
    assert compiled.codec.decoder in noted  # pyright: ignore[reportAttributeAccessIssue] - as loaded
    assert plain.codec.decoder not in noted  # pyright: ignore[reportAttributeAccessIssue] - as loaded
    assert warmed == [compiled]
    assert plain.with_acceleration(SWITCHES["last_step"]).codec is plain.codec
    loaded = VideoModel.load(tiny_model_folder, acceleration=SWITCHES["compiled"])
    assert warmed == [compiled, loaded]


def test_warming_decodes_chunks_of_the_models_size_and_goes_on_from_them(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = VideoModel.load(tiny_model_folder)
    seen: list[tuple[torch.Size, object]] = []
    decode = type(model.codec).decode_chunk

    def counted(self: object, latents: torch.Tensor, memory: object) -> object:
        seen.append((latents.shape, memory))
        return decode(self, latents, memory)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(type(model.codec), "decode_chunk", counted)
    model.warm_decoder()
    config = model.cache_config
    size = (1, config.chunk, model.codec.config.channels, model.height // STRIDE, model.width // STRIDE)
    assert [shape for shape, _ in seen] == [torch.Size(size)] * 3
    assert len({id(memory) for _, memory in seen}) == 3
