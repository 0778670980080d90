"""Write a model into one file that another hospital can use.

The file (a pack) holds the weights as safetensors, preprocessing and transforms, threshold and temperature, what the
model takes and gives, the environment it was made in, a model card and a licence, each with its hash; a byte changed
anywhere is refused. It names no participant, site, table, folder, store or machine. What stays of the training images
are their content hashes, so that `predict` still marks an image that the model was trained on (--no-image-hashes leaves
them out).

Examples:
  fontanel pack RUN -o model.fontanel --license CC-BY-4.0
  fontanel verify model.fontanel                                what it wants and gives, and whether its hashes fit
  fontanel predict model.fontanel scan1.nii.gz scan2.nii.gz     elsewhere: no table, no MLflow, no network
  unzip -p model.fontanel card.md > card.md                     edit the card, and pack again with it:
  fontanel pack RUN -o model.fontanel --card card.md --license LICENSE.txt
  fontanel pack RUN -o model.fontanel --onnx                    with an ONNX model, compared with torch (extra `export`)
"""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from experiments.pack_contents import Packed
    from lightning_modules.base import BaseModule
    from tracking.store import Store

NO_LICENCE = "no licence given: ask the sender"
MAXIMUM_NAME = 100  # characters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fontanel pack`."""
    from experiments.options import add_store_arguments

    parser.add_argument(
        "reference", metavar="RUN", help="run id, run name, run folder, its best.ckpt, or a registered model"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="file to write, *.fontanel")
    parser.add_argument("--name", help="what the model is called (default: the file's name); never a site's name")
    parser.add_argument("--license", metavar="SPDX|FILE", help="SPDX name such as CC-BY-4.0, or a file with its text")
    parser.add_argument("--card", type=Path, metavar="FILE", help="a model card of your own, instead of the generated")
    parser.add_argument(
        "--no-image-hashes", action="store_true", help="leave out the content hashes of the training images"
    )
    parser.add_argument(
        "--site-names", action="store_true", help="name the training sites; a model with ComBat cannot do without"
    )
    parser.add_argument("--onnx", action="store_true", help="add the model as ONNX (extra `export`)")
    parser.add_argument(
        "--example",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help="image on which ONNX and torch are compared (default: one of the training table)",
    )
    add_store_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Gather what the pack holds, see that it loads, and write it."""
    from functools import partial

    from experiments.leakage import read_pretraining
    from experiments.options import open_store
    from experiments.pack_card import RunFiles, card
    from experiments.pack_contents import contents
    from experiments.runtime import locate_weights
    from tracking.packs import CARD, ENVIRONMENT, LICENCE, ONNX, write_pack

    require_usable(arguments)
    name = model_name(arguments.name or arguments.output.stem)
    licence, licence_text = read_licence(arguments.license)
    own_card = None if arguments.card is None else read_text(arguments.card)
    store = open_store(arguments)
    checkpoint = locate_weights(arguments.reference, store)
    pretraining = read_pretraining(checkpoint, locate=partial(locate_weights, store=store))
    files = RunFiles(checkpoint, pretraining.contracts[0].run_id, store)
    packed = contents(
        checkpoint,
        pretraining.contracts,
        files.description(),
        name=name,
        image_hashes=not arguments.no_image_hashes,
        site_names=arguments.site_names,
    )
    model = loaded_model(packed)
    exported = onnx_of(arguments, packed, checkpoint, store) if arguments.onnx else None
    members = {
        **packed.members,
        ENVIRONMENT: files.environment(),
        CARD: (own_card or card(name, licence, packed, model, files)).encode("utf-8"),
        LICENCE: licence_text.encode("utf-8"),
    }
    facts: dict[str, Any] = {"fontanel": version("fontanel"), "name": name, "license": licence, "onnx": None}
    if exported is not None:
        members[ONNX], facts["onnx"] = exported
    write_pack(arguments.output, members, facts)
    print(describe(arguments.output, packed, facts, pretraining.gap))
    return 0


def require_usable(arguments: argparse.Namespace) -> None:
    """Refuse words that cannot lead to a pack, before anything is read."""
    from experiments.runtime import ConfigurationError
    from tracking.packs import SUFFIX, is_pack

    if is_pack(arguments.reference):
        raise ConfigurationError(f"{arguments.reference} is a pack already. Name the run that it is from.")
    if arguments.output.suffix != SUFFIX:
        raise ConfigurationError(f"{arguments.output} does not end with {SUFFIX}, by which a pack is known. Rename it.")
    if arguments.example and not arguments.onnx:
        raise ConfigurationError("--example is for the comparison of ONNX with torch. Add --onnx, or leave it out.")


def model_name(text: str) -> str:
    """Return the name of a model, which stands in its card and in the column arm of its predictions."""
    from experiments.runtime import ConfigurationError

    name = text.strip()
    if not name or len(name) > MAXIMUM_NAME or not name.isprintable():
        raise ConfigurationError(f"The name {text!r} is empty, too long or unprintable. Give another one with --name.")
    return name


def read_licence(given: str | None) -> tuple[str, str]:
    """Return the name of a licence and its text; none is ever invented.

    Args:
        given: An SPDX expression, a file with the text, or None.
    """
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    from experiments.runtime import ConfigurationError

    if given is None:
        return NO_LICENCE, f"{NO_LICENCE}\n"
    if Path(given).is_file():
        return "see the member LICENSE", read_text(Path(given))
    try:
        name = str(canonicalize_license_expression(given))
    except InvalidLicenseExpression:
        raise ConfigurationError(
            f"{given} is neither a file nor the name of a licence as SPDX lists them (https://spdx.org/licenses), such "
            "as CC-BY-4.0 or Apache-2.0."
        ) from None
    return name, f"SPDX-License-Identifier: {name}\nThe text: https://spdx.org/licenses\n"


def read_text(path: Path) -> str:
    """Return the text of a file that goes into the pack as it is."""
    from experiments.runtime import ConfigurationError

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} does not read as text: {error}.") from error
    if not text.strip():
        raise ConfigurationError(f"{path} is empty. Write something into it, or leave the option out.")
    return text


def loaded_model(packed: "Packed") -> "BaseModule":
    """Return the model that the pack's own configuration and weights make; a pack that does not load is not written."""
    from experiments.runtime import rebuild

    model: BaseModule = rebuild(packed.contract, []).model
    model.load_state_dict(packed.state)
    model.eval()
    return model


def onnx_of(
    arguments: argparse.Namespace, packed: "Packed", checkpoint: Path, store: "Store"
) -> tuple[bytes, dict[str, Any]]:
    """Return the model as ONNX, and how well it agrees with torch on random and on real input."""
    from experiments.pack_onnx import export, first_image
    from experiments.runtime import scratch_folder

    with scratch_folder() as scratch:
        image = first_image(str(checkpoint), arguments.example or [], store, scratch)
    return export(loaded_model(packed), image)


def describe(path: Path, packed: "Packed", facts: "Mapping[str, Any]", gap: str) -> str:
    """Say what was written, what in it concerns people, and what the other side needs."""
    from experiments.pack_configuration import foreign_classes
    from tracking.files import file_hash

    images = len(packed.contract.training_images)
    lines = [f"Packed run {packed.contract.run_id} as {facts['name']}: {path} ({path.stat().st_size / 1e6:.1f} MB)"]
    lines.append(f"sha256 {file_hash(path)}")
    lines.append(f"Licence: {facts['license']}")
    known = f"content hashes of {images} images that it was trained on" if images else "no content hashes of images"
    lines.append(f"In it: {known}; no participant, site, table or folder{gap and '. Not known: ' + gap}")
    if (agreement := facts["onnx"]) is not None:
        lines.append(
            f"ONNX agrees with torch to {agreement['random']:.1e} on random input and {agreement['image']:.1e} on an "
            f"image (allowed: {agreement['allowed']:.0e})"
        )
    if foreign := foreign_classes(packed.contract.config):
        lines.append(f"Whoever uses it needs the package of {', '.join(foreign)}, and has to say --trust-code.")
    return "\n".join([*lines, f"Next: fontanel verify {path}"])
