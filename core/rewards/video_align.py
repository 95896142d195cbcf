"""VideoAlign's reward model for generated video (Liu et al., 2025, arXiv 2501.13918)."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.checkpoints import DTYPES
from fewstep.core.denoisers import Condition
from fewstep.core.rewards.captions import CaptionReader, captions_of, read_captions
from fewstep.core.rewards.contract import Reward, check_pixels
from fewstep.core.rewards.qwen_vl import (
    FrameFormat,
    batch_prompts,
    chat_tokens,
    load_tokenizer,
    place,
    positions_in_sequence,
    read_config,
    refuse_incomplete,
    refuse_special_tokens,
    sampled_frames,
)
from fewstep.core.rewards.video_align_folder import (
    AXES,
    CAPTION,
    CONFIG,
    TOKENS,
    Axis,
    find_folder,
    read_settings,
    read_template,
    read_weights,
    take_head,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, Qwen2VLModel

MIN_FRAME_PIXELS = 128 * 28 * 28  # of a resized frame, from VideoAlign's vision_process.py


class VideoAlignReward(Reward):
    """Visual quality, motion quality or text alignment of a video, as people judged generated ones.

    A Qwen2-VL reads the clip, sampled at the 2 frames per second it was trained on, and a text that asks for
    three ratings; at the three special tokens in that text a linear head turns the hidden state into a
    score, which is normalised by the mean and standard deviation in the folder. No gradient.

    The folder is KwaiVGI/VideoReward as released: ``model_config.json`` and ``checkpoint-STEP/model.pth``
    with its LoRA beside the weights, merged here in float32. The text is not in it: put
    ``prompt_template.py`` of the VideoAlign repository beside ``model_config.json`` (its constant is read,
    the file is never run), or pass ``template``. Scores under another text mean nothing.

    Positions of tokens run in sequence, for vision too: so the released model was trained.

    Args:
        folder: local folder, or a hub id to download.
        fps: frames per second of the clips to come.
        axis: which score, or "overall" for the sum of the three.
        template: the text, or a file with it; None looks in the folder.
        base: model folder or hub id of the Qwen2-VL for its configuration, tokenizer and image format; None
            takes the one that ``model_config.json`` names. Its weights are not read.
        normalise: score in standard deviations from the mean.
        captions: how to read the captions out of a condition; asked only where the score depends on them,
            which visual and motion quality do not in the released text: it names the prompt after them.
        dtype: of the weights; about 4.4 GB in bfloat16.
        device: where it runs; None follows the pixels.
    """

    name = "video_align"
    differentiable = False

    def __init__(
        self,
        folder: str | Path,
        *,
        fps: float,
        axis: Axis | Literal["overall"] = "MQ",
        template: str | Path | None = None,
        base: str | Path | None = None,
        normalise: bool = True,
        captions: CaptionReader = read_captions,
        dtype: str = "bfloat16",
        device: str | None = None,
    ) -> None:
        if axis not in (*AXES, "overall"):
            raise ValueError(f"axis={axis!r} must be one of {', '.join(AXES)}, overall")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
        if fps <= 0:
            raise ValueError(f"fps={fps} must be positive")
        folder = find_folder(folder)
        settings = read_settings(folder / CONFIG)
        if normalise and settings.mean is None:
            raise ValueError(
                f"{folder / CONFIG} has no inference_config to normalise by; pass normalise=False"
            )
        base = base or settings.base
        config = read_config(base, kinds=("qwen2_vl",), argument="base")
        tokenizer = load_tokenizer(base)
        tokenizer.add_tokens(list(TOKENS), special_tokens=True)
        self.fps = fps
        self.axis = axis
        self._template = read_template(template, folder)
        self._captions = captions
        self._settings = settings
        self._normalise = normalise
        self._device = device
        self._tokenizer = tokenizer
        self._tokens = [tokenizer.convert_tokens_to_ids(token) for token in TOKENS]
        self._video = int(config.video_token_id)
        self._format = FrameFormat.load(base).limited(
            min_pixels=min(MIN_FRAME_PIXELS, settings.max_frame_pixels), max_pixels=settings.max_frame_pixels
        )
        weights = read_weights(folder, settings.lora_scale)
        self._head = take_head(weights, settings.outputs).to(DTYPES[dtype])
        self._model = _build(config, weights, vocabulary=len(tokenizer), dtype=dtype, where=str(folder))
        if device is not None:
            place(self._model, device)

    def score(
        self, pixels: Float[Tensor, " batch frame 3 height width"], condition: Condition = None
    ) -> Float[Tensor, " batch"]:
        """One score per clip, in float32, on the axis asked for."""
        scores = self.scores(pixels, condition)
        return scores.sum(1) if self.axis == "overall" else scores[:, AXES.index(self.axis)]

    @torch.no_grad()
    def scores(
        self, pixels: Float[Tensor, " batch frame 3 height width"], condition: Condition = None
    ) -> Float[Tensor, " batch 3"]:
        """Visual quality, motion quality and text alignment, in float32.

        What the score asked for does not depend on may be without meaning: text alignment needs captions.
        """
        check_pixels(pixels, min_frames=2)
        device = torch.device(self._device) if self._device is not None else pixels.device
        place(self._model, device)
        index = sampled_frames(
            pixels.shape[1],
            fps=self.fps,
            sample_fps=self._settings.fps,
            multiple=self._format.temporal_patch_size,
        )
        patches, grid = self._format.patches(pixels[:, index.to(pixels.device)].to(device), in_bytes=True)
        rows = self._chats(condition, len(pixels), self._format.num_tokens(grid))
        prompts = batch_prompts(rows, [positions_in_sequence(len(row)) for row in rows]).to(device)
        hidden = self._model(
            input_ids=prompts.ids,
            attention_mask=prompts.mask.long(),
            position_ids=prompts.positions,
            pixel_values_videos=patches,
            video_grid_thw=torch.tensor([grid] * len(rows), device=device),
            use_cache=False,
        ).last_hidden_state
        raw = _rate(hidden, prompts.ids, self._tokens, self._head.to(device)).float().to(pixels.device)
        mean, std = self._settings.mean, self._settings.std
        if not self._normalise or mean is None or std is None:
            return raw
        return (raw - raw.new_tensor(mean)) / raw.new_tensor(std)

    @property
    def needs_captions(self) -> bool:
        """Whether the score can depend on captions: the model reads the text in order."""
        asked = TOKENS if self.axis == "overall" else (TOKENS[AXES.index(self.axis)],)
        return any(self._template.index(CAPTION) < self._template.index(token) for token in asked)

    def _chats(self, condition: Condition, batch_size: int, num_tokens: int) -> list[list[int]]:
        captions = [""] * batch_size
        if self.needs_captions:
            captions = captions_of(condition, batch_size, self._captions)
        refuse_special_tokens(self._tokenizer, captions)
        return [
            chat_tokens(
                self._tokenizer,
                self._template.replace(CAPTION, caption),
                medium="video",
                placeholder=self._video,
                count=num_tokens,
            )
            for caption in captions
        ]


def _rate(
    hidden: Float[Tensor, " batch token dim"],
    ids: Int[Tensor, " batch token"],
    tokens: list[int],
    head: Float[Tensor, " outputs dim"],
) -> Float[Tensor, " batch 3"]:
    """The head at the three tokens: its one output at each, or the first at the first and so on."""
    places = torch.stack([(ids == token).int().argmax(1) for token in tokens], dim=1)
    ratings = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[2])) @ head.T
    return ratings[..., 0] if len(head) == 1 else ratings.diagonal(dim1=1, dim2=2)


def _build(
    config: "PreTrainedConfig", weights: dict[str, Tensor], *, vocabulary: int, dtype: str, where: str
) -> "Qwen2VLModel":
    from transformers import Qwen2VLModel

    text = config.get_text_config()
    text.vocab_size = vocabulary  # the released embedding was resized to the tokenizer and its three tokens
    loaded = Qwen2VLModel.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=DTYPES[dtype],
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, by name
    )
    network, info = cast("tuple[Qwen2VLModel, dict[str, object]]", loaded)
    refuse_incomplete(info, where)
    return network.eval().requires_grad_(False)
