"""A trained model as ONNX, and how far its outputs are from torch's."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.runtime import ConfigurationError, restore
from lightning_modules.base import BaseModule
from tracking.store import Store

if TYPE_CHECKING:
    from onnx import ModelProto

ALLOWED = 1e-4  # largest absolute difference of an output
INPUT, OUTPUT = "image", "prediction"
SEED = 0  # of the random input


class OnnxError(ValueError):
    """A model that cannot be exported, or whose export computes something else."""


class Predictor(nn.Module):
    """What `predict` does with a preprocessed image, without Lightning around it.

    Args:
        model: The trained model.
    """

    def __init__(self, model: BaseModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Return the predictions (B,) or (B, K) of images (B, C, D, H, W) or (B, C, H, W)."""
        predictions: Tensor = self.model(image)
        return predictions


def export(model: BaseModule, image: Tensor) -> tuple[bytes, dict[str, Any]]:
    """Return a model as ONNX, for any number of images at a time, and its agreement with torch.

    Args:
        model: The trained model, in evaluation mode.
        image: A real image as the network sees it, (1, C, D, H, W) or (1, C, H, W).

    Raises:
        OnnxError: The extra is not installed, the network has an operation that ONNX lacks, or an output differs from
            torch's by more than `ALLOWED`.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise OnnxError(
            f"ONNX needs the extra `export` ({error}). Install it: pip install 'fontanel[export]'"
        ) from None
    predictor = Predictor(model).eval()
    generator = torch.Generator().manual_seed(SEED)
    random = torch.randn(2, *image.shape[1:], generator=generator)
    content = _convert(predictor, random)
    onnx.checker.check_model(onnx.load_from_string(content))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = {}
    for name, batch in (("random", random), ("image", image)):
        with torch.inference_mode():
            wanted = predictor(batch).double().numpy()
        given = np.asarray(session.run([OUTPUT], {INPUT: batch.numpy()})[0], dtype=np.float64)
        found[name] = float(np.max(np.abs(given - wanted)))
        if given.shape != wanted.shape or not found[name] <= ALLOWED:
            raise OnnxError(
                f"The ONNX model differs from torch by {found[name]:.2g} on {'an' if name == 'image' else 'a'} {name} "
                f"input, and {ALLOWED:g} is allowed; nothing was written. Pack without --onnx."
            )
    shape = [INPUT, ["images", *image.shape[1:]]]
    versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "torch": torch.__version__}
    return content, {**found, "allowed": ALLOWED, "input": shape, "output": OUTPUT, "versions": versions}


def _convert(predictor: Predictor, batch: Tensor) -> bytes:
    try:
        program = torch.onnx.export(
            predictor,
            (batch,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"image": {0: torch.export.Dim("images")}},
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        proto = program.model_proto
        _strip(proto)
        content: bytes = proto.SerializeToString()
    except Exception as error:  # the exporter raises whatever its many passes lead to
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise OnnxError(
            f"This network cannot be exported to ONNX ({type(error).__name__}: {first}). Pack without --onnx."
        ) from error
    return content


def _strip(proto: "ModelProto") -> None:
    """Take out what the exporter notes of where each operation is from: lines of files on this machine."""
    graphs = [proto.graph, *proto.functions]
    for part in (proto, *graphs):
        part.doc_string = ""
        del part.metadata_props[:]
    for graph in graphs:
        for item in (*graph.node, *graph.value_info):
            item.doc_string = ""
            del item.metadata_props[:]
    for item in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


def first_image(reference: str, images: list[Path], store: Store, scratch: Path) -> Tensor:
    """Return one image as the network sees it, (1, C, D, H, W): a given one, or one that the training held out.

    Args:
        reference: The checkpoint.
        images: Image files of one participant; [] to take one of the training table.
        store: Where runs are looked up.
        scratch: Folder for what is on its way.
    """
    from datamodules.cohort import CohortError
    from evaluation.parts import HELD_OUT
    from experiments.predict import restore_for
    from tracking.checkpoints import load_checkpoint

    if images:
        data = restore_for(reference, images, [], scratch, store, scratch).cli.datamodule
    else:
        data = restore(reference, [], store, scratch).cli.datamodule
        data.labels_required, data.allow_unverified = False, True
    try:
        data.setup("predict")
    except (CohortError, OSError) as error:
        raise ConfigurationError(
            f"ONNX is compared with torch on a real image, and the training table gives none ({error}) Name one with "
            "--example IMAGE."
        ) from error
    data.samples = (data.part(*HELD_OUT) or data.samples)[:1]
    data.load_state_dict(load_checkpoint(reference).get(type(data).__qualname__, {}))
    batch: dict[str, Any] = next(iter(data.predict_dataloader()))
    image: Tensor = data.on_after_batch_transfer(batch, 0)["image"]
    return image
