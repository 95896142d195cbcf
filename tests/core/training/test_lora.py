import copy
import gc
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.core.denoisers import Condition, FlowMap, Guided, NetworkDenoiser, NetworkFlowMap
from fewstep.core.objectives.contract import Data, Need, Sample
from fewstep.core.objectives.dmd import DMD
from fewstep.core.training.checkpointing import checkpoint_blocks
from fewstep.core.training.lora import LoraDenoisers, lora_denoisers, merged, save_adapter
from fewstep.core.training.roles import Roles

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
]

WIDTH = 37  # found in no other test's tensors


class Tower(nn.Module):
    """Two blocks over (x, t), with a layer to show."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Linear(2, WIDTH)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(2))
        self.last = nn.Linear(WIDTH, 1)

    def features(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        x = self.first(torch.cat([x_t, t.to(x_t)[:, None]], dim=1))
        for block in self.blocks:
            x = x + block(x)
        return x[:, None]

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition, r: Tensor | None = None) -> Tensor:
        velocity = self.last(self.features(x_t, t, condition)[:, 0])
        return velocity if r is None else velocity * r[:, None].exp()


class LoraRoles(Roles):
    def __init__(self, network: nn.Module | None = None, **settings: object) -> None:
        super().__init__()
        views = lora_denoisers(network or Tower(), rank=2, alpha=4.0, **settings)  # pyright: ignore[reportArgumentType]
        self.views = views._asdict()
        self.student, self.critic = views.student, views.critic
        self.teacher = Guided(views.teacher, guidance_scale=2.0)

    def generate(self, batch: object, *, generator: torch.Generator, with_grad: bool) -> Sample:
        assert isinstance(batch, Tensor)
        noise = torch.randn(len(batch), 1, generator=generator)
        return Sample(x=self.student(noise, torch.ones(len(batch)), None), condition=batch)

    def data(self, batch: object) -> Data:
        assert isinstance(batch, Tensor)
        return Data(x0=torch.sin(batch))


INPUT = torch.linspace(-1, 1, 5)[:, None], torch.linspace(0.1, 0.9, 5), None


@pytest.fixture
def views() -> LoraDenoisers:
    """Two adapters whose factors are all random."""
    views = lora_denoisers(Tower(), rank=2, alpha=4.0)
    with torch.no_grad():
        for weight in [*views.student.parameters(), *views.critic.parameters()]:
            weight.normal_()
    return views


def test_student_and_critic_start_as_the_network_that_is_the_teacher() -> None:
    expected = NetworkDenoiser(Tower())(*INPUT)
    for view in lora_denoisers(Tower(), rank=2):
        assert torch.equal(view(*INPUT), expected)


def test_each_view_computes_with_its_own_factors_and_the_teacher_with_none(views: LoraDenoisers) -> None:
    outputs = [view(*INPUT) for view in views]
    assert torch.equal(outputs[0], NetworkDenoiser(Tower())(*INPUT))
    for view, name in ((views.student, "student"), (views.critic, "critic")):
        by_hand = Tower()
        factors = view._backbone.parameters(name)
        for layer in ("first", "blocks.0.0", "blocks.1.0", "last"):
            a, b = factors[f"{layer}.lora_A.weight"], factors[f"{layer}.lora_B.weight"]
            with torch.no_grad():
                by_hand.get_parameter(f"{layer}.weight").add_(4.0 / 2 * b @ a)
        torch.testing.assert_close(view(*INPUT), NetworkDenoiser(by_hand)(*INPUT))
    assert not torch.equal(outputs[1], outputs[2])


def test_features_and_entries_of_the_network_use_the_adapter(views: LoraDenoisers) -> None:
    plain = Tower().features(*INPUT)
    assert torch.equal(views.teacher.features(*INPUT), plain)
    assert not torch.allclose(views.critic.features(*INPUT), plain)
    with views.student.using():
        entered = views.student.network(*INPUT)
        with views.teacher.using():
            assert torch.equal(views.teacher.network(*INPUT), Tower()(*INPUT))
        assert torch.equal(views.student.network(*INPUT), entered)
    assert torch.equal(views.student.network(*INPUT), Tower()(*INPUT))
    assert not torch.allclose(entered, Tower()(*INPUT))


def test_a_flow_map_has_a_flow_map_for_its_student_alone() -> None:
    views = lora_denoisers(Tower(), NetworkFlowMap, rank=2)
    assert isinstance(views.student, FlowMap)
    x_t, t, condition = INPUT
    expected = NetworkFlowMap(Tower()).average_velocity(x_t, t, 0.5 * t, condition)
    assert torch.equal(views.student.average_velocity(x_t, t, 0.5 * t, condition), expected)


def test_calls_leave_it_to_others_who_trains(views: LoraDenoisers) -> None:
    views.critic.requires_grad_(False)
    for view in views:
        view(*INPUT)
        assert not any(p.requires_grad for p in views.critic.parameters())
        assert all(p.requires_grad for p in views.student.parameters())
    assert sum(p.requires_grad for p in views.student.network.parameters()) == 8


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_reach_the_called_view_alone_even_where_layers_are_computed_again(
    checkpointed: bool, views: LoraDenoisers
) -> None:
    if checkpointed:
        checkpoint_blocks(views.student.network.get_submodule("blocks").children())
    expected = copy.deepcopy(merged(views.student))
    expected.requires_grad_(True)
    student = views.student(*INPUT)
    views.critic(*INPUT)
    student.square().sum().backward()
    assert all(p.grad is None for p in views.critic.parameters())

    NetworkDenoiser(expected)(*INPUT).square().sum().backward()
    factors = views.student._backbone.parameters("student")
    for layer in ("blocks.0.0", "last"):
        a, b = factors[f"{layer}.lora_A.weight"], factors[f"{layer}.lora_B.weight"]
        outer = expected.get_parameter(f"{layer}.weight").grad
        assert outer is not None
        torch.testing.assert_close(b.grad, 2.0 * outer @ a.T, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a.grad, 2.0 * b.T @ outer, rtol=1e-4, atol=1e-4)


def copies_of_the_network() -> int:
    """How many tensors of the shape of its blocks' weights are alive anywhere."""
    gc.collect()
    # by type, since isinstance would wake deprecated proxies
    alive = [o for o in gc.get_objects() if issubclass(type(o), Tensor) and o.shape == (WIDTH, WIDTH)]
    return len({tensor.data_ptr() for tensor in alive})


class Targeted(DMD):
    @property
    def needs(self) -> frozenset[Need]:
        more: frozenset[Need] = frozenset({"target", "student"})
        return super().needs | more


def test_training_holds_one_copy_of_the_network_and_leaves_it_alone(
    make_distiller: Callable, fit: Callable, tmp_path: Path
) -> None:
    elsewhere = copies_of_the_network()
    network = Tower()
    before = {name: p.clone() for name, p in network.state_dict().items() if p.shape != (WIDTH, WIDTH)}
    roles = LoraRoles(network)
    distiller = make_distiller(roles, Targeted(), critic_updates=2)
    trained = [roles.views[name] for name in ("student", "critic")]
    teacher, outputs = roles.teacher, [view(*INPUT).detach() for view in trained]
    assert teacher is not None
    expected = teacher(*INPUT)
    fit(distiller, 4)
    assert copies_of_the_network() - elsewhere == 2  # its two blocks, once each

    assert torch.equal(teacher(*INPUT), expected)
    for name, weight in before.items():
        found = {n.replace(".base_layer", ""): p for n, p in network.state_dict().items()}
        assert torch.equal(found[name], weight)
    for view, old in zip(trained, outputs, strict=True):
        assert not torch.equal(view(*INPUT), old)
    saved = torch.load(tmp_path / "last.ckpt")["state_dict"]
    assert all(
        "lora_" in name for name in saved if name not in ("batches", "student_steps", "ema.num_updates")
    )
    assert sum(name.startswith("roles.student.") for name in saved) == 8
    assert max(weight.numel() for weight in saved.values()) == 2 * WIDTH


def test_student_and_critic_learn_from_their_own_losses_alone(
    make_distiller: Callable, fit: Callable, tmp_path: Path
) -> None:
    settings = {"critic_updates": 1, "weight_decay": 0.0}
    for frozen, moved in (("student", "critic"), ("critic", "student")):
        roles = LoraRoles()
        nn.init.ones_(roles.views["critic"].weights["last/lora_B/weight"])  # else student and critic agree
        before = {name: p.clone() for name, p in roles.named_parameters()}
        fit(make_distiller(roles, **{**settings, f"{frozen}_lr": 0.0}), 2, tmp_path / frozen)
        changed = {
            name.split(".")[0] for name, p in roles.named_parameters() if not torch.equal(p, before[name])
        }
        assert changed == {moved}


def test_a_target_is_a_third_adapter_that_follows_the_student(
    make_distiller: Callable, fit: Callable
) -> None:
    roles = LoraRoles()
    distiller = make_distiller(roles, Targeted(), critic_updates=1, target_decay=0.75, weight_decay=0.0)
    assert distiller.target.network is roles.student.network
    start = {name: p.detach().clone() for name, p in roles.student.named_parameters()}
    fit(distiller, 1)
    for name, p in distiller.target.named_parameters():
        own = roles.student.get_parameter(name)
        torch.testing.assert_close(p, 0.75 * start[name] + 0.25 * own)
    assert roles.teacher is not None
    assert torch.equal(roles.teacher(*INPUT), Guided(NetworkDenoiser(Tower()), guidance_scale=2.0)(*INPUT))


def test_a_resumed_run_over_adapters_continues_bit_for_bit(
    make_distiller: Callable, fit: Callable, tmp_path: Path, assert_identical: Callable
) -> None:
    settings = {"critic_updates": 2}
    fit(make_distiller(LoraRoles(), Targeted(), **settings), 5, tmp_path / "whole")
    fit(make_distiller(LoraRoles(), Targeted(), **settings), 2, tmp_path / "parts")
    torch.manual_seed(77)
    fit(make_distiller(LoraRoles(seed=9), Targeted(), **settings), 5, tmp_path / "parts")
    expected, found = (torch.load(tmp_path / run / "last.ckpt") for run in ("whole", "parts"))
    assert_identical(expected["state_dict"], found["state_dict"])
    assert_identical(expected["optimizer_states"], found["optimizer_states"])


def test_peft_reads_the_adapter_file(views: LoraDenoisers, tmp_path: Path) -> None:
    save_adapter(views.critic, tmp_path / "adapter")
    names = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert "base_model.model.blocks.0.0.lora_A.weight" in names
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 2
    loaded = PeftModel.from_pretrained(Tower(), str(tmp_path / "adapter"))
    x_t, t, condition = INPUT
    torch.testing.assert_close(NetworkDenoiser(loaded)(x_t, t, condition), views.critic(x_t, t, condition))
    with pytest.raises(ValueError, match="the teacher has no adapter"):
        save_adapter(views.teacher, tmp_path / "none")


def test_merged_weights_are_a_plain_network_with_the_students_output(views: LoraDenoisers) -> None:
    plain = merged(views.student)
    assert {name: p.shape for name, p in plain.state_dict().items()} == {
        name: p.shape for name, p in Tower().state_dict().items()
    }
    fresh = Tower()
    fresh.load_state_dict(plain.state_dict())
    torch.testing.assert_close(NetworkDenoiser(fresh)(*INPUT), views.student(*INPUT))
    torch.testing.assert_close(merged(views.teacher).state_dict(), Tower().state_dict(), rtol=0.0, atol=0.0)
    assert not torch.allclose(views.critic(*INPUT), views.student(*INPUT))


def test_adapters_of_a_network_in_half_precision_are_in_full_and_merge_without_rounding() -> None:
    views = lora_denoisers(Tower().bfloat16(), rank=2, alpha=4.0)
    assert {p.dtype for p in views.student.parameters()} == {torch.float32}
    assert next(views.teacher.network.parameters()).dtype == torch.bfloat16
    factors = views.student._backbone.parameters("student")
    a, b = factors["blocks.0.0.lora_A.weight"], factors["blocks.0.0.lora_B.weight"]
    with torch.no_grad():
        b.fill_(1e-4)  # less than half precision keeps beside the weights
    added = 2.0 * b @ a
    base = Tower().bfloat16().get_parameter("blocks.0.0.weight").float()
    exact = merged(views.student, dtype=torch.float32).get_parameter("blocks.0.0.weight")
    torch.testing.assert_close(exact, base + added, rtol=0, atol=1e-7)
    rounded = merged(views.student).get_parameter("blocks.0.0.weight")
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - base - added).abs().mean() > 0.5 * added.abs().mean()


def test_layers_are_chosen_by_a_pattern() -> None:
    student = lora_denoisers(Tower(), rank=2, layers=r"blocks\.\d").student
    assert {name.split("/")[0] for name in student.weights} == {"blocks"}
    with pytest.raises(
        ValueError, match=r"layers='atention' matches none of 4 linear layers, such as \['first'"
    ):
        lora_denoisers(Tower(), layers="atention")
    with pytest.raises(ValueError, match="rank=0"):
        lora_denoisers(Tower(), rank=0)


def test_moving_a_view_moves_the_network(views: LoraDenoisers) -> None:
    views.student.to(torch.float64)
    assert {p.dtype for p in views.teacher.network.parameters()} == {torch.float64}
    assert (
        views.student.weights["last/lora_A/weight"]
        is views.student._backbone.parameters("student")["last.lora_A.weight"]
    )
