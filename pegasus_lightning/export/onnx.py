"""Export of a decoder to ONNX, and the difference of onnxruntime's images from PyTorch's."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.randomness import Stream, generator

OPSET = 20  # ONNX operator set; onnxruntime reads it since 1.17
MAX_DIFFERENCE = 1e-4  # of a pixel in [0, 1] from PyTorch; a step of 8 bits is 4e-3


def check_onnx() -> None:
    """Raise UserError unless the packages that write ONNX are installed."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs another package ({error}): pip install -e '.[onnx]'") from error


class _Images(nn.Module):
    """Decoder of codes to images: the sigmoid of the decoder's logits."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, codes: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(codes))


def decoder_onnx(decoder: nn.Module, latent_dim: int, metadata: dict[str, str]) -> bytes:
    """Return an ONNX file from codes (batch, latent_dim) to images (batch, 3, 32, 32) in [0, 1], for any batch size.

    The same decoder and metadata give the same bytes.
    """
    import onnx

    codes = torch.zeros(2, latent_dim)  # the exporter would make a batch size of 1 a constant
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
    # The exporter records the file and line on this machine where each operation was called.
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString(deterministic=True)


def largest_difference(data: bytes, decode: Callable[[Tensor], Tensor], latent_dim: int) -> float | None:
    """Return the largest difference of a pixel from `decode`, over batches of 1 and 5; None without onnxruntime.

    `data` is the ONNX file; `decode` maps codes (B, latent_dim) to images (B, 3, 32, 32) in [0, 1]. Raise UserError if
    the difference exceeds MAX_DIFFERENCE, or onnxruntime cannot run the file.
    """
    try:
        import onnxruntime as runtime
    except ImportError:
        return None
    batches = [torch.randn(size, latent_dim, generator=generator(0, Stream.PRIOR, size)) for size in (1, 5)]
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # fatal only: errors are reported below
    try:
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        found = [session.run(["images"], {"codes": codes.numpy()})[0] for codes in batches]
    except Exception as error:  # onnxruntime's errors have no common ancestor
        raise UserError(
            f"onnxruntime {runtime.__version__} cannot run ONNX of opset {OPSET} ({type(error).__name__}): nothing "
            "was written. Try pip install --upgrade onnxruntime, or leave out --onnx."
        ) from error
    with torch.no_grad():
        wanted = torch.cat([decode(codes) for codes in batches])
    largest = (torch.from_numpy(np.concatenate(found)) - wanted).abs().max().item()  # NaN if any pixel is
    if not largest <= MAX_DIFFERENCE:
        raise UserError(
            f"onnxruntime {runtime.__version__} decodes other images than PyTorch (pixels in [0, 1] differ by up to "
            f"{largest:.1g}): nothing was written. Try another version of onnxruntime, or leave out --onnx."
        )
    return largest
