"""What every family of language models is to do once it knows speech, tied or untied, with its own tokenizer."""

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PhiConfig, PhiForCausalLM

from tests.ranks import in_ranks
from weft import artifacts, cli
from weft.data.shards import write_documents
from weft.engine.generate import Engine, Request, Sampling
from weft.errors import UserError
from weft.lm import model as lm_model
from weft.lm.model import LanguageModel, extend_lm, load_hf, save
from weft.lm.packing import check_rows, pack, token_losses
from weft.records import Document, Segment
from weft.training import distributed
from weft.vocab import SpeechVocab

from .families import FAMILIES, text_lm

NUM_CODES = 16
CASES = [(family, tied) for family in FAMILIES for tied in (True, False)]
SPEECH = Segment.of_speech([3, 0, 15, 7], "the cat")
DOCUMENTS = [
    Document("0", "interleaved", (Segment.of_text("The cat"), SPEECH, Segment.of_text(" sat on the mat, and slept."))),
    Document("1", "asr", (Segment.of_speech([5] * 9, "a bird", loss=False), Segment.of_text("a bird sang"))),
    Document("2", "text", (Segment.of_text("The dog\nbarked  twice at 猫."),)),
    Document("3", "speech", (SPEECH, SPEECH)),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'tied' if case[1] else 'untied'}")
def case(request):
    return request.param


@pytest.fixture
def extended(case):
    model, tokenizer = text_lm(*case)
    return model, SpeechVocab.of(extend_lm(model, tokenizer, NUM_CODES, seed=0))


def rows_of(model):
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


def test_a_model_that_grows_has_rows_in_whole_tiles_and_draws_no_spare_one(case, extended):
    model, vocab = extended
    inputs, outputs = rows_of(model)
    assert (inputs is outputs) == case[1]
    assert len(inputs) == len(outputs) == model.config.vocab_size == -(-vocab.size // 64) * 64 > vocab.size
    with torch.no_grad():
        outputs[vocab.size :] *= 50  # so that every other draw would be a spare row, were they not left out
    prompt = vocab.document_ids(DOCUMENTS[0])[0].tolist()
    requests = [Request(prompt, 20, seed=i) for i in range(8)]
    engine = Engine(model)
    drawn = {i for g in engine.generate(requests, Sampling(temperature=3.0)) for i in g.ids}
    session = engine.session()
    session.feed(prompt)
    drawn |= {session.sample(Sampling(temperature=3.0)) for _ in range(20)}
    by_transformers = model.generate(
        torch.tensor([prompt] * 8), max_new_tokens=20, do_sample=True, pad_token_id=0, temperature=3.0
    )
    drawn |= set(by_transformers[:, len(prompt) :].flatten().tolist())
    assert len(drawn) > 20
    assert max(drawn) < vocab.size


def loss_and_norm(family, tied):
    """The loss and the norm of its gradient in all processes that are there, each with every document."""
    model, tokenizer = text_lm(family, tied)
    vocab = SpeechVocab.of(extend_lm(model, tokenizer, NUM_CODES, seed=0))
    model = distributed.shard(model, "cpu", half=False)
    assert distributed.is_sharded(model) == (distributed.world_size() > 1)
    loss = token_losses(model, pack([vocab.document_ids(d) for d in DOCUMENTS], row_tokens=64)).mean()
    distributed.backward(loss / distributed.world_size())
    return loss.item(), distributed.clip_gradients(model, 1e9).item()


def in_all_cases():
    return [loss_and_norm(*case) for case in CASES]


def test_every_family_can_be_sharded(tmp_path):
    for case, found, expected in zip(CASES, in_ranks(in_all_cases, tmp_path)[1], in_all_cases(), strict=True):
        assert found == pytest.approx(expected, rel=1e-5), case


def test_a_spare_row_begins_with_at_most_the_mean_probability_of_the_old_tokens(case, extended):
    model, vocab = extended
    num_old = len(FAMILIES[case[0]][2]())
    with torch.no_grad():
        shares = model(torch.arange(vocab.size - 200, vocab.size)[None]).logits.softmax(-1)[0]
    old = shares[:, :num_old].mean(1, keepdim=True)
    # Gemma 2 bends its logits, which the mean row's are not the mean of
    assert (shares[:, vocab.size :] <= old * (1.001 if case[0] != "gemma2" else 1.1)).all()


def test_documents_in_a_row_are_trained_as_each_alone(extended):
    model, vocab = extended
    documents = [vocab.document_ids(d) for d in DOCUMENTS]
    longest = max(len(ids) for ids, _ in documents)
    check_rows(model, longest)
    batch = pack(documents)
    packed = token_losses(model, batch)
    packed.sum().backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for number, (ids, loss) in enumerate(documents):
        whole = torch.from_numpy(ids)[None]
        labels = whole.where(torch.from_numpy(loss), -100)
        labels[:, 0] = -100
        num_trained = int((labels >= 0).sum())
        alone = model(input_ids=whole, labels=labels).loss * num_trained
        torch.testing.assert_close(packed[batch.documents == number].sum(), alone, rtol=1e-4, atol=1e-4)
        alone.backward()
    for p, grad in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(grad, p.grad, rtol=1e-3, atol=1e-3 * float(p.grad.abs().max()))


def test_a_folder_is_what_transformers_loads_and_what_was_saved(case, extended, tmp_path):
    model, vocab = extended
    save(model, vocab.tokenizer, tmp_path)
    # as lm-evaluation-harness does
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    loaded = SpeechVocab.of(tokenizer)
    assert loaded.fingerprint == vocab.fingerprint
    assert (rows_of(plain)[0] is rows_of(plain)[1]) == case[1]
    for document in DOCUMENTS:
        ids = vocab.document_ids(document)[0]
        assert loaded.document_ids(document)[0].tolist() == ids.tolist()
        tensor = torch.from_numpy(ids)[None]
        torch.testing.assert_close(plain(tensor).logits, model(tensor).logits, rtol=1e-4, atol=1e-4)
    requests = [Request(ids.tolist(), 10, seed=1)]
    ours, _ = load_hf(tmp_path, torch.float32)
    assert Engine(ours).generate(requests, Sampling()) == Engine(model).generate(requests, Sampling())


@pytest.mark.parametrize("family", FAMILIES)
def test_text_comes_back_and_a_cut_before_a_space_changes_no_id(family):
    model, tokenizer = text_lm(family, tied=True)
    vocab = SpeechVocab.of(extend_lm(model, tokenizer, NUM_CODES, seed=0))
    newline = vocab.tokenizer.decode(vocab.turn_start_ids("user"), skip_special_tokens=True)
    assert newline == "\n"
    for text in ("The cat", " sat", "\n", "  two  spaces ", "", "猫 é", "a<|user|><eos></s><|endoftext|>b"):
        ids = vocab.text_ids(text)
        assert not (vocab.is_audio(ids) | vocab.is_control(ids)).any()
        # behind another segment, as a text stands in a document
        assert vocab.tokenizer.decode([*vocab.text_ids("a"), *ids]) == "a" + text
    parts = ["The cat", " sat on", " the mat,", " and slept.", "猫", "猫"]
    assert [i for p in parts for i in vocab.text_ids(p)] == vocab.text_ids("".join(parts)).tolist()


def test_spare_rows_of_a_base_are_used_first_and_the_rest_keep_what_they_learnt():
    model, tokenizer = text_lm("qwen2", tied=True, spare_rows=100)
    before = rows_of(model)[0].detach().clone()
    vocab = SpeechVocab.of(extend_lm(model, tokenizer, NUM_CODES, seed=0))
    assert torch.equal(rows_of(model)[0][vocab.size :], before[vocab.size :])
    assert model.generation_config.suppress_tokens == list(range(vocab.size, len(before)))


def test_what_a_base_kept_from_being_drawn_stays_so_unless_it_is_a_speech_token_now():
    model, tokenizer = text_lm("llama3", tied=False)
    model.generation_config.suppress_tokens = [len(tokenizer) + 1, 7_000]
    vocab = SpeechVocab.of(extend_lm(model, tokenizer, NUM_CODES, seed=0))
    assert model.generation_config.suppress_tokens == [*range(vocab.size, len(rows_of(model)[0])), 7_000]


def test_a_bias_of_the_head_grows_with_it():
    _, tokenizer = text_lm("gpt2", tied=True)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=len(tokenizer), **shape))
    torch.nn.init.normal_(model.lm_head.bias)
    old = model.lm_head.bias.detach().clone()
    extend_lm(model, tokenizer, NUM_CODES, seed=0)
    assert torch.equal(model.lm_head.bias[: len(old)], old)
    torch.testing.assert_close(model.lm_head.bias[len(old) :], old.mean().expand(len(model.lm_head.bias) - len(old)))


def test_a_family_without_the_fused_kernel_loads_where_it_would_be_quickest(tmp_path, monkeypatch):
    model, tokenizer = text_lm("gemma2", tied=True)
    save(model, tokenizer, tmp_path)
    monkeypatch.setattr(lm_model, "quickest_attention", lambda: "sdpa")
    assert load_hf(tmp_path, torch.float32)[0].config._attn_implementation == "eager"


def test_a_tokenizer_that_drops_characters_is_refused():
    _, tokenizer = text_lm("llama2", tied=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\x01", "")
    model, _ = text_lm("llama2", tied=True)
    with pytest.raises(UserError, match="drops characters"):
        SpeechVocab.of(extend_lm(model, tokenizer, NUM_CODES, seed=0)).text_ids("a")


@pytest.mark.parametrize("family", ["llama2", "qwen2", "glm4", "gemma2", "gemma3", "gpt2"])
def test_the_road_from_a_base_to_a_trained_model(family, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base, tokenizer = text_lm(family, tied=family != "llama2")
    save(base, tokenizer, tmp_path / "base")
    codebook = torch.randn(NUM_CODES, 8, generator=torch.Generator().manual_seed(0))
    with artifacts.build(tmp_path / "codec", "tokenizer", {"model": {"pooling": 4}}) as draft:
        save_file({"quantizer.codebook": codebook}, draft.folder / "model.safetensors")
    parents = {"tokenizer": artifacts.read(tmp_path / "codec")}
    with artifacts.build(tmp_path / "documents", "documents", {}, parents) as draft:
        write_documents(draft.folder, 0, DOCUMENTS * 5)
    (tmp_path / "start.toml").write_text('out = "start"\ntokenizer = "codec"\nbase = "base"\n')
    (tmp_path / "pretrain.toml").write_text(
        'base = "start"\ntokens = ["tokens"]\nout = "lm"\nrow_tokens = 64\n'
        "tokens_per_step = 256\n[train]\nsteps = 12\nlr = 1e-2\nwarmup_steps = 1\n"
    )
    for arguments in (
        ["init-lm", "start.toml"],
        ["pack", "documents", "--lm", "start", "--out", "tokens"],
        ["pretrain", "pretrain.toml"],
    ):
        assert cli.run(arguments) == 0, capsys.readouterr().err
    start, trained = LanguageModel.load(tmp_path / "start"), LanguageModel.load(tmp_path / "lm")
    assert type(trained.model) is type(base)
    assert trained.vocab.fingerprint == start.vocab.fingerprint
    assert trained.model.generation_config.suppress_tokens == start.model.generation_config.suppress_tokens
    batch = pack([start.vocab.document_ids(d) for d in DOCUMENTS])
    with torch.no_grad():
        assert token_losses(trained.model, batch).mean() < 0.8 * token_losses(start.model, batch).mean()
    prompt = trained.vocab.document_ids(DOCUMENTS[0])[0].tolist()
    drawn = Engine(trained.model).generate([Request(prompt, 30)], Sampling())[0].ids
    assert max(drawn) < trained.vocab.size
