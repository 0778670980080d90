"""What `fontanel verify` says of a pack: whether its hashes fit, what the model wants and gives. It runs nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize

from evaluation.wording import count_text, join_words
from experiments.pack_configuration import foreign_classes
from tracking.environment import environment_facts
from tracking.packs import CARD, CONFIG, CONTRACT, DATA_STATE, ENVIRONMENT, WEIGHTS, Pack, PackError, read_pack

SHOWN = ("Training data", "Performance")  # sections of a card that a user wants to see first
DECISIVE = ("fontanel", "torch", "torchio", "monai", "timm", "SimpleITK")  # whose versions change predictions


def check(path: Path, *, as_json: bool = False) -> int:
    """Check a pack, print what it is, and return 0; or 1 for one that cannot be trusted.

    Args:
        path: The pack.
        as_json: Print JSON instead of text.

    Raises:
        PackError: It cannot be trusted, and no JSON was asked for.
    """
    try:
        pack = read_pack(path)
        for name in {WEIGHTS, DATA_STATE} & pack.members.keys():
            deserialize(pack.members[name])  # type: ignore[no-untyped-call]  # safetensors has not typed it
        document, text = facts(pack), describe(pack)
    except PackError as error:
        if not as_json:
            raise
        print(json.dumps({"ok": False, "problems": [str(error)]}, indent=1))
        return 1
    except (KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
        raise PackError(
            f"{path} does not describe its model as this version does ({error!r}). Update Fontanel."
        ) from error
    whole = json.dumps({"ok": True, "problems": [], **document}, indent=1)
    print(whole if as_json else _printable(text))
    return 0


def facts(pack: Pack) -> dict[str, Any]:
    """Return what a pack says of itself, in JSON types."""
    known = {name: pack.manifest.get(name) for name in ("format", "fontanel", "name", "license", "onnx")}
    return {
        **known,
        "input": pack.model["input"],
        "outputs": pack.model["outputs"],
        "training_images": len(pack.record(CONTRACT)["training_images"]),
        "foreign_classes": foreign_classes(pack.text(CONFIG)),
        "other_versions": other_versions(pack),
    }


def describe(pack: Pack) -> str:
    """Return what a user needs to know of a pack before using it."""
    found = facts(pack)
    lines = [
        f"{pack.path.name}: {found['name']}, format {found['format']}, written by Fontanel {found['fontanel']}.",
        f"The seal and the sha256 of all {len(pack.members)} members fit: nothing was changed on the way. Who made it,",
        "and whether it is good, they do not say.",
        "",
        "It wants",
        *input_lines(found["input"]),
        "It gives",
        *output_lines(found["outputs"]),
        "",
        f"Licence: {found['license']}",
        f"Content hashes of training images in it: {found['training_images'] or 'none'}",
    ]
    if (onnx := found["onnx"]) is not None:
        lines.append(
            f"ONNX model in it: differs from torch by {onnx['random']:.1e} (random input), {onnx['image']:.1e}"
        )
    lines += [
        f"Made with {name} {then}; here is {here}: the last digits of predictions may differ."
        for name, (then, here) in found["other_versions"].items()
    ]
    if found["foreign_classes"]:
        names = ", ".join(found["foreign_classes"])
        lines.append(f"It names code from elsewhere: {names}. `predict` runs it only with --trust-code.")
    return "\n".join([*lines, "", "Card (unzip -p FILE card.md prints all of it)", *card_lines(pack.text(CARD))])


def card_lines(card: str) -> list[str]:
    r"""Return the main lines of a model card: what stands before its first section, and the sections in `SHOWN`.

    >>> card_lines("# A\n\nPredicts age.\n\n## Limits\n\nMany.\n\n## Performance\n\nNone.\n")
    ['# A', 'Predicts age.', '## Performance', 'None.']
    """
    head, *sections = card.split("\n## ")
    chosen = [f"## {section}" for section in sections if section.partition("\n")[0].strip() in SHOWN]
    return [line for part in (head, *chosen) for line in part.splitlines() if line.strip()]


def input_lines(inputs: Mapping[str, Any]) -> list[str]:
    """Say what the model takes, one line each."""
    done = inputs["preprocessing"]
    channels = ", ".join(map(str, inputs["channels"]))
    lines = [f"- {count_text(len(inputs['channels']), 'image')} per participant: {channels}"]
    if inputs.get("mask"):
        lines.append(f"- a mask of the foreground: {inputs['mask']}")
    spacing = " x ".join(f"{size:g}" for size in done["spacing"])
    shape = " x ".join(map(str, done["shape"]))
    lines.append(f"- brought to {inputs['orientation']}, {spacing} mm, {shape} voxels by Fontanel itself")
    wanted = join_words([done["normalisation"]] if isinstance(done["normalisation"], str) else done["normalisation"])
    lines.append(f"- normalisation: {wanted}; foreground: {done['foreground']}; centre: {done['centre']}")
    if inputs.get("crop"):
        lines.append(f"- of these the middle {' x '.join(map(str, inputs['crop']))} voxels")
    if (harmonised := inputs.get("harmonisation")) is not None:
        sites = harmonised.get("sites")
        only = f"of the sites {join_words(sites)} alone" if sites else "of its training sites alone"
        lines.append(f"- harmonisation: {harmonised['method']}; images {only}")
    return lines


def output_lines(outputs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say what the model gives, one line each."""
    lines = []
    for name, facts in outputs.items():
        if facts["kind"] == "binary":
            lines.append(
                f"- {name}: the probability of 1, after a temperature of {facts['temperature']:.4g}; the decision is 1 "
                f"from {facts['threshold']:.4g} on ({facts['rule']})"
            )
        else:
            lines.append(f"- {name}: a number, in {facts.get('unit') or 'the unit of its training table'}")
    return lines


def other_versions(pack: Pack) -> dict[str, tuple[str, str]]:
    """Return the packages of another version here than where the model was trained: then, and here."""
    then, here = pack.record(ENVIRONMENT).get("packages") or {}, environment_facts()["packages"]
    return {
        name: (then[name], here.get(name, "none"))
        for name in DECISIVE
        if then.get(name, "") not in ("", here.get(name))
    }


def _printable(text: str) -> str:
    """Return text without what could steer a terminal: a card is written by somebody else."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)
