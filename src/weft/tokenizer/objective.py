"""What a speech tokenizer is trained for: ASR through the bottleneck.

The losses are the paper's (section 2.1), cross-entropy of the transcript plus what the quantizer adds; from nothing,
plus CTC.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.tokenizer.encoder import BottleneckWhisper
from weft.tokenizer.speech import Batch


class AsrObjective(nn.Module):
    """What is trained: the model, and the CTC head that is dropped afterwards."""

    def __init__(self, model: BottleneckWhisper, num_letters: int, ctc_outputs: int) -> None:
        super().__init__()
        self.model = model
        self.num_classes = 1 + num_letters
        width = model.whisper_config.d_model
        self.ctc_head = nn.Linear(width, ctc_outputs * self.num_classes) if ctc_outputs else None

    def losses(self, batch: Batch, ctc_weight: float) -> dict[str, Tensor]:
        """Cross-entropy of the transcript, commitment and CTC."""
        model = self.model
        hidden = model.first_half(batch.features, batch.valid_frames)
        out: dict[str, Tensor] = {}
        if batch.quantize:
            quantized = model.quantizer(hidden, batch.valid)
            hidden, out["commitment"] = quantized.values, quantized.loss
        heard = model.second_half(hidden, batch.valid)
        out["cross_entropy"] = _cross_entropy(model, heard, batch)
        total = out["cross_entropy"] + out.get("commitment", 0.0)
        if self.ctc_head is not None:
            out["ctc"] = self._ctc(heard, batch)
            total = total + ctc_weight * out["ctc"]
        return {"loss": total, **out}

    def _ctc(self, heard: Tensor, batch: Batch) -> Tensor:
        assert self.ctc_head is not None
        logits = self.ctc_head(heard).view(len(heard), -1, self.num_classes)
        log_probs = logits.float().log_softmax(-1).transpose(0, 1)
        targets = torch.tensor([i for letters in batch.letters for i in letters], device=heard.device)
        lengths = torch.tensor([len(letters) for letters in batch.letters], device=heard.device)
        outputs = batch.valid.sum(1) * (logits.shape[1] // batch.valid.shape[1])
        return F.ctc_loss(log_probs, targets, outputs, lengths, reduction="sum") / len(targets)


def _cross_entropy(model: BottleneckWhisper, heard: Tensor, batch: Batch) -> Tensor:
    config = model.whisper_config
    rows = [torch.tensor([*ids, config.eos_token_id]) for ids in batch.text_ids]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0).to(heard.device)
    lengths = torch.tensor([len(r) for r in rows], device=heard.device)
    real = torch.arange(1, ids.shape[1], device=heard.device) < lengths[:, None]
    logits = model.text_logits(heard, batch.valid, ids[:, :-1])
    return F.cross_entropy(logits[real].float(), ids[:, 1:][real])
