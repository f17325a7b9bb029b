"""Results as plain values for JSON, and as Markdown for people."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmsrec_jax.benchmark import table9
from llmsrec_jax.benchmark.timing import Spread

TITLES = {
    "train": "training, an epoch",
    "users": "inference, all evaluated users",
    "items": "inference, all items",
    "teacher": "teacher, an epoch",
    "alignment": "A-LLMRec's stage 1, an epoch",
}

GROWTH_AXES = {
    "users": "users",
    "items": "items",
    "history": "items in a history",
    "llm": "parameters of the LLM",
}
GROWTH = {
    "prepare": "host: preparing data, s",
    "plan": "host: planning shapes, s",
    "load": "host: building the batches of an epoch, s",
    "train": "training, an epoch, s",
    "encode_users": "encoding all users, s",
    "encode_items": "encoding all items, s",
    "host_peak": "host: arrays at most, MiB",
    "host": "host: arrays while training, MiB",
    "arguments": "device: arguments of the largest program, MiB",
    "temporary": "device: temporary memory of the largest program, MiB",
}
MIB = 2**20


def plain(value: Any) -> Any:
    """Of spreads, tuples and numpy numbers."""
    if isinstance(value, Spread):
        return value._asdict()
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def markdown(results: Mapping[str, Any]) -> str:
    where = results["environment"]
    quant = "" if where["quant"] == "none" else f" {where['quant']}"
    lines = [
        f"# {where['backbone']} in {where['dtype']}{quant} on {where['devices']} x {where['device']}",
        "",
        f"{where['date']}, {where['cores']} cores, Python {where['python']}, "
        + ", ".join(f"{name} {version}" for name, version in where["packages"].items())
        + f". Data: {where['data']}, {where['sizes']['users']} users, {where['sizes']['items']} items.",
    ]
    for part in (_stages, _memory, _inference, _data, _table9, _versus, _growth):
        if found := part(results):
            lines += ["", *found]
    return "\n".join(lines) + "\n"


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    line = lambda cells: f"| {' | '.join(cells)} |"
    return [line(columns), line(["---"] * len(columns)), *map(line, rows)]


def _stages(results: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, title in TITLES.items():
        if name not in results:
            continue
        found = results[name]
        minutes = found.get("minutes_per_epoch") or found["minutes"]
        rows.append(
            [
                *(title, _spread(minutes), _number(found["rows_per_s"])),
                *(_number(found["tokens_per_s"]), _number(found["live_tokens_per_s"])),
                *(f"{found['share_of_peak']:.1%}", f"{found['whole_share_of_peak']:.1%}"),
                f"{found['programs']}",
                f"{found['trace_seconds'] + found['compile_seconds']:.1f}",
                f"{found['peak_bytes'] / 2**30:.2f} ({found['peak_of']})",
                f"{found['temporary_bytes'] / 2**30:.2f}",
            ]
        )
    if not rows:
        return []
    columns = ["stage", "minutes: median (min .. max)", "rows/s", "tokens/s", "live tokens/s"]
    columns += ["useful / peak", "whole prompts / peak", "programs", "compile s", "peak GiB so far"]
    peak = results["peak"]
    note = (
        f"Matmul peak measured: {peak['flops_per_s'] / 1e12:.3g} TFLOP/s ({peak['dtype']}, "
        f"{peak['size']} x {peak['size']}). Rows are users (items where items are encoded). Useful operations are counted "
        "from real lengths (llama/flops.py); those of whole prompts are what the job takes without shortcuts."
    )
    return [*_table([*columns, "temporary GiB"], rows), "", note]


def _memory(results: Mapping[str, Any]) -> list[str]:
    lines = []
    if "store" in results:
        kept = results["store"]
        lines.append(
            f"Item prefixes kept (llm.item_store={kept['kind']}): {kept['bytes'] / 2**30:.3g} GiB, made once in "
            f"{_number(kept['wall'])} s, compilation included."
        )
    if "train" in results:
        found = results["train"]
        counted = found["arguments_bytes"] + found["temporary_bytes"]
        lines.append(
            f"Memory of a training step: estimated beforehand {found['estimated_bytes'] / 2**30:.3g} GiB, by XLA's "
            f"account {counted / 2**30:.3g} GiB: {found['estimated_bytes'] / counted:.2f} times as much."
        )
    return lines


def _inference(results: Mapping[str, Any]) -> list[str]:
    if not {"users", "items"} <= set(results):
        return []
    both = [results[name]["minutes"] for name in ("users", "items")]
    total = {key: sum(minutes[key] for minutes in both) for key in both[0]}
    return [f"Inference, users and items together: {_spread(total)} minutes."]


def _data(results: Mapping[str, Any]) -> list[str]:
    lines = []
    if "data" in results:
        found = results["data"]
        lines = [
            f"Data loading (one host thread): {_spread(found['minutes_per_epoch'])} minutes per epoch, "
            f"{_number(found['users_per_s'])} users/s, planning {found['planning_seconds']:.2f} s. A step has "
            f"{_number(found['tokens_per_step'])} tokens, {_number(found['live_tokens_per_step'])} of them live, in "
            f"{_number(found['padded_tokens_per_step'])} places (prefixes that are kept need none)."
        ]
    if "teacher" in results:
        loading = _spread(results["teacher"]["loading_minutes_per_epoch"])
        lines.append(f"The teacher's data loading: {loading} minutes per epoch.")
    return lines


def _table9(results: Mapping[str, Any]) -> list[str]:
    if not results.get("table9"):
        return []
    columns = ["Table 9, minutes", "Scientific, train/epoch", "inference"]
    columns += ["Electronics, train/epoch", "inference"]
    paper = {f"paper, {name}, A6000": row for name, row in table9.PAPER.items()}
    cells = lambda row: ["-" if value is None else _number(value) for value in row]
    rows = [[name, *cells(row)] for name, row in (paper | results["table9"]).items()]
    note = (
        "Our rows are projected: the useful operations of each dataset (its users, items and interactions as in Table 10, "
        f"lengths of real titles; inference: {table9.INFERRED_USERS:,} users, and all items where those are read) over the rates "
        "measured above."
    )
    given = results["config"]
    if given["prompts"]["task"] == "title":
        note += " The paper's rows retrieve; ours write titles, with those of all candidates behind every user's prompt."
    if given["lora"]["first"] or given["alignment"]["text"]:
        note += " What trains before, CoLLM's LoRA or A-LLMRec's stage 1, is no part of them."
    return [*_table(columns, rows), "", note]


def _versus(results: Mapping[str, Any]) -> list[str]:
    rows = []
    for stage, found in results.get("versus", {}).items():
        for name, seconds in found["seconds"].items():
            ratios = [found[key].get(name) for key in ("times_faster", "times_faster_cpu")]
            rows.append(
                [
                    *(stage, name, _spread(seconds), _spread(found["cpu_seconds"][name])),
                    *("" if ratio is None else _spread(ratio) for ratio in ratios),
                ]
            )
    if not rows:
        return []
    columns = ["compared", "", "seconds: median (min .. max)", "CPU seconds", "ours is faster x"]
    return _table([*columns, "in CPU seconds x"], rows)


def _growth(results: Mapping[str, Any]) -> list[str]:
    lines = []
    for axis, found in results.get("growth", {}).items():
        rows = []
        for name, values in found["values"].items():
            unit = MIB if name in found["bytes_each"] else 1
            fitted = found["exponents"][name]
            shown = "-" if fitted is None else f"{round(fitted, 2) + 0.0:.2f}"  # no -0.00
            mark = " (!)" if name in found["above"] else ""
            cells = [_number(value / unit) for value in values]
            rows.append([GROWTH[name], *cells, shown + mark, str(found["at_most"][name])])
        points = [f"{x:,}" for x in found["x"]]
        columns = [f"growth with {GROWTH_AXES[axis]}", *points, "exponent", "by design at most"]
        lines += [*_table(columns, rows), ""]
    if not lines:
        return []
    note = (
        "Made data; all titles are equally long and all users have a full history, so that every program has one shape. Times of "
        "an epoch or a pass: of one step or block, by their number. Exponents by least squares of logarithms; (!): above the "
        "design's."
    )
    if users := results["growth"].get("users"):
        each = users["bytes_each"]
        note += (
            f" A user more costs {each['arguments'] + each['temporary']:,.0f} bytes on the device. On the host it costs "
            f"{each['host']:,.0f}: interactions, candidates, the length of its prompt and the teacher's vector; at most "
            f"{each['host_peak']:,.0f} at any time."
        )
    return [*lines, note]


def _spread(found: Mapping[str, float]) -> str:
    low, middle, high = (_number(found[name]) for name in ("min", "median", "max"))
    return f"{middle} ({low} .. {high})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
