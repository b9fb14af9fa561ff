"""An evaluation of parts that do not belong together is refused before anything is measured."""

import pytest

from weft import artifacts
from weft.artifacts import Manifest
from weft.errors import UserError
from weft.eval.suite import SUITES, EvalConfig, run


@pytest.mark.parametrize("suite", SUITES)
def test_parts_of_another_tokenizer_are_refused(suite, tmp_path):
    for name, parents in (("tokenizer", {}), ("text_to_token", {"tokenizer": Manifest("tokenizer", "another")})):
        with artifacts.build(tmp_path / name, name, {}, parents):
            pass
    with pytest.raises(UserError, match="text-to-token model was made with tokenizer another"):
        run(EvalConfig((suite,), tmp_path, tmp_path / "results.json"))
    assert not (tmp_path / "results.json").exists()
