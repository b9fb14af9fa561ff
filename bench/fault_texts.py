"""Bad text corpora for bench/faults.py: JSON lines, plain text, compressed files, bombs, and tables."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
from fault_cases import Case
from fault_runs import MAX_SEC, Check, Ended, any_of, makes, refused, skipped_items
from fault_world import MARKS, World

NUM = 20  # documents of a good corpus
_TEXT = "The old sailor walked to the harbour and looked at the grey sea. "
ROWS = [{"id": f"d{i}", "text": f"Document {i}. {_TEXT * 3}"} for i in range(NUM)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TXT = "\n\n".join(row["text"] for row in ROWS * 5).encode()


def cases(world: World) -> Iterator[Case]:
    """Yield all cases with bad corpora."""
    for name, content, check in (*_json_lines(), *_plain_texts(), *_compressed(), *_bombs()):
        yield _document_case(name, content, check)
    for name, table, check in _tables():
        yield _document_case(name, table, check)
    yield from _corpora(world)
    yield from _repeats(world)


def _document_case(name: str, content: Any, check: Check) -> Case:
    """Return a case that makes documents of a file, whose name is the first word of the case's."""

    def arguments(folder: Path) -> list[str | bytes]:
        path = folder / f"corpus{name.split(' ')[0]}"
        content(path) if callable(content) else path.write_bytes(content)
        return ["documents", "text", "--source", path.name, "--out", "out", "--max-bad-fraction", "1"]

    return Case("corpus", name, arguments, check, max_sec=600 if "GB" in name else MAX_SEC)


def documents(num: int, skipped: int = 0) -> Check:
    """Expect `num` documents and a number of skipped items."""
    return makes(skipped=skipped, documents=num)


def some_documents(ended: Ended, folder: Path) -> str | None:
    """Expect the documents before the damage, and that the damage is listed."""
    if problem := makes()(ended, folder):
        return problem
    num = json.loads((folder / "out/manifest.json").read_text())["counts"]["documents"]
    if not 0 < num <= NUM:
        return f"{num} documents"
    return None if skipped_items(folder) or "damaged" in ended.output else "the damage is not reported"


def reported(num: int) -> Check:
    """Expect `num` documents, and that the file is listed or named as damaged."""

    def check(ended: Ended, folder: Path) -> str | None:
        if problem := makes(documents=num)(ended, folder):
            return problem
        return None if skipped_items(folder) or "corpus" in ended.output else "the damage is not reported"

    return check


def _json_lines() -> Iterator[tuple[str, Any, Check]]:
    """Yield JSON lines of NUM documents, of which one is bad."""
    lines = JSONL.splitlines()

    def with_line(line: str | bytes) -> bytes:
        return b"\n".join([*lines[:5], line.encode() if isinstance(line, str) else line, *lines[6:]])

    one_bad = documents(NUM - 1, 1)
    yield ".jsonl invalid line", with_line("{"), one_bad
    yield ".jsonl truncated", JSONL[:-30], one_bad
    yield ".jsonl line is a list", with_line("[]"), one_bad
    yield ".jsonl no text", with_line('{"id": "x"}'), one_bad
    yield ".jsonl text null", with_line('{"text": null}'), one_bad
    yield ".jsonl text a number", with_line('{"text": 5}'), one_bad
    yield ".jsonl text empty", with_line('{"text": ""}'), one_bad
    yield ".jsonl text of spaces", with_line('{"text": " \\n\\u00a0\\t"}'), any_of(one_bad, documents(NUM))
    yield ".jsonl text with a lone surrogate", with_line('{"text": "a \\ud800 b"}'), any_of(one_bad, documents(NUM))
    yield ".jsonl text with NUL", with_line('{"text": "a \\u0000 b"}'), any_of(one_bad, documents(NUM))
    yield ".jsonl text not UTF-8", with_line(b'{"text": "caf\xe9"}'), one_bad
    yield ".jsonl NaN", with_line('{"text": "a b", "score": NaN}'), documents(NUM)
    yield ".jsonl integer id", with_line('{"text": "a b", "id": 3}'), documents(NUM)
    yield ".jsonl id a list", with_line('{"text": "a b", "id": [1]}'), any_of(one_bad, documents(NUM))
    yield ".jsonl 100,000 brackets", with_line("[" * 100_000), one_bad
    yield (
        ".jsonl a number of 5,000 digits",
        with_line('{"text": "a b", "n": ' + "9" * 5000 + "}"),
        any_of(documents(NUM), one_bad),
    )
    yield (
        ".jsonl line of 300 MB",
        with_line(b'{"text": "' + b"a b " * 75_000_000 + b'"}'),
        any_of(documents(NUM), one_bad),
    )
    yield ".jsonl with a BOM", b"\xef\xbb\xbf" + JSONL, documents(NUM)
    yield ".jsonl with CRLF", JSONL.replace(b"\n", b"\r\n"), documents(NUM)
    yield ".jsonl in UTF-16", JSONL.decode().encode("utf-16"), any_of(documents(NUM), refused("corpus.jsonl"))
    yield ".jsonl empty", b"", refused("corpus.jsonl")
    yield ".jsonl blank", b"\n \n\n", refused()
    yield ".jsonl binary", bytes(range(256)) * 400, refused("corpus.jsonl")
    yield ".jsonl control tokens", with_line(json.dumps({"text": " ".join(MARKS)})), documents(NUM)


def _plain_texts() -> Iterator[tuple[str, Any, Check]]:
    """Yield plain texts, which are split into documents."""
    yield ".txt not UTF-8 at one place", TXT[:100] + b"\xff\xfe" + TXT[100:], any_of(makes(skipped=1), makes())
    yield ".txt with a BOM", b"\xef\xbb\xbf" + TXT, makes(skipped=0)
    yield ".txt in UTF-16", TXT.decode().encode("utf-16"), any_of(makes(), refused("corpus.txt"))
    yield ".txt empty", b"", refused("corpus.txt")
    yield ".txt of spaces", b" \n" * 9000, refused()
    yield ".txt binary", bytes(range(256)) * 400, refused("corpus.txt")
    yield ".txt with NUL", TXT.replace(b" old ", b" \0 "), any_of(makes(), refused("corpus.txt"))
    yield ".txt of one line of 30 MB", b"a" * 30_000_000, any_of(makes(), refused("corpus.txt"))
    yield ".txt of 10 MB of spaces", b"word" + b" " * 10_000_000 + b"word", any_of(makes(), refused("corpus.txt"))
    yield ".csv not a text format", TXT, refused("corpus.csv")


def _compressed() -> Iterator[tuple[str, Any, Check]]:
    """Yield damaged compressed files."""
    packed, half = gzip.compress(JSONL), gzip.compress(JSONL[: len(JSONL) // 2])
    noise = gzip.compress(
        b"".join(json.dumps({"text": f"a {i * i * 7919 % 1000003}"}).encode() + b"\n" for i in range(9))
    )
    crc = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
    yield ".jsonl.gz intact", packed, documents(NUM)
    yield ".jsonl.gz padded with zeros", packed + bytes(1000), documents(NUM)
    yield ".jsonl.gz with a wrong checksum", crc, reported(NUM)
    yield ".jsonl.gz with a wrong length", packed[:-4] + b"\0\0\0\0", reported(NUM)
    yield ".jsonl.gz of two members", half + gzip.compress(JSONL[len(JSONL) // 2 :]), documents(NUM)
    yield ".jsonl.gz with garbage after it", packed + b"garbage" * 30, reported(NUM)
    yield ".jsonl.gz truncated by its checksum", packed[:-8], reported(NUM)
    yield ".jsonl.gz truncated", noise[: len(noise) * 3 // 4], some_documents
    yield ".jsonl.gz damaged second member", half + bytes([*packed[:10], 255, 255, *packed[12:]]), some_documents
    yield ".jsonl.gz empty member", gzip.compress(b""), refused()
    yield ".jsonl.gz not gzip", JSONL, any_of(refused("corpus"), documents(NUM))
    yield ".jsonl.gz of zero bytes", b"", refused("corpus")
    zstd = pa.Codec("zstd")
    frame, other = (bytes(zstd.compress(part, asbytes=True)) for part in (JSONL, JSONL[: len(JSONL) // 2]))
    yield ".jsonl.zst intact", frame, documents(NUM)
    yield ".jsonl.zst truncated", other + frame[: len(frame) * 3 // 4], some_documents
    yield ".jsonl.zst damaged second frame", other + frame[:4] + b"\xff" * 40 + frame[44:], some_documents
    yield ".jsonl.zst not zstd", JSONL, any_of(refused("corpus"), documents(NUM))
    yield ".jsonl.zst with garbage after it", frame + b"garbage" * 30, reported(NUM)
    yield ".json.gz intact", packed, documents(NUM)


def _bombs() -> Iterator[tuple[str, Any, Check]]:
    """Yield small files with much content. They may be read or refused, in bounded memory."""
    outcome = any_of(makes(), refused("corpus"))
    yield ".jsonl.gz one line of 2 GB", lambda path: _gzip_bomb(path, 2 << 30), outcome
    yield ".jsonl.zst one line of 3 GB", lambda path: _zstd_bomb(path, 3 << 30), outcome
    yield ".jsonl.zst 16 MB of empty lines", lambda path: _zstd_bomb(path, 16 << 20, b"\n"), outcome
    yield ".parquet 2 GB of one text", _parquet_bomb, outcome
    yield ".parquet one text of 1.9 GB", lambda path: _parquet_bomb(path, 1, 1_900_000_000), outcome


def _gzip_bomb(path: Path, size_bytes: int) -> None:
    packer = zlib.compressobj(1, wbits=31)
    with path.open("wb") as f:
        f.write(packer.compress(JSONL + b'{"text": "'))
        for _ in range(size_bytes >> 24):
            f.write(packer.compress(b"a" * (1 << 24)))
        f.write(packer.flush())


def _zstd_bomb(path: Path, size_bytes: int, char: bytes = b"a") -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as f:
        f.write(JSONL + (b'{"text": "' if char == b"a" else b""))
        for _ in range(size_bytes >> 24):
            f.write(char * (1 << 24))


def _parquet_bomb(path: Path, num_rows: int = 2000, text_bytes: int = 1 << 20) -> None:
    """Write a file whose rows all have the same text, which is stored once."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), pa.array(["a" * text_bytes]))
    table = pa.table({"text": text}, schema=pa.schema({"text": pa.dictionary(pa.int32(), pa.string())}))
    pq.write_table(table, path, compression="zstd", store_schema=False, write_statistics=False)


def _tables() -> Iterator[tuple[str, Any, Check]]:
    """Yield tables with other columns, with null values, and damaged."""
    texts = [row["text"] for row in ROWS]

    def parquet(**columns: Any) -> Callable[[Path], None]:
        return lambda path: pq.write_table(pa.table(columns), path, row_group_size=5)

    def changed(at: float) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            pq.write_table(pa.table({"text": texts}), path, row_group_size=5, compression="none", use_dictionary=False)
            content = bytearray(path.read_bytes())
            content[int(at * len(content))] ^= 0xFF
            path.write_bytes(content)

        return write

    def cut(write: Callable[[Path], None], part: float) -> Callable[[Path], None]:
        def write_part(path: Path) -> None:
            write(path)
            path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])

        return write_part

    def stream(path: Path) -> None:
        table = pa.table({"text": texts})
        with pa.OSFile(str(path), "wb") as f, pa.ipc.new_stream(f, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)

    def ipc(path: Path) -> None:
        table = pa.table({"text": texts})
        with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, table.schema) as writer:
            writer.write_table(table)

    def write_feather(path: Path) -> None:
        feather.write_feather(pa.table({"text": texts}), path)

    null = [None, *texts[1:]]
    yield ".parquet intact", parquet(text=texts), documents(NUM)
    yield ".parquet without a column text", parquet(content=texts), refused("content", "text")
    yield ".parquet with a null", parquet(text=null), documents(NUM - 1, 1)
    yield ".parquet of nulls", parquet(text=[None] * 9), refused()
    yield ".parquet of integers", parquet(text=list(range(9))), refused()
    yield ".parquet of lists", parquet(text=[[t] for t in texts]), refused()
    yield ".parquet of bytes", parquet(text=[t.encode() for t in texts]), any_of(documents(NUM), refused())
    yield ".parquet of large strings", parquet(text=pa.array(texts, pa.large_string())), documents(NUM)
    yield ".parquet with integer ids", parquet(text=texts, id=list(range(NUM))), documents(NUM)
    yield ".parquet without rows", parquet(text=pa.array([], pa.string())), refused()
    yield ".parquet truncated", cut(parquet(text=texts), 0.7), refused("corpus")
    yield ".parquet with a changed byte", changed(0.5), any_of(documents(NUM), makes())
    yield ".parquet with a changed footer", changed(0.97), any_of(documents(NUM), makes(), refused("corpus"))
    yield ".parquet not Parquet", b"PAR1" + bytes(500) + b"PAR1", refused("corpus")
    yield ".arrow stream", stream, documents(NUM)
    yield ".arrow stream, truncated", cut(stream, 0.7), any_of(some_documents, refused("corpus"))
    yield ".arrow file", ipc, documents(NUM)
    yield ".arrow file, truncated", cut(ipc, 0.7), any_of(some_documents, refused("corpus"))
    yield ".arrow Feather", write_feather, documents(NUM)
    yield ".feather", write_feather, any_of(documents(NUM), refused("feather"))
    yield ".arrow empty", b"", refused("corpus")
    yield ".arrow not Arrow", b"\xff\xff\xff\xff" + bytes(range(200)), refused("corpus")


def _corpora(world: World) -> Iterator[Case]:
    """Yield sources that are not files, and texts that look like tokens."""
    sources: dict[str, tuple[list[str], Check]] = {
        "missing": (["nowhere.jsonl"], refused("nowhere.jsonl")),
        "empty directory": (["."], refused()),
        "given twice": ([world["corpus.jsonl"]] * 2, refused("twice")),
        "device": (["/dev/zero"], refused("/dev/zero")),
        "unknown URL": (["gopher://host/x.jsonl"], refused("gopher")),
        "URL with a password": (["https://user:secret@127.0.0.1:9/x.jsonl?key=secret"], refused("127.0.0.1")),
        "audio": ([world["speak/audio"]], refused()),
        "name with an escape": (["\x1b[31mred.jsonl"], refused("red.jsonl")),
    }
    for name, (source, check) in sources.items():
        arguments = ["documents", "text", "--source", *source, "--out", "out"]
        yield Case("corpus", name, lambda folder, arguments=arguments: arguments, check)  # type: ignore[misc]

    pack: list[str | bytes] = ["pack", world["documents-marks"], "--lm", world["init-lm"], "--out", "out"]
    ends = makes(documents=len(MARKS), control_tokens=len(MARKS), speech_tokens=0)
    yield Case("corpus", "control tokens, packed", lambda folder: pack, ends)


def _repeats(world: World) -> Iterator[Case]:
    """Yield texts of one repeated piece, which quadratic expressions do not finish."""
    num = 500_000
    pieces = (
        "!",
        ".",
        "?",
        '"',
        "'",
        "(",
        "-",
        " ",
        "\n",
        "a",
        "1",
        "1,",
        "a.",
        ". ",
        "...",
        "A.",
        "é",
        "。",
        "<",
        "http://",
    )
    for piece in pieces:
        for end in ("1", "a b.", "!"):
            content = json.dumps({"text": f"The cat sat. {piece * (num // len(piece))}{end}"}).encode() + b"\n" + JSONL

            def arguments(folder: Path, content: bytes = content) -> list[str | bytes]:
                (folder / "corpus.jsonl").write_bytes(content)
                model = ["--text-to-token", world["train-text-to-token"], "--speech-ratio", "0.01"]
                return ["interleave", "corpus.jsonl", *model, "--out", "out", "--tasks", "1"]

            yield Case("corpus, repeats", f"{piece!r} repeated, then {end!r}", arguments, makes())
