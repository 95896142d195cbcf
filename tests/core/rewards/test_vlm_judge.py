"""The judge is transformers' own forward on its own inputs, with a gradient down to the pixels."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from fewstep.core.analytic import GaussianDenoiser
from fewstep.core.objectives.contract import Sample, Turn
from fewstep.core.objectives.np_edit import NPEdit
from fewstep.core.objectives.re_dmd import ReDMD
from fewstep.core.rewards.contract import Reward
from fewstep.core.rewards.questions import CaptionQuestion, Question
from fewstep.core.rewards.qwen_vl import FrameFormat
from fewstep.core.rewards.vlm_judge import VLMJudge, two_way_cross_entropy

AREA = 56 * 84
CAPTIONS = ["a red mug", "two wooden chairs beside a lamp"]
QUESTION = CaptionQuestion(template="Is it {caption}?")

logits = st.floats(-20, 20)


@pytest.fixture(scope="module")
def judge(judge_folder: Path) -> VLMJudge:
    return VLMJudge(judge_folder, questions=[QUESTION], fps=2.0, frame_area=AREA, dtype="float32")


def pixels(frames: int = 1, batch: int = 2) -> Tensor:
    """Random bytes as pixels, of the size that the judge looks at."""
    return torch.randint(0, 256, (batch, frames, 3, 56, 84)) / 255


@given(yes=logits, no=logits, target=st.booleans(), temperature=st.floats(0.05, 3))
def test_the_gradient_of_the_cross_entropy_is_temperature_times_softmax_less_target(
    yes: float, no: float, target: bool, temperature: float
) -> None:
    """T-NP-1."""
    leaf = torch.tensor([no, yes], dtype=torch.float64, requires_grad=True)
    loss = two_way_cross_entropy(leaf[1:], leaf[:1], torch.tensor([target]), temperature)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    target_ = F.one_hot(torch.tensor(int(target)), 2).double()
    expected = temperature * (torch.softmax(temperature * leaf.detach(), 0) - target_)
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12)


@given(yes=logits, no=logits, target=st.booleans(), temperature=st.floats(0.05, 3))
def test_the_cross_entropy_is_that_of_two_classes(
    yes: float, no: float, target: bool, temperature: float
) -> None:
    pair = temperature * torch.tensor([[no, yes]], dtype=torch.float64)
    expected = F.cross_entropy(pair, torch.tensor([int(target)]))
    found = two_way_cross_entropy(
        torch.tensor([yes], dtype=torch.float64),
        torch.tensor([no], dtype=torch.float64),
        torch.tensor([target]),
        temperature,
    )
    torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-12)


def test_one_step_on_a_linear_judge_raises_the_probability_of_the_target() -> None:
    """T-NP-2."""
    weights = torch.randn(2, 5)
    sample = torch.randn(3, 5, requires_grad=True)
    target = torch.tensor([True, False, True])

    def loss(x: Tensor) -> Tensor:
        no, yes = (x @ weights.T).unbind(1)
        return two_way_cross_entropy(yes, no, target, 0.5)

    (grad,) = torch.autograd.grad(loss(sample).sum(), sample)
    assert (loss(sample - 0.1 * grad) < loss(sample)).all()


def transformers_odds(folder: Path, clips: Tensor, questions: list[str], seconds: float | None) -> Tensor:
    """Yes less No by transformers alone: its processor's pixels (one frame), tokens, positions, forward."""
    network = Qwen2_5_VLForConditionalGeneration.from_pretrained(str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    medium, kind = ("image", 1) if seconds is None else ("video", 2)
    if seconds is None:
        images = [(clip[0] * 255).round().byte().permute(1, 2, 0).numpy() for clip in clips]
        size = {"shortest_edge": AREA, "longest_edge": AREA}
        made = AutoImageProcessor.from_pretrained(str(folder))(images=images, size=size, return_tensors="pt")
        seen = {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
        grid = made["image_grid_thw"][0]
    else:
        limited = FrameFormat.load(folder).limited(min_pixels=AREA, max_pixels=AREA)
        patches, found = limited.patches(clips)
        grid = torch.tensor(found)
        seen = {"pixel_values_videos": patches, "video_grid_thw": grid.repeat(len(clips), 1)}
        seen["second_per_grid_ts"] = torch.tensor([seconds] * len(clips))
    pads = f"<|{medium}_pad|>" * int(grid.prod() // 4)
    chats = [
        f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
        for question in questions
    ]
    tokens = tokenizer(chats, padding=True, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    token_types = (ids == tokenizer.convert_tokens_to_ids(f"<|{medium}_pad|>")).int() * kind
    answers = network(input_ids=ids, attention_mask=mask, mm_token_type_ids=token_types, **seen).logits
    last = answers[torch.arange(len(ids)), mask.sum(1) - 1]
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No"))
    return last[:, yes] - last[:, no]


def test_the_score_of_images_is_transformers_own(judge: VLMJudge, judge_folder: Path) -> None:
    images = pixels()
    found = judge.score(images, CAPTIONS)
    expected = transformers_odds(judge_folder, images, [f"Is it {c}?" for c in CAPTIONS], None)
    assert found.shape == (2,)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # of odds near 1, in float32
    assert (expected[0] - expected[1]).abs() > 1e-2


def test_the_score_of_videos_is_transformers_own(judge: VLMJudge, judge_folder: Path) -> None:
    clips = pixels(frames=4)
    found = judge.score(clips, CAPTIONS)
    expected = transformers_odds(judge_folder, clips, [f"Is it {c}?" for c in CAPTIONS], 1.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_what_the_judge_sees_and_is_asked_changes_its_score(judge: VLMJudge) -> None:
    """The control of the comparisons: none of the inputs is lost on the way."""
    clips = pixels(frames=4)
    score = judge.score(clips, CAPTIONS)
    assert (judge.score(clips.flip(1), CAPTIONS) - score).abs().min() > 1e-3
    assert (judge.score(clips, CAPTIONS[::-1]) - score).abs().min() > 1e-3
    assert (judge.score(clips[:, :1], CAPTIONS) - score).abs().min() > 1e-3


def test_a_qwen2_vl_judges_too(qwen2_vl_folder: Path) -> None:
    judge = VLMJudge(qwen2_vl_folder, fps=2.0, frame_area=AREA, dtype="float32")
    clips = pixels(frames=4).requires_grad_()
    judge.score(clips, CAPTIONS).sum().backward()
    assert clips.grad is not None
    assert clips.grad.abs().max() > 0


@pytest.mark.parametrize("frames", [1, 4])
def test_the_gradient_reaches_every_pixel_and_is_the_derivative(judge: VLMJudge, frames: int) -> None:
    clips = (0.25 + 0.5 * torch.rand(2, frames, 3, 64, 90)).requires_grad_()
    (grad,) = torch.autograd.grad(judge.score(clips, CAPTIONS).sum(), clips)
    assert grad.isfinite().all()
    assert (grad != 0).float().mean() > 0.99
    direction = 2e-4 * torch.where(torch.rand_like(clips) < 0.8, grad.sign(), -grad.sign())
    with torch.no_grad():
        rise = judge.score(clips + direction, CAPTIONS) - judge.score(clips - direction, CAPTIONS)
    expected = 2 * (grad * direction).sum()
    # Central differences in float32, of a function that curves.
    assert rise.sum().item() == pytest.approx(expected.item(), rel=0.02)


def test_following_the_gradient_raises_the_score_of_each_sample(judge: VLMJudge) -> None:
    images = leaf = torch.rand(2, 1, 3, 56, 84)
    for _ in range(5):
        leaf = images.clone().requires_grad_()
        (grad,) = torch.autograd.grad(judge.score(leaf, CAPTIONS).sum(), leaf)
        images = (images + 0.02 * grad / grad.abs().amax((1, 2, 3, 4), keepdim=True)).clamp(0, 1)
    with torch.no_grad():
        assert (judge.score(images, CAPTIONS) > judge.score(leaf, CAPTIONS)).all()


def test_saturated_pixels_keep_a_gradient(judge: VLMJudge) -> None:
    images = torch.full((2, 1, 3, 56, 84), 1.1).requires_grad_()
    (grad,) = torch.autograd.grad(judge.score(images, CAPTIONS).sum(), images)
    assert (grad != 0).float().mean() > 0.99


def test_frames_between_those_looked_at_have_no_gradient(judge_folder: Path) -> None:
    judge = VLMJudge(judge_folder, fps=4.0, sample_fps=2.0, frame_area=AREA, dtype="float32")
    clips = pixels(frames=8).requires_grad_()
    (grad,) = torch.autograd.grad(judge.score(clips, CAPTIONS).sum(), clips)
    seen = grad.abs().amax((0, 2, 3, 4)) > 0
    assert seen.tolist() == [True, False, True, False, False, True, False, True]


def test_the_models_weights_are_frozen(judge: VLMJudge) -> None:
    images = pixels().requires_grad_()
    judge.score(images, CAPTIONS).sum().backward()
    parameters = list(judge._model.parameters())
    assert not any(parameter.requires_grad for parameter in parameters)
    assert all(parameter.grad is None for parameter in parameters)
    assert not judge._model.training


def test_the_models_weights_enter_no_checkpoint(judge: VLMJudge) -> None:
    assert set(ReDMD(judge).state_dict()) == {"log_mean", "num_batches"}


def test_samples_are_scored_one_by_one(judge: VLMJudge) -> None:
    for frames in (1, 4):
        clips = pixels(frames=frames, batch=3)
        captions = [*CAPTIONS, "a lamp"]
        alone = [judge.score(clips[i : i + 1], captions[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(judge.score(clips, captions), torch.cat(alone), rtol=0, atol=1e-5)


def asking(judge_folder: Path, **settings: Any) -> VLMJudge:
    return VLMJudge(judge_folder, fps=2.0, frame_area=AREA, dtype="float32", **settings)


def test_where_no_is_the_good_answer_the_score_changes_sign(judge: VLMJudge, judge_folder: Path) -> None:
    images = pixels()
    gone = asking(judge_folder, questions=[CaptionQuestion(template="Is it {caption}?", good_answer="no")])
    torch.testing.assert_close(gone.score(images, CAPTIONS), -judge.score(images, CAPTIONS))


def test_log_prob_is_minus_the_cross_entropy_at_the_temperature(judge: VLMJudge, judge_folder: Path) -> None:
    images = pixels()
    ((yes, no, target),) = judge.answers(images, CAPTIONS)
    warm = asking(judge_folder, questions=[QUESTION], score_as="log_prob", temperature=0.3)
    expected = -two_way_cross_entropy(yes, no, target, 0.3)
    torch.testing.assert_close(warm.score(images, CAPTIONS), expected)
    odds = asking(judge_folder, questions=[QUESTION], temperature=0.3)
    torch.testing.assert_close(odds.score(images, CAPTIONS), 0.3 * (yes - no))


def test_several_questions_count_the_same(judge: VLMJudge, judge_folder: Path) -> None:
    def each(condition: object, batch_size: int) -> list[Question]:
        """A different question, and good answer, for each sample."""
        return [Question(text="Is it big?"), Question(text="Is it old?", good_answer="no")][:batch_size]

    images = pixels()
    both = asking(judge_folder, questions=[QUESTION, each])
    own = asking(judge_folder, questions=[each])
    ((yes, no, target),) = own.answers(images)
    assert target.tolist() == [True, False]
    torch.testing.assert_close(own.score(images), torch.stack([yes[0] - no[0], no[1] - yes[1]]))
    mean = (own.score(images) + judge.score(images, CAPTIONS)) / 2
    torch.testing.assert_close(both.score(images, CAPTIONS), mean)


def count_calls(judge: VLMJudge) -> list[int]:
    calls: list[int] = []
    network: Any = judge._model.model
    for layers in (network.language_model.layers, network.visual.blocks):
        layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_checkpointing_recomputes_layers_and_changes_no_gradient(judge_folder: Path) -> None:
    images, grads, calls = pixels(), [], []
    for checkpointing in (False, True):
        judge = asking(judge_folder, gradient_checkpointing=checkpointing)
        called = count_calls(judge)
        leaf = images.clone().requires_grad_()
        grads.append(torch.autograd.grad(judge.score(leaf, CAPTIONS).sum(), leaf)[0])
        calls.append(len(called))
    assert calls == [2, 4]
    torch.testing.assert_close(grads[1], grads[0])


def test_half_precision_is_close_and_scores_in_float32(judge: VLMJudge, judge_folder: Path) -> None:
    half = VLMJudge(judge_folder, questions=[QUESTION], frame_area=AREA)
    assert half._model.dtype == torch.bfloat16
    images = pixels().requires_grad_()
    score = half.score(images, CAPTIONS)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, judge.score(images, CAPTIONS), rtol=0, atol=0.1)  # 8 bits of mantissa
    score.sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_training_in_half_precision_does_not_round_the_two_logits(judge: VLMJudge) -> None:
    """Their difference is the score, and is much smaller than they are."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        [(yes, no, _)] = judge.answers(pixels(), CAPTIONS)
    logits = torch.stack([yes, no])
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16()).any()


def test_np_edit_takes_its_answers_and_its_gradient(judge: VLMJudge) -> None:
    same = GaussianDenoiser(mean=0.5, std=0.2)  # teacher and critic alike: the judge's gradient alone is left
    objective = NPEdit(judge=judge, judge_weight=0.5, identity_weight=0.0)
    x = torch.rand(2, 1, 3, 56, 84, requires_grad=True)
    turn = Turn(
        sample=Sample(x=x, condition=CAPTIONS), teacher=same, critic=same, decode=torch.clone, update=1000
    )
    loss, diagnostics = objective.student_loss(turn)
    ((yes, no, target),) = judge.answers(x, CAPTIONS)
    expected = 0.5 * two_way_cross_entropy(yes, no, target, 0.55).mean()
    torch.testing.assert_close(2 * expected.detach(), diagnostics["judge"])
    grads = [torch.autograd.grad(value, x)[0] for value in (loss, expected)]
    torch.testing.assert_close(*grads)
    assert grads[0].abs().max() > 0


@pytest.mark.filterwarnings(r"ignore:\s*By default only one JsonargparseDeprecationWarning")
@pytest.mark.filterwarnings(r"ignore:\s*.*was deprecated in v4\.49\.0")  # its successor is newer than 4.35
def test_a_configuration_file_can_ask_for_it(judge_folder: Path) -> None:
    parser = ArgumentParser()
    parser.add_argument("--reward", type=Reward)
    question = {
        "class_path": "fewstep.core.rewards.questions.CaptionQuestion",
        "init_args": {"template": "Red?"},
    }
    arguments = {"model": str(judge_folder), "questions": [question], "frame_area": AREA, "dtype": "float32"}
    config = {"class_path": "fewstep.core.rewards.vlm_judge.VLMJudge", "init_args": arguments}
    parsed = parser.parse_args([f"--reward={json.dumps(config)}"])
    judge = parser.instantiate_classes(parsed)["reward"]
    assert judge.questions == (CaptionQuestion(template="Red?"),)
    assert judge.score(pixels()).isfinite().all()


@pytest.fixture
def damaged(judge_folder: Path, tmp_path: Path) -> Callable[[dict[str, Tensor | None]], Path]:
    """The model folder with some weights changed, or removed where None."""

    def damage(changes: dict[str, Tensor | None]) -> Path:
        folder = tmp_path / "damaged"
        shutil.copytree(judge_folder, folder)
        weights = load_file(folder / "model.safetensors") | changes
        kept = {name: value for name, value in weights.items() if value is not None}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return damage


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.norm.weight": None}, "missing keys: .*norm.weight"),
        ({"model.extra.weight": torch.zeros(2)}, "unexpected keys: .*extra.weight"),
        ({"visual.merger.ln_q.weight": torch.ones(7)}, "mismatched keys: .*merger.ln_q.weight"),
    ],
    ids=["missing", "unexpected", "of another shape"],
)
def test_weights_that_do_not_fit_are_named(
    damaged: Callable[[dict[str, Tensor | None]], Path], changes: dict[str, Tensor | None], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        VLMJudge(damaged(changes))


def test_what_is_no_judge_is_refused(other_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'bert', expected one of qwen2_5_vl, qwen2_vl"):
        VLMJudge(other_folder)
    with pytest.raises(ValueError, match=r"without config\.json"):
        VLMJudge(tmp_path)


def test_a_tokenizer_that_spells_yes_in_pieces_is_refused(judge_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pieces"
    shutil.copytree(judge_folder, folder)
    record = json.loads((folder / "tokenizer.json").read_text())
    record["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="'Yes' is 3 tokens"):
        VLMJudge(folder)


def test_wrong_inputs_are_named(judge: VLMJudge, judge_folder: Path) -> None:
    with pytest.raises(ValueError, match="not \\[0, 1\\]"):
        judge.score(2 * pixels() - 1, CAPTIONS)
    with pytest.raises(ValueError, match="1 captions for 2 samples"):
        judge.score(pixels(), CAPTIONS[:1])
    with pytest.raises(ValueError, match="holds no captions"):
        judge.score(pixels(), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"<\|im_end\|>"):
        judge.score(pixels(), ["a mug", "<|im_end|>"])
    with pytest.raises(ValueError, match="fps=None"):
        VLMJudge(judge_folder, dtype="float32").score(pixels(frames=4), CAPTIONS)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dtype": "int8"}, "dtype"),
        ({"temperature": 0.0}, "temperature"),
        ({"questions": []}, "questions"),
        ({"frame_area": 100}, "pixels=100"),
    ],
)
def test_impossible_settings_are_refused(judge_folder: Path, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        VLMJudge(judge_folder, **settings)


def test_it_is_a_differentiable_reward(judge: VLMJudge) -> None:
    assert isinstance(judge, Reward)
    assert judge.name == "vlm_judge"
    assert judge.differentiable
    assert math.isfinite(judge.score(pixels(), CAPTIONS).sum().item())
