"""Promise 11: nothing that is loaded runs code. Each attack would make a folder, the sentinel."""

from __future__ import annotations

import ast
import contextlib
import http.server
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import pegasus_lightning
from pegasus_lightning.evaluate.__main__ import _work as evaluate
from pegasus_lightning.evaluate.settings import EVALUATE
from pegasus_lightning.generate.__main__ import _work as generate
from pegasus_lightning.generate.settings import GENERATE
from pegasus_lightning.utils.files import sha256
from pegasus_lightning.utils.program import run_program

pytestmark = pytest.mark.promise(11)

PROGRAMS = [(GENERATE, generate), (EVALUATE, evaluate)]


class Malice:
    """Unpickling this would make the sentinel."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.sentinel),)


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    return tmp_path / "sentinel"


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """refused(program, work, *arguments): the error message of `generate` or `evaluate`."""

    def call(program: Any, work: Any, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        assert run_program(program, [*arguments, "gpus=0", f"out={tmp_path / 'out'}"], work) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert not (tmp_path / "out").exists()
        return said.strip().splitlines()[-1]

    return call


@pytest.mark.parametrize("bare", [False, True], ids=["torch.save", "pickle"])
def test_a_malicious_checkpoint_is_refused_by_every_command(
    command: Any, left: Callable[[Path], Any], refused: Any, begun: Path, sentinel: Path, bare: bool
) -> None:
    run = left(begun)
    evil = run.content | {"callbacks": Malice(sentinel)}
    for name in ("last.ckpt", "previous.ckpt"):
        path = run.checkpoints / name
        path.unlink()
        if bare:
            path.write_bytes(pickle.dumps(evil))
        else:
            torch.save(evil, path)
        path.with_name(f"{name}.sha256").write_text(sha256(path) + "\n")  # a forger can write the hash too
    for overrides in (["trainer.max_epochs=4"], ["trainer.max_epochs=4", "resume=must"]):
        ended = command(begun, *overrides)
        assert ended.code == 2
        assert "cannot be read as a checkpoint" in ended.err
        assert "Traceback" not in ended.err
    for program, work in PROGRAMS:
        assert "cannot be read as a checkpoint" in refused(program, work, f"run={run.run}")
        assert "cannot be read as a checkpoint" in refused(program, work, f"run={run.checkpoints / 'last.ckpt'}")
    assert not sentinel.exists()
    with contextlib.suppress(Exception):  # the file does run code if it is unpickled
        torch.load(run.checkpoints / "last.ckpt", weights_only=False)
    assert sentinel.exists()


COMMAND_LINES = [
    ["+model._target_=os.mkdir", "+model.path={sentinel}"],
    ["++model._target_=os.mkdir", "++model._args_=[{sentinel}]"],
    ["+data._target_=os.mkdir", "+data._args_=[{sentinel}]"],
    ["+callbacks.mine._target_=os.mkdir", "+callbacks.mine.path={sentinel}"],
    ["+trainer._target_=os.mkdir", "+trainer.path={sentinel}"],
    ["+_target_=os.mkdir", "+path={sentinel}"],
    ["model.name=os.mkdir"],
    ["data.source=os.mkdir"],
    ["model=os.mkdir"],
]


@pytest.mark.parametrize("line", COMMAND_LINES, ids=lambda line: line[0])
def test_nothing_typed_is_imported(command: Any, tmp_path: Path, sentinel: Path, line: list[str]) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    ended = command(folder, *[part.format(sentinel=sentinel) for part in line])
    assert not sentinel.exists()
    assert ended.code == 2
    assert ended.err.count("pegasus_lightning: ") == 1
    assert "Traceback" not in ended.err
    assert list(folder.iterdir()) == []


HYDRAS_OWN = [
    ["+hydra.callbacks.mine._target_=os.mkdir", "+hydra.callbacks.mine.path={sentinel}"],
    ["-m", "hydra.launcher._target_=os.mkdir", "+hydra.launcher.path={sentinel}"],
    ["-m", "hydra.sweeper._target_=os.mkdir", "+hydra.sweeper.path={sentinel}"],
]


@pytest.mark.parametrize("line", HYDRAS_OWN, ids=lambda line: " ".join(line)[:40])
def test_nothing_typed_is_imported_by_way_of_hydras_own_settings(
    command: Any, tmp_path: Path, sentinel: Path, line: list[str]
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    ended = command(folder, *[part.format(sentinel=sentinel) for part in line], "seed=1")
    assert not sentinel.exists()
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert list(folder.iterdir()) == []


def _target(config: Any, sentinel: Path) -> str:
    config.data = OmegaConf.merge(config.data, {"_target_": "os.mkdir", "path": str(sentinel)})
    return OmegaConf.to_yaml(config)


def _nested_target(config: Any, sentinel: Path) -> str:
    config.data.classes = {"_target_": "os.mkdir", "path": str(sentinel)}
    return OmegaConf.to_yaml(config)


def _yaml_tag(config: Any, sentinel: Path) -> str:
    return OmegaConf.to_yaml(config) + f"evil: !!python/object/apply:os.mkdir ['{sentinel}']\n"


def _source(config: Any, sentinel: Path) -> str:
    config.data.source = "os.mkdir"
    return OmegaConf.to_yaml(config)


@pytest.mark.parametrize("how", [_target, _nested_target, _yaml_tag, _source])
@pytest.mark.parametrize(("program", "work"), PROGRAMS, ids=["generate", "evaluate"])
def test_a_run_folders_configuration_is_data(
    left: Callable[[Path], Any], refused: Any, begun: Path, sentinel: Path, program: Any, work: Any, how: Any
) -> None:
    path = left(begun).run / "config.yaml"
    path.write_text(how(OmegaConf.load(path), sentinel))
    message = refused(program, work, f"run={left(begun).run}")
    assert not sentinel.exists()
    assert message.startswith("pegasus_lightning: ")


def test_a_checkpoint_is_not_fetched_from_an_address(
    left: Callable[[Path], Any], refused: Any, begun: Path, tmp_path: Path
) -> None:
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        do_HEAD = do_GET

    shutil.copy(left(begun).checkpoints / "last.ckpt", tmp_path / "last.ckpt")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for program, work in PROGRAMS:
                address = f"http://127.0.0.1:{server.server_port}/last.ckpt"
                assert "no run folder or checkpoint http:" in refused(program, work, f"run={address}")
        finally:
            server.shutdown()
            thread.join()
    assert asked == []


def _calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, Any]]]:
    """The dotted name and the constant keywords of every call in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            constants = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
            yield ast.unparse(node.func), constants


def test_no_file_of_the_package_loads_what_could_be_code() -> None:
    forbidden = {"eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "torch.hub.load"}
    forbidden |= {"importlib.import_module", "hydra.utils.instantiate", "instantiate", "yaml.load", "joblib.load"}
    forbidden |= {"torch.load", "pickle.Unpickler"}  # utils/torch_file.py reads what torch.save wrote
    files = sorted(Path(pegasus_lightning.__file__).parent.rglob("*.py"))
    assert len(files) > 50
    loads = 0
    for path in files:
        for name, constants in _calls(ast.parse(path.read_text())):
            assert name not in forbidden, f"{path}: {name}"
            if name.endswith(("trainer.fit", "load_from_checkpoint")):
                assert constants.get("weights_only") is True, f"{path}: {name}"
                loads += 1
            if name == "np.load":
                assert constants.get("allow_pickle", False) is False, f"{path}: {name}"
    assert loads >= 1
