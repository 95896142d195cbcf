"""Passes over a chunk in which nothing that changes is a Python number, so that they can be recorded once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.modalities.video.blocks import KeysValues, Past
from fewstep.modalities.video.transformer import Modulations, VideoTransformer

Result = TypeVar("Result")
Recorder = Callable[[Callable[[], Result]], Callable[[], Result]]
"""Runs a function of no arguments and returns one that repeats its operations, on the same memory."""

WARM_UPS = 3  # before a recording, as PyTorch's notes on CUDA graphs advise


@dataclass
class Inputs:
    """What passes over a chunk read, at addresses that stay."""

    x_t: Float[Tensor, " batch frame channel height width"]
    t: Modulations
    text: list[KeysValues]
    past: list[Past]
    position: Tensor
    held: list[KeysValues]
    """The text that ``text`` is a copy of."""

    @classmethod
    def like(cls, x_t: Tensor, t: Modulations, text: list[KeysValues], past: list[Past]) -> "Inputs":
        blocks = [type(block)(*(part.clone() for part in block)) for block in t.blocks]
        own = [KeysValues(*(part.clone() for part in layer)) for layer in text]
        position = torch.zeros((), dtype=torch.int64, device=x_t.device)
        return cls(x_t.clone(), Modulations(blocks, t.time.clone()), own, past, position, text)

    def fit(self, x_t: Tensor, text: list[KeysValues], past: list[Past]) -> bool:
        """Whether these are the shapes and the cache that they were made for."""
        return (
            x_t.shape == self.x_t.shape
            and text[0].keys.shape == self.text[0].keys.shape
            and past[0].length == self.past[0].length
            and past[0].room.data_ptr() == self.past[0].room.data_ptr()
        )

    def load(self, x_t: Tensor, t: Modulations, text: list[KeysValues], position: int) -> None:
        """Put this pass's numbers where the recorded operations read."""
        self.x_t.copy_(x_t)
        self.position.fill_(position)
        _copy_all(_parts(self.t), _parts(t))
        if text is not self.held:  # it changes with the prompt, not with the pass
            own, new = ([part for layer in one for part in layer] for one in (self.text, text))
            _copy_all(own, new)
            self.held = text


class StaticPasses:
    """``forward_chunk`` and ``chunk_keys_values`` of a network, for one stream.

    Positions are tensors, and shapes stay once the window is full: one compiled graph serves every chunk, and
    with ``record`` the passes over a full window are recorded once and replayed. What a recorded pass returns
    is valid until the next one.

    Args:
        record: ``cuda_graph`` on a CUDA device; None calls the network each time.
    """

    def __init__(self, network: VideoTransformer, *, record: Recorder | None = None) -> None:
        self._network, self._record = network, record
        self._inputs: Inputs | None = None
        self._recorded: dict[str, Callable] = {}

    def forward_chunk(
        self,
        x_t: Float[Tensor, " batch frame channel height width"],
        t: Tensor | Modulations,
        text: list[KeysValues],
        *,
        past: list[Past] | None,
        position: int,
        keep: bool = True,
    ) -> tuple[Float[Tensor, " batch frame channel height width"], list[KeysValues]]:
        forward = partial(self._network.forward_chunk, keep=keep)
        return self._run(f"forward_chunk, {keep=}", forward, x_t, t, text, past, position)

    def chunk_keys_values(
        self,
        x_t: Float[Tensor, " batch frame channel height width"],
        t: Tensor | Modulations,
        text: list[KeysValues],
        *,
        past: list[Past] | None,
        position: int,
    ) -> list[KeysValues]:
        method = self._network.chunk_keys_values
        return self._run("chunk_keys_values", method, x_t, t, text, past, position)

    def _run(
        self,
        name: str,
        method: Callable[..., Result],
        x_t: Tensor,
        t: Tensor | Modulations,
        text: list[KeysValues],
        past: list[Past] | None,
        position: int,
    ) -> Result:
        inputs = self._loaded(x_t, t, text, past, position)
        if inputs is None or self._record is None:
            place = torch.full((), position, dtype=torch.int64, device=x_t.device)
            return method(x_t, t, text, past=past, position=place)
        with torch.cuda.device_of(
            x_t
        ):  # a stream and a graph are of the present device, which may be another
            if name not in self._recorded:
                self._recorded[name] = self._record(
                    lambda: method(
                        inputs.x_t, inputs.t, inputs.text, past=inputs.past, position=inputs.position
                    )
                )
            return self._recorded[name]()

    def _loaded(
        self,
        x_t: Tensor,
        t: Tensor | Modulations,
        text: list[KeysValues],
        past: list[Past] | None,
        position: int,
    ) -> Inputs | None:
        """The buffers with this pass's numbers; None where it is not one of those that are recorded."""
        if self._record is None or past is None or not isinstance(t, Modulations):
            return None
        rows, columns = self._network.config.patch_size
        frames, _, height, width = x_t.shape[1:]
        tokens = frames * (height // rows) * (width // columns)
        if past[0].length + tokens < past[0].room.shape[3]:
            return None  # the window still fills, so that this shape comes once
        if self._inputs is None or not self._inputs.fit(x_t, text, past):
            self._inputs, self._recorded = Inputs.like(x_t, t, text, past), {}
        self._inputs.load(x_t, t, text, position)
        return self._inputs


def cuda_graph(run: Callable[[], Result]) -> Callable[[], Result]:
    """A ``Recorder``: the launches of ``run`` as one CUDA graph, whose results stay where they are."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # another thread may be decoding meanwhile, on a stream of its own
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


def _copy_all(own: list[Tensor], new: list[Tensor]) -> None:
    """In a few launches instead of one for each tensor."""
    torch._foreach_copy_(own, new)  # pyright: ignore[reportPrivateImportUsage] - torch's optimisers use it


def _parts(t: Modulations) -> list[Tensor]:
    return [part for block in t.blocks for part in block] + [t.time]
