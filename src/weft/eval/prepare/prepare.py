"""Published evaluation sets as artifacts that metrics read: `weft eval prepare NAME --from PATH --out DIR`.

    run(PrepareConfig("storycloze", Path("downloads/sStoryCloze.zip"), Path("sets/storycloze")))

The artifact has `items.jsonl`, in the format of `weft.eval.questions` or `weft.eval.cloze`, and `audio/` (mono, 16 kHz,
16 bit). `weft.eval.prepare.registry` has the sets. Nothing is downloaded.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from weft import progress
from weft.artifacts import Manifest
from weft.audio import SAMPLE_RATE_HZ
from weft.config import NOT_IN_PLAN, named
from weft.data.skipped import Skipped
from weft.digests import file_digests
from weft.errors import UserError
from weft.eval.prepare.convert import convert, speakers
from weft.eval.prepare.items import Found, Item, Request, usable
from weft.eval.prepare.registry import eval_set
from weft.eval.sets import ITEMS, KIND
from weft.files import ContentId, content_id, rows_id, write_bytes
from weft.plan import Draft, Plan, create

_MAX_REASONS = 20  # in the manifest


@dataclass(frozen=True)
class PrepareConfig:
    """A published evaluation set, and where to write it."""

    name: str
    """Name of the set: storycloze, topic-storycloze, cross-modal, swuggy, sblimp, salmon, llama-questions,
    web-questions, trivia-qa, natural-questions, voicebench, webquestions, open-trivia-qa, or jsonl or csv for files of
    questions with the columns question and answers."""
    source: Annotated[Path, named("from")]
    """What is published: a directory, a zip file or a table, as it was downloaded."""
    out: Path
    """Output directory for items.jsonl and the recordings."""
    subset: str | None = None
    """Subset of voicebench, or part of salmon."""
    split: str | None = None
    """Split, by the name of its file or directory, or "all"; not set: the only one."""
    voice: tuple[str, ...] = ()
    """TTS voices that read the questions without a recording, in turn; not set: such questions have texts only."""
    licence: Annotated[str | None, NOT_IN_PLAN] = None
    """Licence of the set, which is noted in the manifest."""


def run(config: PrepareConfig) -> Manifest:
    """Create the artifact `config.out`.

    Items that cannot be used, and recordings that cannot be read, are counted and listed. Raises UserError for an
    unknown set, subset, split or voice, for other files than those of the set, and if no item can be used.
    """
    kind = eval_set(config.name)
    if config.voice and kind.items == "pairs":
        raise UserError(f"{config.name} has pairs of recordings, which voices cannot replace: leave out --voice")
    if not config.source.exists():
        raise UserError(f"{config.source} does not exist: give what {config.name} is published as")
    request = Request(config.name, config.source, config.subset, config.split)
    found = kind.read(request)
    items = usable(found.items, request.skipped)
    if not items:
        where, reason = next(iter(request.skipped.bad), (config.source, "it is empty"))
        raise UserError(f"{config.source} has no item that can be used: fix it; the first is {where} ({reason})")
    settings = {
        "name": config.name,
        "items": kind.items,
        "subset": found.subset,
        "split": found.split,
        "source": _source_id(items, found),
        "speech": _speech_id(config, items),
        "sample_rate_hz": SAMPLE_RATE_HZ,
    }
    plan = Plan(KIND, settings, flags={"source": "--from", "speech": "the speech of --voice"})
    return create(config.out, plan, lambda draft: _write(draft, config, found, items, request.skipped), config.licence)


def _write(draft: Draft, config: PrepareConfig, found: Found, items: list[Item], skipped: Skipped) -> None:
    """Write recordings, items, and lists of what is missing; fill in counts and notes."""
    converted = convert(items, draft.folder, config.voice)
    left_out, missing = Skipped(), converted.missing
    left_out += skipped
    left_out += converted.left_out
    if not (rows := converted.rows):
        raise UserError(f"{config.source} has no recording that can be read: the first is {' ('.join(missing.bad[0])})")
    lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    write_bytes(draft.folder / ITEMS, lines.encode())
    for what, name, listed in (("items", "skipped", left_out), ("recordings", "missing_audio", missing)):
        listed.write(draft.folder / f"log/{name}.jsonl")
        if listed.bad:
            progress.note(f"weft: {listed.num_bad} {what} cannot be used: see {config.out}/log/{name}.jsonl")
    draft.counts.update(
        {"items": len(rows), "skipped": left_out.num_bad, "missing_audio": missing.num_bad},
        **({"spoken": converted.num_spoken} if config.voice else {}),
        voices=converted.voices,
    )
    if left_out.bad:
        draft.counts["skipped_reasons"] = dict(Counter(why for _, why in left_out.bad).most_common(_MAX_REASONS))
    if missing.bad:
        draft.counts["missing_audio_ids"] = [name for name, _ in missing.bad]
    draft.notes.update(found.notes)


def _source_id(items: list[Item], found: Found) -> ContentId:
    """Return an identity of items, the tables that list them, and the contents of their recordings."""
    sounds = {sound.path for item in items for sound in item.sounds.values()}
    digests = file_digests(sorted({*found.files, *sounds}))
    tables = [digests[path] for path in found.files]
    rows = [
        (i.id, sorted(i.row.items()), [(key, s.part, digests[s.path]) for key, s in sorted(i.sounds.items())])
        for i in items
    ]
    return rows_id([tables, *rows], digests)


def _speech_id(config: PrepareConfig, items: list[Item]) -> ContentId | None:
    """Return an identity of the voices and their models, None without any. Commands of voices may contain keys."""
    voices = speakers(config.voice, items).values()
    digests = file_digests(sorted({file for voice in voices for file in voice.files}))
    identities = [(voice.identity, [digests[file] for file in voice.files]) for voice in voices]
    return content_id([config.voice, identities], digests) if identities else None
