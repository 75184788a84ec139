"""Cards of weights: what a network was trained with, the error that it reached, and the hash of its file.

A card is a JSON file beside the weights. This module needs the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

from ..errors import BlockSwapError
from ..messages import quote
from .genomes import GENOMES

__all__ = [
    "CARD",
    "Card",
    "MissingWeightsError",
    "WeightsError",
    "check_weights",
    "describe",
    "file_digest",
    "last_name",
    "make_card",
    "model_card",
    "read_card",
    "shipped",
    "shipped_folder",
    "training_command",
]

# The card's name in a folder of one network, as on the Hugging Face Hub.
CARD = "card.json"
_SHIPPED = Path(__file__).parent / "weights"
# What the summary of a run says of the run, and its card too.
_OF_THE_RUN = (
    *("genome", "num_classes", "params", "macs", "data", "teacher", "teacher_weights", "recipe", "seed", "ema"),
    *("amp", "channels_last", "compile", "processes", "seconds", "versions", "hardware"),
)

# What the cards of older runs do not say.
_OF_LATER_RUNS = (
    *("input_size", "init", "init_weights", "label_names", "val_share", "val_seed", "swapped", "data_config"),
)

Card = dict[str, Any]


class WeightsError(BlockSwapError):
    """Weights or a card that cannot be used: says which and what to do."""


class MissingWeightsError(WeightsError, RuntimeError):
    """There are no pretrained weights for a network: a RuntimeError too, as timm's own is."""

    def __init__(self, name: str, advice: str | None = None) -> None:
        entry = name.partition(".")[0]
        there = ", ".join(dict.fromkeys(each.partition(".")[0] for each in shipped())) or "no entry of the zoo"
        text = f"no pretrained weights for {name}"
        if entry in GENOMES:
            text += f"; '{_training_command(entry)}' trains some, and the package has those of {there}"
        super().__init__(text + (f"; {advice}" if advice else ""))


def _training_command(entry: str) -> str:
    """Writes the command that trains an entry, from the teacher that the paper gives it."""
    short = entry.removeprefix("blockswap_")
    teachers = {"wrn40_2_": "wrn40_2", "resnet34_": "resnet34.tv_in1k"}
    teacher = next((f" --teacher {name}" for start, name in teachers.items() if short.startswith(start)), "")
    data = "torch/cifar10 --data-dir DATA" if "wrn" in short else "DATA"
    return f"blockswap train {short}{teacher} --data {data} --out RUN"


def file_digest(path: str | Path) -> str:
    """Names a file by its content."""
    return f"sha256 {hashlib.sha256(Path(path).read_bytes()).hexdigest()}"


def shipped_folder() -> Path:
    """The folder of the weights that come with the package."""
    return _SHIPPED


def shipped() -> dict[str, Path]:
    """Lists the weights that come with the package, by name and tag; the card has the same name, and ends in .json."""
    return {each.stem: each for each in sorted(_SHIPPED.glob("*.safetensors")) if each.with_suffix(".json").is_file()}


def read_card(path: str | Path) -> Card:
    """Reads the card of a weights file.

    Args:
        path: The card, a JSON file that `blockswap pack` made.

    Returns:
        The card.

    Raises:
        WeightsError: It cannot be read, or is not a card.
    """
    try:
        card = json.loads(Path(path).read_text(encoding="utf-8"))
        if not {"name", "file", "test", *_OF_THE_RUN} <= card.keys():
            raise ValueError
    except OSError as error:
        raise WeightsError(f"cannot read the card {quote(str(path))}: {error.strerror}") from None
    except (AttributeError, ValueError):
        raise WeightsError(f"{quote(str(path))} is no card of weights; use one that 'blockswap pack' made") from None
    return card


def make_card(
    name: str,
    summary: dict[str, Any],
    content: bytes,
    dtype: str,
    tested: dict[str, float],
    command: str,
    note: str | None = None,
) -> Card:
    """Makes the card of a weights file from the summary of the run that trained it.

    Args:
        name: The name of the weights, with a tag.
        summary: What `blockswap train` wrote to `summary.json`.
        content: The bytes of the file.
        dtype: The type of its parameters.
        tested: The errors of these very bytes, in percent, as in the summary.
        command: The command of the run.
        note: What a user must know first of all.

    Returns:
        The card, for JSON.

    Raises:
        WeightsError: The summary is not whole.
    """
    missing = [key for key in ("model", "top1_error", "top5_error", "test_images", *_OF_THE_RUN) if key not in summary]
    if missing:
        raise WeightsError(f"this is no summary of blockswap train: it has no {missing[0]}")
    said = {key: summary[key] for key in (*_OF_THE_RUN, *_OF_LATER_RUNS) if key in summary}
    # Of places on that machine, the last names.
    said |= {key: last_name(said[key]) for key in ("data", "teacher", "init") if said.get(key) is not None}
    # Of five classes one of the first five is always right.
    errors = ("top1_error", "top5_error") if summary["num_classes"] > 5 else ("top1_error",)
    return {
        "name": name,
        **({} if note is None else {"note": note}),
        **said,
        # Those that shared a teacher, and the time.
        **({"students": summary["students"]} if "students" in summary else {}),
        "test": {
            "images": summary["test_images"],
            "float32": {key: summary[key] for key in errors},
            dtype: {key: tested[key] for key in errors},
        },
        "file": describe(content, dtype),
        "command": command,
    }


def describe(content: bytes, dtype: str) -> dict[str, Any]:
    """Describes a file for its card: dtype, size in bytes, SHA-256."""
    return {"dtype": dtype, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def check_weights(weights: str | Path, card: str | Path | None = None) -> None:
    """Checks that a file has the hash in its card, which lies beside it unless another is named.

    Weights without a card pass. Raises WeightsError for a file that is damaged or was altered.
    """
    weights = Path(weights)
    card = Path(card) if card is not None else weights.with_suffix(".json")
    if not card.is_file():
        return
    said = read_card(card)["file"]
    if not weights.is_file():
        raise WeightsError(f"no weights {quote(str(weights))}, though there is their card; get them again")
    size, found = weights.stat().st_size, hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != said["sha256"]:
        what = f"{size:,} of {said['bytes']:,} bytes are there" if size < said["bytes"] else "it was altered"
        raise WeightsError(
            f"the weights {quote(str(weights))} are not those of their card: {what} (SHA-256 {found[:12]}…, not "
            f"{said['sha256'][:12]}…); get them again"
        )


def model_card(card: Card, source: str) -> str:
    """Writes the README of a network's folder, as the Hugging Face Hub shows it, from its card.

    `source` is what timm is to load, such as `hf-hub:user/name`.
    """
    name, error = card["name"], card["test"][card["file"]["dtype"]]
    data = card["data"].rpartition("/")[2]
    learned = {"beta": "attention transfer", "soft_labels": "soft labels"}
    by = " and ".join(words for key, words in learned.items() if card["recipe"].get(key))
    teacher = "none" if card["teacher"] is None else f"`{card['teacher']}`, by {by}"
    recipe = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in card["recipe"].items())
    versions = ", ".join(f"{key} {value}" for key, value in card["versions"].items())
    hardware = ", ".join(f"{key} {value}" for key, value in card["hardware"].items())
    hours = f"{card['seconds'] / 3600:.2f} hours"
    if "students" in card:
        hours += f" for {len(card['students'])} students of one teacher"
    names = card.get("label_names")
    held_out = f", {card['val_share']:.0%} held out by seed {card['val_seed']}" if card.get("val_share") else ""
    rows = {
        "block types": f"`{card['genome']}`",
        "parameters": f"{card['params']:,}",
        **({} if names is None else {"classes": f"{len(names)}: {', '.join(names[:20])}{', …' * (len(names) > 20)}"}),
        "multiply-accumulates": f"{card['macs'] / 1e6:,.1f} M",
        f"top-1 error, {card['test']['images']:,} test images": f"{error['top1_error']:.2f} %",
        **({"top-5 error": f"{error['top5_error']:.2f} %"} if "top5_error" in error else {}),
        "teacher": teacher,
        "recipe": f"{recipe}, seed {card['seed']}",
        "trained on": f"{data}{held_out}, {hours}, {hardware}, {versions}",
        "weights": f"{card['file']['dtype']}, {card['file']['bytes']:,} bytes, SHA-256 `{card['file']['sha256']}`",
    }
    note = f"{card['note']}\n\n" if "note" in card else ""
    architecture = name.partition(".")[0]
    known = architecture in GENOMES or card.get("swapped")
    registered = "" if known else f'blockswap_models.register("{architecture}")\n'
    # A name of a class or a folder may have what ends a cell.
    cells = {title: value.replace("|", "\\|") for title, value in rows.items()}
    table = "\n".join(f"| {title} | {value} |" for title, value in cells.items())
    known_as = _name_of_dataset(card["data"])
    datasets = "" if known_as is None else f"datasets: [{json.dumps(known_as)}]\n"
    where = (
        ", where DATA is the folder of the dataset"
        if re.search(r"(?<![\w./-])DATA(?![\w./-])", card["command"])
        else ""
    )
    return f"""---
library_name: timm
pipeline_tag: image-classification
license: mit
tags: [image-classification, timm, blockswap]
{datasets}---

# {name}

{note}A residual network whose blocks were replaced by cheaper ones as
[BlockSwap](https://openreview.net/forum?id=SklkDkSFPB) does, made with `blockswap_models`.

```python
import blockswap_models, timm

{registered}model = timm.create_model({json.dumps(source, ensure_ascii=False)}, pretrained=True).eval()
```

| | |
| --- | --- |
{table}

Trained by `{card["command"]}`{where}. The test images chose nothing: these are the
weights of the last epoch.
"""


def _name_of_dataset(data: str) -> str | None:
    """The name that others know a dataset by; None for a folder of images, whose name means nothing elsewhere."""
    source, slash, name = data.partition("/")
    if not slash or source.lower() not in _SOURCES:
        return None
    return name


# How timm names datasets: by where they come from.
_SOURCES = ("torch", "hfds", "hfids", "tfds")
# Options whose values are places on the machine of the run: what a card has in their place.
_PLACES = {"--data-dir": "DATA", "--out": None, "--teacher-checkpoint": None, "--init": None}
# And those that may be places, or names.
_NAMES = ("--data", "--teacher")


def training_command(summary: dict[str, Any]) -> str:
    """Writes the command of a run as it was given, with places on that machine by their last names only.

    DATA stands for the folder of the dataset. That the run was resumed is left out.
    """
    if len(summary["command"]) == 1:
        # A call of Python.
        return str(summary["command"][0])
    words: list[str] = []
    option = None
    for word in summary["command"]:
        name, sign, value = word.partition("=")
        if option is not None:
            words.append(_place(option, word))
            option = None
        elif name.startswith("--") and sign:
            words.append(f"{name}={_place(name, value)}")
        elif word != "--resume":
            # Such as the record of a search.
            words.append(last_name(word))
            option = word if word in _PLACES or word in _NAMES else None
    return shlex.join(words)


def _place(option: str, value: str) -> str:
    if option == "--data":
        # A folder, or the name of a dataset.
        return "DATA" if Path(value).is_absolute() else value
    if option in _PLACES:
        return _PLACES[option] or Path(value).name
    return last_name(value)


def last_name(value: str) -> str:
    """Of an absolute path, its last name; what may be a name of timm or a relative path stays."""
    source = "local-dir:" if value.startswith("local-dir:") else ""
    path = Path(value.removeprefix(source))
    return f"{source}{path.name}" if path.is_absolute() else value
