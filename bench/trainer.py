"""Settings of transformers' Trainer, the peer of weft's trainings."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainingArguments

from weft.device import has_native_bf16


def trainer_arguments(folder: str | Path, num_steps: int, lr: float) -> TrainingArguments:
    """Return the settings of a CPU run without logs and checkpoints, in which an item of the dataset is a step."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=num_steps,
        per_device_train_batch_size=1,
        learning_rate=lr,
        weight_decay=0.01,
        bf16=has_native_bf16("cpu"),
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
    )
