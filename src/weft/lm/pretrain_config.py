"""Configuration of the training of a language model.

Annotations are evaluated here, because cyclopts looks up those of a subclass in its own module.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from weft.config import NOT_IN_PLAN, PositiveFloat, PositiveInt
from weft.lm.datasets import WeightsFrom
from weft.lm.lora import LoraConfig
from weft.lm.model import SaveDtype
from weft.lm.source_weights import Weight
from weft.training.config import TrainConfig


@dataclass(frozen=True)
class PretrainConfig:
    """Training of a language model."""

    base: Path
    """Directory of the language model to start from."""
    tokens: tuple[str | Path, ...]
    """Token shards, packed for the vocabulary of `base`: directories, or URLs such as s3://bucket/tokens."""
    out: Path
    """Output directory of the language model."""
    weights: dict[str, Weight] = field(default_factory=dict)
    """Weight of each dataset by name: its fraction of the tokens (together 1), a number of epochs ("2 epochs"), or for
    one dataset the "rest". Not set: in proportion to their sizes. --weights.NAME changes one weight of a recipe."""
    weights_from: WeightsFrom = field(default_factory=dict)
    """Other weights by the step from which they hold. They may change for steps after a checkpoint."""
    max_epochs: Annotated[PositiveFloat | None, NOT_IN_PLAN] = None
    """Maximum number of epochs of a dataset; a run that would need more does not start."""
    held_out: tuple[str | Path, ...] = ()
    """Token shards on which base and result are evaluated."""
    batch_tokens: PositiveInt = 4096
    """Tokens per step, approximately: a step is a fixed number of documents or pieces of them."""
    max_seq_len: PositiveInt = 512
    """Maximum sequence length in tokens; longer documents are split."""
    attention: Literal["document", "sequence"] = "document"
    """Attention within each document, or within packed sequences of up to `max_seq_len` tokens (sequence)."""
    activation_checkpointing: Annotated[bool, NOT_IN_PLAN] = False
    """Recompute layers in the backward pass, which takes less memory and a third more time."""
    compile: Annotated[bool, NOT_IN_PLAN] = False
    """Compile layers with torch.compile, which takes about a minute."""
    parallel: Annotated[Literal["ddp", "fsdp"], NOT_IN_PLAN] = "ddp"
    """Data parallelism: a whole model per process (DDP), or a part of it (FSDP2) for models that do not fit one GPU. An
    interrupted run may resume with the other, and with any number of processes."""
    save_dtype: SaveDtype = "auto"
    """Number format of the saved weights, also of merged adapters; auto: that of the base. They are trained in fp32."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000))
    dry_run: Annotated[bool, NOT_IN_PLAN] = False
    """Train nothing; print the number of parameters, tokens, memory and training time."""
