"""Ways to damage a store at random."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from harness.store.integrity.lines import Chain
from tests.support.journals import Entries, forge

VALUES: tuple[Any, ...] = (
    *(None, -1, 0, 1.5, True, "", "x", "\ud800", [], {}, [1], {"a": 1}, 10**30, float("nan"), float("inf")),
    *([[[[[[[]]]]]]], "../../x"),
)
NONE = "none"
"""The name of a damage that was not possible."""


class Damage(NamedTuple):
    """What was done to a store."""

    name: str
    file: str
    forged: bool = False
    """Whether all checksums were computed again, so that only nonsense can be noticed."""


def apply(root: Path, rng: random.Random) -> Damage:
    """Damage a store in one random way."""
    name = rng.choice(sorted(_WAYS))
    before = _plain_files(root, "**/*")
    file = rng.choice(before or [root])
    try:
        forged = bool(_WAYS[name](file, root, rng))
    except Exception:
        # What an earlier damage left cannot be read, so not be damaged in this way; how often is counted.
        return Damage(NONE, str(file.relative_to(root)))
    return Damage(name, str(file.relative_to(root)), forged)


def _plain_files(root: Path, pattern: str) -> list[Path]:
    """Files that can be read: no links, which may lead to a device, and no pipes, which block."""
    return sorted(path for path in root.glob(pattern) if path.is_file() and not path.is_symlink())


def _flip(file: Path, _: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _cut(file: Path, _: Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size + 1))


def _fill(file: Path, _: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    start = rng.randrange(len(content))
    rest = rng.choice((b"\0" * 64, rng.randbytes(64), b"[" * 100_000, b"\xff\xfe"))
    file.write_bytes(content[:start] + rest + content[start + len(rest) :])


def _replace(file: Path, _: Path, rng: random.Random) -> None:
    file.write_bytes(rng.choice((b"", b"{}", b"null", b"[]\n", b"\n\n", rng.randbytes(300), b"[" * 200_000)))


def _delete(file: Path, _: Path, rng: random.Random) -> None:
    file.unlink()


def _lines(file: Path, _: Path, rng: random.Random) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.choice(("double", "drop", "swap")):
        case "double":
            lines.insert(other, lines[one])
        case "drop":
            del lines[one]
        case _:
            lines[one], lines[other] = lines[other], lines[one]
    file.write_bytes(b"".join(lines))


def _exchange(_: Path, root: Path, rng: random.Random) -> None:
    """Exchange the same file of two runs, or let one run have that of the other."""
    name = rng.choice(("journal.jsonl", "manifest.json", "records.parquet", "records.jsonl"))
    one, other = rng.sample(_plain_files(root, f"*/{name}"), 2)
    mine, theirs = one.read_bytes(), other.read_bytes()
    one.write_bytes(theirs)
    if rng.random() < 0.5:
        other.write_bytes(mine)


def _edit_line(_: Path, root: Path, rng: random.Random) -> None:
    """Change a number in a journal as an editor would, with the checksum of its line but not its chain."""
    file = rng.choice(_plain_files(root, "*/journal.jsonl"))
    lines = file.read_bytes().splitlines(keepends=True)
    number = rng.randrange(len(lines))
    entry = json.loads(lines[number])
    if not _change(entry["data"], rng, (rng.randrange(259),)):
        raise ValueError("nothing to change")
    line = Chain("", "").encode(entry["kind"], entry["data"])[0]
    if "chain" in entry:
        body = line[len(b'{"crc":"00000000",') : -1]
        body = b'"run":"%s","chain":"%s",%s' % (entry["run"].encode(), entry["chain"].encode(), body)
        line = b'{"crc":"%08x",%s\n' % (zlib.crc32(body), body)
    file.write_bytes(b"".join([*lines[:number], line, *lines[number + 1 :]]))


def _edit_manifest(_: Path, root: Path, rng: random.Random) -> None:
    file = rng.choice(_plain_files(root, "*/manifest.json"))
    manifest = json.loads(file.read_text())
    _change(manifest, rng, VALUES)
    file.write_text(json.dumps(manifest))


def _forge_journal(_: Path, root: Path, rng: random.Random) -> bool:
    """Put a wrong value somewhere and compute all checksums again."""
    folder = rng.choice(_plain_files(root, "*/journal.jsonl")).parent

    def edit(entries: Entries) -> None:
        number = rng.randrange(len(entries))
        kind, data = entries[number]
        if rng.random() < 0.1 or not _change(data, rng, VALUES):
            entries[number] = (kind, rng.choice(VALUES))

    forge(folder, edit, chained=rng.random() < 0.7)
    return True


def _forge_manifest(_: Path, root: Path, rng: random.Random) -> bool:
    folder = rng.choice(_plain_files(root, "*/journal.jsonl")).parent
    forge(folder, of_manifest=lambda manifest: _change(manifest, rng, VALUES), chained=rng.random() < 0.7)
    return True


def _change(tree: Any, rng: random.Random, values: tuple[Any, ...]) -> bool:
    """Put one of `values` at a random place of nested JSON, or remove what is there."""
    places: list[tuple[Any, Any]] = []
    todo = [tree]
    while todo:
        node = todo.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            places.append((node, key))
            todo.append(value)
    if not places:
        return False
    node, key = rng.choice(places)
    old = node[key]
    if values is VALUES and rng.random() < 0.15:
        del node[key]
    else:
        node[key] = rng.choice(values)
        return bool(node[key] != old)
    return True


def _link(file: Path, root: Path, rng: random.Random) -> None:
    """Put a link in the place of a file, to one outside that must stay as it is."""
    file.unlink()
    target = rng.choice(
        (root.parents[1] / "outside", Path("/dev/zero"), root / "nowhere", root.parents[1] / "new")
    )
    file.symlink_to(target)


def _link_lock(_: Path, root: Path, rng: random.Random) -> None:
    folder = rng.choice([path for path in sorted(root.iterdir()) if path.is_dir()])
    name = rng.choice(("lock", "manifest.json.part", "records.jsonl.part", "figures", "figures.part"))
    for place in (folder / name, root / ".packing"):
        with suppress(OSError):
            place.unlink(missing_ok=True)
            place.symlink_to(root.parents[1] / "outside")


def _link_folder(_: Path, root: Path, rng: random.Random) -> None:
    """Move a run elsewhere and leave a link."""
    folder = rng.choice([path for path in sorted(root.iterdir()) if path.is_dir() and not path.is_symlink()])
    elsewhere = root.parent / f"moved-{folder.name}"
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)


def _pipe(file: Path, _: Path, rng: random.Random) -> None:
    file.unlink()
    if rng.random() < 0.5:
        os.mkfifo(file)
    else:
        file.mkdir()


def _archive(_: Path, root: Path, rng: random.Random) -> None:
    """Add to an archive what must not be unpacked."""
    pack = rng.choice(_plain_files(root, "packed-*.zip"))
    way = rng.choice(("outside", "absolute", "double", "link", "bomb", "dot", "file and folder", "deep"))
    run = next(name.split("/")[0] for name in zipfile.ZipFile(pack).namelist())
    member = zipfile.ZipInfo(
        {
            "outside": f"{run}/../../new",
            "absolute": f"{root.parents[1]}/new",
            "double": f"{run}/manifest.json",
            "link": f"{run}/lock",
            "bomb": f"{run}/journal.jsonl.more",
            "dot": ".packing",
            "file and folder": run,
            "deep": f"{run}/" + "a/" * 5000 + "b",
        }[way]
    )
    member.compress_type = zipfile.ZIP_DEFLATED
    if way == "link":
        member.external_attr = 0o120777 << 16
    with warnings.catch_warnings(), zipfile.ZipFile(pack, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(member, b"\0" * (200 << 20) if way == "bomb" else b"/etc/hostname")


_WAYS: dict[str, Callable[[Path, Path, random.Random], bool | None]] = {
    "a bit": _flip,
    "cut": _cut,
    "filled": _fill,
    "replaced": _replace,
    "deleted": _delete,
    "lines": _lines,
    "exchanged": _exchange,
    "edited line": _edit_line,
    "edited manifest": _edit_manifest,
    "forged journal": _forge_journal,
    "forged manifest": _forge_manifest,
    "link": _link,
    "planted links": _link_lock,
    "linked folder": _link_folder,
    "pipe": _pipe,
    "archive": _archive,
}
