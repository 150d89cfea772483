"""A decoder as ONNX, codes to images, and how far onnxruntime's images are from PyTorch's."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.randomness import Stream, generator

OPSET = 20  # of ONNX: read by onnxruntime from 1.17 on
MAX_DIFFERENCE = 1e-4  # of a pixel in [0, 1], from PyTorch; a step of 8 bits is 4e-3


def check_onnx() -> None:
    """Raise UserError unless the packages that write ONNX are installed."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs a package more ({error}): pip install 'pegasus-lightning[onnx]'") from error


class _Images(nn.Module):
    """decode: the sigmoid of a decoder's logits."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, codes: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(codes))


def decoder_onnx(decoder: nn.Module, latent_dim: int, metadata: dict[str, str]) -> bytes:
    """The ONNX file of codes (batch, latent_dim) to images (batch, 3, 32, 32) in [0, 1], of any batch size.

    The same decoder and metadata give the same bytes.
    """
    import onnx

    codes = torch.zeros(2, latent_dim)  # of a batch of one the exporter makes a constant
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Images(decoder).eval(),
            (codes,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["codes"],
            output_names=["images"],
            dynamic_shapes={"codes": {0: torch.export.Dim("batch")}},
        )
    assert program is not None
    proto = program.model_proto
    graph = proto.graph
    # The exporter notes where in which file on this machine each operation was called.
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString(deterministic=True)


def largest_difference(data: bytes, decode: Callable[[Tensor], Tensor], latent_dim: int) -> float | None:
    """The largest difference of a pixel from `decode`, over batches of 1 and 5; None without onnxruntime.

    Args:
        data: the ONNX file.
        decode: codes (B, latent_dim) to images (B, 3, 32, 32) in [0, 1].

    Raises:
        UserError: it is too large for the same images, or onnxruntime cannot run the file at all.
    """
    try:
        import onnxruntime as runtime
    except ImportError:
        return None
    batches = []
    for batch_size in (1, 5):
        source = generator(0, Stream.PRIOR, batch_size)
        batches.append(torch.randn(batch_size, latent_dim, generator=source))
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what fails is told below, once
    try:
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        found = [session.run(["images"], {"codes": codes.numpy()})[0] for codes in batches]
    except Exception as error:  # onnxruntime's errors have no common ancestor
        raise UserError(
            f"onnxruntime {runtime.__version__} cannot run ONNX of opset {OPSET} ({type(error).__name__}): nothing "
            "was written. Try pip install --upgrade onnxruntime, or leave --onnx away."
        ) from error
    largest = 0.0
    for codes, images in zip(batches, found, strict=True):
        with torch.no_grad():
            wanted = decode(codes)
        largest = max(largest, (torch.from_numpy(images) - wanted).abs().max().item())
    if not largest <= MAX_DIFFERENCE:
        raise UserError(
            f"onnxruntime {runtime.__version__} decodes other images than PyTorch (by up to {largest:.1g} of 1): "
            "nothing was written. Try another version of onnxruntime, or leave --onnx away."
        )
    return largest
