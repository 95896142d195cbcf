import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.core.checkpoints import (
    CARD,
    WEIGHTS,
    Card,
    Guidance,
    load_model,
    network_config,
    read_card,
    save_model,
    student_grids,
)
from fewstep.core.weightless import weightless


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    width: int = 3
    rates: tuple[float, ...] = (1.0, 0.5)


class Tiny(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(nn.Linear(config.width, 4), nn.Linear(4, config.width))
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Tables(nn.Module):
    """What a constructor computes and no file holds, beside what one does."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.ones(config.width), requires_grad=False)
        self.layer = nn.Linear(config.width, config.width, dtype=torch.float16)
        self.register_buffer("places", torch.arange(config.width).cos(), persistent=False)
        self.register_buffer("mean", torch.full((config.width,), 0.25))
        self.rotations = torch.arange(config.width).sin()

    def forward(self, x: Tensor) -> Tensor:
        places = self.get_buffer("places")
        return (x + places * self.scale + self.rotations) * self.get_buffer("mean")


NETWORKS = {"Tiny": (Tiny, TinyConfig), "Tables": (Tables, TinyConfig)}


@pytest.fixture
def network() -> Tiny:
    return Tiny(TinyConfig())


@pytest.fixture
def card(network: Tiny) -> Card:
    return Card(
        network="Tiny",
        config=network_config(network.config),
        step_grids={"1": [1.0], "2": [1.0, 0.625]},
        guidance=Guidance(scale=3.0),
        training={"trainer": {"max_steps": 10}},
        metrics={"error": 0.25, "clips": 4},
    )


@pytest.fixture
def folder(tmp_path: Path, network: Tiny, card: Card) -> Path:
    save_model(tmp_path / "model", network, card)
    return tmp_path / "model"


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    record = json.loads((folder / CARD).read_text())
    change(record)
    (folder / CARD).write_text(json.dumps(record))


def test_a_saved_model_comes_back_bit_for_bit_with_its_card(folder: Path, network: Tiny, card: Card) -> None:
    loaded, found = load_model(folder, networks=NETWORKS)
    x = torch.randn(5, 3)
    assert torch.equal(loaded(x), network(x))
    assert found.config == card.config
    assert (found.step_grids, found.guidance, found.training, found.metrics) == (
        card.step_grids,
        card.guidance,
        card.training,
        card.metrics,
    )


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_half_precision_storage_rounds_once_and_leaves_integers(
    name: str, dtype: torch.dtype, tmp_path: Path, network: Tiny
) -> None:
    card = Card(network="Tiny", config=network_config(network.config), storage_dtype=name)
    save_model(tmp_path / "half", network, card)
    loaded, _ = load_model(tmp_path / "half", networks=NETWORKS)
    for key, value in network.state_dict().items():
        expected = value.to(dtype).float() if value.is_floating_point() else value
        assert torch.equal(loaded.state_dict()[key], expected)
    assert load_file(tmp_path / "half" / WEIGHTS)["layers.0.weight"].dtype == dtype


@pytest.mark.parametrize("as_stored", [False, True])
def test_what_a_constructor_computes_survives_a_network_built_without_weights(
    as_stored: bool, tmp_path: Path
) -> None:
    made = Tables(TinyConfig())
    with torch.no_grad():
        made.scale.copy_(torch.randn(3))
    save_model(tmp_path / "tables", made, Card(network="Tables", config=network_config(made.config)))
    loaded, _ = load_model(tmp_path / "tables", networks=NETWORKS, as_stored=as_stored)
    x = torch.randn(5, 3)
    assert torch.equal(loaded(x), made(x))
    assert not loaded.get_parameter("scale").requires_grad
    assert loaded.get_parameter("layer.weight").requires_grad
    # the dtype is the constructor's, or the file's
    wanted = torch.float32 if as_stored else torch.float16
    assert loaded.get_parameter("layer.weight").dtype == wanted


def test_the_meta_device_alone_would_lose_what_a_constructor_computes() -> None:
    with torch.device("meta"):
        assert Tables(TinyConfig()).get_buffer("places").is_meta
    with weightless():
        made = Tables(TinyConfig())
    assert all(parameter.is_meta for parameter in made.parameters())
    assert not any(buffer.is_meta for buffer in made.buffers())
    assert not Tables(TinyConfig()).scale.is_meta  # outside


def test_networks_that_other_threads_build_meanwhile_have_weights() -> None:
    with weightless(), ThreadPoolExecutor(1) as threads:
        other = threads.submit(Tiny, TinyConfig()).result()
    assert not any(parameter.is_meta for parameter in other.parameters())


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_weights_may_stay_as_they_are_stored(
    name: str, dtype: torch.dtype, tmp_path: Path, network: Tiny
) -> None:
    card = Card(network="Tiny", config=network_config(network.config), storage_dtype=name)
    save_model(tmp_path / "half", network, card)
    loaded, _ = load_model(tmp_path / "half", networks=NETWORKS, as_stored=True)
    for key, value in network.state_dict().items():
        expected = value.to(dtype) if value.is_floating_point() else value
        assert torch.equal(loaded.state_dict()[key], expected)
        assert loaded.state_dict()[key].dtype == expected.dtype


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_weights_that_do_not_fit_are_listed_by_kind(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["extra"] = tensors.pop("layers.0.bias")
        tensors["layers.1.weight"] = torch.zeros(4, 3)

    rewrite(folder, change)
    with pytest.raises(ValueError, match=r"does not fit") as error:
        load_model(folder, networks=NETWORKS)
    for part in (
        "missing: layers.0.bias",
        "unexpected: extra",
        "reshaped: layers.1.weight [4, 3] instead of [3, 4]",
    ):
        assert part in str(error.value)


def test_weights_of_another_training_are_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"layers.0.bias": torch.ones(4)}))
    with pytest.raises(ValueError, match="weights_sha256"):
        load_model(folder, networks=NETWORKS)


@pytest.mark.parametrize("kept", [0, 5, 40, -4])
def test_a_truncated_weights_file_is_named(kept: int, folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        load_model(folder, networks=NETWORKS)


def test_a_pickle_in_place_of_the_weights_is_not_read(folder: Path, network: Tiny) -> None:
    torch.save(network.state_dict(), folder / WEIGHTS)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_model(folder, networks=NETWORKS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(format=2), "has format 2, this version reads 1"),
        (lambda card: card.update(colour="red"), r"unknown: \['colour'\]"),
        (lambda card: card.pop("licence"), r"missing: \['licence'\]"),
        (
            lambda card: card["config"].update(depth=3),
            r"config does not fit TinyConfig.*unknown: \['depth'\]",
        ),
        (lambda card: card["guidance"].pop("baked"), r"guidance does not fit Guidance; missing: \['baked'\]"),
        (lambda card: card.update(prediction="noise"), "prediction='noise'"),
        (lambda card: card.update(network="Other"), "holds a Other, expected one of Tiny"),
        (lambda card: card["training"].update(seed=3), "edited after the model was saved"),
        (lambda card: card["step_grids"].update({"2": [0.5, 1.0]}), "must be 2 times that fall from 1"),
        (
            lambda card: card["step_grids"].update({"2": [1.5, 1.0]}),
            "must be 2 times that fall from 1 or less",
        ),
        (lambda card: card["step_grids"].update({"2": [0.5, 0.0]}), "above 0"),
    ],
)
def test_a_card_that_does_not_hold_is_refused(
    change: Callable[[dict], None], message: str, folder: Path
) -> None:
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        load_model(folder, networks=NETWORKS)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1, "guidance": 3}'])
def test_a_damaged_card_is_named(text: str, folder: Path) -> None:
    (folder / CARD).write_text(text)
    with pytest.raises(ValueError, match=r"card\.json"):
        read_card(folder)


def test_a_folder_without_card_or_weights_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"it has no card\.json"):
        load_model(tmp_path / "nowhere", networks=NETWORKS)
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_model(folder, networks=NETWORKS)


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(
    folder: Path, network: Tiny, card: Card
) -> None:
    nn.init.constant_(network.layers[0].get_parameter("bias"), 2.0)
    save_model(folder, network, card)
    loaded, _ = load_model(folder, networks=NETWORKS)
    assert torch.equal(loaded.state_dict()["layers.0.bias"], torch.full((4,), 2.0))
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert {path.name for path in folder.iterdir()} == {CARD, WEIGHTS}


def test_an_interrupted_save_leaves_the_old_model_whole(
    folder: Path, network: Tiny, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / WEIGHTS).read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    nn.init.constant_(network.layers[0].get_parameter("bias"), 2.0)
    monkeypatch.setattr("fewstep.core.checkpoints._file_sha256", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_model(folder, network, card)
    monkeypatch.undo()
    assert (folder / WEIGHTS).read_bytes() == before
    load_model(folder, networks=NETWORKS)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path, network: Tiny, card: Card) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="no model folder"):
        save_model(tmp_path, network, card)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_the_card_counts_network_evaluations_and_knows_its_grids(card: Card) -> None:
    assert (card.nfe(1), card.nfe(2)) == (2, 4)
    assert Card(network="Tiny", config={}, guidance=Guidance(scale=3.0, baked=True)).nfe(4) == 4
    assert card.times(2) == [1.0, 0.625]
    with pytest.raises(ValueError, match="num_steps=4 is not a step grid of this model; it has 1, 2"):
        card.times(4)


def test_a_card_for_another_class_is_refused(tmp_path: Path, card: Card) -> None:
    with pytest.raises(ValueError, match="but the network is a Linear"):
        save_model(tmp_path / "model", nn.Linear(2, 2), card)


def test_everybody_may_read_a_saved_model(folder: Path) -> None:
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.iterdir())


def test_a_student_may_start_below_pure_noise() -> None:
    card = Card(network="Tiny", config={}, step_grids={"2": [0.7, 0.01]})
    assert card.times(2) == [0.7, 0.01]


@pytest.mark.parametrize("grids", [{}, {2: [1.0]}, {1: []}, {2: [0.5, 1.0]}, {2: [1.0, 0.0]}])
def test_grids_that_no_card_would_take_are_refused_before_training(grids: dict[int, list[float]]) -> None:
    with pytest.raises(ValueError, match="step_grids"):
        student_grids(grids)


def test_the_grids_of_a_student_are_told_by_their_number_of_steps() -> None:
    assert student_grids({1: [1.0], 2: [1.0, 0.5]}) == {1: (1.0,), 2: (1.0, 0.5)}
