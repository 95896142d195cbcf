"""Sheets of frames: rows of pictures with a label, columns with a heading."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LABEL_WIDTH, HEADING_HEIGHT, GAP, GROUP_GAP = 150, 16, 2, 8
LABEL_CHARACTERS, LINE_HEIGHT = 24, 12
PAPER, INK = (255, 255, 255), (20, 20, 20)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A label and one group of frames, uint8 `[frame, H, W, 3]`, under each heading; None leaves a gap."""

    label: str
    groups: Sequence[np.ndarray | None]


def save_sheet(path: Path, headings: Sequence[str], rows: Sequence[Row]) -> None:
    """Write a PNG in which all groups under one heading have the same number of frames."""
    size = next(group.shape[1:3] for row in rows for group in row.groups if group is not None)
    counts = [
        max(0 if group is None else len(group) for group in column)
        for column in zip(*(row.groups for row in rows), strict=True)
    ]
    height, width = size[0] + GAP, size[1] + GAP
    total = LABEL_WIDTH + sum(count * width + GROUP_GAP for count in counts)
    sheet = Image.new("RGB", (total, HEADING_HEIGHT + len(rows) * height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for number, row in enumerate(rows):
        top = HEADING_HEIGHT + number * height
        for line, text in enumerate(textwrap.wrap(row.label, LABEL_CHARACTERS)[: size[0] // LINE_HEIGHT]):
            draw.text((2, top + line * LINE_HEIGHT), text, fill=INK, font=font)
        left = LABEL_WIDTH
        for heading, group, count in zip(headings, row.groups, counts, strict=True):
            if number == 0:
                draw.text((left, 2), heading, fill=INK, font=font)
            for column, frame in enumerate(() if group is None else group):
                sheet.paste(Image.fromarray(frame), (left + column * width, top))
            left += count * width + GROUP_GAP
    palette = sheet.quantize(256, method=Image.Quantize.MEDIANCUT)
    # dithered, or smooth backgrounds would show steps that are not in the frames
    sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def tiled(videos: np.ndarray, *, columns: int = 4) -> np.ndarray:
    """Videos `[video, frame, H, W, 3]` of one length as one video, `columns` beside each other."""
    missing = -len(videos) % columns
    videos = np.concatenate([videos, np.zeros((missing, *videos.shape[1:]), np.uint8)])
    rows = [
        np.concatenate(list(videos[start : start + columns]), axis=2)
        for start in range(0, len(videos), columns)
    ]
    return np.concatenate(rows, axis=1)
