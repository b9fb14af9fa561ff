from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tokenizer.conftest import save_whisper
from weft.errors import UserError
from weft.tokenizer.decoding import greedy_decode
from weft.tokenizer.encoder import BottleneckConfig
from weft.tokenizer.init import from_whisper
from weft.tokenizer.quantizer import QuantizerConfig
from weft.tokenizer.tokenizer import SpeechTokenizer

CODES = [[1, 2, 3, 4, 5], [6, 7]]


@pytest.mark.parametrize("multilingual", [True, False])
def test_a_transcript_follows_the_prompt_of_its_whisper(tmp_path: Path, multilingual: bool) -> None:
    base = save_whisper(tmp_path / "whisper", multilingual)
    tokenizer = from_whisper(base, BottleneckConfig(layer=2, quantizer=QuantizerConfig(num_codes=8)))
    encoded, valid = tokenizer._encode_codes(CODES)
    for language in (None, "en", "zh"):
        decoded = greedy_decode(tokenizer.model, tokenizer.prompt, encoded, valid, [language, language])
        for tokens in map(tokenizer.text_tokenizer.convert_ids_to_tokens, decoded):
            if not multilingual:
                assert tokens[:2] == ["<|startoftranscript|>", "<|notimestamps|>"]
                continue
            assert [tokens[0], *tokens[2:4]] == ["<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>"]
            assert tokens[1] == f"<|{language}|>" if language else tokens[1] in ("<|en|>", "<|zh|>")
    if multilingual:
        with pytest.raises(UserError, match="has no language 'fr'"):
            tokenizer.transcribe(CODES, ["fr", "en"])


def test_an_endless_transcript_is_limited_by_the_duration_of_its_own_speech(tokenizer: SpeechTokenizer) -> None:
    text_tokenizer = tokenizer.text_tokenizer
    letters = text_tokenizer.encode("t h e c a", add_special_tokens=False)
    order = torch.randint(len(letters), (400,), generator=torch.Generator().manual_seed(0))
    steps = iter(range(1000))

    def endless(encoded: Tensor, valid: Tensor, ids: Tensor, cache: object = None) -> Tensor:
        logits = torch.zeros(len(encoded), ids.shape[1], len(text_tokenizer))
        logits[:, -1, letters[order[next(steps) % 400]]] = 1.0
        return logits

    tokenizer.model.text_logits = endless  # type: ignore[method-assign]
    tokenizer.model.whisper_config.max_target_positions = 400
    short, long = [1] * 5, [1] * 25  # 0.4 and 2 s
    lengths = []
    for codes in ([short, long], [short], [long]):
        steps = iter(range(1000))
        found = tokenizer._encode_codes(codes)
        decoded = greedy_decode(tokenizer.model, tokenizer.prompt, *found, [None] * len(codes))
        end_id = tokenizer.model.whisper_config.eos_token_id
        lengths += [sum(i != end_id for i in ids[1:]) for ids in decoded]
    assert lengths == 2 * [20 + 12, 20 + 60]
