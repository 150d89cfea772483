"""`python -m pegasus_lightning.export PLACE...`: trained encoders and decoders as safetensors and ONNX files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pegasus_lightning import __version__
from pegasus_lightning.utils.errors import exit_code_of
from pegasus_lightning.utils.surroundings import steady_streams

if TYPE_CHECKING:
    from pegasus_lightning.export.model_files import Written

EXAMPLES = """
examples
  python -m pegasus_lightning.export runs/first_run           every run in the folder, each to its own export
  python -m pegasus_lightning.export RUN --onnx --out shared  one run, the decoder also as ONNX
  python -m pegasus_lightning.export 'runs/*/vae*' --out all  pattern (in quotes), one subfolder of all per run

in Python, after import pegasus_lightning
  model = pegasus_lightning.load_export("shared")             encode, decode, mix, config, classes
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pegasus_lightning.export",
        description="Write the encoder and decoder of trained runs to files that can be used without a checkpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pegasus_lightning {__version__}")
    parser.add_argument(
        "places", nargs="+", metavar="PLACE", help="a run's folder, a folder of runs, a pattern, or a checkpoint file"
    )
    parser.add_argument("--out", metavar="FOLDER", help="default: export in the run's folder")
    parser.add_argument(
        "--checkpoint", choices=("last", "best"), default="last", help="of each run: the last, or the best validation's"
    )
    parser.add_argument("--onnx", action="store_true", help="decoder.onnx too: codes to images, for other runtimes")
    return parser


def describe(written: Written) -> str:
    """Return what the command prints about one export: its folder, its files and their sizes."""
    if not written.new:
        return f"{written.folder}: already there, and the checkpoint has not changed since"
    lines = [f"{written.folder}: batch {written.batches_done:,}"]
    for name, size in written.sizes.items():
        text = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
        lines.append(f"  {name:<20} {text:>8}")
    if written.difference is not None:
        lines.append(f"  decoder.onnx: pixels differ from PyTorch's by at most {written.difference:.1g} (of 1)")
    elif "decoder.onnx" in written.sizes:
        lines.append("  decoder.onnx is not compared with PyTorch: onnxruntime is not installed")
    return "\n".join(lines)


@steady_streams()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. A user error is reported as one message on stderr."""
    options = parser().parse_args(arguments)
    return exit_code_of(lambda: _work(options))


def _work(options: argparse.Namespace) -> None:
    places = [place.removeprefix("run=") for place in options.places]  # as other commands spell it
    from pegasus_lightning.export import model_files  # torch is slow to import

    if options.onnx:
        model_files.check_onnx()
    for checkpoint, folder in model_files.plan_exports(places, options.out, options.checkpoint):
        written = model_files.export_checkpoint(checkpoint, folder, onnx=options.onnx)
        print(describe(written), flush=True)


if __name__ == "__main__":
    sys.exit(main())
