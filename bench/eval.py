"""Speed of evaluation: likelihoods of pairs of endings, and transcription by a judge.

    python bench/eval.py [--lm DIR] [--judge WHISPER --audio MANIFEST] [--json FILE] [--quick]

All are measured in turn in one process, and the table has medians over rounds:

- pairs of endings per second, with each prompt computed once, compared with scoring each prompt and ending separately,
  in padded batches of transformers and in weft's packed ones;
- seconds of speech per second that a judge transcribes in batches, compared with one utterance at a time.

Without `--lm`, the language model has random weights and the shape of SmolLM2-135M.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from figures import Figure, in_turn, show, write
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from weft.asr.transcribe import Transcriber
from weft.audio import load
from weft.data.speech import read_manifest
from weft.eval.scoring import Ending, Prompt, score
from weft.lm.model import load_causal_lm
from weft.lm.packing import pack, token_losses

_BATCH_TOKENS = 8192
_PROMPT_IDS, _ENDING_IDS = (40, 90), (8, 20)  # of StoryCloze: four sentences, and one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm", type=Path, help="directory of a causal LM; not set: random weights")
    parser.add_argument("--judge", type=Path, help="directory of a Whisper")
    parser.add_argument("--audio", type=Path, help="manifest of the speech that it transcribes")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--utterances", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="one round on little data, to test the script")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.pairs, arguments.utterances = 1, 4, 4
    torch.set_num_threads(arguments.threads)
    model = load_causal_lm(arguments.lm, torch.float32)[0] if arguments.lm else untrained(arguments.quick)
    figures = likelihoods(model.eval(), arguments.pairs, arguments.rounds)
    if arguments.judge and arguments.audio:
        figures |= judging(arguments.judge, arguments.audio, arguments.utterances, arguments.rounds)
    show(figures)
    if arguments.json:
        write(arguments.json, figures)


def untrained(is_small: bool) -> PreTrainedModel:
    """Return a language model with random weights."""
    torch.manual_seed(0)
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = LlamaConfig(vocab_size=49_152, num_hidden_layers=1 if is_small else 30, tie_word_embeddings=True, **shape)
    return LlamaForCausalLM(config)


def likelihoods(model: PreTrainedModel, num: int, rounds: int) -> dict[str, Figure]:
    """Return pairs per second."""
    rng = np.random.default_rng(0)

    def ids(bounds: tuple[int, int]) -> np.ndarray:
        return rng.integers(0, 49_152, rng.integers(*bounds))

    prompts = []
    for _ in range(num):
        endings = [ids(_ENDING_IDS) for _ in range(2)]
        prompts.append(Prompt(ids(_PROMPT_IDS), [Ending(e, np.ones(len(e), bool)) for e in endings]))
    systems = {"shared": score, "padded": padded, "packed": packed}
    for system in (padded, packed):
        assert np.allclose(score(model, prompts), system(model, prompts), rtol=1e-3), "the scores differ"
    seconds = in_turn(rounds, **{name: partial(system, model, prompts) for name, system in systems.items()})
    rates = {name: num / sec for name, sec in seconds.items()}
    return {
        f"pairs, to {name} separate scoring": Figure(
            rates["shared"], rates[name], rates["shared"] / rates[name], "pairs/s"
        )
        for name in ("padded", "packed")
    }


def documents_of(prompts: list[Prompt]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return every prompt with each of its endings, and the mask of the ids that count."""
    return [
        (np.concatenate([p.ids, e.ids]), np.concatenate([np.zeros(len(p.ids), bool), e.counted]))
        for p in prompts
        for e in p.endings
    ]


def batches_of(documents: list[tuple[np.ndarray, np.ndarray]]) -> list[list[int]]:
    """Return the indices of documents of similar length, in batches of about 8,192 ids."""
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(documents)), key=lambda i: len(documents[i][0])):
        if sum(len(documents[j][0]) for j in batches[-1]) >= _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(i)
    return batches


@torch.no_grad()
def padded(model: PreTrainedModel, prompts: list[Prompt]) -> np.ndarray:
    """Return the scores by the logits of padded batches, as evaluation with transformers usually has them."""
    documents = documents_of(prompts)
    scores = np.zeros(len(documents))
    for batch in batches_of(documents):
        rows = [torch.from_numpy(documents[i][0]) for i in batch]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        counted = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(documents[i][1]) for i in batch], batch_first=True)
        logs = model(ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
        found = logs.gather(-1, ids[:, 1:, None])[..., 0]
        scores[batch] = torch.where(counted[:, 1:], found, 0.0).double().sum(1).numpy()
    return scores.reshape(len(prompts), -1)


@torch.no_grad()
def packed(model: PreTrainedModel, prompts: list[Prompt]) -> np.ndarray:
    """Return the scores by packed documents."""
    documents = documents_of(prompts)
    scores = np.zeros(len(documents))
    for batch in batches_of(documents):
        row = pack([documents[i] for i in batch])
        scores[batch] = -np.bincount(row.documents.numpy(), token_losses(model, row).double().numpy())
    return scores.reshape(len(prompts), -1)


def judging(whisper: Path, manifest: Path, num: int, rounds: int) -> dict[str, Figure]:
    """Return seconds of speech per second."""
    judge, utterances = Transcriber(whisper), list(read_manifest(manifest))[:num]
    audio, languages = [load(u.audio) for u in utterances], ["en"] * len(utterances)
    length = sum(map(len, audio)) / 16_000
    seconds = in_turn(
        rounds,
        batches=lambda: judge.long(audio, languages),
        alone=lambda: [judge.long([samples], ["en"]) for samples in audio],
    )
    rates = {name: length / sec for name, sec in seconds.items()}
    ratio = rates["batches"] / rates["alone"]
    return {"judge, to one by one": Figure(rates["batches"], rates["alone"], ratio, "s/s")}


if __name__ == "__main__":
    main()
