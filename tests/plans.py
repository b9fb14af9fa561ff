"""A plan, and a command that creates or begins its artifact."""

from weft.artifacts import Manifest
from weft.plan import Plan, open_draft

PARENTS = {"tokenizer": Manifest("tokenizer", "aaaa")}
PLAN = Plan("codes", {"seed": 0, "train": {"steps": 5}}, PARENTS)


def write(draft):
    (draft.folder / "part").write_text("x")
    draft.counts["utterances"] = 1
    draft.notes["judge"] = "a person"


def stop(out, error, files=(), plan=PLAN):
    """Write `files` into the draft of `out` and raise `error`."""
    with open_draft(out, plan) as draft:
        for name in files:
            (draft.folder / name).write_text("done")
        raise error
