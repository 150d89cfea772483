"""What a process finds in its environment: a notebook's backend that is not installed here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pegasus_lightning.utils.surroundings import steady_streams, usable_backend


@pytest.mark.parametrize(
    ("found", "left"),
    [
        ("module://no_such_package.backend", "agg"),
        ("module://json.no_such_module", "agg"),
        ("module://matplotlib.backends.backend_pdf", "module://matplotlib.backends.backend_pdf"),
        ("svg", "svg"),
        (None, None),
    ],
)
def test_a_backend_that_is_not_installed_is_replaced(
    monkeypatch: pytest.MonkeyPatch, found: str | None, left: str | None
) -> None:
    monkeypatch.delenv("MPLBACKEND", raising=False)
    if found is not None:
        monkeypatch.setenv("MPLBACKEND", found)
    usable_backend()
    assert os.environ.get("MPLBACKEND") == left


@pytest.mark.promise(20)
def test_a_command_starts_with_the_backend_of_a_notebook() -> None:
    environment = os.environ | {"MPLBACKEND": "module://no_such_package.backend"}
    code = "import pegasus_lightning, matplotlib; print(matplotlib.get_backend().lower())"
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (ended.stdout.strip(), ended.returncode) == ("agg", 0), ended.stderr


@pytest.mark.promise(20)
def test_a_stream_of_any_make_can_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class Tee:
        def write(self, text: str) -> None:  # says nothing of how much it wrote
            written.append(text)

        def flush(self) -> None:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdout", Tee())
    with steady_streams():
        print("a", flush=True)
    assert "".join(written) == "a\n"
