"""`weft demo`: the whole pipeline with nano models, from text and a voice to a spoken chatbot.

    run(DemoConfig(out=Path("runs/demo")))

The stages are listed in order below. Each calls the function of a command with a recipe of
`recipes/nano`. Artifacts that exist are not created again, so an interrupted demo resumes. The output directory becomes
a bundle (tokenizer, decoder, text_to_token, lm) with results.json and report.html.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from weft import progress
from weft.artifacts import bundle_manifest
from weft.audio import load, save
from weft.chat.bundle import Bundle
from weft.chat.dialogues import DialoguesConfig
from weft.chat.dialogues import run as speak_dialogues
from weft.chat.session import respond
from weft.data.datasets import Rows
from weft.data.speech import read_manifest
from weft.decoder.config import DecoderConfig
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.train import run as train_decoder
from weft.demo.report_data import report_data
from weft.demo.run import DemoConfig, DemoRun
from weft.errors import UserError
from weft.eval import cloze
from weft.eval.model import load_lm
from weft.eval.resynth import resynthesize
from weft.files import write_bytes, write_json
from weft.interleave.config import InterleaveConfig
from weft.interleave.documents import DocumentsConfig
from weft.interleave.documents import run as make_documents
from weft.interleave.interleave import run as run_interleave
from weft.interleave.pack import PackConfig
from weft.interleave.pack import run as run_pack
from weft.lm.init import InitLmConfig
from weft.lm.init import run as init_lm
from weft.lm.pretrain import PretrainConfig
from weft.lm.pretrain import run as train_lm
from weft.lock import locked
from weft.pages.demo_report import render, summary
from weft.text.error_rate import ErrorRate
from weft.text_to_token.synthesize import Synthesizer
from weft.text_to_token.train import TextToTokenConfig
from weft.text_to_token.train import run as train_text_to_token
from weft.text_to_token.wer_filter import transcribed_error_rate
from weft.tokenizer.config import TokenizerConfig
from weft.tokenizer.tokenize import TokenizeConfig
from weft.tokenizer.tokenize import run as run_tokenize
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.tokenizer.train import run as train_tokenizer

_RESYNTH_UTTERANCES = 40
# The order of the datasets determines the order of the training samples.
_TRAINING_DATASETS = ("asr", "text", "speech", "synthetic_speech", "tts", "interleaved")
_HELD_OUT_DATASETS = ("held_out_text", "held_out_speech")


def run(config: DemoConfig) -> None:
    """Run all stages, write results.json and report.html, and print a summary.

    Raises UserError while another process runs a demo in the same directory.
    """
    with locked(config.out.absolute()):
        _run_stages(DemoRun(config))


def _run_stages(demo: DemoRun) -> None:
    config = demo.config
    for name, stage in STAGES.items():
        demo.run_stage(name, stage)
    results = {
        "total_sec": round(sum(stage["sec"] for stage in demo.results["stages"].values()), 2),
        **demo.results,
        "seed": config.seed,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    write_json(demo.path("results.json"), results)
    write_bytes(demo.path("report.html"), render(results, report_data(demo)).encode())
    progress.show(*summary(results, config.out))


def speak(demo: DemoRun) -> None:
    """Write texts and synthesize speech, or use those of the user."""
    demo.data  # noqa: B018 - created at the first use, which belongs to this stage


def tokenizer(demo: DemoRun) -> None:
    """Train the speech tokenizer: ASR with a quantized bottleneck."""
    data = demo.data
    config = demo.recipe(
        TokenizerConfig, "tokenizer", speech=data.speech, held_out=(data.held_out,), out=demo.path("tokenizer")
    )
    manifest = train_tokenizer(replace(config, quantize_from_step=demo.num_steps(config.quantize_from_step)))
    assert manifest is not None
    warnings = [warning] if (warning := manifest.notes.get("warnings")) else []
    demo.results["tokenizer"] = {**manifest.counts, "warnings": warnings}


def tokenize(demo: DemoRun) -> None:
    """Encode all speech, and measure the tokenizer on spans as interleaving cuts them."""
    data = demo.data
    parts = {"voice": (data.voice,), "others": data.others, "held_out": (data.held_out,)}
    parts |= {name: (p,) for name, p in (("pairs", data.pairs_speech), ("held_out_spans", data.held_out_spans)) if p}
    for name, audio in parts.items():
        if audio:
            run_tokenize(TokenizeConfig(audio, demo.path("tokenizer"), demo.path(f"codes/{name}")))
    if data.held_out_spans:
        spans = list(Rows.of(demo.path("codes/held_out_spans")).utterances())
        speech_tokenizer = SpeechTokenizer.from_pretrained(demo.path("tokenizer"))
        codes, texts, languages = [u.codes for u in spans], [u.text or "" for u in spans], [u.language for u in spans]
        rate = transcribed_error_rate(speech_tokenizer, codes, texts, languages)
        demo.results["tokenizer"] |= _error_rate(rate, "span_wer")


def decoder(demo: DemoRun) -> None:
    """Train the speech decoder: codes to audio."""
    inputs: dict[str, Any] = {"codes": (demo.path("codes/voice"),), "audio": (demo.data.voice,)}
    train_decoder(
        demo.recipe(DecoderConfig, "decoder", **inputs, tokenizer=demo.path("tokenizer"), out=demo.path("decoder"))
    )


def resynth(demo: DemoRun) -> None:
    """Measure speech to codes and back."""
    utterances = read_manifest(demo.data.held_out)[:_RESYNTH_UTTERANCES]
    speech_tokenizer = SpeechTokenizer.from_pretrained(demo.path("tokenizer"))
    speech_decoder = SpeechDecoder.from_pretrained(demo.path("decoder"))
    sounds: list[np.ndarray] = []
    result = resynthesize(
        utterances,
        speech_tokenizer,
        speech_decoder,
        demo.config.seed,
        receive=lambda _, samples: sounds.append(samples),
    )
    rates = result.error_rates([u.text or "" for u in utterances])
    demo.results["resynth"] = {**_error_rate(rates["wer"]), "wer_original": rates["wer_original"].rate}
    save(demo.path("sounds/original.wav"), load(utterances[0].audio), 16_000)
    save(demo.path("sounds/resynthesized.wav"), sounds[0], speech_decoder.sample_rate_hz)


def text_to_token(demo: DemoRun) -> None:
    """Train the text-to-token model, and measure it on held-out texts by transcripts of its codes."""
    inputs: dict[str, Any] = {"codes": (demo.path("codes/voice"),), "tokenizer": demo.path("tokenizer")}
    train_text_to_token(demo.recipe(TextToTokenConfig, "text_to_token", **inputs, out=demo.path("text_to_token")))
    synthesizer = Synthesizer.from_pretrained(demo.path("text_to_token"))
    speech_tokenizer = SpeechTokenizer.from_pretrained(demo.path("tokenizer"))
    demo.results["text_to_token"] = {}
    for name, manifest in {"wer": demo.data.held_out, "span_wer": demo.data.held_out_spans}.items():
        if manifest:
            utterances = read_manifest(manifest)
            texts, languages = [u.text or "" for u in utterances], [u.language for u in utterances]
            codes = synthesizer.synthesize(texts, range(len(texts)))
            rate = transcribed_error_rate(speech_tokenizer, codes, texts, languages)
            demo.results["text_to_token"] |= _error_rate(rate, name)


def interleave(demo: DemoRun) -> None:
    """Replace random spans of text by synthesized codes, and synthesize whole texts."""
    data, model, seed = demo.data, demo.path("text_to_token"), demo.config.seed
    config = InterleaveConfig((data.interleaved,), demo.path("documents/interleaved"), model, seed=seed)
    demo.results["interleave"] = run_interleave(config).counts
    out = demo.path("documents/synthetic_speech")
    run_interleave(InterleaveConfig((data.synthetic_speech,), out, model, speech_ratio=1.0, seed=seed))


def documents(demo: DemoRun) -> None:
    """Make text, speech, ASR and TTS documents."""
    data = demo.data
    make_documents(DocumentsConfig("text", (data.text,), demo.path("documents/text")))
    codes = tuple(p for p in (demo.path("codes/voice"), demo.path("codes/others")) if p.is_dir())
    make_documents(DocumentsConfig("speech", codes, demo.path("documents/speech")))
    make_documents(DocumentsConfig("asr", codes, demo.path("documents/asr")))
    make_documents(DocumentsConfig("tts", codes[:1], demo.path("documents/tts")))
    make_documents(DocumentsConfig("text", (data.held_out_text,), demo.path("documents/held_out_text")))
    make_documents(DocumentsConfig("speech", (demo.path("codes/held_out"),), demo.path("documents/held_out_speech")))


def pretrain(demo: DemoRun) -> None:
    """Pre-train the language model on text, speech and interleaved data."""
    base, tokens, held_out = demo.path("lm_init"), demo.path("tokens"), demo.path("held_out_tokens")
    init_lm(
        demo.recipe(InitLmConfig, "lm", tokenizer=demo.path("tokenizer"), base=demo.path("text_to_token"), out=base)
    )
    for out, names in {tokens: _TRAINING_DATASETS, held_out: _HELD_OUT_DATASETS}.items():
        run_pack(PackConfig(tuple(demo.path(f"documents/{name}") for name in names), base, out))
    inputs: dict[str, Any] = {"base": base, "tokens": (tokens,), "held_out": (held_out,)}
    manifest = train_lm(demo.recipe(PretrainConfig, "pretrain", **inputs, out=demo.path("pretrained")))
    assert manifest is not None
    counts = manifest.counts
    loss = {modality: counts.pop(f"loss.{modality}") for modality in ("text", "speech")}
    demo.results["pretrain"] = {"loss": loss, **counts}


def sft(demo: DemoRun) -> None:
    """Synthesize dialogues, and fine-tune the language model on them."""
    base, dialogues, tokens = demo.path("pretrained"), demo.path("documents/dialogues"), demo.path("dialogue_tokens")
    model = demo.path("text_to_token")
    speak_dialogues(DialoguesConfig((demo.data.dialogues,), model, dialogues, seed=demo.config.seed))
    run_pack(PackConfig((dialogues,), base, tokens))
    train_lm(demo.recipe(PretrainConfig, "sft", base=base, tokens=(tokens,), out=demo.path("lm")))


def evaluate(demo: DemoRun) -> None:
    """Measure topic-cloze on held-out stories, in text, in speech and across."""
    pairs = cloze.read_pairs(demo.data.pairs)
    if demo.data.pairs_speech:
        codes = cloze.codes_of(demo.path("codes/pairs"))
    else:
        synthesizer = Synthesizer.from_pretrained(demo.path("text_to_token"))
        codes = cloze.synthesize_texts(synthesizer, pairs, demo.config.seed)
    try:
        pairs = cloze.spoken_pairs(pairs, codes)
    except UserError as e:  # a text-to-token model that failed on every pair; the other results are still useful
        progress.note(f"weft: topic-cloze is not measured: {e}")
        write_json(demo.path("log/cloze.json"), {})
        demo.results["eval"] = {"topic_cloze": None}
        return
    found = cloze.measure(load_lm(demo.path("pretrained")), pairs, codes)
    scores = {direction: of.scores("mean") for direction, of in found.items()}
    chosen = {p.id: {d: score[i] == 1 for d, score in scores.items()} for i, p in enumerate(pairs)}
    write_json(demo.path("log/cloze.json"), chosen)
    demo.results["eval"] = {"topic_cloze": {d: cloze.metrics(a) for d, a in found.items()}}


def chat(demo: DemoRun) -> None:
    """Answer one spoken question."""
    write_json(demo.path("manifest.json"), asdict(bundle_manifest(demo.folder)))
    question = demo.data.question
    answer = respond(Bundle.from_pretrained(demo.folder), load(question.audio), seed=demo.config.seed)
    save(demo.path("sounds/answer.wav"), answer.samples, answer.sample_rate_hz)
    save(demo.path("sounds/question.wav"), load(question.audio), 16_000)
    demo.results["chat"] = {
        "first_audio_ms": answer.first_audio_ms,
        "question": question.text,
        "answer_text": answer.text,
        "expected": demo.data.expected,
        "wav": "sounds/answer.wav",
    }


def _error_rate(rate: ErrorRate, name: str = "wer") -> dict[str, Any]:
    return {name: rate.rate, f"{name}_low": rate.low, f"{name}_high": rate.high, f"{name}_words": rate.num_units}


STAGES: dict[str, Callable[[DemoRun], None]] = {
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
