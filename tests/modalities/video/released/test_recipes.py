"""The official numbers: step lists through the released codes' table, windows and sinks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep.core.schedules import step_grid
from fewstep.modalities.video.cache import CacheConfig
from fewstep.modalities.video.codec import VideoCodec
from fewstep.modalities.video.masks import chunk_causal
from fewstep.modalities.video.noise import chunk_noise
from fewstep.modalities.video.parts import Parts
from fewstep.modalities.video.pipeline import VideoModel
from fewstep.modalities.video.released.recipes import RECIPES, guessed_recipe, recipe
from fewstep.modalities.video.transformer import VideoTransformer


def table(shift: float) -> list[float]:
    """Self-Forcing's scheduler, written out: 1000 entries from u = 1 down to 1/1000."""
    return [shift * u / (1 + (shift - 1) * u) for u in (1 - i / 1000 for i in range(1000))]


@pytest.mark.parametrize("name", ["self-forcing", "reward-forcing", "longlive", "longlive-infinity"])
def test_the_warped_list_is_the_papers(name: str) -> None:
    times = RECIPES[name].times
    assert [1000 * t for t in times] == pytest.approx([1000, 937.5, 2500 / 3, 625], abs=1e-9)
    assert times == pytest.approx([table(5.0)[1000 - t] for t in (1000, 750, 500, 250)], abs=1e-12)
    assert times == pytest.approx(step_grid(4, 5.0), abs=1e-12)


def test_an_unwarped_list_is_looked_up_in_its_own_table() -> None:
    nearest = [min(table(8.0), key=lambda entry: abs(entry - t / 1000)) for t in (1000, 757, 522)]
    assert RECIPES["causvid"].times == pytest.approx(nearest, abs=1e-12)
    # a timestep that is no entry is off by less than the table is fine there
    assert RECIPES["causvid"].times == pytest.approx([1.0, 0.757, 0.522], abs=2e-3)


def test_causvids_warped_list_counts_entries_of_its_own_table() -> None:
    """Shift 8, so that its four steps are not those of the other students' shift 5."""
    times = RECIPES["causvid-warped"].times
    assert [1000 * t for t in times] == pytest.approx([1000, 960, 8000 / 9, 8000 / 11], abs=1e-9)
    assert times == pytest.approx([table(8.0)[1000 - t] for t in (1000, 750, 500, 250)], abs=1e-12)
    assert RECIPES["causvid-warped"].card("x")["step_grids"] == {"4": list(times)}


@pytest.mark.parametrize(
    ("name", "window", "sink_mode", "sink", "decay", "position"),
    [
        ("self-forcing", 21, "none", 0, 1.0, "moving"),
        ("causvid", 21, "none", 0, 1.0, "moving"),
        ("causvid-warped", 21, "none", 0, 1.0, "moving"),
        ("reward-forcing", 9, "ema", 3, 0.999, "moving"),
        ("longlive", 12, "first", 3, 1.0, "fixed"),
        ("longlive-infinity", 12, "first", 3, 1.0, "moving"),
    ],
)
def test_windows_and_sinks_are_the_released_ones(
    name: str, window: int, sink_mode: str, sink: int, decay: float, position: str
) -> None:
    found = recipe(name)
    assert found.cache == CacheConfig(
        window=window,
        chunk=3,
        sink=sink,
        sink_mode=sink_mode,  # pyright: ignore[reportArgumentType]
        decay=decay,
        sink_position=position,  # pyright: ignore[reportArgumentType]
    )
    card = found.card(name)
    assert CacheConfig(**card["cache"]) == found.cache
    assert (card["fps"], card["width"], card["height"], card["context_time"]) == (16.0, 832, 480, 0.0)
    assert card["refresh_on_switch"] == name.startswith("longlive")


OFFICIAL = {
    "self-forcing": [1000, 937.5, 2500 / 3, 625],
    "causvid": [1000, 757, 522],
    "causvid-warped": [1000, 960, 8000 / 9, 8000 / 11],
    "reward-forcing": [1000, 937.5, 2500 / 3, 625],
    "longlive": [1000, 937.5, 2500 / 3, 625],
    "longlive-infinity": [1000, 937.5, 2500 / 3, 625],
}
SIZE = (2, 4)  # latent pixels


def official_loop(
    network: VideoTransformer, features: Tensor, timesteps: list[float], past: Tensor
) -> Tensor:
    """Self-Forcing's loop over one chunk of three frames, without a cache: clean frames at timestep 0 before
    it, fresh noise after every step but the last.
    """
    index, shape = past.shape[1] // 3, (1, 3, 4, *SIZE)
    t = torch.zeros(1, past.shape[1] + 3)
    mask = chunk_causal(past.shape[1] + 3, chunk=3)
    x0, x_t = torch.empty(0), chunk_noise(7, index, 0, shape)
    for step, timestep in enumerate(timesteps):
        if step:
            x_t = (1 - timestep / 1000) * x0 + timestep / 1000 * chunk_noise(7, index, step, shape)
        t[:, past.shape[1] :] = timestep / 1000
        velocity = network(torch.cat([past, x_t], dim=1), t, features[None], frame_mask=mask)
        x0 = x_t - timestep / 1000 * velocity[:, past.shape[1] :]
    return x0


@pytest.mark.parametrize("name", RECIPES)
def test_a_stream_is_the_official_loop_with_its_steps_chunks_and_window(
    name: str, make_network: Callable[..., VideoTransformer], make_codec: Callable[..., VideoCodec]
) -> None:
    network, features = make_network(), torch.randn(4, 8)
    card = recipe(name).card(name) | {"height": 8 * SIZE[0], "width": 8 * SIZE[1], "default_prompt": "a"}
    parts = Parts(card=card, student=network, codec=make_codec())
    model = VideoModel(Path(), dtype=torch.float64, parts=parts)
    stream, past = model.stream(features, seed=7), torch.zeros(1, 0, 4, *SIZE)
    timesteps = [1000 * t for t in RECIPES[name].times] if name == "causvid" else OFFICIAL[name]
    assert timesteps == pytest.approx(OFFICIAL[name], abs=2)
    for _ in range(model.cache_config.window // 3):  # as long as nothing is forgotten
        with torch.no_grad():
            expected = official_loop(network, features, timesteps, past)
        past = torch.cat([past, stream.step().latents], dim=1)
        # latents are float32, and their rounding grows from chunk to chunk
        torch.testing.assert_close(past[:, -3:], expected, atol=1e-4, rtol=1e-4, check_dtype=False)
    with torch.no_grad():
        unlimited = official_loop(network, features, timesteps, past)
    forgetful = stream.step().latents
    assert (forgetful - unlimited).abs().max() > 1e-2  # beyond its window it forgets
    assert stream.cache.window_ids[0] > 0


def test_longlive_is_its_base_and_adapters_from_one_folder() -> None:
    for name, found in RECIPES.items():
        assert len(found.source.split("/")) >= 3  # owner, name, file
        assert bool(found.adapters) == name.startswith("longlive")
        assert not found.adapters or found.adapters.rpartition("/")[0] == found.source.rpartition("/")[0]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("self_forcing_dmd.pt", "self-forcing"),
        ("Self-Forcing-T2V", "self-forcing"),
        ("rewardforcing.pt", "reward-forcing"),
        ("longlive_base.pt", "longlive"),
        ("autoregressive_checkpoint", "causvid"),
        ("autoregressive_checkpoint_warp_4step_cfg2", "causvid-warped"),
        ("longlive-self-forcing.pt", None),
        ("model.pt", None),
    ],
)
def test_released_files_are_known_by_their_names(file: str, name: str | None) -> None:
    assert guessed_recipe(file) == name


def test_an_unknown_recipe_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="recipe='krea' is not known; choose one of self-forcing, causvid"):
        recipe("krea")
