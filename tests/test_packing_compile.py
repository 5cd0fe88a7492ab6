"""Compiling packs: nothing lost, the same bytes however the work is divided or interrupted, what makes packs stale."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_packs import MIXTURE, ROOT, TASKS, make_tokenizer, small_settings

from flan_tune.errors import RecipeError, StreamError
from flan_tune.packing.compile import Compiler, make_objective, open_stream, open_tokenizer, prepare
from flan_tune.packing.fingerprint import changed_parts, fingerprint_parts, join_parts
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


def test_packs_of_a_window_are_not_sorted_by_length(packs: PackReader) -> None:
    """Bins come out long-first; unpermuted that makes waves in the loss."""
    longest = [int(packs.pack(number).segment_lengths.max()) for number in range(packs.manifest["windows"][0]["packs"])]
    assert longest != sorted(longest, reverse=True)
    assert np.argmax(longest) == permutation(len(longest), key(0, "bins", 0)).tolist().index(0)


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
    assert summary["per_pack"] == packs.manifest["windows"][2]["per_pack"]


def test_asking_for_more_packs_keeps_the_finished_windows(tmp_path: Path, folder: Path, packs: PackReader) -> None:
    few = prepare(shared(folder, tmp_path, num_packs=30))
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.arrow")}
    more = prepare(shared(folder, tmp_path, num_packs=140))
    assert few["fingerprint"] == more["fingerprint"]
    assert len(few["windows"]) < len(more["windows"])
    assert all((tmp_path / name).stat().st_mtime_ns == made for name, made in times.items())
    assert hashes(tmp_path) == hashes(packs.directory)


def test_missing_windows_alone_are_remade(tmp_path: Path, folder: Path, packs: PackReader) -> None:
    settings, made = shared(folder, tmp_path, num_packs=140), []
    prepare(settings)
    (tmp_path / "window-00001.arrow").unlink()
    (tmp_path / "window-00003.json").unlink()
    prepare(settings, progress=lambda summary, done, planned: made.append((summary["window"], done, planned)))
    assert made == [(1, 4, 5), (3, 5, 5)]
    assert hashes(tmp_path) == hashes(packs.directory)


def test_progress_knows_the_plan_from_the_first_window_on(tmp_path: Path, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    prepare(shared(folder, tmp_path, num_packs=140), progress=lambda _, done, planned: seen.append((done, planned)))
    assert seen == [(number, 5) for number in range(1, 6)]


def test_enough_windows_are_made_for_the_packs_asked_for(tmp_path: Path, folder: Path) -> None:
    for wanted in (1, 31, 32, 33, 100):
        manifest = prepare(shared(folder, tmp_path, num_packs=wanted))
        assert manifest["packs"] >= wanted
        plan = json.loads((tmp_path / "plan.json").read_text())
        assert plan["windows"] == len(manifest["windows"])


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(tmp_path: Path, folder: Path, packs: PackReader) -> None:
    prepare(shared(folder, tmp_path, num_packs=140), num_proc=2)
    assert hashes(tmp_path) == hashes(packs.directory)


# Killed, interrupted, at the same time


def start_prepare(recipe: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """`flan-tune prepare` in a session of its own; what it says goes to <recipe>.log."""
    command = [sys.executable, "-m", "flan_tune.cli.main", "prepare", str(recipe), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with recipe.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def long_recipe(folder: Path, packs_dir: Path) -> Path:
    """A recipe of ten windows, which take a second or two."""
    path = packs_dir.with_suffix(".yaml")
    path.write_text(
        f"""model: {{config: {{model_type: llama}}}}
tokenizer: {{name_or_path: {folder / "tokenizer"}}}
data: {{mixture: {folder / "mixture.yaml"}, max_length: 192, window_examples: 400, packs_dir: {packs_dir}}}
objective: {{kind: supervised}}
training: {{output_dir: {packs_dir.parent / "out"}, max_steps: 250, global_batch_size: 8, learning_rate: 1}}
"""
    )
    return path


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "this did not happen in time"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_prepare_goes_on_to_the_same_packs(tmp_path: Path, folder: Path) -> None:
    """Killed with two workers at work: they end too; no half window counts; the rest is made by the next run."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start_prepare(long_recipe(folder, undisturbed)).wait(60) == 0
    process = start_prepare(long_recipe(folder, killed), "--num-proc", "2")
    wait_for(lambda: (killed / "window-00002.json").exists())
    workers = workers_of(process)
    process.kill()
    process.wait(60)
    assert len(workers) == 2
    wait_for(lambda: all(is_gone(pid) for pid in workers))
    assert not (killed / "manifest.json").exists()
    (killed / "window-00000.arrow").write_bytes(b"half")
    (killed / "window-00000.json").unlink()  # as if the kill had come between a shard and its summary
    assert start_prepare(long_recipe(folder, killed)).wait(60) == 0
    assert hashes(killed) == hashes(undisturbed)


@pytest.mark.slow
def test_a_killed_worker_is_told_in_one_message(tmp_path: Path, folder: Path) -> None:
    process = start_prepare(long_recipe(folder, tmp_path / "packs"), "--num-proc", "2")
    wait_for(lambda: len(workers_of(process)) == 2)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    assert process.wait(60) == 1
    output = (tmp_path / "packs.log").read_text()
    assert "a worker process was killed, perhaps for want of memory" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line(tmp_path: Path, folder: Path) -> None:
    process = start_prepare(long_recipe(folder, tmp_path / "packs"), "--num-proc", "2")
    wait_for(lambda: (tmp_path / "packs" / "window-00001.json").exists())
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    output = (tmp_path / "packs.log").read_text()
    assert output.endswith("interrupted; run the same command again to go on.\n")
    assert "Traceback" not in output


@pytest.mark.slow
def test_two_runs_in_one_folder_do_each_other_no_harm(tmp_path: Path, folder: Path) -> None:
    recipe = long_recipe(folder, tmp_path / "packs")
    both = [start_prepare(recipe), start_prepare(recipe)]
    assert [process.wait(60) for process in both] == [0, 0], recipe.with_suffix(".log").read_text()
    reader = open_packs(tmp_path / "packs")
    assert len(all_packs(reader)) == reader.num_packs >= 2000


def test_what_killed_runs_left_is_removed_when_it_is_old(tmp_path: Path, folder: Path) -> None:
    old, fresh = tmp_path / ".window-00000.1.tmp", tmp_path / ".window-00000.2.tmp"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    prepare(shared(folder, tmp_path, num_packs=5))
    assert not old.exists()
    assert fresh.exists(), "another run may be writing it"


# The fingerprint


def parts_of(settings: PackSettings) -> dict[str, str]:
    return fingerprint_parts(settings, open_tokenizer(settings).fingerprint)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"num_packs": 99}, []),
        ({"packs_dir": "elsewhere"}, []),
        ({"max_length": 200}, ["lengths"]),
        ({"window_examples": 61}, ["lengths"]),
        ({"too_long": "drop"}, ["lengths"]),
        ({"max_segments_per_pack": 9}, ["lengths"]),
        ({"separator": "eos"}, ["separator"]),
        ({"data_seed": 1}, ["data_seed"]),
        ({"objective": "causal"}, ["objective"]),
        ({"objective": "mixture_of_denoisers", "preset": "ul2"}, ["objective"]),
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
