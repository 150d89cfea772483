"""Reading of files that `torch.save` wrote: plain values and tensors, and no more memory than the file has bytes.

`torch.load(weights_only=True)` runs no code, but believes a file in other things: it unpacks compressed entries, and
makes whatever a pickle of its classes asks for, such as a `bytearray` of any size.
"""

from __future__ import annotations

import io
import math
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pegasus_lightning.utils.foreign import MEGABYTE, Unreadable, check_plain, open_regular

MAX_PARAMETERS = 10**9  # of a network
MAX_TORCH_BYTES = 32 * MAX_PARAMETERS  # the weights, Adam's two moments and an average, in single or double precision
MAX_PICKLE = 8 * MEGABYTE  # about 50,000 tensors
DTYPES = {
    f"{name}Storage": getattr(torch, name.lower()) for name in ("Float", "Double", "Half", "BFloat16", "Long", "Int")
} | {"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool}
OPCODES = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINUNICODE, pickle.EMPTY_TUPLE),
    *(pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS, pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET),
    *(pickle.LONG_BINGET, pickle.GLOBAL, pickle.REDUCE, pickle.BUILD, pickle.BINPERSID),
)


def read_torch_file(path: Path, kind: type[Any] = dict) -> Any:
    """Return the plain values and tensors (on the CPU) in a file of `torch.save`, a `kind` on top. Raise Unreadable.

    No code in it is run.
    """
    with open_regular(path, MAX_TORCH_BYTES) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                content = _read_archive(archive, path.stat().st_size)
        except Exception as error:  # a broken pickle may raise any
            raise Unreadable(path, f"cannot be read as a checkpoint ({type(error).__name__})") from error
    return check_plain(path, content, kind, interpolation=False, leaves=(Tensor, tuple))


def check_fits(path: Path, network: nn.Module, found: Mapping[str, Any]) -> None:
    """Raise Unreadable unless a network, which may lie on the `meta` device, has just the tensors that a file has.

    `found` are tensors, or their shapes as lists, by name.
    """
    wanted = {name: list(value.shape) for name, value in network.state_dict().items()}
    if sum(math.prod(shape) for shape in wanted.values()) > MAX_PARAMETERS:
        raise Unreadable(path, f"describes a network of more than {MAX_PARAMETERS:.0e} parameters")
    shapes = {name: list(getattr(value, "shape", value)) for name, value in found.items()}
    wrong = [name for name in sorted({*wanted, *shapes}) if wanted.get(name) != shapes.get(name)]
    if wrong:
        raise Unreadable(path, f"does not hold the weights of the network that it describes: {wrong[0]} does not fit")


class _Storage(NamedTuple):
    values: Tensor


class _Unpickler(pickle._Unpickler):  # in Python: the one in C makes room for as many objects as the file says
    dispatch: ClassVar[dict[int, Any]] = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in OPCODES}

    def __init__(self, data: bytes, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(data))
        self._archive, self._folder = archive, folder
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = {"collections.OrderedDict": _ordered, "torch._utils._rebuild_tensor_v2": _tensor}
        return DTYPES[name] if module == "torch" else known[f"{module}.{name}"]

    def persistent_load(self, saved: Any) -> _Storage:
        kind, dtype, key, _, count = saved
        if key not in self._storages:
            entry = self._archive.getinfo(f"{self._folder}/data/{key}")
            if kind != "storage" or entry.file_size != count * dtype.itemsize:
                raise ValueError("a tensor of another size")
            values = torch.empty(count, dtype=dtype)
            values.view(torch.uint8).numpy()[:] = np.frombuffer(self._archive.read(entry), np.uint8)
            self._storages[key] = _Storage(values)
        if self._storages[key].values.dtype != dtype:
            raise ValueError("one tensor of two types")
        return self._storages[key]

    def _build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        if set(state) != {"_metadata"}:
            raise ValueError("an attribute")
        self.stack[-1]._metadata = state["_metadata"]  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = _build


def _ordered() -> OrderedDict[Any, Any]:
    return OrderedDict()


def _tensor(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    count, wanted = len(storage.values), int(np.prod(size, dtype=object))
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min((0, offset, *size, *stride)) < 0 or wanted > count or (wanted and last >= count):
        raise ValueError("a tensor beyond its storage")
    return storage.values.as_strided(size, stride, offset)


def _read_archive(archive: zipfile.ZipFile, size: int) -> Any:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or len(set(names)) < len(names):
        raise ValueError("compressed or repeated entries")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("entries that are larger than the file")
    folder = names[0].partition("/")[0]
    if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder").decode() != sys.byteorder:
        raise ValueError("another order of bytes")
    if archive.getinfo(f"{folder}/data.pkl").file_size > MAX_PICKLE:
        raise ValueError("too many values")
    return _Unpickler(archive.read(f"{folder}/data.pkl"), archive, folder).load()
