"""Damages of a folder's files, drawn from a seed, and what each of them came to."""

import json
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# How many of each are drawn for a file: of code, which does not run where hf_esc is installed, few.
_BYTES = {"truncated": 3, "zeroed": 2, "flipped": 4}
_OF_CODE = {"truncated": 1, "zeroed": 0, "flipped": 1}
_FIELDS, _SWAPS = 24, 3


def damages(folders: Path, seed: int) -> Iterator[dict[str, Any]]:
    """All damages of all folders below `folders`: each names a folder, a file, and what is done to it."""
    for folder in sorted(folders.iterdir()):
        for file in sorted(item for item in folder.rglob("*") if item.is_file()):
            name = file.relative_to(folder).as_posix()
            draw = random.Random(f"{seed}/{folder.name}/{name}")
            for how in _of_file(folders, file, name, draw):
                yield {"folder": folder.name, "file": name, **how}


def _of_file(folders: Path, file: Path, name: str, draw: random.Random) -> Iterator[dict[str, Any]]:
    size = file.stat().st_size
    counts = _OF_CODE if file.suffix == ".py" else _BYTES
    yield {"how": "removed"}
    if not size:
        return
    for at in [draw.randrange(size), 0, size - 1][: counts["truncated"]]:
        yield {"how": "truncated", "at": at}
    # The header of safetensors is short, and says what all the other bytes mean.
    header = 8 + struct.unpack("<Q", file.read_bytes()[:8])[0] if file.suffix == ".safetensors" else 0
    for number in range(counts["zeroed"]):
        end = header if header and number % 2 else size
        at = draw.randrange(end)
        yield {"how": "zeroed", "at": at, "length": min(draw.choice([1, 16, 256]), size - at)}
    for number in range(counts["flipped"]):
        end = header if header and number % 2 else size
        bits = sorted(draw.randrange(8 * end) for _ in range(draw.choice([1, 1, 16])))
        yield {"how": "flipped", "bits": bits}
    if header:
        tensors = [key for key in _header(file) if key != "__metadata__"]
        ours = [key for key in tensors if "projection" in key]
        for key in dict.fromkeys([*ours, *draw.sample(tensors, min(4, len(tensors)))]):
            yield {"how": "tensor zeroed", "tensor": key}
            yield {"how": "tensor flipped", "tensor": key, "bit": draw.randrange(1 << 30)}
    others = [other for other in sorted(folders.iterdir()) if (other / name).is_file()]
    others = [other for other in others if (other / name).read_bytes() != file.read_bytes()]
    for other in draw.sample(others, min(_SWAPS, len(others))):
        yield {"how": "swapped", "with": other.name}
    if file.suffix == ".json":
        fields = list(_leaves(json.loads(file.read_text(encoding="utf-8"))))
        for path in draw.sample(fields, min(_FIELDS, len(fields))):
            yield {"how": draw.choice(["field changed", "field changed", "field dropped"]), "field": path}


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))


def _leaves(value: Any, path: tuple = ()) -> Iterator[list]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield [*path, key]
        yield from _leaves(item, (*path, key))


def apply(case: dict[str, Any], folders: Path, target: Path) -> None:
    """Make a damaged copy of the case's folder at `target`."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folders / case["folder"], target)
    file = target / case["file"]
    spoil(case, file, folders)


def spoil(case: dict[str, Any], file: Path, folders: Path | None = None) -> None:
    """Do to a file what the case says."""
    data = bytearray(file.read_bytes())
    match case["how"]:
        case "removed":
            file.unlink()
            return
        case "truncated":
            del data[case["at"] :]
        case "zeroed":
            data[case["at"] : case["at"] + case["length"]] = bytes(case["length"])
        case "flipped":
            for bit in case["bits"]:
                data[bit // 8] ^= 1 << bit % 8
        case "tensor zeroed" | "tensor flipped":
            start = 8 + struct.unpack("<Q", data[:8])[0]
            first, last = (start + offset for offset in _header(file)[case["tensor"]]["data_offsets"])
            if case["how"] == "tensor zeroed":
                data[first:last] = bytes(last - first)
            elif last > first:
                bit = case["bit"] % (8 * (last - first))
                data[first + bit // 8] ^= 1 << bit % 8
        case "swapped":
            assert folders is not None
            data = bytearray((folders / case["with"] / case["file"]).read_bytes())
        case "field changed" | "field dropped":
            values = json.loads(data)
            *way, last_key = case["field"]
            place = values
            for key in way:
                place = place[key]
            if case["how"] == "field dropped":
                del place[last_key]
            else:
                place[last_key] = _other(place[last_key])
            data = bytearray(json.dumps(values, indent=2).encode())
    file.write_bytes(data)


def _other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return value[:-1] if len(value) > 1 else [*value, *value] if value else [1]
    return {} if value else {"x": 1}


REFUSED, CAUGHT, SAME = "refused at load", "caught by verify", "computes the same"
FAILS, OTHERWISE = "fails when used", "computes otherwise"


def judged(found: dict[str, Any], whole: dict[str, Any]) -> tuple[str, list[str]]:
    """
    What a damage came to, and which laws it breaks.

    Args:
        found (`dict`): What was seen of the damaged folder, as `faults_look.look` says it.
        whole (`dict`): The same of the folder without damage.
    """
    load, auto, verify = found["load"], found["auto"], found["verify"]
    broken = []
    for way, title in ((load, "load_classifier"), (auto, "from_pretrained")):
        if way.get("given", 0) > whole["load"]["given"] + 1e-9:
            broken.append(f"the class is back by {title}")
    if "error" in load and not load["typed"]:
        broken.append(f"load_classifier raises {load['error']}")
    if "raw" in verify:
        broken.append(f"verify ends with {verify['raw']}")
    if "evaluation" in whole:
        evaluation = found.get("evaluation", {"error": "missing", "typed": True})
        if not evaluation.get("typed", True):
            broken.append(f"the evaluation raises {evaluation['error']}")
        elif "error" not in evaluation and evaluation != whole["evaluation"] and verify["code"] == 0:
            broken.append("an edited evaluation is believed")
    if "error" in load:
        return REFUSED, broken
    if verify["code"]:
        return CAUGHT, broken
    if "fails" in load:
        return FAILS, broken
    if _same(load, whole["load"]):
        return SAME, broken
    return OTHERWISE, [*broken, "computes otherwise, and verify passes"]


def _same(load: dict[str, Any], whole: dict[str, Any]) -> bool:
    """Names and logits. Another place in memory can mean another kernel, and another last digit."""
    pairs = zip(load["logits"], whole["logits"], strict=True)
    near = all(abs(a - b) <= 1e-3 for rows in pairs for a, b in zip(*rows, strict=True))
    return near and load["names"] == whole["names"]
