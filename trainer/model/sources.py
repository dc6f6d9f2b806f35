"""Where base models come from: bundled with us, a local folder, or the Hugging Face hub. Runs on the control machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from trainer.config import ModelConfig
from trainer.errors import InputError
from trainer.model import bundled
from trainer.paths import cache_dir
from trainer.schema import escape_text, show_value, suggest

_BUNDLED = "bundled:"
_HUB_FILES = ["*.json", "*.safetensors", "*.py", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja"]


def fetch_model(config: ModelConfig, report: Callable[[str], None]) -> Path:
    """Return the folder that holds the model of ``config``, converting or downloading it on first use.

    ``report`` gets a sentence before anything slow. Raises `InputError` with what to do when there is no such model.
    """
    source = config.source
    if source.startswith(_BUNDLED):
        return _fetch_bundled(source.removeprefix(_BUNDLED), report)
    if folder := _find_folder(source):
        return _check_folder(folder)
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise InputError(
            f"model.source: {source} is neither a folder, nor bundled:{bundled.NAME}, nor a Hugging Face id (owner/name)"
        )
    return _download(source, config.revision, report)


def _fetch_bundled(name: str, report: Callable[[str], None]) -> Path:
    """Return the folder of the bundled model, in the form this machine computes fastest.

    On Metal that is 4 bits as shipped; on a CPU float32, the only type whose products use the BLAS.
    """
    if name != bundled.NAME:
        hint = suggest(name, [bundled.NAME], 0.1) or f"; there is {bundled.NAME}"
        raise InputError(f"model.source: there is no bundled model {show_value(name)}{hint}")
    quantized = mx.metal.is_available()
    target = cache_dir() / "models" / f"{bundled.NAME}-{'4bit' if quantized else 'float32'}"
    if not target.is_dir():
        report(f"converting the bundled {bundled.NAME} (once)")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{target.parent}: cannot be made: {error.strerror}; FLOTILLA_CACHE names another") from error
        bundled.convert(bundled.find_gguf(), target, quantized=quantized)
    return target


def _find_folder(source: str) -> Path | None:
    try:
        folder = Path(source).expanduser().resolve()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # too long, the home of nobody
        return None


def _check_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise InputError(f"model.source: {folder} has no config.json; is it a model in MLX or Hugging Face form?")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"model.source: {folder} has no *.safetensors; convert it with mlx_lm.convert")
    if not (folder / "tokenizer_config.json").is_file():
        raise InputError(f"model.source: {folder} has no tokenizer_config.json; copy the tokenizer's files there too")
    for name in ("config.json", "tokenizer_config.json"):
        try:
            json.loads((folder / name).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"model.source: {folder / name} is not JSON: {error}") from error
    return folder


def _download(source: str, revision: str, report: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:  # what is there already needs no network
        return Path(snapshot_download(source, revision=revision, allow_patterns=_HUB_FILES, local_files_only=True))
    except HFValidationError as error:
        raise InputError(f"model.source: {source} is not a Hugging Face id: {escape_text(str(error))}") from error
    except LocalEntryNotFoundError:
        report(f"downloading {source} from the Hugging Face hub (once)")
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=_HUB_FILES))
    except RepositoryNotFoundError as error:
        raise InputError(f"model.source: the Hugging Face hub has no {source}, or it needs a login (hf auth login)") from error
    except RevisionNotFoundError as error:
        raise InputError(f"model.revision: {source} has no {revision} on the Hugging Face hub") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"model.source: {source} is not on this machine and cannot be downloaded (offline?); "
            f"connect once, or use bundled:{bundled.NAME} or a local folder"
        ) from error
