"""Models of the Hugging Face Hub as local directories.

    config = with_local_models(config)      # base = "openai/whisper-base" becomes the directory of its copy

Settings that accept the directory of a Hugging Face model have the annotation MODEL. A value OWNER/NAME or
OWNER/NAME@REVISION that is no directory is downloaded once, to the cache of huggingface_hub. Only configurations, text
tokenizers and weights are downloaded, never code. No other model is looked up on the network.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from weft import progress
from weft.config import MODEL, annotated
from weft.errors import UserError, reason_of

C = TypeVar("C")

_NAME = re.compile(r"([\w-][\w.-]{0,95}/[\w-][\w.-]{0,95})(?:@([\w./-]{1,200}))?", re.ASCII)
_CONFIGURATIONS = ["*.json", "*.txt", "*.model"]
_WEIGHTS = "*.safetensors"
_OTHER_WEIGHTS = "*.bin"  # read as tensors only


def with_local_models(config: C, only_configurations: bool = False) -> C:
    """Return `config` with directories in place of names on the Hub. Raises UserError as `local` does."""
    found: Any = config
    names = {name: value for name, value in annotated(config, MODEL) if isinstance(value, Path)}
    return replace(found, **{name: local(value, only_configurations) for name, value in names.items()})


def local(model: Path, only_configurations: bool = False) -> Path:
    """Return the directory of a model: `model` itself unless it is a name on the Hub and its parent does not exist.

    Raises UserError for a model that cannot be downloaded.
    """
    found = _NAME.fullmatch(str(model))
    if found is None or model.parent.exists():  # a path
        return model
    name, revision = found.groups()
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return _download(name, revision, only_configurations)
    except GatedRepoError as e:
        remedy = f"accept its conditions at https://huggingface.co/{name}, and run `hf auth login`"
        raise UserError(f"{name} on the Hugging Face Hub needs a permission: {remedy}") from e
    except RepositoryNotFoundError as e:
        remedy = "correct the name, or run `hf auth login` if it is private"
        raise UserError(f"{name} is neither a directory nor a model on the Hugging Face Hub: {remedy}") from e
    except RevisionNotFoundError as e:
        raise UserError(f"{name} on the Hugging Face Hub has no revision {revision!r}: give one that it has") from e
    except LocalEntryNotFoundError as e:
        remedy = "give a directory, or check the network and HF_HUB_OFFLINE"
        raise UserError(f"{name} is not a directory, and the Hugging Face Hub cannot be reached: {remedy}") from e
    except (HfHubHTTPError, OSError) as e:
        raise UserError(f"{name} cannot be downloaded from the Hugging Face Hub ({reason_of(e)}): try again") from e


def _download(name: str, revision: str | None, only_configurations: bool) -> Path:
    """Return the directory of a model in the cache, after downloading what it lacks."""
    from huggingface_hub import snapshot_download
    from tqdm.auto import tqdm

    progress.note(f"{name} is read from the cache of the Hugging Face Hub, or downloaded")

    def download(*patterns: str) -> Path:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), tqdm_class=tqdm))

    if only_configurations:
        return download(*_CONFIGURATIONS)
    folder = download(*_CONFIGURATIONS, _WEIGHTS)
    return folder if any(folder.glob(_WEIGHTS)) else download(*_CONFIGURATIONS, _OTHER_WEIGHTS)
