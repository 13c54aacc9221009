"""Weights as safetensors files: written, loaded, and kept for those who go on from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from tenfold.errors import TenfoldError, WorkloadError, first_line
from tenfold.store import file_hash, unwritable, write_atomic

INDEX = "index.json"


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a model.

    Raises:
        WorkloadError: it is missing, corrupt, or not of this model.
    """
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError as error:
        raise WorkloadError(f"the weights {path} do not exist: check the path") from error
    except (SafetensorError, OSError) as error:
        raise WorkloadError(
            f"{path} is no readable safetensors file ({first_line(error)}): save the weights again with safetensors"
        ) from error
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        raise WorkloadError(f"{path} does not fit the model ({detail}): give the weights of this very model") from error


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's parameters and buffers as safetensors."""
    # written by us: a full disk is an OSError then, and not an error of safetensors' own
    write_atomic(path, save({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}))


def keep_weights(folder: Path, files: Sequence[Path]) -> None:
    """Copy files of weights into a folder, in their order; the same content once."""
    beside = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        names = [f"{file_hash(file)[:16]}.safetensors" for file in files]
        for name, file in dict(zip(names, files, strict=True)).items():
            shutil.copyfile(file, beside / name)
        write_atomic(beside / INDEX, json.dumps(names))
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    except OSError as error:
        raise unwritable(folder, error) from error


def kept_weights(folder: Path) -> list[Path]:
    """The files of weights that were kept, in their order.

    Raises:
        TenfoldError: they are not there.
    """
    try:
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        files = [folder / Path(name).name for name in names]
    except (OSError, ValueError, TypeError) as error:
        raise TenfoldError(f"{folder} holds no weights that could be gone on from: resume the run with this Tenfold, or run anew") from error
    if missing := next((f for f in files if not f.is_file()), None):
        raise TenfoldError(f"{missing} is gone, and is to be gone on from: put it back, or run anew")
    return files
