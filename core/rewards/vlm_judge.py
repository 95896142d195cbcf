"""A vision-language model that answers yes or no about a sample, differentiable down to the pixels."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fewstep.core.checkpoints import DTYPES
from fewstep.core.denoisers import Condition
from fewstep.core.rewards.contract import Reward, check_pixels
from fewstep.core.rewards.questions import Asks, CaptionQuestion, Question
from fewstep.core.rewards.qwen_vl import (
    FrameFormat,
    Prompts,
    batch_prompts,
    chat_tokens,
    load_tokenizer,
    place,
    positions_in_space,
    read_config,
    refuse_incomplete,
    refuse_special_tokens,
    sampled_frames,
)

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

    QwenVL = Qwen2_5_VLForConditionalGeneration | Qwen2VLForConditionalGeneration

NP_EDIT_AREA = 448 * 448  # of a frame as the judge of NP-Edit sees it
SAMPLE_FPS = 2.0  # of the videos that the models were trained on


def two_way_cross_entropy(
    yes_logit: Float[Tensor, " batch"],
    no_logit: Float[Tensor, " batch"],
    target_yes: Bool[Tensor, " batch"],
    temperature: float = 1.0,
) -> Float[Tensor, " batch"]:
    r"""Cross entropy over the two tokens Yes and No alone, as in NP-Edit.

    With l the two logits and e the one-hot target,

    .. math:: L = -\log \mathrm{softmax}(\tau l)_{target}, \qquad
        \frac{dL}{dl} = \tau (\mathrm{softmax}(\tau l) - e)

    The temperature multiplies: a small one is soft.
    """
    return F.softplus(-temperature * torch.where(target_yes, yes_logit - no_logit, no_logit - yes_logit))


class VLMJudge(Reward):
    r"""Asks a Qwen2.5-VL or Qwen2-VL about each sample and scores how sure it is of the good answer.

    With :math:`z = \tau (l_{good} - l_{bad})` the difference of the logits of the tokens Yes and No at the
    place of the answer, the score is z ("log_odds") or :math:`\log \sigma(z)` ("log_prob", minus the
    ``two_way_cross_entropy``), averaged over the questions.

    The model is frozen, in evaluation mode, and not part of any training module's weights. Frames are
    resized and cut into patches in torch (``FrameFormat.patches``), so that the gradient reaches every
    pixel that is seen, saturated ones too. One frame is shown as an image, more as a video.

    Memory: weights take 2 bytes each in bfloat16, about 17 GB for the 7B model; a graph through the model
    is kept until backward, and grows with the tokens: 256 per frame of 448 x 448, per two frames in a video.

    Args:
        model: model folder or hub id, for example Qwen/Qwen2.5-VL-7B-Instruct.
        questions: what to ask; the mean over several counts each the same.
        score_as: "log_odds" or "log_prob".
        temperature: tau.
        fps: frames per second of the clips to come; needed for more than one frame.
        sample_fps: frames per second that the judge looks at.
        frame_area: pixels of a frame after resizing, about, small frames being enlarged.
        dtype: of the weights.
        device: where it runs; None follows the pixels.
        gradient_checkpointing: recompute layers in backward instead of keeping them.
        attention: transformers' attention implementation.
    """

    name = "vlm_judge"
    differentiable = True

    def __init__(
        self,
        model: str | Path,
        *,
        questions: Sequence[Asks] = (CaptionQuestion(),),
        score_as: Literal["log_odds", "log_prob"] = "log_odds",
        temperature: float = 1.0,
        fps: float | None = None,
        sample_fps: float = SAMPLE_FPS,
        frame_area: int = NP_EDIT_AREA,
        dtype: str = "bfloat16",
        device: str | None = None,
        gradient_checkpointing: bool = False,
        attention: str = "sdpa",
    ) -> None:
        if score_as not in ("log_odds", "log_prob"):
            raise ValueError(f"score_as={score_as!r} must be log_odds or log_prob")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be positive")
        if not questions:
            raise ValueError("questions is empty; ask at least one")
        self.questions = tuple(questions)
        self.score_as = score_as
        self.temperature = temperature
        self.fps = fps
        self.sample_fps = sample_fps
        self._model = _load(model, dtype=dtype, attention=attention)
        self._device = device
        if gradient_checkpointing:
            _checkpoint_layers(self._model)
        if device is not None:
            place(self._model, device)
        config = self._model.config
        self._image, self._video = config.image_token_id, config.video_token_id
        self._per_second = getattr(config.vision_config, "tokens_per_second", None)
        self._format = FrameFormat.load(model).limited(min_pixels=frame_area, max_pixels=frame_area)
        self._tokenizer = load_tokenizer(model)
        self._yes, self._no = (self._answer(word) for word in ("Yes", "No"))

    def score(
        self, pixels: Float[Tensor, " batch frame 3 height width"], condition: Condition = None
    ) -> Float[Tensor, " batch"]:
        """One score per clip, in float32; the questions say what they read in the condition."""
        scores = []
        for yes, no, target_yes in self.answers(pixels, condition):
            if self.score_as == "log_prob":
                scores.append(-two_way_cross_entropy(yes, no, target_yes, self.temperature))
            else:
                scores.append(self.temperature * torch.where(target_yes, yes - no, no - yes))
        return torch.stack(scores).mean(0)

    def answers(
        self, pixels: Float[Tensor, " batch frame 3 height width"], condition: Condition = None
    ) -> list[tuple[Float[Tensor, " batch"], Float[Tensor, " batch"], Bool[Tensor, " batch"]]]:
        """Per question: the logits of Yes and of No, in float32, and whether Yes is the good answer."""
        check_pixels(pixels)
        device = torch.device(self._device) if self._device is not None else pixels.device
        place(self._model, device)
        frames, interval = self._frames(pixels)
        patches, grid = self._format.patches(frames.to(device))
        answers = []
        for ask in self.questions:
            asked = list(ask(condition, len(pixels)))
            prompts = self._prompts(asked, grid, frames.shape[1] > 1, interval).to(device)
            yes, no = self._logits(prompts, patches, grid, frames.shape[1] > 1).to(pixels.device).unbind(1)
            target_yes = torch.tensor(
                [question.good_answer == "yes" for question in asked], device=yes.device
            )
            answers.append((yes, no, target_yes))
        return answers

    def _frames(self, pixels: Tensor) -> tuple[Tensor, float]:
        """The frames to look at, and the positions in time between two patches."""
        count, per_patch = pixels.shape[1], self._format.temporal_patch_size
        if count == 1:
            return pixels, 1.0
        if self.fps is None:
            raise ValueError(
                f"pixels have {count} frames, but fps=None; say how many the judge sees per second"
            )
        index = sampled_frames(count, fps=self.fps, sample_fps=self.sample_fps, multiple=per_patch)
        seconds = per_patch * count / self.fps / len(index)
        interval = 1.0 if self._per_second is None else self._per_second * seconds
        return pixels[:, index.to(pixels.device)], interval

    def _prompts(
        self, asked: Sequence[Question], grid: tuple[int, int, int], video: bool, interval: float
    ) -> Prompts:
        texts = [question.text for question in asked]
        refuse_special_tokens(self._tokenizer, texts)
        placeholder = self._video if video else self._image
        rows = [
            chat_tokens(
                self._tokenizer,
                text,
                medium="video" if video else "image",
                placeholder=placeholder,
                count=self._format.num_tokens(grid),
            )
            for text in texts
        ]
        positions = [
            positions_in_space(
                row,
                placeholder=placeholder,
                grid=grid,
                merge_size=self._format.merge_size,
                interval=interval,
            )
            for row in rows
        ]
        return batch_prompts(rows, positions)

    def _logits(
        self, prompts: Prompts, patches: Tensor, grid: tuple[int, int, int], video: bool
    ) -> Float[Tensor, " batch 2"]:
        """Logits of Yes and No after each chat, in float32."""
        grids = torch.tensor([grid] * len(prompts.ids), device=patches.device)
        seen = (
            {"pixel_values_videos": patches, "video_grid_thw": grids}
            if video
            else {"pixel_values": patches, "image_grid_thw": grids}
        )
        hidden = self._model.model(
            input_ids=prompts.ids,
            attention_mask=prompts.mask.long(),
            position_ids=prompts.positions,
            use_cache=False,
            **seen,
        ).last_hidden_state
        after = hidden[torch.arange(len(hidden), device=hidden.device), prompts.last]
        rows = self._model.lm_head.weight[[self._yes, self._no]]
        # no matrix product, which autocast would do in bfloat16: the answer is the difference of the two
        return (after.float()[:, None] * rows.float()).sum(2)

    def _answer(self, word: str) -> int:
        ids = self._tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"{word!r} is {len(ids)} tokens for this tokenizer; a judge needs it to be one")
        return ids[0]


def _load(model: str | Path, *, dtype: str, attention: str) -> "QwenVL":
    """The frozen model; weights that are missing, left over or of another shape are a ValueError."""
    config = read_config(model, kinds=("qwen2_5_vl", "qwen2_vl"), argument="model")
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

    family = (
        Qwen2_5_VLForConditionalGeneration
        if type(config).model_type == "qwen2_5_vl"
        else Qwen2VLForConditionalGeneration
    )
    loaded = family.from_pretrained(
        str(model),
        dtype=DTYPES[dtype],
        attn_implementation=attention,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, by name
    )
    network, info = cast("tuple[QwenVL, dict[str, object]]", loaded)
    refuse_incomplete(info, f"model={str(model)!r}")
    return network.eval().requires_grad_(False)


def _checkpoint_layers(network: "QwenVL") -> None:
    """Keep only what enters each layer until backward, whatever the mode of the model."""
    for layer in (*network.model.visual.blocks, *network.model.language_model.layers):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
