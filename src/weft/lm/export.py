"""Export of a checkpoint of a language model as a model, while its run continues: `weft export-checkpoint`.

    run(ExportConfig(checkpoint=Path("runs/lm.partial"), base=Path("runs/lm_init"), out=Path("runs/lm_at_1000")))

The result can be evaluated and fine-tuned as the model of a finished run. Checkpoints with adapters cannot be exported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weft import artifacts
from weft.artifacts import Manifest
from weft.data.datasets import tokenizer_parent
from weft.errors import UserError
from weft.files import ContentId, content_id
from weft.lm.model import KIND, LanguageModel, SaveDtype, dtype_to_save, save
from weft.plan import Draft, Plan, create
from weft.training import checkpoint

_COUNTS = ("parameters", "frame_rate_hz")


@dataclass(frozen=True)
class ExportConfig:
    """Export of a checkpoint."""

    checkpoint: Path
    """A checkpoint, or the directory of a run (OUT.partial), whose newest one is taken."""
    base: Path
    """Language model that the run started from."""
    out: Path
    """Output directory of the language model."""
    save_dtype: SaveDtype = "auto"
    """Number format of the saved weights; auto: that of the base."""


def run(config: ExportConfig) -> Manifest:
    """Create the artifact `config.out`.

    Raises UserError for a directory without checkpoints, for a damaged one, and for that of another model.
    """
    path = _checkpoint_of(config.checkpoint)
    base = artifacts.read_parent(config.base, KIND)
    parents = {"base": base, **tokenizer_parent({"base": base})}
    step = checkpoint.step_of(path)

    def write(draft: Draft) -> None:
        lm = LanguageModel.from_pretrained(config.base)
        checkpoint.load_model(path, lm.model)
        draft.counts["parameters"] = lm.model.num_parameters()
        draft.counts |= {name: base.counts[name] for name in _COUNTS if name in base.counts} | {"steps": step}
        save(lm.model, lm.tokenizer, draft.folder, dtype_to_save(config.save_dtype, config.base))

    settings = {"step": step, "save_dtype": config.save_dtype, "checkpoint": _identity(path)}
    return create(config.out, Plan(KIND, settings, parents), write)


def _checkpoint_of(path: Path) -> Path:
    """Return the checkpoint, or the newest one of a run. Raises UserError if there is none."""
    if path.name.startswith("step-") and path.is_dir():
        return path
    newest = checkpoint.newest(path / "checkpoints")
    if newest is None:
        raise UserError(f"{path} has no checkpoint: give OUT.partial of a run that has written one")
    return newest


def _identity(path: Path) -> ContentId:
    """Return an identity of the checksums of a checkpoint."""
    digests = path / checkpoint.DIGESTS
    return content_id(digests.read_text("utf-8") if digests.is_file() else str(path))
