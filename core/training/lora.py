"""LoRA (Hu et al., 2021): a student and a critic as adapters on one frozen network, which is the teacher."""

import copy
import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.core.denoisers import Condition, Denoiser, FeatureDenoiser, FlowMap, NetworkDenoiser
from fewstep.core.paths import Path
from fewstep.core.training.checkpointing import recomputed_within

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

PEFT_PREFIX = "base_model.model."  # what peft puts before every name in an adapter file


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Size and places of the adapters.

    Args:
        rank: r, the inner dimension of the factors.
        alpha: numerator of the scale; equal to the rank, the scale is 1.
        layers: a regular expression; linear layers in whose names it is found are adapted. Empty is all.
        seed: of the adapters' first factors.
    """

    rank: int = 64
    alpha: float = 64.0
    layers: str = ""
    seed: int = 0


class Backbone:
    """One frozen network with any number of named adapters, of which one or none is at work at a time."""

    def __init__(
        self,
        network: nn.Module,
        wrap: Callable[[nn.Module], Denoiser],
        *,
        rank: int,
        alpha: float,
        layers: str,
        seed: int,
    ) -> None:
        if rank < 1:
            raise ValueError(f"rank={rank} must be at least 1")
        linear = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
        adapted = [name for name in linear if re.search(layers, name)]
        if not adapted:
            raise ValueError(
                f"layers={layers!r} matches none of {len(linear)} linear layers, such as {linear[:3]}; "
                "give another pattern"
            )
        self.pattern = "|".join(map(re.escape, adapted))  # exactly these: a list would match endings too
        self.network = network
        self.rank, self.alpha, self.seed = rank, alpha, seed
        network.requires_grad_(False)
        self.denoiser = wrap(network)
        self._at_work: str | None = None
        self._count = 0

    def add(self, name: str) -> None:
        """A new adapter that changes nothing yet: its second factor is zero."""
        peft = _peft()
        config = peft.LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=self.pattern)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        with torch.random.fork_rng(), warnings.catch_warnings():
            # several adapters on one network are what is meant
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            torch.manual_seed(self.seed + self._count)
            peft.inject_adapter_in_model(config, self.network, adapter_name=name)
        self._count += 1
        self.network.requires_grad_(False)
        for parameter in self.parameters(name).values():
            # what trains is never in half precision, whatever the network is in
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        for parameter in [*trained, *self.parameters(name).values()]:
            parameter.requires_grad_(True)
        self._switch(self._at_work)

    def copy(self, name: str) -> str:
        """Another adapter with the weights of this one."""
        fresh = f"{name}_{self._count}"
        self.add(fresh)
        with torch.no_grad():
            pairs = zip(self.parameters(fresh).values(), self.parameters(name).values(), strict=True)
            for new, old in pairs:
                new.copy_(old)
        return fresh

    def layers(self) -> dict[str, "LoraLayer"]:
        """The adapted layers by their names in the network."""
        return lora_layers(self.network)

    def parameters(self, adapter: str) -> dict[str, nn.Parameter]:
        """An adapter's weights by their names in an adapter file."""
        found: dict[str, nn.Parameter] = {}
        for name, layer in self.layers().items():
            for part in ("lora_A", "lora_B"):
                weight = getattr(layer, part)[adapter].weight
                found[f"{name}.{part}.weight"] = weight
        return found

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Within the block the network computes with this adapter, or as it was without any."""
        before = self._at_work
        if before == adapter:
            yield
            return
        self._switch(adapter)
        try:
            with recomputed_within(lambda: self.using(adapter)):
                yield
        finally:
            self._switch(before)

    def _switch(self, adapter: str | None) -> None:
        # peft freezes what it switches off; who trains is the training module's business
        flags = [(p, p.requires_grad) for p in self.network.parameters()]
        for layer in self.layers().values():
            if adapter is not None:
                layer.set_adapter(adapter)
            layer.enable_adapters(adapter is not None)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        self._at_work = adapter


class Adapted(nn.Module):
    """A denoiser through one adapter of its network, or through none: the teacher.

    Its parameters, and all that a checkpoint of it holds, are the adapter's; the network is not a part of
    it. A deep copy is another adapter on the same network.
    """

    def __init__(self, backbone: Backbone, adapter: str | None) -> None:
        super().__init__()
        self._backbone = backbone
        self.adapter = adapter
        weights = {} if adapter is None else backbone.parameters(adapter)
        # a parameter's name may not contain dots
        self.weights = nn.ParameterDict({name.replace(".", "/"): p for name, p in weights.items()})

    @property
    def path(self) -> Path:
        return self._backbone.denoiser.path

    @property
    def network(self) -> nn.Module:
        """The shared network; call it within ``using()``."""
        return self._backbone.network

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser of the shared network, likewise."""
        return self._backbone.denoiser

    @contextmanager
    def using(self) -> Iterator[None]:
        """Within the block the shared network computes with this adapter, whatever enters it."""
        if self.network.training != self.training:
            self.network.train(self.training)
        with self._backbone.using(self.adapter):
            yield

    def forward(
        self, x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch *leading"], condition: Condition
    ) -> Float[Tensor, " batch *event"]:
        with self.using():
            return self._backbone.denoiser(x_t, t, condition)

    def features(
        self, x_t: Float[Tensor, " batch *event"], t: Float[Tensor, " batch *leading"], condition: Condition
    ) -> Float[Tensor, " batch *token dim"]:
        """See ``FeatureDenoiser``."""
        denoiser = self._backbone.denoiser
        if not isinstance(denoiser, FeatureDenoiser):
            raise ValueError(
                f"{type(denoiser).__name__} has no features(x_t, t, condition); write that method"
            )
        with self.using():
            return denoiser.features(x_t, t, condition)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Adapted":
        # the network moves along with any of its views; the second time it is there already
        self.network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, object]) -> "Adapted":
        copied = None if self.adapter is None else self._backbone.copy(self.adapter)
        return type(self)(self._backbone, copied).train(self.training)


class AdaptedFlowMap(Adapted):
    """The same for a student of two times."""

    def average_velocity(
        self,
        x_t: Float[Tensor, " batch *event"],
        t: Float[Tensor, " batch *leading"],
        r: Float[Tensor, " batch *leading"],
        condition: Condition,
    ) -> Float[Tensor, " batch *event"]:
        """See ``FlowMap``."""
        denoiser = self._backbone.denoiser
        assert isinstance(denoiser, FlowMap)
        with self.using():
            return denoiser.average_velocity(x_t, t, r, condition)


class LoraDenoisers(NamedTuple):
    """Three views of one network."""

    teacher: Adapted
    student: Adapted
    critic: Adapted


def lora_denoisers(
    network: nn.Module,
    wrap: Callable[[nn.Module], Denoiser] = NetworkDenoiser,
    *,
    rank: int = 64,
    alpha: float = 64.0,
    layers: str = "",
    seed: int = 0,
) -> LoraDenoisers:
    r"""Teacher, student and critic on the weights of one ``network``, which is frozen and changed in place.

    Each adapted layer computes :math:`W x + \frac{\alpha}{r} B A x` with the factors of the view that is
    called. Student and critic start as the teacher.

    Args:
        wrap: makes the denoiser of the network; called once.
        rank: r, the inner dimension of the factors.
        alpha: numerator of the scale; equal to the rank, the scale is 1.
        layers: a regular expression; linear layers in whose names it is found are adapted. Empty is all.
        seed: of the adapters' first factors.
    """
    backbone = Backbone(network, wrap, rank=rank, alpha=alpha, layers=layers, seed=seed)
    for name in ("student", "critic"):
        backbone.add(name)
    kind = AdaptedFlowMap if isinstance(backbone.denoiser, FlowMap) else Adapted
    return LoraDenoisers(
        Adapted(backbone, None).eval(), kind(backbone, "student"), Adapted(backbone, "critic")
    )


def save_adapter(view: Adapted, folder: str | FilePath) -> None:
    """Write an adapter as peft reads it (``PeftModel.from_pretrained(network, folder)``)."""
    if view.adapter is None:
        raise ValueError("the teacher has no adapter to save; pass the student or the critic")
    folder = FilePath(folder)
    folder.mkdir(parents=True, exist_ok=True)
    backbone = view._backbone
    weights = {
        PEFT_PREFIX + name: p.detach().contiguous() for name, p in backbone.parameters(view.adapter).items()
    }
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": backbone.rank,
        "lora_alpha": backbone.alpha,
        "target_modules": backbone.pattern,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def merged(view: Adapted, *, dtype: torch.dtype | None = None) -> nn.Module:
    """A plain copy of the network with the adapter added to its weights; nothing of peft is left in it.

    Args:
        dtype: of the copy; half precision would round away much of what the adapter adds.
    """
    network = copy.deepcopy(view.network).to(dtype)
    for name, layer in lora_layers(network).items():
        if view.adapter is not None:
            layer.enable_adapters(True)
            layer.merge(adapter_names=[view.adapter])
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(network, "peft_config"):
        del network.peft_config
    return network


def lora_layers(network: nn.Module) -> dict[str, "LoraLayer"]:
    """The layers of a network that peft has given adapters, by their names."""
    kind = _peft().tuners.lora.LoraLayer
    found: dict[str, LoraLayer] = {}
    for name, part in network.named_modules():
        if isinstance(part, kind):
            found[name] = cast("LoraLayer", part)
    return found


def _peft() -> ModuleType:
    try:
        import peft
        import peft.tuners.lora
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'fewstep[train]'") from error
    return peft
