"""The training loss of a speech tokenizer: ASR through the bottleneck.

Source: the paper, section 2.1: cross-entropy of the transcript plus the quantizer's loss. Random weights add CTC. The
consistency loss follows StableToken (arXiv 2509.22220), which pulls clean and noisy views to their mean before a
quantizer of several branches; here, distorted speech is pulled to the codes of clean speech.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.tokenizer.attention import in_rows
from weft.tokenizer.dataset import Batch
from weft.tokenizer.distillation import Teacher
from weft.tokenizer.encoder import BottleneckWhisper
from weft.training.cross_entropy import linear_cross_entropy


class AsrObjective(nn.Module):
    """The model, the CTC head, which is discarded after training, and the teacher of distillation, if any."""

    def __init__(
        self, model: BottleneckWhisper, num_chars: int, ctc_outputs: int, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        self.model, self.teacher = model, teacher
        self.num_classes = 1 + num_chars
        width = model.whisper_config.d_model
        self.ctc_head = nn.Linear(width, ctc_outputs * self.num_classes) if ctc_outputs else None

    def losses(self, batch: Batch, ctc_weight: float, consistency_weight: float = 0.0) -> dict[str, Tensor]:
        """Return "loss" and its parts, which are means over text ids, codes and characters.

        The parts are cross-entropy, commitment, consistency and CTC. `code_agreement`, which is not one, is the
        fraction of codes that distorted and clean speech have in common.
        """
        model = self.model
        hidden = model.to_bottleneck(batch.features, batch.valid_frames)
        out: dict[str, Tensor] = {}
        total: Tensor | float = 0.0
        if batch.clean is not None:
            out |= self._consistency(hidden, batch.clean, batch)
            total = consistency_weight * out["consistency"]
        if batch.quantize:
            quantized = model.quantizer(hidden, batch.valid)
            hidden, out["commitment"] = quantized.values, batch.codes_weight * quantized.loss
        encoded = model.from_bottleneck(hidden, batch.valid)
        out["cross_entropy"] = _cross_entropy(model, encoded, batch)
        total = total + out["cross_entropy"] + out.get("commitment", 0.0)
        if self.teacher is not None:
            out["distillation"] = batch.codes_weight * self.teacher.loss(encoded, batch)
            total = total + self.teacher.weight * out["distillation"]
        if self.ctc_head is not None:
            out["ctc"] = batch.chars_weight * self._ctc(encoded, batch)
            total = total + ctc_weight * out["ctc"]
        return {"loss": total, **out}

    def _consistency(self, hidden: Tensor, clean_features: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the mean distance of hidden states (B, N, D) to the codes of clean speech, and the agreement of codes.

        Clean speech gets no gradient, and its encoder layers after the bottleneck are not computed. The distance to its
        hidden states instead of its codes lets both views shrink to fewer codes.
        """
        model = self.model
        with torch.no_grad():  # after the pass with gradients, because autocast would keep weights without them
            clean = model.to_bottleneck(clean_features, batch.valid_frames)
            codes = model.quantizer.encode(clean[batch.valid])
            same = model.quantizer.encode(hidden[batch.valid]) == codes
        return {
            "consistency": batch.codes_weight * model.quantizer.distance(hidden[batch.valid], codes),
            "code_agreement": batch.codes_weight * same.float().mean(),
        }

    def _ctc(self, encoded: Tensor, batch: Batch) -> Tensor:
        assert self.ctc_head is not None
        logits = self.ctc_head(encoded).view(len(encoded), -1, self.num_classes)
        log_probs = logits.float().log_softmax(-1).transpose(0, 1)
        targets = torch.tensor([i for chars in batch.chars for i in chars], device=encoded.device)
        lengths = torch.tensor([len(chars) for chars in batch.chars], device=encoded.device)
        outputs = batch.valid.sum(1) * (logits.shape[1] // batch.valid.shape[1])
        return F.ctc_loss(log_probs, targets, outputs, lengths, reduction="sum") / len(targets)


def _cross_entropy(model: BottleneckWhisper, encoded: Tensor, batch: Batch) -> Tensor:
    config = model.whisper_config
    rows = [torch.tensor([*ids, config.eos_token_id]) for ids in batch.text_ids]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0).to(encoded.device)
    lengths = torch.tensor([len(r) for r in rows], device=encoded.device)
    valid = torch.arange(1, ids.shape[1], device=encoded.device) < lengths[:, None]
    states, head = model.text_states(encoded, batch.valid, ids[:, :-1]), model.whisper.proj_out
    predicted, targets = in_rows(states[valid][None])[0], ids[:, 1:][valid]
    losses = linear_cross_entropy(predicted, head.weight, head.bias, F.pad(targets, (0, len(predicted) - len(targets))))
    return losses[: len(targets)].mean()
