"""The official numbers: step lists through the released codes' table, windows and sinks."""

import pytest

from fewstep.core.schedules import step_grid
from fewstep.modalities.video.cache import CacheConfig
from fewstep.modalities.video.released.recipes import RECIPES, guessed_recipe, recipe


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
