import torch
from torch import Tensor

from weft.tokenizer.tokenizer import SpeechTokenizer


def test_a_transcript_that_runs_away_is_cut_off_by_the_length_of_its_own_speech(tokenizer: SpeechTokenizer) -> None:
    words = tokenizer.text_tokenizer
    again = torch.nn.functional.one_hot(torch.tensor(words.encode("cat", add_special_tokens=False)[-1:]), len(words))

    def forever(heard: Tensor, valid: Tensor, ids: Tensor, cache: object = None) -> Tensor:
        return again.float().expand(len(heard), ids.shape[1], -1)

    tokenizer.model.text_logits = forever  # type: ignore[method-assign]
    tokenizer.model.whisper_config.max_target_positions = 400
    short, long = [1] * 5, [1] * 25  # 0.4 and 2 s
    together = tokenizer.transcribe([short, long])
    assert together == [tokenizer.transcribe([short])[0], tokenizer.transcribe([long])[0]]
    lengths = [len(words.encode(text, add_special_tokens=False)) for text in together]
    assert 20 <= lengths[0] < lengths[1] < 200
