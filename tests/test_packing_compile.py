"""Compiling packs: nothing lost, a window is what its number says, what makes packs stale."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_packs import MIXTURE, ROOT, TASKS, make_tokenizer, small_settings

from flan_tune.errors import RecipeError, StreamError
from flan_tune.packing.bins import pack_bins
from flan_tune.packing.compile import Compiler, make_objective, open_stream, open_tokenizer
from flan_tune.packing.fingerprint import changed_parts, fingerprint_parts, join_parts
from flan_tune.packing.prepare import prepare
from flan_tune.packing.segments import Denoising
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.store import Pack, PackReader, open_packs
from flan_tune.packing.stream import StreamCounts
from flan_tune.rng import key, permutation

UL2R = {"sentinels": "new", "num_sentinels": 60, "mode_tokens": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture, a tokenizer and sealed packs of five windows, which no test changes."""
    made = tmp_path_factory.mktemp("sealed")
    prepare(small_settings(made, num_packs=140))
    return made


@pytest.fixture(scope="module")
def packs(folder: Path) -> PackReader:
    return open_packs(folder / "packs")


def shared(folder: Path, packs_dir: Path, **changes: Any) -> PackSettings:
    """Settings with the mixture and tokenizer of `folder` and packs elsewhere."""
    return small_settings(folder, packs_dir=str(packs_dir), **changes)


def all_packs(reader: PackReader) -> list[Pack]:
    return [reader.pack(number) for number in range(reader.num_packs)]


def hashes(directory: Path) -> dict[str, Any]:
    """What two runs over the same settings must agree on, shard by shard."""
    manifest = json.loads((directory / "manifest.json").read_text())
    windows = [(window["sha256"], window["content_hash"]) for window in manifest["windows"]]
    return {name: manifest[name] for name in ("fingerprint", "content_hash", "packs", "tasks")} | {"windows": windows}


def provenance(reader: PackReader) -> Counter[tuple[str, int, int]]:
    names = [record["name"] for record in reader.manifest["tasks"]]
    return Counter(
        (names[task], row, epoch)
        for pack in all_packs(reader)
        for task, row, epoch in zip(pack.task.tolist(), pack.row.tolist(), pack.epoch.tolist(), strict=True)
    )


# Nothing is lost


def test_every_example_drawn_is_in_the_packs_once(folder: Path, packs: PackReader) -> None:
    windows = len(packs.manifest["windows"])
    stream = open_stream(small_settings(folder))
    drawn = Counter((e.task, e.row, e.epoch) for e in stream.examples(0, windows * 60, StreamCounts()))
    assert packs.manifest["drops"] == {}
    assert provenance(packs) == drawn


def test_tokens_in_are_tokens_in_packs(folder: Path, packs: PackReader) -> None:
    tokenizer = open_tokenizer(small_settings(folder))
    stream, wanted = open_stream(small_settings(folder)), Counter[str]()
    for example in stream.examples(0, 300, StreamCounts()):
        shown, answer = example.text()
        ids = [tokenizer.bos_id, *tokenizer.encode_batch([f"{shown}\n"])[0], *tokenizer.encode_batch([answer])[0]]
        wanted[str([*map(int, ids), tokenizer.eos_id])] += 1
    found = Counter(
        str(segment.tolist())
        for pack in all_packs(packs)
        for segment in np.split(pack.input_ids, np.cumsum(pack.segment_lengths)[:-1])
    )
    assert packs.manifest["tokens"] == sum(len(pack.input_ids) for pack in all_packs(packs))
    shortened = packs.manifest["shots_dropped"] + packs.manifest["truncated_examples"]
    assert shortened > 0, "some examples have to be too long for this test to mean anything"
    assert sum((found - wanted).values()) <= shortened
    assert found.total() == wanted.total() == 300


def test_packs_keep_their_length_and_their_number_of_segments(tmp_path: Path, folder: Path) -> None:
    settings = shared(folder, tmp_path, max_segments_per_pack=2, num_packs=20)
    prepare(settings)
    for pack in all_packs(open_packs(tmp_path)):
        assert len(pack.input_ids) == pack.segment_lengths.sum() <= settings.max_length
        assert len(pack.segment_lengths) <= 2
        assert pack.target_tokens > 0


def test_the_manifest_adds_up(packs: PackReader) -> None:
    manifest, every = packs.manifest, all_packs(packs)
    assert manifest["packs"] == packs.num_packs == len(every)
    assert manifest["segments"] == sum(len(pack.segment_lengths) for pack in every)
    assert manifest["target_tokens"] == sum(pack.target_tokens for pack in every) == packs.target_tokens.sum()
    assert manifest["fill"] == round(manifest["tokens"] / (len(every) * manifest["max_length"]), 5)
    assert manifest["examples"] == 60 * len(manifest["windows"])
    assert [record["name"] for record in manifest["tasks"]] == sorted(TASKS)
    assert sum(record["share"] for record in manifest["tasks"]) == pytest.approx(1, abs=1e-5)
    assert sum(record["wanted_share"] for record in manifest["tasks"]) == pytest.approx(1, abs=1e-5)
    assert sum(record["examples"] for record in manifest["tasks"]) == manifest["examples"]
    assert sum(manifest["presentations"].values()) == manifest["examples"]
    assert manifest["segments_by_kind"] == {"supervised": manifest["segments"]}
    assert packs.num_segments.sum() == manifest["segments"]
    (family,) = manifest["families"]
    assert (family["name"], family["tasks"]) == ("procedural", len(TASKS))
    for name in ("examples", "tokens", "target_tokens"):
        assert family[name] == sum(record[name] for record in manifest["tasks"]) == manifest[name]
    for record in manifest["tasks"]:
        assert record["repeats"] == round(record["examples"] / record["rows"], 3)
        of_task = manifest["tasks"].index(record)
        tokens = sum(int(pack.segment_lengths[pack.task == of_task].sum()) for pack in every)
        assert record["tokens"] == tokens
    shortened = Counter(reason for reasons in manifest["shortened"].values() for reason in Counter(reasons).elements())
    assert shortened["shots dropped"] == manifest["shots_dropped"]
    assert shortened["inputs truncated"] == manifest["truncated_examples"]


def test_packs_of_a_window_are_not_sorted_by_length(folder: Path) -> None:
    """Bins come out long-first; unpermuted that makes waves in the loss. So they are put in a keyed order."""
    compiler = Compiler(small_settings(folder, packing=False))
    lengths = [len(pack.input_ids) for pack in compiler.window(0)[0]]
    bins = pack_bins(sorted(lengths), compiler.settings.max_length)
    order = permutation(len(bins), key(0, "bins", 0)).tolist()
    assert order != sorted(order)
    in_order = [int(length) for number in order for length in np.array(sorted(lengths))[bins[number]]]
    assert lengths == in_order


@pytest.mark.parametrize("objective", ["supervised", "mixture_of_denoisers"])
def test_without_packing_the_segments_come_in_the_same_order(folder: Path, objective: str) -> None:
    changes = {"objective": objective}
    if objective == "mixture_of_denoisers":
        changes |= {"preset": "ul2r", "special_tokens": UL2R}
    packed, alone = (Compiler(small_settings(folder, packing=on, **changes)).window(3)[0] for on in (True, False))
    assert {len(pack.segment_lengths) for pack in alone} == {1}
    assert len(packed) < len(alone) == sum(len(pack.segment_lengths) for pack in packed)
    for name in ("input_ids", "segment_lengths", "prefix_lengths", "task", "row", "epoch", "kind", "cut", "template"):
        one, other = (np.concatenate([getattr(pack, name) for pack in packs]).tolist() for packs in (packed, alone))
        assert one == other, name
    assert sum(pack.target_tokens for pack in packed) == sum(pack.target_tokens for pack in alone)


def test_causal_and_supervised_packs_have_the_same_tokens(tmp_path: Path, folder: Path) -> None:
    """base_plus against flan: only what is predicted differs."""
    for objective in ("causal", "supervised"):
        prepare(shared(folder, tmp_path / objective, objective=objective, num_packs=60))
    causal, supervised = (all_packs(open_packs(tmp_path / name)) for name in ("causal", "supervised"))
    assert len(causal) == len(supervised)
    for one, other in zip(causal, supervised, strict=True):
        assert one.input_ids.tolist() == other.input_ids.tolist()
        assert one.segment_lengths.tolist() == other.segment_lengths.tolist()
        assert not one.prefix_lengths.any()
        assert other.prefix_lengths.all()
        assert one.target_tokens > other.target_tokens


def test_denoised_text_keeps_every_token_or_counts_it(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "mixture.yaml").write_text(
        f"members: [{{tasks: [{', '.join(TASKS)}]}}]\npresentations: {{statement: 1}}\n"
    )
    changes = {"objective": "mixture_of_denoisers", "preset": "ul2r", "special_tokens": UL2R, "num_packs": 10}
    settings = shared(folder, tmp_path / "packs", mixture=str(tmp_path / "mixture.yaml"), **changes)
    manifest = prepare(settings)
    tokenizer = open_tokenizer(settings)
    special = {*tokenizer.sentinel_ids, *tokenizer.mode_ids.values(), tokenizer.bos_id, tokenizer.eos_id}
    kept = sum(
        id_ not in special for pack in all_packs(open_packs(tmp_path / "packs")) for id_ in pack.input_ids.tolist()
    )
    windows = len(manifest["windows"])
    texts = [e.text()[1] for e in open_stream(settings).examples(0, 60 * windows, StreamCounts())]
    assert kept + manifest["skipped_tokens"] == sum(len(ids) for ids in tokenizer.encode_batch(texts))
    assert set(manifest["segments_by_kind"]) == {"S", "R", "X1", "X2"}


@pytest.mark.mirror
def test_real_rows_become_packs(tmp_path: Path, mirror: Path) -> None:
    """Real sources of four kinds: every target whole, everything that was lost counted."""
    make_tokenizer(tmp_path / "tokenizer")
    mixture = ROOT / "data_mixtures" / "real_small.yaml"
    settings = small_settings(
        tmp_path, mixture=str(mixture), data_root=str(mirror), max_length=512, window_examples=300, num_packs=100
    )
    manifest = prepare(settings)
    reader, tokenizer = open_packs(tmp_path / "packs"), open_tokenizer(settings)
    drawn = open_stream(settings).examples(0, 300 * len(manifest["windows"]), StreamCounts())
    targets = Counter(str([*tokenizer.encode_batch([e.text()[1]])[0].tolist(), tokenizer.eos_id]) for e in drawn)
    found: Counter[str] = Counter()
    for pack in all_packs(reader):
        starts = np.cumsum(pack.segment_lengths) - pack.segment_lengths
        for start, length, prefix in zip(starts, pack.segment_lengths, pack.prefix_lengths, strict=True):
            found[str(pack.input_ids[start + prefix : start + length].tolist())] += 1
    dropped = sum(sum(reasons.values()) for reasons in manifest["drops"].values())
    assert not found - targets
    assert (targets - found).total() == dropped
    assert manifest["fill"] > 0.9
    assert {record["family"] for record in manifest["tasks"]} == {"cot", "muffin", "niv2"}


# The same bytes however they are made


def test_a_window_is_the_same_compiled_alone(folder: Path, packs: PackReader) -> None:
    compiler = Compiler(small_settings(folder))
    alone, summary = compiler.window(2)
    first = sum(window["packs"] for window in packs.manifest["windows"][:2])
    for number, pack in enumerate(alone):
        assert pack.input_ids.tolist() == packs.pack(first + number).input_ids.tolist()
        assert pack.row.tolist() == packs.pack(first + number).row.tolist()
    assert summary["tokens"] == sum(len(pack.input_ids) for pack in alone)
    assert sum(tokens for _, tokens, _ in summary["by_task"].values()) == summary["tokens"]
    assert sum(targets for _, _, targets in summary["by_task"].values()) == summary["target_tokens"]
    assert summary["examples_by_family"] == {"procedural": 60}


# The fingerprint


def parts_of(settings: PackSettings) -> dict[str, str]:
    return fingerprint_parts(settings, open_tokenizer(settings).fingerprint)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"num_packs": 99}, []),
        ({"packs_dir": "elsewhere"}, []),
        ({"max_failed_share": 0.5, "max_failed_share_of_task": 0.5}, []),
        ({"max_length": 200}, ["lengths"]),
        ({"window_examples": 61}, ["lengths"]),
        ({"too_long": "drop"}, ["lengths"]),
        ({"max_segments_per_pack": 9}, ["lengths"]),
        ({"packing": False}, ["lengths"]),
        ({"separator": "eos"}, ["separator"]),
        ({"data_seed": 1}, ["data_seed"]),
        ({"objective": "causal"}, ["objective"]),
        ({"objective": "mixture_of_denoisers", "preset": "ul2"}, ["objective"]),
        ({"rates": "per_token"}, ["objective"]),
        ({"span_sampler": "uniform"}, ["objective"]),
        ({"mode_token": "[S2S]"}, ["objective"]),
        ({"max_target_length": 64}, ["lengths"]),
        ({"special_tokens": UL2R}, ["tokenizer"]),
    ],
)
def test_each_setting_changes_its_part_alone(folder: Path, changes: dict[str, Any], parts: list[str]) -> None:
    before = parts_of(small_settings(folder))
    after = parts_of(small_settings(folder, **changes))
    assert changed_parts(before, after) == parts
    assert (join_parts(before) == join_parts(after)) == (not parts)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("members:", "# a comment\nmembers:", []),
        ("shots:", "missing: drop\nshots:", []),
        ("shots:", "hold_out: [nothing_is_called_so]\nshots:", []),
        ("rate: 1.0", "rate: 2.0", ["mixture"]),
        ("few_shot: 0.3", "few_shot: 0.2", ["mixture"]),
        ("[1, 3]", "[1, 2]", ["mixture"]),
        ("first_letter", "last_letter", ["cards", "mixture", "sources", "wordings"]),
        ("shots:", "split: validation\nshots:", ["mixture", "sources"]),
    ],
)
def test_each_line_of_a_mixture_changes_its_parts_alone(
    tmp_path: Path, folder: Path, old: str, new: str, parts: list[str]
) -> None:
    before = small_settings(folder)
    (tmp_path / "mixture.yaml").write_text(MIXTURE.replace(old, new))
    after = replace(before, mixture=str(tmp_path / "mixture.yaml"))
    assert changed_parts(parts_of(before), parts_of(after)) == parts


def user_settings(folder: Path, home: Path, **changes: str) -> PackSettings:
    """Settings over a user's own task, whose card, wording and rows can be changed."""
    values = {"question": "{{ q }}", "license": "mit", "wording": "{{ question }}", "rows": "0 1 2"} | changes
    (home / "templates").mkdir(parents=True)
    (home / "data" / "default").mkdir(parents=True)
    rows = [json.dumps({"q": f"{n}?", "a": n}) for n in values["rows"].split()]
    (home / "data" / "default" / "train.jsonl").write_text("\n".join(rows))
    (home / "templates" / "mine.yaml").write_text(
        f'core: {{shape: question_answer, answer: ["{values["wording"]}"]}}\n'
    )
    (home / "card.yaml").write_text(
        f"""family: variant
tasks:
  - name: mine
    shape: question_answer
    source: {{file: data, license: {values["license"]}}}
    templates: [mine/core]
    adapt: {{question: "{values["question"]}", answer: "{{{{ a }}}}"}}
"""
    )
    mixture = home.with_suffix(".yaml")  # not inside: every YAML file of a task path is a card
    mixture.write_text("members: [{tasks: mine}]\n")
    return small_settings(folder, mixture=str(mixture), task_paths=(str(home),))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, []),
        ({"license": "apache-2.0"}, []),
        ({"question": "Q {{ q }}"}, ["cards"]),
        ({"wording": "{{ question }} Well?"}, ["wordings"]),
        ({"rows": "0 1 3"}, ["sources"]),
    ],
)
def test_cards_wordings_and_rows_change_their_parts_alone(
    tmp_path: Path, folder: Path, changes: dict[str, str], parts: list[str]
) -> None:
    before = parts_of(user_settings(folder, tmp_path / "before"))
    assert changed_parts(before, parts_of(user_settings(folder, tmp_path / "after", **changes))) == parts


def test_another_tokenizer_changes_its_part_alone(tmp_path: Path, folder: Path) -> None:
    before = parts_of(small_settings(folder))
    make_tokenizer(tmp_path / "same")
    assert parts_of(small_settings(folder, tokenizer_path=str(tmp_path / "same"))) == before
    make_tokenizer(tmp_path / "other", vocab_size=321)
    assert changed_parts(before, parts_of(small_settings(folder, tokenizer_path=str(tmp_path / "other")))) == [
        "tokenizer"
    ]


def test_packs_of_another_recipe_are_refused_and_left_alone(folder: Path, packs: PackReader) -> None:
    before = hashes(packs.directory)
    with pytest.raises(StreamError, match=r"changed: data_seed, lengths\. Delete the folder") as caught:
        prepare(small_settings(folder, data_seed=5, max_length=100))
    assert str(caught.value).startswith(str(packs.directory))
    assert hashes(packs.directory) == before


def test_a_folder_where_nothing_could_be_made_is_not_taken(tmp_path: Path) -> None:
    """A first attempt that failed does not stand in the way of a corrected one."""
    settings = small_settings(tmp_path)
    (tmp_path / "mixture.yaml").write_text(
        MIXTURE.replace("presentations:", "presentations: {explanation: 1}\nx:").split("x:")[0]
    )
    with pytest.raises(StreamError, match="supports none of the presentations"):
        prepare(settings)
    (tmp_path / "mixture.yaml").write_text(MIXTURE)
    assert prepare(settings)["packs"] >= settings.num_packs


# Settings that cannot work


def test_a_window_without_a_pack_says_why(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(
        StreamError, match=r"window 0 gave no pack; every example was dropped: .*'target too long': \d+"
    ):
        prepare(shared(folder, tmp_path, max_length=3, num_packs=1))


def test_faults_of_all_denoisers_are_told_at_once(folder: Path) -> None:
    base = {"kind": "span", "rate": 0.15, "mode": "[NLU]", "share": 1.0}
    denoisers = ({**base, "name": "A", "mean_span": None}, {**base, "name": "B", "mean_span": 3.0, "kind": "prefix"})
    settings = small_settings(folder, objective="mixture_of_denoisers", denoisers=denoisers, special_tokens=UL2R)
    with pytest.raises(RecipeError) as caught:
        make_objective(settings, open_tokenizer(settings))
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["denoiser 'A'", "denoiser 'B'"]


def test_a_pool_that_is_too_small_is_told_before_any_source_is_opened(folder: Path, tmp_path: Path) -> None:
    settings = shared(
        folder,
        tmp_path,
        objective="mixture_of_denoisers",
        preset="ul2r",
        special_tokens=UL2R | {"num_sentinels": 2},
        mixture="not/there.yaml",
    )
    for start in (prepare, Compiler):
        with pytest.raises(RecipeError, match=r"needs \d+ sentinels at max_length 192, the pool has 2"):
            start(settings)


def test_a_mode_token_begins_every_input_or_is_told_to_be_missing(folder: Path) -> None:
    settings = small_settings(folder, mode_token="[S2S]")
    with pytest.raises(
        RecipeError, match=r"mode_token '\[S2S\]' .* does not have it\. Leave objective\.mode_token out"
    ):
        Compiler(settings)
    compiler = Compiler(replace(settings, special_tokens=UL2R))
    mode_id = compiler.tokenizer.mode_ids["[S2S]"]
    for pack in compiler.window(0)[0]:
        assert len(pack.input_ids) <= settings.max_length
        starts = np.cumsum(pack.segment_lengths) - pack.segment_lengths
        assert (pack.input_ids[starts + 1] == mode_id).all()
        assert (pack.input_ids == mode_id).sum() == len(starts)
        assert (pack.prefix_lengths > 2).all()


def test_settings_reach_the_mixture_of_denoisers(folder: Path) -> None:
    settings = small_settings(
        folder,
        objective="mixture_of_denoisers",
        preset="ul2r",
        special_tokens=UL2R,
        rates="per_token",
        span_sampler="uniform",
        max_target_length=192,
    )
    objective = make_objective(settings, open_tokenizer(settings))
    assert isinstance(objective, Denoising)
    mixture = objective.mixture
    assert (mixture.rate_unit, mixture.sampler, mixture.layout) == ("per_token", "uniform", "encoder_decoder")
