"""Every number of the README's tables is a committed record, rounded to the digits shown."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewstep.apps.bench_ratios import NAMES

ROOT = Path(__file__).resolve().parent.parent
LINES = (ROOT / "README.md").read_text().splitlines()
PRESETS = {
    "video": "modalities/video/presets/driving/metrics",
    "image": "modalities/image/presets/objects/metrics",
    "mesh": "modalities/shape3d/presets/objects/metrics",
    "protein": "modalities/protein/presets/chains/metrics",
    "ring": "docs/objectives",
}
Setting = str | float | None
Cell = tuple[str, str, dict[str, Setting]]  # what is shown, of which record

SINKS = ("drift", "drift_error", "frame_distance", "motion", "lane_offset_error")
VIDEO = ("lane_offset_error", "lane_offset_gap", "speed_error", "palette_error", "motion")
VIDEO += ("high_frequency_energy_ratio", "frechet_random_cnn")
IMAGE = ("colour_accuracy", "category_accuracy", "detail_accuracy", "frechet_classifier", "diversity")
MESH = ("chamfer", "f_score_2", "normal_consistency", "occupancy_iou", "watertight", "category", "view_iou")
MESH += ("view_psnr", "coverage", "nearest_neighbour_accuracy", "total", "speed_ratio")
PROTEIN = (
    "bonds_within",
    "clash_free",
    "valid",
    "helix",
    "strand",
    "right_handed",
    "radius_ratio",
    "frechet",
)
PROTEIN += ("fold_jsd", "mean_tm", "clusters", "nearest_tm", "mpnn_nll", "mpnn_information", "speed_ratio")
SAMPLERS = {"SDE": ("sde", 0.671), "ODE": ("ode", None), "the student's way": ("renoise", 0.45)}
RING = {
    "other real samples": "real",
    "exact teacher, Euler": "teacher",
    "undistilled student, Euler": "undistilled",
}


def table(head: str) -> Iterator[list[str]]:
    """The cells of each row of the table whose head begins so."""
    start = next(number for number, line in enumerate(LINES) if line.startswith(head))
    for line in LINES[start + 2 :]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.removesuffix("|")[1:].split("|")]


def stream() -> Iterator[Cell]:
    end_to_end = "denoise+cache+decode+jpeg"
    for steps, fps, rate, interval, first, uncached, teacher in table("| student steps"):
        of: dict[str, Setting] = {"steps": float(steps.split()[0])}
        p50, p99 = interval.removesuffix(" ms").split(" / ")
        yield fps, "fps_end_to_end", of
        yield rate, "realtime_factor", of
        yield p50, "frame_interval_p50", of
        yield p99, "frame_interval_p99", of
        yield first.removesuffix(" s"), "time_to_first_frame", of | {"start": "warm"}
        yield uncached, "speedup_vs_uncached", of | {"includes": end_to_end}
        yield teacher, "speedup_vs_teacher", of


def ratios() -> Iterator[Cell]:
    cache, *rows = table("| on the bundled model")
    whole, network = cache[1].split(", of the network alone ")
    yield whole, "speedup_vs_uncached", {"includes": "denoise+cache+decode+jpeg"}
    yield network, "speedup_vs_uncached", {"includes": "denoise+cache"}
    for name, (_, gain, _) in zip(NAMES, rows, strict=True):
        yield gain, "acceleration", {"acceleration": name}


def video() -> Iterator[Cell]:
    for label, steps, *cells in table("| | steps | lane offset error"):
        source = "student" if label.startswith("the same") else re.split("[ ,]", label)[0]
        of: dict[str, Setting] = {"source": source, "steps": float(steps) if steps else None}
        of["part"] = "switched" if "switch" in label or label.startswith("the same") else "first"
        phrasing = "heldout" if "never trained" in label else "train"
        of["phrasing"] = None if source == "real" else phrasing
        yield from ((cell, name, of) for cell, name in zip(cells, VIDEO, strict=True))


def sinks() -> Iterator[Cell]:
    for label, drift, *cells in table("| sink | drift"):
        decay = re.search(r"decay ([\d.]+)", label)
        of: dict[str, Setting] = {"sink": label.split(",")[0], "decay": float(decay[1]) if decay else None}
        yield from (
            (cell, name, of) for cell, name in zip([*drift.split(" +- "), *cells], SINKS, strict=True)
        )


def ring() -> Iterator[Cell]:
    for label, *cells in table("| method | SW2"):
        method = RING.get(label, label)
        one: dict[str, Setting] = {"method": method, "steps": 0.0 if method == "real" else 1.0}
        for name, three in (("sliced_wasserstein", cells[:3]), ("in_mode", cells[3:6])):
            yield three[0], name, one
            yield from (
                (cell, name, one | {"steps": n}) for cell, n in zip(three[1:], (2.0, 4.0), strict=True)
            )
        yield cells[6], "min_mode", one
        yield cells[7], "right_half", one
        seconds = cells[8].split(" / ") if cells[8] else []
        for cell, steps in zip(seconds, (1.0, 2.0, 4.0), strict=False):
            yield cell, "seconds", one | {"steps": steps}


def image() -> Iterator[Cell]:
    students = {"DMD2": "dmd2", "SiD": "sid", "SplitMeanFlow": "split_mean_flow", "TDM": "tdm"}
    for label, steps, *cells, unpaired, speed in table("| | steps | colour"):
        source = students.get(label, label.split(",")[0])
        of: dict[str, Setting] = {"source": source, "steps": float(steps) if steps else None}
        of["phrasing"] = None if source == "real" else "train"
        trained = of | {"pairs": "train"}
        yield from ((cell, name, trained) for cell, name in zip(cells, IMAGE, strict=True))
        yield unpaired, "category_accuracy", of | {"pairs": "heldout"}
        yield speed.removesuffix(" less"), "speed_ratio", trained


def mesh() -> Iterator[Cell]:
    for label, steps, *cells in table("| | steps | Chamfer"):
        of: dict[str, Setting] = {"source": re.split("[ ,]", label)[0], "steps": steps or None}
        yield from ((cell, name, of) for cell, name in zip(cells, MESH, strict=True))


def protein() -> Iterator[Cell]:
    for label, steps, noise, *cells in table("| | steps | noise"):
        source, _, way = label.partition(", ")
        given = re.search(r"`(\w+)`", label)
        of: dict[str, Setting] = {"source": given[1] if given else source.lower()}
        of["steps"] = float(steps) if steps else None
        if source == "teacher":
            of["sampler"], of["noise"] = SAMPLERS[way]
        elif source.startswith("real"):
            of["source"] = "real"
        else:
            of["noise"] = float(noise)
        yield from ((cell, name, of) for cell, name in zip(cells, PROTEIN, strict=True))


TABLES = {
    "stream": (stream, "video/bench_stream.json"),
    "ratios": (ratios, "video/bench_ratios.json"),
    "video": (video, "video/eval_video.json"),
    "sinks": (sinks, "video/eval_video_decays.json"),
    "ring": (ring, "ring/bench_objectives.json"),
    "image": (image, "image/eval_image.json"),
    "mesh": (mesh, "mesh/eval_mesh.json"),
    "protein": (protein, "protein/eval_protein.json"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_shows_its_records(name: str) -> None:
    cells, source = TABLES[name]
    folder, file = source.split("/")
    records = json.loads((ROOT / PRESETS[folder] / file).read_text())
    wrong, checked = [], 0
    for shown, record, settings in cells():
        number = shown.removesuffix("x")
        if number in ("", "-"):
            continue
        found = [
            one["value"]
            for one in records
            if one["name"] == record and all(one.get(key) == value for key, value in settings.items())
        ]
        digits = len(number.partition(".")[2])
        checked += 1
        if len(found) != 1 or abs(found[0] - float(number)) > 0.5 * 10**-digits + 1e-9:
            wrong.append(f"{record} of {settings} is {found}, not {shown}")
    assert wrong == []
    assert checked >= 8


def test_the_table_of_methods_has_every_objective() -> None:
    """Files of `core/objectives` that define one, each with a test of its name."""
    folder = ROOT / "core" / "objectives"
    parts_of_others = {"__init__.py", "contract.py", "gradient_weights.py", "trajectories.py"}
    files = {path.name for path in folder.glob("*.py")} - parts_of_others
    named = {file for row in table("| method | paper") for file in re.findall(r"`(\w+\.py)`", row[2])}
    assert sorted(files - named) == []
    for file in files:
        assert (ROOT / "tests" / "core" / "objectives" / f"test_{file}").is_file(), file


def test_links_lead_somewhere() -> None:
    text = "\n".join(LINES)
    heads = {
        re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")
        for head in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        assert path or anchor in heads, link
