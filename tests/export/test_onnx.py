"""Tests of the ONNX decoder: images at several batch sizes, metadata, refusals."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pegasus_lightning.export import __main__ as export
from pegasus_lightning.export import model_files
from pegasus_lightning.export.model_files import Written, export_checkpoint, load_export
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.checkpoints import load_model, save_atomically
from pegasus_lightning.utils.errors import UserError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


@pytest.fixture
def checkpoint(tmp_path: Path, tiny: Callable[..., TwoPlayerModel]) -> Path:
    """A checkpoint with averages, BatchNorm and parametrisations, every tensor changed as by training."""
    networks = {"spectral_norm": "all", "upsampling": "nearest"}
    model = tiny("vae_gan", {"ema_decay": 0.9, "networks": networks}, seed=5)
    source = torch.Generator().manual_seed(1234)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=source)
            value.copy_(noise.abs() + 0.5 if name.endswith("running_var") else value + 0.1 * noise)
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    save_atomically(content | {"batches_done": 1234}, path)
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture
def written(checkpoint: Path, shared: Path) -> Written:
    """The export of the checkpoint with ONNX, made once."""
    return export_checkpoint(checkpoint, shared / "export", onnx=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("batch_size", [1, 7])
def test_onnx_decodes_the_same_images(checkpoint: Path, written: Written, batch_size: int) -> None:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(written.folder / "decoder.onnx"), providers=["CPUExecutionProvider"])
    codes = 2 * torch.randn(batch_size, 6, generator=torch.Generator().manual_seed(batch_size))
    (got,) = session.run(None, {"codes": codes.numpy()})
    with torch.no_grad():
        wanted = load_model(checkpoint).decode(codes)
    assert wanted.std() > 0.01
    torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=0, atol=1e-5)


def test_it_says_what_it_is_and_nothing_of_this_machine(written: Written) -> None:
    path = written.folder / "decoder.onnx"
    model = onnx.load(path)
    with safe_open(written.folder / "decoder.safetensors", "pt") as file:
        assert {entry.key: entry.value for entry in model.metadata_props} == file.metadata()
    (images,) = model.graph.output
    (codes,) = model.graph.input
    shapes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in (codes, images)]
    assert (codes.name, images.name) == ("codes", "images")
    assert shapes == [["batch", 6], ["batch", 3, 32, 32]]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    data = path.read_bytes()
    assert str(Path(model_files.__file__).parent).encode() not in data  # no path of this machine
    assert b"networks.py" not in data
    assert load_export(written.folder).about["batches_done"] == 1234
    assert path.name in (written.folder / "SHA256SUMS").read_text()
    assert written.sizes["decoder.onnx"] == len(data)


def test_what_is_there_is_kept(checkpoint: Path, written: Written) -> None:
    assert "decoder.onnx" in written.sizes
    assert not export_checkpoint(checkpoint, written.folder, onnx=True).new
    assert not export_checkpoint(checkpoint, written.folder).new  # the ONNX file is not removed
    assert (written.folder / "decoder.onnx").exists()


@pytest.mark.slow
def test_what_is_asked_for_and_lacking_is_added(checkpoint: Path, written: Written, tmp_path: Path) -> None:
    without = export_checkpoint(checkpoint, tmp_path / "export")
    assert "decoder.onnx" not in without.sizes
    added = export_checkpoint(checkpoint, tmp_path / "export", onnx=True)
    assert added.new
    assert contents(tmp_path / "export") == contents(written.folder)  # byte for byte
    if added.difference is not None:
        assert 0 <= added.difference < 1e-5


@pytest.mark.parametrize("change", [0.01, float("nan")])
def test_other_images_are_not_written(
    change: float, checkpoint: Path, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    model = onnx.load(written.folder / "decoder.onnx")
    bias = next(value for value in model.graph.initializer if list(value.dims) == [3])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + change, bias.name))
    monkeypatch.setattr(model_files, "decoder_onnx", lambda *_: model.SerializeToString())
    with pytest.raises(UserError, match="decodes other images than PyTorch"):
        export_checkpoint(checkpoint, tmp_path / "export", onnx=True)
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("refused_at", ["loading", "running"])
def test_what_onnxruntime_cannot_run_ends_in_one_message_and_exit_code_2(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    refused_at: str,
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("codes", "images")]
    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [5, 5])  # does not fit 6 codes
    reshape = onnx.helper.make_node("Reshape", ["codes", "shape"], ["images"])
    graph = onnx.helper.make_graph([reshape], "graph", ends[:1], ends[1:], [shape])
    # An opset that this onnxruntime does not know, as 20 is to an old one.
    opset = onnx.helper.make_opsetid("", 9999 if refused_at == "loading" else 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    monkeypatch.setattr(model_files, "decoder_onnx", lambda *_: model.SerializeToString())
    assert export.main([str(checkpoint), "--onnx", "--out", str(tmp_path / "export")]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    start = f"pegasus_lightning: onnxruntime {runtime.__version__} cannot run ONNX of opset 20 ("
    assert said.err.startswith(start) and said.err.count("\n") == 1
    assert "pip install --upgrade onnxruntime, or leave out --onnx" in said.err
    assert os.listdir(tmp_path) == ["run"]
