"""Serve the page until Ctrl-C."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from omegaconf import DictConfig

from pegasus_lightning.demo.settings import DemoConfig
from pegasus_lightning.utils.bars import waiting
from pegasus_lightning.utils.compose import typed
from pegasus_lightning.utils.errors import UserError, heeded_signals

LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(config: DictConfig, data_overrides: Sequence[str]) -> None:
    """Serve the page of a validated `DemoConfig` until Ctrl-C, which raises KeyboardInterrupt, or another signal.

    Raise UserError, before anything is served, if the model or the parents cannot be opened or the port is in use.
    """
    settings = typed(config, DemoConfig)
    check_address(settings.host, settings.port)
    for number in heeded_signals():
        if number != signal.SIGINT:
            signal.signal(number, _end)  # so that the folder of dropped files is removed
    with tempfile.TemporaryDirectory(prefix="pegasus-demo-") as uploads:
        _keep_to_this_machine(uploads)
        with waiting("starting the demo"):
            page = _start(settings, data_overrides)
        gc.enable()
        gc.freeze()
        others = "" if settings.host in LOCAL else " Every machine that reaches this one can use it."
        print(f"Open {address_of(settings.host, settings.port)} in a browser.{others} Ctrl-C ends it.", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def _start(settings: DemoConfig, data_overrides: Sequence[str]) -> Any:
    """Open the model, and serve its page in other threads. Return the page, a `gradio.Blocks`."""
    import gradio as gr  # slow to import

    from pegasus_lightning.demo.markup import STYLE
    from pegasus_lightning.demo.opening import open_demo
    from pegasus_lightning.demo.page import FONT, MAX_FILE_SIZE, build

    session, folder = open_demo(settings, data_overrides)
    page = build(session, folder)
    page.launch(
        server_name=f"[{settings.host}]" if ":" in settings.host else settings.host,
        server_port=settings.port,
        share=False,
        inbrowser=settings.open,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        footer_links=[],
        max_file_size=MAX_FILE_SIZE,
        theme=gr.themes.Default(font=FONT, font_mono=["ui-monospace", "monospace"]),
        css=STYLE,
    )
    return page


def address_of(host: str, port: int) -> str:
    """Return what to open in a browser of this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_address(host: str, port: int) -> None:
    """Raise UserError if a server cannot listen at this address."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, number) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"Port {port} is in use: say port={port % 65535 + 1}, or end what uses it.") from error
        if error.errno == errno.EACCES:
            raise UserError(
                f"Port {port} is not allowed to this user: say port=7860, or another above 1023."
            ) from error
        raise UserError(f"host={host} is no address of this machine: leave it out, or say host=0.0.0.0.") from error


def _keep_to_this_machine(uploads: str) -> None:
    """Let Gradio send nothing to others, and keep dropped files in a folder that is removed at the end."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = uploads
    for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own server whether it has started
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), *LOCAL]))


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
