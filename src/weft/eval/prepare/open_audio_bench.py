"""Questions of OpenAudioBench, and the same sets of UltraEval-Audio.

    found = read(Request("web-questions", Path("OpenAudioBench")))

OpenAudioBench has `eval_datas/SET/SET.csv` with recordings in `audios/`, UltraEval-Audio has Parquet files. In the CSV
files, several answers are one string, divided by `;` (web-questions) or `,` (trivia-qa, whose answers are normalized
and have no commas).

Source: https://huggingface.co/datasets/baichuan-inc/OpenAudioBench, https://github.com/OpenBMB/UltraEval-Audio.
"""

from __future__ import annotations

from dataclasses import replace

from weft.errors import UserError
from weft.eval.prepare.items import Found, Request, reject
from weft.eval.prepare.questions import Columns, of_tables
from weft.eval.prepare.questions import read as read_tables
from weft.eval.prepare.rows import PARQUET

_SETS = {
    "llama-questions": ("llama_questions", Columns(("Questions", "question"), ("Answer", "answer"), kept=())),
    "web-questions": ("web_questions", Columns(("question",), ("answers", "answer"), {"answers": ";"}, kept=())),
    "trivia-qa": (
        "trivia_qa",
        Columns(
            ("question",),
            ("answer_normalized_value", "answer_normalized_aliases", "answer"),
            {"answer_normalized_aliases": ","},
            kept=(),
        ),
    ),
}


def read(request: Request) -> Found:
    """Return the questions of a set. Raises UserError for a directory or file of something else."""
    name, columns = _SETS[request.name]
    source = request.source
    tables = [source, source / f"{name}.csv", source / name / f"{name}.csv", source / f"eval_datas/{name}/{name}.csv"]
    table = next((path for path in tables if path.is_file() and path.suffix.lower() == ".csv"), None)
    if table is not None:
        reject(request, "subset", "split")
        in_files = replace(columns, audio="audio_filename", folder="audios")
        return Found(list(of_tables([table], "", in_files, request)), [table])
    if not source.is_dir() and source.suffix.lower() not in PARQUET:
        raise UserError(f"{source} is not a directory, {name}.csv or Parquet: give what {request.name} is published as")
    return read_tables(request, columns, PARQUET)
