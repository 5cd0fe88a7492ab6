"""Infilling: which spans are asked for, how, how answers are read and scored, and that the command does all of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_line import FlanTune
from hypothesis import given
from hypothesis import strategies as st
from small_data import write
from test_models_attention import CONFIGS

pytest.importorskip("lm_eval")

from flan_tune.errors import ScoreError
from flan_tune.evaluation.infilling import (
    EXACT,
    F1,
    NATS,
    NO_MODE,
    Infilling,
    _end_ids,
    compare_infilling,
    measure_infilling,
)
from flan_tune.evaluation.infilling_forms import Form, asks, forms_of, native_form, read_blanks
from flan_tune.evaluation.infilling_table import infilling_table
from flan_tune.evaluation.lm import FlanTuneLM
from flan_tune.evaluation.results import join_suites, merge_results
from flan_tune.evaluation.suites.infilling import (
    BLANK_COUNTS,
    PASSAGE_TOKENS,
    SPAN_LENGTHS,
    Passage,
    Question,
    draw_passages,
    infilling_questions,
    place_blanks,
    same_passages,
)
from flan_tune.models.export import export
from flan_tune.models.load import create_model
from flan_tune.objectives.denoise import restore
from flan_tune.tokens.sentencepiece_training import train_sentencepiece
from flan_tune.tokens.tokenizer import Tokenizer

WORDS = "a ship came home with salt and wool, the old man said; he had seen 12 winters on it".split()
DOCUMENTS = [
    {"text": " ".join(WORDS[(document * 7 + place * place) % len(WORDS)] for place in range(40 * document))}
    for document in range(16)
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = [document["text"] for document in DOCUMENTS]
    return train_sentencepiece(texts, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)


@pytest.fixture(scope="module")
def tokenizer(plain: Tokenizer) -> Tokenizer:
    return plain.with_special_tokens(sentinels="new", num_sentinels=8, mode_tokens=True)


def passage(length: int = PASSAGE_TOKENS, document: int = 3) -> Passage:
    return Passage(document, 0, np.arange(10, 10 + length))


# ---- which spans


def test_passages_are_keyed_windows_of_different_documents(plain: Tokenizer) -> None:
    passages = draw_passages(DOCUMENTS, plain, 5, length=40)
    whole = plain.encode_batch([document["text"] for document in DOCUMENTS])
    for one in passages:
        assert np.array_equal(one.ids, whole[one.document][one.start : one.start + 40])
        assert len(one.ids) == 40
    assert len({one.document for one in passages}) == 5
    assert any(one.start for one in passages)
    assert same_passages(passages, draw_passages(DOCUMENTS, plain, 9, length=40)[:5]), "asking for more adds, no more"
    assert not same_passages(passages, draw_passages(DOCUMENTS, plain, 5, length=40, seed=1))


def test_added_tokens_change_no_passage(plain: Tokenizer, tokenizer: Tokenizer) -> None:
    assert same_passages(draw_passages(DOCUMENTS, plain, 5), draw_passages(DOCUMENTS, tokenizer, 5))


def test_too_few_documents_are_counted(plain: Tokenizer) -> None:
    with pytest.raises(ScoreError, match=r"99 passages are asked for, the 'validation' split has 1[0-5] documents"):
        draw_passages(DOCUMENTS, plain, 99)


@given(st.integers(1, 4), st.integers(1, 32), st.integers(0, 60), st.integers(0, 2**32))
def test_blanks_are_apart_and_have_text_on_both_sides(count: int, length: int, free: int, seed: int) -> None:
    whole = passage(16 + count * length + 4 * (count - 1) + 8 + free)
    question = place_blanks(whole, count, length, seed=seed)
    assert [len(span) for span in question.spans] == [length] * count
    first, *between, last = [len(part) for part in question.shown]
    assert first >= 16
    assert last >= 8
    assert all(part >= 4 for part in between)
    joined = [part for pair in zip(question.shown, [*question.spans, []], strict=True) for part in pair]
    assert np.concatenate(joined).tolist() == whole.ids.tolist()
    assert np.array_equal(whole.ids[question.mask], np.concatenate(question.spans))


def test_every_placement_is_drawn() -> None:
    whole = passage(16 + 2 + 4 + 8 + 2)  # two blanks of one token, two tokens to spare: six placements
    drawn = [place_blanks(whole, 2, 1, seed=seed).starts for seed in range(600)]
    counts = [drawn.count(starts) for starts in sorted(set(drawn))]
    assert len(counts) == 6
    assert sum((count - 100) ** 2 / 100 for count in counts) < 20.5  # chi-square, 5 degrees of freedom, 0.1 %


def test_a_passage_too_short_for_the_blanks_is_refused() -> None:
    with pytest.raises(ScoreError, match="3 blanks of 32 tokens need a passage of 128 tokens, this one has 127"):
        place_blanks(passage(127), 3, 32)


def test_every_passage_is_asked_in_twelve_ways() -> None:
    questions = infilling_questions([passage(document=1), passage(document=2)])
    assert list(questions) == [f"infilling_{count}x{length}" for count in BLANK_COUNTS for length in SPAN_LENGTHS]
    assert [question.id for question in questions["infilling_3x16"]] == ["1/3x16", "2/3x16"]
    assert questions["infilling_1x1"][0].starts != questions["infilling_1x1"][1].starts


@given(st.integers(25, 140), st.integers(25, 140))
def test_short_passages_are_asked_in_all_ways_that_fit_the_shortest(one: int, other: int) -> None:
    asked = set(infilling_questions([passage(one, 1), passage(other, 2)]))
    for count in BLANK_COUNTS:
        for length in SPAN_LENGTHS:
            if f"infilling_{count}x{length}" in asked:
                place_blanks(passage(min(one, other)), count, length)
            else:
                with pytest.raises(ScoreError, match="Take longer passages"):
                    place_blanks(passage(min(one, other)), count, length)


# ---- how they are asked for


def test_which_forms_a_model_understands(plain: Tokenizer, tokenizer: Tokenizer) -> None:
    def named(of: Tokenizer, positions: int | None = None) -> list[str]:
        return [str(form) for form in forms_of(of, 3, 192, positions)]

    assert named(plain) == ["left", "prompt"]
    assert named(plain, 400) == ["left"]
    sentinels = ["sentinels", "sentinels [NLU]", "sentinels [NLG]"]
    assert named(tokenizer) == ["left", "left [S2S]", "prompt", *sentinels]
    assert named(plain.with_special_tokens(sentinels="new", num_sentinels=2, mode_tokens=False)) == ["left", "prompt"]
    assert named(plain.with_special_tokens(sentinels="reuse_last", num_sentinels=3, mode_tokens=False))[2:] == [
        "sentinels"
    ]


@pytest.mark.parametrize(
    ("count", "length", "mode"), [(1, 8, "[NLU]"), (1, 12, "[NLG]"), (3, 8, "[NLU]"), (3, 16, "[NLG]")]
)
def test_the_native_form(plain: Tokenizer, tokenizer: Tokenizer, count: int, length: int, mode: str) -> None:
    question = place_blanks(passage(), count, length)
    assert native_form(question, tokenizer) == Form("sentinels", mode)
    assert native_form(question, plain) == Form("left")
    unmarked = plain.with_special_tokens(sentinels="new", num_sentinels=3, mode_tokens=False)
    assert native_form(question, unmarked) == Form("sentinels")
    short = place_blanks(passage(40), 1, 8)  # not long, but more than 30 % of so short a text is not left
    assert str(native_form(short, tokenizer)) == "sentinels [NLU]"
    assert str(native_form(place_blanks(passage(35), 1, 11), tokenizer)) == "sentinels [NLG]"


def test_asks_in_every_form(tokenizer: Tokenizer) -> None:
    bos, modes, sentinels = tokenizer.bos_id, tokenizer.mode_ids, tokenizer.sentinel_ids
    question = Question(passage(10), starts=(2, 6), length=2)
    first, second = asks(Form("left"), question, tokenizer)
    assert (first.prompt, first.answer) == ([bos, 10, 11], [12, 13])
    assert (second.prompt, second.answer) == ([bos, *range(10, 16)], [16, 17])
    assert asks(Form("left", "[S2S]"), question, tokenizer)[0].prompt == [bos, modes["[S2S]"], 10, 11]
    one, two = asks(Form("sentinels", "[NLU]"), question, tokenizer)
    assert one.prompt == [bos, modes["[NLU]"], 10, 11, sentinels[0], 14, 15, sentinels[1], 18, 19]
    assert one.answer == [sentinels[0], 12, 13, sentinels[1], 16, 17]
    assert (one.prompt, one.answer) == (two.prompt, two.answer)
    assert [ask.answer[ask.start : ask.stop] for ask in (one, two)] == [[12, 13], [16, 17]]


def test_the_prompt_in_plain_text_shows_both_sides(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_batch(["the old man said he had seen 12 winters with salt and wool"])[0]
    question = Question(Passage(0, 0, ids), starts=(5,), length=3)
    (ask,) = asks(Form("prompt"), question, tokenizer)
    text = tokenizer.decode(ask.prompt)
    left, right = (tokenizer.decode(part) for part in question.shown)
    assert text.startswith(left)
    assert "____" in text
    assert right in text
    assert text.rstrip().endswith(left.strip())
    assert ask.answer == question.spans[0].tolist()


@given(st.data())
def test_what_a_perfect_model_says_is_read_back(data: st.DataObject) -> None:
    count, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    question = place_blanks(passage(80), count, length, seed=data.draw(st.integers(0, 99)))
    pool = (7, 5, 3, 1)
    tokenizer = FakeTokenizer(pool)
    (ask, *_) = asks(Form("sentinels"), question, tokenizer)  # type: ignore[arg-type]
    assert read_blanks(ask.answer, pool, count) == [span.tolist() for span in question.spans]
    assert restore(np.array(ask.prompt), np.array(ask.answer), pool).tolist() == question.passage.ids.tolist()


class FakeTokenizer:
    """Special ids only."""

    def __init__(self, sentinel_ids: Sequence[int]) -> None:
        self.sentinel_ids = tuple(sentinel_ids)
        self.bos_id: int | None = None
        self.mode_ids: dict[str, int] = {}


def test_answers_that_are_not_well_formed_are_read_as_far_as_they_go() -> None:
    pool = [9, 8, 7]
    assert read_blanks([], pool, 2) == [None, None]
    assert read_blanks([1, 2], pool, 2) == [None, None]
    assert read_blanks([1, 8, 2, 9, 3], pool, 2) == [[3], [2]]
    assert read_blanks([9, 1, 9, 2], pool, 1) == [[1]]
    assert read_blanks([9, 1, 7, 2], pool, 2) == [[1], None]


# ---- a model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, plain: Tokenizer, tokenizer: Tokenizer) -> dict[str, Path]:
    """A causal model, and a prefix-LM with sentinels and mode tokens; neither has learnt anything."""
    root, found = tmp_path_factory.mktemp("models"), {}
    for name, attention, tokens in (("base", "causal", plain), ("ul2r", "prefix_lm", tokenizer)):
        model = create_model(CONFIGS["llama"] | {"max_position_embeddings": 512}, tokens.vocab_size, seed=3)
        found[name] = root / name / "model"
        export(model.state_dict(), model, tokens, found[name], attention=attention, separator="\n")
    return found


def some_questions(passages: list[Passage]) -> dict[str, list[Question]]:
    ways = [(count, length) for count in (1, 3) for length in (1, 4)]
    return {f"infilling_{n}x{length}": [place_blanks(one, n, length) for one in passages] for n, length in ways}


@pytest.fixture(scope="module")
def measured(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Infilling]:
    folder = tmp_path_factory.mktemp("samples")
    found = {}
    for name, path in folders.items():
        lm = FlanTuneLM.from_folder(path, device="cpu")
        passages = draw_passages(DOCUMENTS, lm.tokens, 2, length=64)
        questions = some_questions(passages)
        found[name] = measure_infilling(lm, questions, folder / f"{name}.jsonl", lambda line: None)
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        forms = found[name].result["tasks"]["infilling_1x4"]["forms"]
        assert len(lines) == 4 * 2 * len(forms)
        sample = json.loads(lines[-1])
        assert sample["prompt"].count("____") == 3
        assert {"output", "target", "correct", EXACT, F1, NATS, "form"} <= set(sample)
    return found


def test_likelihood_is_that_of_the_spans_given_their_length(
    folders: dict[str, Path], measured: dict[str, Infilling]
) -> None:
    """Against one forward of each question, nothing padded, the mask written out."""
    for name, form in (("base", "left"), ("ul2r", "sentinels [NLU]"), ("ul2r", "left [S2S]")):
        lm = FlanTuneLM.from_folder(folders[name], device="cpu")
        for one, nats in zip(
            draw_passages(DOCUMENTS, lm.tokens, 2, length=64),
            measured[name].values["infilling_3x4"][form][NATS],
            strict=True,
        ):
            view, _, mode = form.partition(" ")
            asked = asks(Form(view, mode), place_blanks(one, 3, 4), lm.tokens)
            slow = sum(slow_nats(lm, ask.prompt, ask.answer, ask.start, ask.stop) for ask in asked)
            assert nats == pytest.approx(slow / 12, abs=1e-4)


def slow_nats(lm: FlanTuneLM, prompt: list[int], answer: list[int], start: int, stop: int) -> float:
    ids, first = prompt + answer, len(prompt)
    allowed = torch.ones(len(ids), len(ids)).tril().bool()
    if lm.attention == "prefix_lm":
        allowed[:first, :first] = True
    with torch.no_grad():
        logits = lm.model(torch.tensor([ids]), attention_mask=allowed[None, None], use_cache=False).logits[0]
    tokens = lm.tokens
    logits[:, [tokens.eos_id, *tokens.sentinel_ids, *tokens.mode_ids.values()]] = -torch.inf
    return -sum(float(logits.log_softmax(-1)[first + t - 1, answer[t]]) for t in range(start, stop))


def test_words_that_serve_as_sentinels_stay_words_where_a_passage_has_them(tokenizer: Tokenizer) -> None:
    passages = draw_passages(DOCUMENTS, tokenizer, 2, length=64)
    questions = [place_blanks(one, 1, 4) for one in passages]
    word, other = int(passages[0].ids[3]), max(int(one.ids.max()) for one in passages) + 1
    names = SimpleNamespace(eos_id=2, sentinel_ids=(word, other), mode_ids={"[NLU]": other + 1})
    assert _end_ids(names, questions) == [2, other, other + 1]


def test_results_are_plain_and_join_with_other_suites(measured: dict[str, Infilling]) -> None:
    for name, native in (("base", "left"), ("ul2r", "sentinels [NLU]")):
        result = measured[name].result
        assert json.loads(json.dumps(result)) == result
        task = result["tasks"]["infilling_1x4"]
        assert (task["n"], task["chance"], task["layout"], task["metric"]) == (2, 0, native, EXACT)
        assert task["score"] == task["forms"][native][EXACT]
        assert task["forms"][native][NATS] == pytest.approx(
            np.mean(measured[name].values["infilling_1x4"][native][NATS])
        )
        assert join_suites([result])["groups"]["infilling, 3 blanks"]["tasks"] == 2
    merged = merge_results({name: join_suites([one.result]) for name, one in measured.items()})
    assert list(merged["models"]) == ["base", "ul2r"]


def test_causal_text_is_scored_for_both(folders: dict[str, Path], measured: dict[str, Infilling]) -> None:
    assert list(measured["base"].causal_text) == [NO_MODE]
    assert list(measured["ul2r"].causal_text) == [NO_MODE, "[S2S]"]
    for name, found in measured.items():
        lm = FlanTuneLM.from_folder(folders[name], device="cpu")
        for one, nats in zip(
            draw_passages(DOCUMENTS, lm.tokens, 2, length=64), found.causal_text[NO_MODE], strict=True
        ):
            with torch.no_grad():
                loss = lm.model(
                    ids := torch.tensor([[lm.tokens.bos_id, *one.ids.tolist()]]), labels=ids, use_cache=False
                ).loss
            assert nats == pytest.approx(float(loss), abs=1e-4)
        read = found.result["causal_text"][NO_MODE]
        assert read["perplexity"] == pytest.approx(math.exp(read[NATS]))


class Oracle:
    """Stands for `generate`: says what it was told for a prompt, as far as it is let, and what it is given."""

    def __init__(self, sayings: dict[tuple[int, ...], list[int]]) -> None:
        self.sayings = sayings

    def __call__(self, model, prompts, *, max_new_tokens, stop=None, guide=None, **options) -> list[list[int]]:
        outputs = []
        for prompt in prompts:
            said: list[int] = []
            for token in self.sayings[tuple(prompt)][:max_new_tokens]:
                given = guide(said) if guide else None
                said.append(token if given is None else given)
                if stop is not None and stop(said):
                    break
            outputs.append(said)
        return outputs


def test_a_model_that_knows_is_right_and_one_that_knows_half_is_half_right(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = FlanTuneLM.from_folder(folders["ul2r"], device="cpu")
    questions = [place_blanks(one, 3, 4) for one in draw_passages(DOCUMENTS, lm.tokens, 2, length=64)]
    sayings = {}
    for form in forms_of(lm.tokens, 3, 64, 512):
        for question in questions:
            for k, ask in enumerate(asks(form, question, lm.tokens)):
                right = form.view == "sentinels" or k > 0  # else the first blank of three gets another answer
                runs_on = ask.answer + [lm.tokens.eos_id] * 3 if right else [5] * 9
                sayings[tuple(ask.prompt)] = runs_on
    monkeypatch.setattr("flan_tune.models.generate.generate", Oracle(sayings))
    found = measure_infilling(lm, {"infilling_3x4": questions}, tmp_path / "samples.jsonl", lambda line: None)
    for form, values in found.values["infilling_3x4"].items():
        wanted = 1.0 if form.startswith("sentinels") else 2 / 3
        assert values[EXACT] == pytest.approx([wanted, wanted]), form
    assert found.result["tasks"]["infilling_3x4"]["score"] == 100
    assert found.result["tasks"]["infilling_3x4"]["forms"]["left"]["unread"] == 0
    assert found.result["tasks"]["infilling_3x4"]["unread"] == 0


def test_sentinels_are_given_and_those_not_said_unasked_are_counted(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = FlanTuneLM.from_folder(folders["ul2r"], device="cpu")
    questions = [place_blanks(one, 3, 4) for one in draw_passages(DOCUMENTS, lm.tokens, 2, length=64)]
    first = lm.tokens.sentinel_ids[0]
    sayings = {}
    for form in forms_of(lm.tokens, 3, 64, 512):
        for question in questions:
            for ask in asks(form, question, lm.tokens):
                # One sentinel of three is said; what is said after each place of a sentinel is right.
                said = [token if token not in lm.tokens.sentinel_ids[1:] else 5 for token in ask.answer]
                sayings[tuple(ask.prompt)] = said * 3
                assert form.view != "sentinels" or said[0] == first
    monkeypatch.setattr("flan_tune.models.generate.generate", Oracle(sayings))
    found = measure_infilling(lm, {"infilling_3x4": questions}, tmp_path / "samples.jsonl", lambda line: None)
    of_form = found.result["tasks"]["infilling_3x4"]["forms"]["sentinels [NLU]"]
    assert (of_form[EXACT], of_form["unread"]) == (100, 2 * len(questions))


def test_a_model_with_too_few_positions_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = create_model(CONFIGS["llama"] | {"max_position_embeddings": 60}, tokenizer.vocab_size, seed=0)
    lm = FlanTuneLM(
        model, tokenizer, {"attention": "causal", "separator": "", "layout": "decoder_only", "mode_token": None}
    )
    questions = [place_blanks(one, 1, 2) for one in draw_passages(DOCUMENTS, tokenizer, 1, length=64)]
    with pytest.raises(ScoreError, match="needs 68 positions, the model has 60"):
        measure_infilling(lm, {"infilling_1x2": questions}, tmp_path / "samples.jsonl")


# ---- two models


def test_the_mean_over_lengths_is_taken_within_a_passage(measured: dict[str, Infilling]) -> None:
    base, other = measured["base"], measured["ul2r"]
    found = compare_infilling(base, other)["means"]["infilling, one blank"]["left"][NATS]
    names = ["infilling_1x1", "infilling_1x4"]
    ours = np.mean([other.values[name][other.native[name]][NATS] for name in names])
    theirs = np.mean([base.values[name]["left"][NATS] for name in names])
    assert found["difference"] == pytest.approx(ours - theirs)
    assert found["n"] == 2, "passages, not questions"


def test_the_table_names_models_forms_and_lengths(measured: dict[str, Infilling]) -> None:
    found = compare_infilling(measured["base"], measured["ul2r"])
    table = infilling_table({name: one.result for name, one in measured.items()}, {"ul2r": found})
    for words in ("one blank: exact match", "3 blanks: nats", "4 tokens", "ul2r: sentinels [NLU]", "base: prompt"):
        assert words in table
    assert "perplexity" in table
    assert "mean over lengths, against left: exact" in table


# ---- the command


@pytest.fixture(scope="module")
def text_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data_root")
    write(root / "text/ships/validation.jsonl", DOCUMENTS)
    write(root / "text/ships/train.jsonl", DOCUMENTS[:1])
    return root


def test_the_command_compares_two_models(
    flan_tune: FlanTune, folders: dict[str, Path], text_root: Path, tmp_path: Path
) -> None:
    options = ["--suites", "infilling", "--corpus", "text:ships", "--rows", "1", "--data-root", str(text_root)]
    shown = flan_tune(
        "evaluate", str(folders["base"]), *options, "--compare", str(folders["ul2r"]), "--output", str(tmp_path)
    )
    assert shown.code == 0, shown
    assert "ul2r minus the first model" in shown.out
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["tasks"]) == 12
    assert results["infilling"]["corpus"] == "text:ships"
    compared = json.loads((tmp_path / "comparison.json").read_text())
    assert compared["base"] == "base"
    assert compared["differences"]["ul2r"]["tasks"]["infilling_3x32"]["left"][NATS]["n"] == 1
    assert (tmp_path / "infilling/samples.jsonl").is_file()
    assert (tmp_path / "infilling/ul2r/samples.jsonl").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suites", "infilling", "--corpus", "ships"], "--corpus is 'ships'; it is text:NAME"),
        (["--suites", "infilling", "--corpus", "text:ship"], r"no split 'validation' of this corpus; .*\['ships'\]"),
        (["--suites", "gsm8k", "--compare", "elsewhere"], "--compare belongs to the suite 'infilling'"),
        (["--suites", "infiling"], "no suite 'infiling'. Did you mean 'infilling'"),
    ],
)
def test_wrong_input_is_found_before_the_model_is_opened(
    flan_tune: FlanTune, text_root: Path, options: list[str], message: str
) -> None:
    outcome = flan_tune("evaluate", "no_model", *options, "--data-root", str(text_root))
    assert outcome.code == 1
    assert re.search(message, outcome.err), outcome
