"""The stages of the demo, in the order of the road: each calls the verb of its name and notes its figures.

for name, walk in STAGES.items():
    road.stage(name, walk)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from weft.artifacts import Manifest, read, write_json
from weft.audio import load, save
from weft.data.corpus import read_manifest
from weft.data.shards import Rows
from weft.demo.road import Road
from weft.errors import UserError
from weft.wer import ErrorRate

_RESYNTH_UTTERANCES = 40
_PACKED = {
    "tokens": ("woven", "spoken", "speech", "plain", "asr", "tts"),
    "held_out_tokens": ("held_out_text", "held_out_speech"),
}


def speak(road: Road) -> None:
    """Text becomes speech, or the user's speech is taken."""
    road.material  # noqa: B018  made on first use, and here is where its time belongs


def tokenizer(road: Road) -> None:
    """ASR through a bottleneck."""
    from weft.tokenizer.train import TokenizerConfig, run

    m = road.material
    recipe = road.recipe(
        TokenizerConfig, "tokenizer", speech=m.speech, held_out=(m.held_out,), out=road.path("tokenizer")
    )
    recipe = replace(recipe, quantize_from_step=road.share_of(recipe.quantize_from_step))
    made = run(recipe)
    warnings = [told] if (told := made.notes.get("warnings")) else []
    road.results["tokenizer"] = {**made.counts, "warnings": warnings}


def tokenize(road: Road) -> None:
    """Speech becomes codes."""
    from weft.text_to_token.gate import read_back
    from weft.tokenizer.tokenize import TokenizeConfig, run
    from weft.tokenizer.tokenizer import SpeechTokenizer

    m = road.material
    parts = {"voice": (m.voice,), "others": m.others, "held_out": (m.held_out,)}
    parts |= {name: (p,) for name, p in (("pairs", m.pairs_speech), ("held_out_spans", m.held_out_spans)) if p}
    for name, audio in parts.items():
        if audio:
            run(TokenizeConfig(audio, road.path("tokenizer"), road.path(f"codes/{name}")))
    if m.held_out_spans:
        said = list(Rows.of(road.path("codes/held_out_spans")).utterances())
        texts = [u.text or "" for u in said]
        spans = read_back(SpeechTokenizer.load(road.path("tokenizer")), [u.codes for u in said], texts)
        road.results["tokenizer"] |= _error(spans, "span_wer")


def decoder(road: Road) -> None:
    """Codes become sound."""
    from weft.decoder.train import DecoderConfig, run

    paths = {"codes": road.path("codes/voice"), "audio": road.material.voice, "tokenizer": road.path("tokenizer")}
    run(road.recipe(DecoderConfig, "decoder", **paths, out=road.path("decoder")))


def resynth(road: Road) -> None:
    """What is lost on the way through codes and back, heard by the tokenizer's own ASR model."""
    from weft.decoder.decoder import SpeechDecoder
    from weft.eval.resynth import resynthesize
    from weft.tokenizer.tokenizer import SpeechTokenizer

    said = read_manifest(road.material.held_out)[:_RESYNTH_UTTERANCES]
    texts = [u.text or "" for u in said]
    parts = SpeechTokenizer.load(road.path("tokenizer")), SpeechDecoder.load(road.path("decoder"))
    done = resynthesize(said, *parts, seed=road.config.seed)
    road.results["resynth"] = _error(done.wer(texts)) | {"wer_original": done.wer_before(texts).rate}
    save(road.path("sounds/original.wav"), load(said[0].audio), 16_000)
    save(road.path("sounds/resynthesised.wav"), done.samples[0], done.sample_rate_hz)


def text_to_token(road: Road) -> None:
    """Text becomes codes without sound; read back by the tokenizer's second half."""
    from weft.text_to_token.gate import read_back
    from weft.text_to_token.synthesize import Synthesizer
    from weft.text_to_token.train import TextToTokenConfig, run
    from weft.tokenizer.tokenizer import SpeechTokenizer

    paths = {"codes": road.path("codes/voice"), "tokenizer": road.path("tokenizer")}
    run(road.recipe(TextToTokenConfig, "text_to_token", **paths, out=road.path("text_to_token")))
    synthesizer = Synthesizer.load(road.path("text_to_token"))
    ear = SpeechTokenizer.load(road.path("tokenizer"))
    road.results["text_to_token"] = {}
    for name, manifest in {"wer": road.material.held_out, "span_wer": road.material.held_out_spans}.items():
        if manifest:
            texts = [u.text or "" for u in read_manifest(manifest)]
            codes = synthesizer.speak(texts, range(len(texts)))
            road.results["text_to_token"] |= _error(read_back(ear, codes, texts), name)


def interleave(road: Road) -> None:
    """Ordinary text gets spoken spans."""
    from weft.interleave.config import InterleaveConfig
    from weft.interleave.interleave import run

    m, speaker, seed = road.material, road.path("text_to_token"), road.config.seed
    woven = run(InterleaveConfig((m.woven,), road.path("documents/woven"), speaker, seed=seed))
    run(InterleaveConfig((m.spoken,), road.path("documents/spoken"), speaker, speech_ratio=1.0, seed=seed))
    road.results["interleave"] = woven.counts


def documents(road: Road) -> None:
    """Text, speech, ASR and TTS documents."""
    from weft.interleave.documents import DocumentsConfig, run

    run(DocumentsConfig("text", (road.material.plain,), road.path("documents/plain")))
    codes = tuple(p for p in (road.path("codes/voice"), road.path("codes/others")) if p.is_dir())
    run(DocumentsConfig("speech", codes, road.path("documents/speech")))
    run(DocumentsConfig("asr", codes, road.path("documents/asr")))
    run(DocumentsConfig("tts", codes[:1], road.path("documents/tts")))
    run(DocumentsConfig("text", (road.material.held_out_text,), road.path("documents/held_out_text")))
    run(DocumentsConfig("speech", (road.path("codes/held_out"),), road.path("documents/held_out_speech")))


def pretrain(road: Road) -> None:
    """A language model learns to go on in text and in speech."""
    from weft.interleave import pack
    from weft.lm import pretrain as lm
    from weft.lm import start

    base = road.path("lm-start")
    start.run(
        road.recipe(
            start.StartConfig, "lm", tokenizer=road.path("tokenizer"), base=road.path("text_to_token"), out=base
        )
    )
    for name, datasets in _PACKED.items():
        pack.run(pack.PackConfig(tuple(road.path(f"documents/{n}") for n in datasets), base, road.path(name)))
    paths = {"base": base, "tokens": road.path("tokens"), "held_out": road.path("held_out_tokens")}
    counts = lm.run(road.recipe(lm.PretrainConfig, "pretrain", **paths, out=road.path("pretrained"))).counts
    loss = {modality: counts.pop(f"loss.{modality}") for modality in ("text", "speech")}
    road.results["pretrain"] = {"loss": loss, **counts}


def sft(road: Road) -> None:
    """Dialogues become spoken ones, and the model learns to answer."""
    from weft.chat import dialogues
    from weft.interleave import pack
    from weft.lm import pretrain as lm

    base, spoken = road.path("pretrained"), road.path("documents/dialogues")
    dialogues.run(
        dialogues.DialoguesConfig(
            source=(road.material.dialogues,),
            text_to_token=road.path("text_to_token"),
            out=spoken,
            seed=road.config.seed,
        )
    )
    pack.run(pack.PackConfig((spoken,), base, road.path("dialogue_tokens")))
    lm.run(road.recipe(lm.PretrainConfig, "sft", base=base, tokens=road.path("dialogue_tokens"), out=road.path("lm")))


def evaluate(road: Road) -> None:
    """Topic-cloze on held-out stories, in text, in speech and across."""
    from weft.eval import cloze
    from weft.eval.suite import speak_by_model
    from weft.lm.model import LanguageModel
    from weft.text_to_token.synthesize import Synthesizer

    m = road.material
    pairs = cloze.read_pairs(m.pairs)
    if m.pairs_speech:
        codes = cloze.codes_of(road.path("codes/pairs"))
    else:
        pieces = {name: text for pair in pairs for name, text in pair.pieces.items()}
        codes = speak_by_model(Synthesizer.load(road.path("text_to_token")), pieces, road.config.seed)
    try:
        pairs = cloze.spoken_pairs(pairs, codes)
    except UserError as e:  # of a text-to-token model that ran away on each; all else is still worth having
        print(f"weft: topic-cloze is not measured: {e}", file=sys.stderr)
        write_json(road.path("log/cloze.json"), {})
        road.results["eval"] = {"topic_cloze": None}
        return
    found = cloze.measure(LanguageModel.load(road.path("pretrained")), pairs, codes)
    write_json(
        road.path("log/cloze.json"),
        {p.id: {d: a.chosen_right[i] for d, a in found.items()} for i, p in enumerate(pairs)},
    )
    road.results["eval"] = {"topic_cloze": {d: cloze.figures(a) for d, a in found.items()}}


def chat(road: Road) -> None:
    """One spoken turn, by the same streaming code that a server uses."""
    from weft.chat.session import Bundle, respond

    _make_bundle(road)
    question = road.material.question
    answer = respond(Bundle.load(road.folder), load(question.audio), seed=road.config.seed)
    save(road.path("sounds/answer.wav"), answer.samples, answer.sample_rate_hz)
    save(road.path("sounds/question.wav"), load(question.audio), 16_000)
    road.results["chat"] = {
        "first_audio_ms": answer.first_audio_ms,
        "question": question.text,
        "answer_text": answer.text,
        "expected": road.material.expected,
        "wav": "sounds/answer.wav",
    }


def _make_bundle(road: Road) -> None:
    parts = {name: read(road.path(name)).fingerprint for name in ("tokenizer", "decoder", "text_to_token", "lm")}
    write_json(road.path("manifest.json"), asdict(Manifest("bundle", "-".join(parts.values()), parents=parts)))


def _error(rate: ErrorRate, name: str = "wer") -> dict[str, Any]:
    return {name: rate.rate, f"{name}_low": rate.low, f"{name}_high": rate.high, f"{name}_words": rate.num_units}


STAGES: dict[str, Callable[[Road], None]] = {
    "speak": speak,
    "tokenizer": tokenizer,
    "tokenize": tokenize,
    "decoder": decoder,
    "resynth": resynth,
    "text_to_token": text_to_token,
    "interleave": interleave,
    "documents": documents,
    "pretrain": pretrain,
    "sft": sft,
    "eval": evaluate,
    "chat": chat,
}
