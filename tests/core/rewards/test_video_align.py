"""VideoAlign's scores from its released layout, against transformers with LoRA beside the weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.objectives.contract import Sample, Turn
from fewstep.core.objectives.re_dmd import ReDMD
from fewstep.core.rewards.contract import Reward
from fewstep.core.rewards.video_align import VideoAlignReward

AXES = ("VQ", "MQ", "TA")
CAPTIONS = ["a red mug turns", "two chairs fall over in the wind"]
LORA_SCALE = 3.0  # alpha 6 by rank 2
MEAN, STD = torch.tensor([3.0, 1.0, -2.0]), torch.tensor([2.0, 1.5, 0.5])


def load(folder: Path, **settings: Any) -> VideoAlignReward:
    return VideoAlignReward(folder, **{"fps": 2.0, "dtype": "float32", **settings})


@pytest.fixture(scope="module")
def reward(video_align_folder: Path) -> VideoAlignReward:
    return load(video_align_folder)


def clips(frames: int = 4, batch: int = 2) -> Tensor:
    """Random bytes as pixels, of the size that the model looks at."""
    return torch.randint(0, 256, (batch, frames, 3, 56, 84)) / 255


def expected_scores(released: Any, pixels: Tensor, caption: str) -> Tensor:
    """One clip's raw scores [3] by transformers: its processor frame by frame, LoRA as a second path."""
    network = Qwen2VLForConditionalGeneration.from_pretrained(str(released.base)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(released.base))
    tokens = [f"<|{axis}_reward|>" for axis in AXES]
    tokenizer.add_tokens(tokens, special_tokens=True)
    network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weights = {name.removeprefix("base_model.model."): value for name, value in released.weights.items()}
    network.model.language_model.embed_tokens.weight.data.copy_(weights["model.embed_tokens.weight"])
    for name, module in network.model.language_model.named_modules():
        if name.endswith("_proj"):
            down, up = (weights[f"model.{name}.lora_{part}.default.weight"] for part in "AB")
            module.register_forward_hook(
                lambda _, inputs, output, down=down, up=up: output + LORA_SCALE * (inputs[0] @ down.T) @ up.T
            )
    images = [(frame * 255).round().byte().permute(1, 2, 0).numpy() for frame in pixels]
    size = {"shortest_edge": 56 * 84, "longest_edge": 56 * 84}
    processor = AutoImageProcessor.from_pretrained(str(released.base))
    alone = processor(images=images, size=size, return_tensors="pt")["pixel_values"]
    # An image fills both frames of a patch with itself; a video takes the second from its next frame.
    even, odd = alone.view(len(images) // 2, 2, 24, 3, 2, 196).unbind(1)
    patches = torch.stack([even[:, :, :, 0], odd[:, :, :, 0]], dim=3).reshape(-1, 3 * 2 * 196)
    grid = (len(images) // 2, 4, 6)
    pads = "<|video_pad|>" * (grid[0] * 6)
    text = released.template.format(text_prompt=caption)
    chat = f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(chat, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = network.model(
            input_ids=ids,
            pixel_values_videos=patches,
            video_grid_thw=torch.tensor([grid]),
            position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1),
        ).last_hidden_state[0]
    places = [ids[0].tolist().index(tokenizer.convert_tokens_to_ids(token)) for token in tokens]
    return (hidden[places] @ weights["rm_head.weight"].T)[:, 0]


def test_scores_are_transformers_own_with_lora_as_a_second_path(
    reward: VideoAlignReward, video_align_folder: Path, released: Any
) -> None:
    pixels = clips()
    raw = torch.stack(
        [expected_scores(released, clip, caption) for clip, caption in zip(pixels, CAPTIONS, strict=True)]
    )
    everything = load(video_align_folder, axis="TA")
    found = everything.scores(pixels, CAPTIONS)
    torch.testing.assert_close(found, (raw - MEAN) / STD, rtol=0, atol=1e-3)  # of scores up to 20, in float32
    plain = load(video_align_folder, axis="TA", normalise=False).scores(pixels, CAPTIONS)
    torch.testing.assert_close(plain, raw, rtol=0, atol=1e-3)
    assert (raw[0] - raw[1]).abs().min() > 0.05


def test_the_adapters_matter(released: Any, reward: VideoAlignReward, tmp_path: Path) -> None:
    """The control of the comparison."""
    released.config["peft_lora_config"]["lora_alpha"] = 0
    pixels = clips()
    without = load(released.write(tmp_path)).scores(pixels)
    assert (without - reward.scores(pixels)).abs().max() > 0.05


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank(released: Any, tmp_path: Path) -> None:
    pixels = clips()
    released.config["peft_lora_config"].update(use_rslora=True, lora_alpha=3 * 2**0.5)
    stabilised = load(released.write(tmp_path / "a"))
    released.config["peft_lora_config"].update(use_rslora=False, lora_alpha=6)
    torch.testing.assert_close(
        stabilised.scores(pixels), load(released.write(tmp_path / "b")).scores(pixels), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("axis", ["VQ", "MQ", "TA", "overall"])
def test_the_score_is_the_axis_asked_for(video_align_folder: Path, axis: Any) -> None:
    asked = load(video_align_folder, axis=axis)
    pixels = clips()
    scores = asked.scores(pixels, CAPTIONS)
    expected = scores.sum(1) if axis == "overall" else scores[:, AXES.index(axis)]
    torch.testing.assert_close(asked.score(pixels, CAPTIONS), expected)


def test_a_head_with_three_outputs_is_read_at_each_token_for_its_own(released: Any, tmp_path: Path) -> None:
    pixels = clips()
    one = load(released.write(tmp_path / "one"), normalise=False).scores(pixels)
    head = released.weights["base_model.model.rm_head.weight"]
    released.weights["base_model.model.rm_head.weight"] = torch.cat([head, 2 * head, -head])
    released.config["model_config"]["output_dim"] = 3
    three = load(released.write(tmp_path / "three"), normalise=False).scores(pixels)
    torch.testing.assert_close(three, one * torch.tensor([1.0, 2.0, -1.0]))


def test_only_text_alignment_reads_the_caption(video_align_folder: Path, reward: VideoAlignReward) -> None:
    """In the released text the caption comes after the other two tokens, and the model reads in order."""
    pixels = clips()
    aligned = load(video_align_folder, axis="TA")
    assert (reward.needs_captions, aligned.needs_captions) == (False, True)
    first, second = aligned.scores(pixels, CAPTIONS), aligned.scores(pixels, CAPTIONS[::-1])
    torch.testing.assert_close(first[:, :2], second[:, :2])
    assert (first[:, 2] - second[:, 2]).abs().min() > 0.1
    torch.testing.assert_close(reward.score(pixels), first[:, 1], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="no captions"):
        aligned.score(pixels, torch.zeros(2, 3))


def test_a_text_that_names_the_prompt_first_needs_captions_for_every_axis(video_align_folder: Path) -> None:
    template = "{text_prompt} <|VQ_reward|><|MQ_reward|><|TA_reward|>"
    asked = load(video_align_folder, template=template)
    assert asked.needs_captions
    pixels = clips()
    assert (asked.score(pixels, CAPTIONS) - asked.score(pixels, CAPTIONS[::-1])).abs().min() > 1e-2


def test_samples_are_scored_one_by_one(video_align_folder: Path) -> None:
    pixels, captions = clips(batch=3), [*CAPTIONS, "a lamp"]
    everything = load(video_align_folder, axis="overall")
    alone = [everything.scores(pixels[i : i + 1], captions[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(everything.scores(pixels, captions), torch.cat(alone), rtol=0, atol=1e-3)


def test_clips_are_sampled_at_the_frame_rate_of_training(
    video_align_folder: Path, reward: VideoAlignReward
) -> None:
    pixels = clips(frames=16)
    fast = load(video_align_folder, fps=8.0)
    torch.testing.assert_close(fast.score(pixels), reward.score(pixels[:, [0, 5, 10, 15]]))


def test_pixels_are_seen_as_bytes_and_give_no_gradient(reward: VideoAlignReward) -> None:
    pixels = clips().requires_grad_()
    score = reward.score(pixels)
    assert not score.requires_grad
    shaken = (pixels + 0.4 / 255 * (2 * torch.rand_like(pixels) - 1)).clamp(0, 1)
    assert torch.equal(reward.score(shaken), score)


def test_re_dmd_weighs_samples_by_it(reward: VideoAlignReward) -> None:
    objective = ReDMD(reward, normalise=False, max_weight=None)
    x = torch.rand(2, 4, 3, 56, 84, requires_grad=True)
    turn = Turn(
        sample=Sample(x=x),
        teacher=GaussianDenoiser(mean=1.3, std=0.7),
        critic=GaussianDenoiser(mean=0.4, std=1.1),
        decode=torch.clone,
    )
    loss, diagnostics = objective.student_loss(turn)
    loss.backward()
    scores = reward.score(x.detach())
    torch.testing.assert_close(diagnostics["reward_mean"], scores.mean())
    torch.testing.assert_close(diagnostics["reward_weight_max"], (2 * scores).exp().max())
    assert x.grad is not None
    assert set(objective.state_dict()) == {"log_mean", "num_batches"}


def test_the_names_of_newer_transformers_are_read_too(
    released: Any, reward: VideoAlignReward, tmp_path: Path
) -> None:
    prefix = "base_model.model."
    released.weights = {
        name.replace(f"{prefix}visual.", f"{prefix}model.visual.").replace(
            f"{prefix}model.", f"{prefix}model.language_model."
        )
        if ".visual." not in name
        else name.replace(f"{prefix}visual.", f"{prefix}model.visual."): value
        for name, value in released.weights.items()
    }
    pixels = clips()
    assert torch.equal(load(released.write(tmp_path)).score(pixels), reward.score(pixels))


def test_the_latest_checkpoint_is_taken(released: Any, reward: VideoAlignReward, tmp_path: Path) -> None:
    folder = released.write(tmp_path)
    (folder / "checkpoint-9").mkdir()
    torch.save({}, folder / "checkpoint-9" / "model.pth")
    pixels = clips()
    assert torch.equal(load(folder).score(pixels), reward.score(pixels))


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("removed", "added", "named"),
    [
        ("base_model.model.visual.blocks.0.norm1.weight", {}, "missing keys: visual.blocks.0.norm1.weight"),
        (None, {"base_model.model.visual.extra": 1}, "unexpected keys: visual.extra"),
        (None, {"base_model.model.model.norm.weight": 3}, "mismatched keys: .*language_model.norm.weight"),
        (f"{LAYER}.lora_B.default.weight", {}, f"{LAYER}.base_layer.weight without"),
        (None, {f"{LAYER}.lora_magnitude_vector": 2}, f"adapters of a kind unknown here: {LAYER}.lora_magn"),
        ("base_model.model.rm_head.weight", {}, "no rm_head.weight"),
        (None, {"base_model.model.rm_head.weight": 3}, "rm_head.weight with 3 outputs"),
    ],
    ids=["missing", "unexpected", "shape", "half an adapter", "another adapter", "no head", "another head"],
)
def test_weights_that_do_not_fit_are_named(
    released: Any, tmp_path: Path, removed: str | None, added: dict[str, int], named: str
) -> None:
    if removed is not None:
        del released.weights[removed]
    released.weights |= {name: torch.zeros(size) for name, size in added.items()}
    with pytest.raises(ValueError, match=named):
        load(released.write(tmp_path))


def test_embeddings_that_do_not_match_the_tokenizer_are_named(released: Any, tmp_path: Path) -> None:
    name = "base_model.model.model.embed_tokens.weight"
    released.weights[name] = released.weights[name][:-3]
    with pytest.raises(ValueError, match=r"mismatched keys: .*embed_tokens\.weight"):
        load(released.write(tmp_path))


@pytest.mark.parametrize(
    ("section", "changes", "named"),
    [
        ("model_config", {"reward_token": "last"}, "only the one with special tokens"),
        ("model_config", {"output_dim": 4}, "output_dim=4"),
        ("data_config", {"prompt_template_type": "simple"}, "only the one with special tokens"),
        ("data_config", {"fps": None}, "no configuration of a VideoAlign reward"),
    ],
)
def test_rewards_of_another_kind_are_refused(
    released: Any, tmp_path: Path, section: str, changes: dict[str, object], named: str
) -> None:
    released.config[section].update(changes)
    with pytest.raises(ValueError, match=named):
        load(released.write(tmp_path))


def test_without_calibration_the_score_is_raw_or_refused(released: Any, tmp_path: Path) -> None:
    del released.config["inference_config"]
    folder = released.write(tmp_path)
    with pytest.raises(ValueError, match="normalise=False"):
        load(folder)
    load(folder, normalise=False)


def test_what_is_no_released_folder_is_named(
    released: Any, tmp_path: Path, judge_folder: Path, qwen2_vl_folder: Path
) -> None:
    with pytest.raises(ValueError, match=r"has no model_config\.json"):
        load(qwen2_vl_folder)
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        load(tmp_path / "absent")
    folder = released.write(tmp_path)
    with pytest.raises(ValueError, match="'qwen2_5_vl', expected one of qwen2_vl"):
        load(folder, base=judge_folder)
    (folder / "checkpoint-20" / "model.pth").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint-STEP/model\.pth"):
        load(folder)


def test_the_text_is_read_from_videoaligns_own_file_without_running_it(
    released: Any, reward: VideoAlignReward, tmp_path: Path
) -> None:
    folder = released.write(tmp_path)
    (folder / "prompt_template.txt").unlink()
    with pytest.raises(ValueError, match=r"copy prompt_template\.py of the VideoAlign repository"):
        load(folder)
    source = (
        f'raise SystemExit\nOTHER = "x"\nDETAILED_PROMPT_WITH_SPECIAL_TOKEN = """{released.template}"""\n'
    )
    (folder / "prompt_template.py").write_text(source)
    pixels = clips()
    assert torch.equal(load(folder).score(pixels), reward.score(pixels))
    (folder / "prompt_template.py").write_text("OTHER = 1\n")
    with pytest.raises(ValueError, match="defines no DETAILED_PROMPT_WITH_SPECIAL_TOKEN"):
        load(folder)


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{text_prompt} <|VQ_reward|> <|TA_reward|>", r"<\|MQ_reward\|> 0 times"),
        ("{text_prompt}{text_prompt} <|VQ_reward|><|MQ_reward|><|TA_reward|>", "{text_prompt} 2 times"),
        ("no such file", "neither a file nor a text"),
    ],
)
def test_texts_that_ask_for_something_else_are_refused(
    video_align_folder: Path, template: str, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        load(video_align_folder, template=template)


def test_wrong_inputs_are_named(reward: VideoAlignReward, video_align_folder: Path) -> None:
    with pytest.raises(ValueError, match="not \\[0, 1\\]"):
        reward.score(2 * clips() - 1)
    with pytest.raises(ValueError, match="at least 2 frames"):
        reward.score(clips(frames=1))
    with pytest.raises(ValueError, match=r"<\|TA_reward\|>"):
        load(video_align_folder, axis="TA").score(clips(), ["fine", "a mug <|TA_reward|>"])
    with pytest.raises(ValueError, match="fps=0"):
        load(video_align_folder, fps=0.0)
    with pytest.raises(ValueError, match="dtype"):
        load(video_align_folder, dtype="int8")


def test_it_is_a_scalar_reward_in_half_precision_by_default(video_align_folder: Path) -> None:
    half = VideoAlignReward(video_align_folder, fps=2.0)
    assert isinstance(half, Reward)
    assert half.name == "video_align"
    assert not half.differentiable
    assert half._model.dtype == torch.bfloat16
    score = half.score(clips())
    assert score.dtype == torch.float32
    assert score.isfinite().all()


def test_the_released_file_is_as_large_as_this_layout_makes_it() -> None:
    """Qwen2-VL-2B with 151657 tokens and three more, both embeddings, and LoRA of rank 64 on every projection
    of the language model, all in 2 bytes: the size of KwaiVGI/VideoReward's checkpoint-11352/model.pth.
    """
    text = {
        "vocab_size": 151657 + 3,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16}
    with torch.device("meta"):
        network = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision))
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    projections = [
        shape for name, shape in shapes.items() if ".layers." in name and name.endswith("_proj.weight")
    ]
    numbers = sum(shape.numel() for shape in shapes.values()) + 1536 + sum(64 * sum(p) for p in projections)
    tensors = len(shapes) + 1 + 2 * len(projections)
    overhead = 5_031_072_529 - 2 * numbers
    assert 200 < overhead / tensors < 500  # names and offsets in the archive
