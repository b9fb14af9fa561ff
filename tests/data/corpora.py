"""Text corpora of every format."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from weft.data.job import task_range
from weft.data.skipped import Skipped

ROWS = [{"id": f"d{i}", "text": f"Text number {i}.\nIt has {'many ' * (i % 40)}words — naïve 词."} for i in range(300)]
BOOK = "".join(f"Paragraph {i} of a book, " + "which is very long " * (i % 30) + "and ends.\n\n" for i in range(400))


def jsonl(rows):
    """Return rows as lines of JSON."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_corpus(path, rows):
    """Write rows in the format of the path's suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=64)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as f, pa.ipc.new_stream(f, table.schema) as stream:
            stream.write_table(table)
    else:
        with pa.output_stream(str(path), compression="detect") as f:
            f.write(jsonl(rows))
    return path


def read_in_tasks(corpus, num_tasks):
    """Return the documents of a corpus that is read by several tasks, and the bad items."""
    skipped = Skipped()
    documents = [d for t in range(num_tasks) for d in corpus.read(task_range(corpus.size_bytes, t, num_tasks), skipped)]
    return documents, skipped
