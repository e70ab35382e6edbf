"""Tokenizers from files: text never writes their end-of-text, what they lose is counted, and length does not matter."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from umscale.data import tokenizing
from umscale.data.corpus import open_corpus
from umscale.data.prepare import prepare
from umscale.data.tokenizing import Encoder, decode, load_tokenizer
from umscale.errors import UserError

WORDS = ["river", "stone", "walk", "light", "under", "tree", "green", "over", "hill"]
TEXT = " ".join(WORDS[(i * i + i // 7) % len(WORDS)] for i in range(400)) + "."
EOT = "<|endoftext|>"


def saved(model: tokenizers.Tokenizer, path: Path) -> Path:
    path.write_text(model.to_str())
    return path


def byte_level(prefix: bool = False) -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return model


def sentence_piece(kind: str) -> tokenizers.Tokenizer:
    """As Llama 2 (a normaliser puts the first space) or T5 (the pre-tokenizer does) have it."""
    model = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False)
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    model.train_from_iterator([TEXT], trainer)
    model.decoder = decoders.Metaspace()
    if kind == "pre-tokenizer":
        return model
    tree = json.loads(model.to_str()) | {"pre_tokenizer": None}
    model = tokenizers.Tokenizer.from_str(json.dumps(tree))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return model


# -- end of text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
def test_text_cannot_write_the_end_of_text(tmp_path, special, normalized):
    model = byte_level()
    model.add_tokens([tokenizers.AddedToken(EOT, special=special, normalized=normalized)])
    tree = json.loads(model.to_str())
    tree["added_tokens"][-1]["special"] = special
    (tmp_path / "t.json").write_text(json.dumps(tree))
    loaded = load_tokenizer(tmp_path / "t.json")
    assert loaded.eot == model.token_to_id(EOT), "its own token is taken over"
    _never_in_text(loaded)


def test_an_end_of_text_that_is_a_word_of_the_vocabulary_is_not_taken_over(tmp_path):
    vocabulary = {word: i for i, word in enumerate(["<unk>", EOT, "</s>", *WORDS])}
    model = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    loaded = load_tokenizer(saved(model, tmp_path / "t.json"))
    assert loaded.eot == len(vocabulary)
    _never_in_text(loaded)


def _never_in_text(loaded: tokenizing.Tokenizer) -> None:
    documents = [f"{TEXT} {EOT} {TEXT}".encode(), f"{EOT}{EOT}".encode(), f"a{EOT}\n{EOT}b </s>".encode()]
    tokens, counts, _ = Encoder(loaded).encode(documents)
    assert (tokens == loaded.eot).sum() == len(documents)
    assert np.array_equal(np.flatnonzero(tokens == loaded.eot), np.cumsum(counts) - counts)


def test_an_end_of_text_that_slips_through_is_an_error(tmp_path):
    loaded = load_tokenizer(saved(byte_level(), tmp_path / "t.json"))
    letter = byte_level().token_to_id("a")
    broken = tokenizing.Tokenizer(kind="file", vocab_size=loaded.vocab_size, eot=letter, json=loaded.json)
    with pytest.raises(UserError, match="its own end-of-text token"):
        Encoder(broken).encode([b"a"])


@pytest.mark.parametrize("largest", [4_000_000_000, 2**32, 1 << 21, -1])
def test_an_id_that_no_model_can_have_is_refused(tmp_path, largest):
    tree = json.loads(byte_level().to_str())
    tree["model"]["vocab"]["zz"] = largest
    (tmp_path / "t.json").write_text(json.dumps(tree))
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path / "t.json")
    assert len(str(caught.value).splitlines()) == 1


# -- what is lost -----------------------------------------------------------------------------------------


def characters(unknown: str | None) -> tokenizers.Tokenizer:
    """A BPE of characters, which has those of ``TEXT`` alone."""
    model = tokenizers.Tokenizer(models.BPE(unk_token=unknown, end_of_word_suffix="</w>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.decoder = decoders.BPEDecoder(suffix="</w>")
    special = [unknown] if unknown else []
    model.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=90, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    return model


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_characters_that_no_token_stands_for_are_counted(tmp_path, unknown):
    loaded = load_tokenizer(saved(characters(unknown), tmp_path / "t.json"))
    encoder = Encoder(loaded)
    plain = encoder.encode([TEXT.encode()])
    assert encoder.lost_bytes == 0
    assert plain[2].tolist() == [len(TEXT)]
    lossy = "river façade under 東京 hill" if unknown is None else "river ç under 東 hill"
    _, _, n_bytes = encoder.encode([TEXT.encode(), lossy.encode()])
    gone = sum(len(c.encode()) for c in lossy if c not in TEXT)
    assert n_bytes.tolist() == [len(TEXT), len(lossy.encode()) - gone]
    assert encoder.lost_bytes == gone


def test_words_that_are_unknown_are_lost_as_a_whole(tmp_path):
    vocabulary = {word: i for i, word in enumerate(["<unk>", *WORDS])}
    model = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    encoder = Encoder(load_tokenizer(saved(model, tmp_path / "t.json")))
    _, _, n_bytes = encoder.encode([b"river rivers stone"])
    assert n_bytes.tolist() == [len("river rivers stone") - len("rivers")]


def test_bytes_keep_everything(tmp_path):
    encoder = Encoder(load_tokenizer(saved(byte_level(), tmp_path / "t.json")))
    text = "façade 東京 \u200d 🙂 " + TEXT
    tokens, _, n_bytes = encoder.encode([text.encode()])
    assert (encoder.lost_bytes, n_bytes.tolist()) == (0, [len(text.encode())])
    assert decode(encoder.tokenizer, tokens).decode() == text


def test_a_corpus_says_what_was_lost_and_measures_the_rest(tmp_path):
    rows = [{"text": f"river façade number {'x' * i} hill"} for i in range(1, 41)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = saved(characters(None), tmp_path / "t.json")
    prepare([tmp_path / "a.jsonl"], name="lossy", tokenizer=str(path))
    m = open_corpus("lossy").manifest
    whole = sum(len(row["text"].encode()) for row in rows)
    assert m.lost_bytes > 40 * len("ç".encode()) - 1
    assert m.train.n_bytes + m.validation.n_bytes == whole - m.lost_bytes


# -- long documents ---------------------------------------------------------------------------------------


MAKERS = {
    "byte level": byte_level,
    "byte level with a first space": lambda: byte_level(prefix=True),
    "first space by a normaliser": lambda: sentence_piece("normaliser"),
    "first space by a pre-tokenizer": lambda: sentence_piece("pre-tokenizer"),
    "characters": lambda: characters("<unk>"),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("space", [" ", "", "\n\n  "])
def test_long_documents_are_encoded_as_whole_ones(tmp_path, monkeypatch, kind, space):
    monkeypatch.setattr(tokenizing, "PIECE_CHARS", 4096)
    monkeypatch.setattr(tokenizing, "OVERLAP_CHARS", 256)
    loaded = load_tokenizer(saved(MAKERS[kind](), tmp_path / "t.json"))
    text = TEXT.replace(" ", space) * 12
    whole = tokenizing.build(loaded.json).encode(text, add_special_tokens=False).ids
    tokens, counts, _ = Encoder(loaded).encode([text.encode(), TEXT.encode()])
    found = tokens[1 : counts[0]].tolist()
    if space:
        assert found == whole
    else:  # a word of thousands of letters: alike but for what is next to a seam
        assert abs(len(found) - len(whole)) <= len(text) // 1000
