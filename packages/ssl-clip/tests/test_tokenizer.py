"""Token ids: those of open_clip on odd strings, and what a tokenizer of one's own promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssl_clip.config import CLIPConfig
from ssl_clip.tokenizer import TextError, Tokenizer
from ssl_core.config import ConfigError

CAPTIONS = ["a small checked cross left of a striped triangle", "a large dotted circle above a ringed square"] * 20
ODD = [
    "a photo of a cat",
    "Hello, WORLD!!! 123 it's",
    "emoji 😀👍🏽 mixed",
    "日本語のテキスト 漢字",
    "it's we've I'll 'tis",
    "x²+y²=z² ½",
    "tabs\tand\nnewlines  here",
    "&lt;b&gt;bold&amp;amp;",
    "ÀÉÎõü ñ ß",
    "1234567890 3.14",
    "a!!b??c...d",
    "İstanbul",
    "don't stop'' n't",
    "--__--",
    "кириллица ТЕКСТ",
    "\u200bzero width",
    "מזרח",
    "a" * 40,
    "e\u0301clair",
]


@pytest.fixture(scope="module")
def openai() -> Tokenizer:
    open_clip = pytest.importorskip("open_clip")
    return Tokenizer.read(Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz")


@pytest.fixture(scope="module")
def own() -> Tokenizer:
    return Tokenizer.trained(CAPTIONS, 640)


@pytest.mark.parametrize("text", ODD)
def test_ids_equal_open_clips(text, openai):
    import open_clip

    assert torch.equal(openai([text], 77), open_clip.SimpleTokenizer()([text]))


def test_what_is_cut_on_request_keeps_its_end_as_open_clips_does(openai):
    import open_clip

    text = "word " * 100
    assert torch.equal(openai([text], 77, truncate=True), open_clip.SimpleTokenizer()([text]))
    with pytest.raises(TextError, match=r"has 100 tokens, 75 fit: shorten it, or allow --truncate"):
        openai([text], 77)


def test_vocab_json_and_merges_make_the_same_tokenizer(openai, tmp_path):
    openai.backend.model.save(str(tmp_path))
    again = Tokenizer.find(tmp_path)
    assert again is not None and torch.equal(again(ODD[:1], 77), openai(ODD[:1], 77))


def test_start_and_end_are_the_last_ids_and_words_that_were_seen_are_whole(own):
    [row] = own(CAPTIONS[:1], 16).tolist()
    assert (row[0], row[10], row[11:], own.size) == (638, 639, [0] * 5, 640)
    assert len(set(row[1:10])) == 8, "nine words, of which one is there twice"


def test_letters_that_were_never_seen_are_bytes_and_lose_nothing(own):
    words = own.words(["ünknown 漢 zebra"])[0]
    text = "".join(own.backend.id_to_token(i) for i in words).replace("</w>", "Ġ")
    assert own.backend.decoder.decode([text]).split() == ["ünknown", "漢", "zebra"]


def test_a_caption_cannot_hold_a_special_token(own):
    assert not {638, 639} & set(own.words(["a <|endoftext|> b <|startoftext|>"])[0])


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_an_empty_text_is_refused(text, own):
    with pytest.raises(TextError, match="is empty"):
        own([text], 16)


def test_saved_it_is_the_same_and_transformers_reads_it(own, tmp_path):
    own.save(tmp_path)
    again = Tokenizer.find(tmp_path)
    assert again is not None and again.fingerprint() == own.fingerprint() and again.cleaned
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert theirs(CAPTIONS[0])["input_ids"] == own(CAPTIONS[:1], 16)[0, :11].tolist()
    assert theirs.eos_token_id == own.end == 639


def test_training_twice_gives_the_same_tokenizer(own):
    assert Tokenizer.trained(iter(CAPTIONS), 640).fingerprint() == own.fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "no tokenizer that can be read"),
        ("merges.txt", "#version\na b\n", "does not hold OpenAI's 48894 merges"),
        ("vocab.json", "{}", "no tokenizer that can be read"),
    ],
)
def test_a_damaged_tokenizer_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        Tokenizer.read(tmp_path / name)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(own):
    with pytest.raises(ConfigError, match="vocab_size = 600: the tokenizer has 640 tokens"):
        own.check(CLIPConfig(vocab_size=600, eos_token_id=599))
    with pytest.raises(ConfigError, match="eos_token_id = 638: the tokenizer's end of text is 639"):
        own.check(CLIPConfig(vocab_size=640, eos_token_id=638))
    with pytest.raises(ConfigError, match="bytes, start and end alone are 514"):
        Tokenizer.trained(CAPTIONS, 500)
