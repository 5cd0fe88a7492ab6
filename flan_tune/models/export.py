"""Writing a trained model as a Hugging Face folder that says how it must be used, and reading that back.

    <directory>/
      model*.safetensors, config.json, generation_config.json    as transformers writes them
      the tokenizer's files
      flan_tune.json       layout, attention, mode tokens, sentinels, separator, versions
      README.md            a model card; for a prefix-LM it begins with how to prompt it

Checkpoints to resume from are another thing (training/checkpoint.py).
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import flan_tune
from flan_tune.errors import CheckpointError
from flan_tune.models.attention import check_attention
from flan_tune.models.forward import is_encoder_decoder
from flan_tune.models.load import decoder_start_id_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from flan_tune.tokens.tokenizer import Tokenizer

EXPORT_FILE = "flan_tune.json"
EXPORT_FORMAT = 1


def export(
    model_state_dict: Mapping[str, Tensor],
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    directory: str | Path,
    *,
    attention: str,
    separator: str,
    layout: str = "decoder_only",
    mode_token: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes `model_state_dict` as the weights of `model` (whose own may be sharded away), whole or not at all.

    Call it on one process. The weights are read back and compared bit by bit before the folder gets its name; until
    then it is `<directory>.tmp`. An earlier export of that name is replaced.

    separator: what stood between inputs and targets in training: a text, or the word "eos"; of an encoder-decoder
        nothing did.
    layout: of the packs it was trained on, "decoder_only" or "encoder_decoder".
    mode_token: the one every prompt began with in training, if any.
    extra: more entries for flan_tune.json, which must be plain values.
    Raises: ValueError for a layout that is not the model's; CheckpointError if what was read back differs, or
        `directory` holds something that is no export.
    """
    check_attention(attention)
    if (layout == "encoder_decoder") != is_encoder_decoder(model):
        raise ValueError(f"layout {layout!r} is not that of model type {model.config.model_type!r}.")
    directory = Path(directory)
    _check_replaceable(directory)
    staging = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    model.save_pretrained(staging, state_dict=dict(model_state_dict))
    _write_configs(model, model_state_dict, tokenizer, staging)
    tokenizer.save(staging)
    used = {"layout": layout, "attention": attention, "separator": separator, "mode_token": mode_token}
    info = _export_info(tokenizer, used, extra or {})
    (staging / EXPORT_FILE).write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (staging / "README.md").write_text(model_card(info), encoding="utf-8")
    compare_with_files(model_state_dict, model, staging)
    if directory.exists():
        shutil.rmtree(directory)
    os.replace(staging, directory)


def _check_replaceable(directory: Path) -> None:
    if directory.exists() and any(directory.iterdir()) and not (directory / EXPORT_FILE).exists():
        raise CheckpointError(
            f"{directory}: the folder holds files that are no export of ours (no {EXPORT_FILE}), and would be "
            "replaced. Choose another folder, or empty it."
        )


def _write_configs(
    model: PreTrainedModel, state_dict: Mapping[str, Tensor], tokenizer: Tokenizer, staging: Path
) -> None:
    """Config files that name the tokenizer's ids and the dtype that was written; those of the model stay as they are.

    `pad_token_id` is left out where padding is the end-of-sequence token: transformers makes it the embedding's
    padding_idx, and the next training would never update the row that ends every segment. T5 has no padding_idx, and
    cannot train without a `pad_token_id`.
    """
    from transformers import GenerationConfig

    config = copy.deepcopy(model.config)
    is_shared = tokenizer.pad_id == tokenizer.eos_id and not is_encoder_decoder(model)
    own_pad_id = None if is_shared else tokenizer.pad_id
    config.bos_token_id, config.eos_token_id, config.pad_token_id = tokenizer.bos_id, tokenizer.eos_id, own_pad_id
    config.dtype = str(next(t.dtype for t in state_dict.values() if t.is_floating_point())).removeprefix("torch.")
    start = {"decoder_start_token_id": decoder_start_id_of(model)} if is_encoder_decoder(model) else {}
    config.update(start)
    config.save_pretrained(staging)
    # A new one: sampling defaults of the model this one was tuned from do not apply to it.
    GenerationConfig(
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id, **start
    ).save_pretrained(staging)


def _export_info(tokenizer: Tokenizer, used: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **extra,
        "format": EXPORT_FORMAT,
        **used,
        "mode_tokens": dict(tokenizer.mode_ids),
        "sentinels": list(tokenizer.sentinel_ids),
        "versions": {
            "flan_tune": flan_tune.__version__,
            "torch": str(torch.__version__),
            "transformers": version("transformers"),
        },
    }


def compare_with_files(state_dict: Mapping[str, Tensor], model: PreTrainedModel, directory: Path) -> None:
    """Re-opens the safetensors in `directory` and compares each tensor with what was to be written.

    A tied weight is written once; it counts as written if the weight it is tied to has the same values.
    Raises: CheckpointError naming the first difference.
    """
    written = _files_of_tensors(directory)
    intended = _as_written(state_dict, model, written)
    unknown = sorted(set(written) - set(intended))
    if unknown:
        raise CheckpointError(f"{directory}: holds weights nobody meant to write: {unknown[:3]}.")
    twins = _tied_names(model)
    for name, tensor in intended.items():
        stored_name = next((n for n in (name, *twins.get(name, ())) if n in written), None)
        if stored_name is None:
            raise CheckpointError(f"{directory}: the weight {name!r} was not written.")
        _compare(_read(written[stored_name], stored_name), tensor.detach().cpu(), f"{directory}: the weight {name!r}")


def _files_of_tensors(directory: Path) -> dict[str, Path]:
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found.update(dict.fromkeys(file.keys(), path))
    return found


def _read(path: Path, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def _as_written(
    state_dict: Mapping[str, Tensor], model: PreTrainedModel, written: Mapping[str, Path]
) -> Mapping[str, Tensor]:
    if set(written) <= set(state_dict):
        return state_dict
    # Families whose files are laid out otherwise than the model in memory (experts in one tensor, for example).
    from transformers.core_model_loading import revert_weight_conversion

    converted: Mapping[str, Tensor] = revert_weight_conversion(model, dict(state_dict))
    return converted


def _tied_names(model: PreTrainedModel) -> dict[str, list[str]]:
    twins: dict[str, list[str]] = {}
    for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        twins.setdefault(name, []).append(source)
        twins.setdefault(source, []).append(name)
    return twins


def _compare(stored: Tensor, meant: Tensor, what: str) -> None:
    if stored.dtype != meant.dtype or stored.shape != meant.shape:
        raise CheckpointError(
            f"{what} is {stored.dtype} {tuple(stored.shape)} in the file; {meant.dtype} {tuple(meant.shape)} was meant."
        )
    # As bytes, so that a NaN equals itself: judging values is not this function's business.
    if not torch.equal(_bytes(stored), _bytes(meant)):
        raise CheckpointError(f"{what} has other values in the file than were meant. Is the disk full or failing?")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def model_card(info: Mapping[str, Any]) -> str:
    """The text of README.md for an export with this flan_tune.json."""
    is_apart = info["layout"] == "encoder_decoder"
    pipeline = "text2text-generation" if is_apart else "text-generation"
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: {pipeline}\n---\n",
        "# A model tuned with flan_tune\n",
    ]
    if is_apart:
        parts.append("An encoder-decoder; it works with `AutoModelForSeq2SeqLM` and its plain `generate`.\n")
    elif info["attention"] == "prefix_lm":
        parts.append(
            "**This is a prefix language model: it must be used with its prefix.** It was trained to attend to the "
            "whole prompt in both directions and to be causal only after it. The plain `generate` of transformers, and "
            "serving systems that are causal throughout, run it otherwise than it was trained, without an error, and "
            "the answers get worse. Use `flan-tune generate MODEL`, or `flan_tune.models.generate.generate(model, "
            'prompts, attention="prefix_lm", ...)`.\n'
        )
    else:
        parts.append("A causal language model; it works with `AutoModelForCausalLM` and any causal back-end.\n")
    if is_apart:
        parts.append("A prompt is the inputs followed by the end-of-sequence token; the decoder gives the answer.\n")
    else:
        parts.append(f"A prompt is the inputs followed by {_separator_in_words(info['separator'])}, then the answer.\n")
    if info["mode_token"]:
        parts.append(f"In training every prompt began with the mode token {info['mode_token']}; begin yours with it.\n")
    elif info["mode_tokens"]:
        parts.append(f"A prompt may begin with one of its mode tokens: {', '.join(sorted(info['mode_tokens']))}.\n")
    versions = ", ".join(f"{name} {number}" for name, number in sorted(info["versions"].items()))
    parts.append(f"Made with {versions}. `{EXPORT_FILE}` says the same for programs.\n")
    return "\n".join(parts)


def _separator_in_words(separator: str) -> str:
    if separator == "eos":
        return "the end-of-sequence token"
    return f"the text {json.dumps(separator)}" if separator else "nothing"


def read_export_info(path: str | Path, revision: str | None = None) -> dict[str, Any]:
    """What flan_tune.json of a model says, in a folder or on the hub; for any other model what holds by default: no
    mode token, causal, and the layout of its config.

    >>> info = read_export_info("no/such/model")
    >>> info["attention"], info["layout"], info["mode_token"]
    ('causal', 'decoder_only', None)

    Raises: CheckpointError for a file of a later format.
    """
    info: dict[str, Any] = {"attention": "causal", "separator": "", "mode_token": None}
    info |= {"mode_tokens": {}, "sentinels": [], "versions": {}}
    file = _find_export_file(path, revision)
    if file is not None:
        info.update(json.loads(file.read_text(encoding="utf-8")))
    if info.get("format", EXPORT_FORMAT) > EXPORT_FORMAT:
        raise CheckpointError(
            f"{file}: has format {info['format']}, this flan_tune reads up to {EXPORT_FORMAT}. Use a later flan_tune."
        )
    if "layout" not in info:
        info["layout"] = _layout_of(path, revision)
    return info


def _layout_of(path: str | Path, revision: str | None) -> str:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(path), revision=revision)
    except (OSError, ValueError):  # loading the weights will say what is wrong
        return "decoder_only"
    return "encoder_decoder" if config.is_encoder_decoder else "decoder_only"


def _find_export_file(path: str | Path, revision: str | None) -> Path | None:
    local = Path(path) / EXPORT_FILE
    if Path(path).is_dir():
        return local if local.exists() else None
    from transformers.utils import cached_file

    try:
        found = cached_file(str(path), EXPORT_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError:  # no such model, no connection, no access: loading the weights will say which
        return None
    return None if found is None else Path(found)
