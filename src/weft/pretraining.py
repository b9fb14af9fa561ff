"""`weft pretrain` and `weft sft`: training of a language model with evaluations in between.

manifest = run(PretrainingConfig(base=..., tokens=(...,), out=..., eval=PeriodicConfig(every_steps=500, ...)))
"""

from __future__ import annotations

from dataclasses import dataclass, field

from weft.artifacts import Manifest
from weft.errors import UserError
from weft.eval.periodic import Periodic, PeriodicConfig
from weft.lm import pretrain
from weft.lm.pretrain import Evaluation
from weft.lm.pretrain_config import PretrainConfig
from weft.vocab import SpeechVocab


@dataclass(frozen=True)
class PretrainingConfig(PretrainConfig):
    """Training of a language model with evaluations."""

    eval: PeriodicConfig = field(default_factory=PeriodicConfig)

    def __post_init__(self) -> None:
        if self.eval.every_steps % self.train.log_every_steps:
            raise UserError(
                f"eval.every_steps is {self.eval.every_steps}: give a multiple of train.log_every_steps, "
                f"{self.train.log_every_steps}"
            )


def run(config: PretrainingConfig) -> Manifest | None:
    """Create the artifact `config.out` as `weft.lm.pretrain` does, with the metrics of evaluations in its log."""

    def new(vocab: SpeechVocab, attention: str) -> Periodic:
        return Periodic(config.eval, vocab, attention)

    every = config.eval.every_steps
    return pretrain.run(config, Evaluation(every, new) if every else None)
