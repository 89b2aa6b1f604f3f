"""The image files of a data set: in folders, .txt lists and single names; what was passed over on the way."""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.images import IMAGE_SUFFIXES
from utils.text import counted, first

SYSTEM_FOLDERS = {"@eadir", "__macosx", "$recycle.bin", "system volume information", "lost+found"}
NOT_IMAGES = {
    ".txt",
    ".xml",
    ".json",
    ".yaml",
    ".yml",
    ".md",
    ".csv",
    ".npz",
    ".npy",
    ".cache",
    ".part",
    ".html",
    ".ini",
}


@dataclass
class Listing:
    """The images of a data set.

    Attributes:
        images: sorted, without doubles.
        notes: one line for each kind of file that was passed over, skipped or found elsewhere.
    """

    images: list[Path]
    notes: list[str]


@dataclass
class _Walk:
    """What was seen in folders: images, suffixes of other files, skipped and linked folders."""

    images: set[Path] = field(default_factory=set)
    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    loops: list[Path] = field(default_factory=list)


def list_images(sources: Iterable[str | Path]) -> list[Path]:
    """The images in folders (recursive), in .txt lists (one a line) and among `sources`; see find_images."""
    return find_images(sources).images


def find_images(sources: Iterable[str | Path]) -> Listing:
    """The images in folders (recursive, links followed), in .txt lists (one a line) and among `sources`.

    A line of a list is relative to the folder of the list, or else to the working folder. Hidden folders and those that
    systems make, such as `.ipynb_checkpoints`, `@eaDir` and `__MACOSX`, are skipped, and files such as `._a.jpg`.

    Raises:
        FileNotFoundError, ValueError: a source does not exist; no images.
    """
    walk, notes = _Walk(), list[str]()
    places = [Path(source) for source in sources]
    for source in places:
        if source.is_dir():
            _walk(source, walk)
        elif not source.is_file():
            raise FileNotFoundError(f"{source}: no such file, expected a folder, a .txt list or an image")
        elif source.suffix.lower() == ".txt":
            found, note = read_image_list(source)
            walk.images.update(found)
            notes += note
        else:
            walk.images.add(source)
    notes += _notes(walk)
    if not walk.images:
        seen = "".join(f"; {note}" for note in notes)
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{', '.join(str(p) for p in places)}: no images, expected files ending in {suffixes}{seen}")
    return Listing(sorted(walk.images), notes)


def _walk(root: Path, walk: _Walk) -> None:
    """Add what is below `root` to `walk`; links to folders come last, so that no real folder is seen through one."""
    visited, linked = set[str](), [(root, os.path.realpath(root))]
    while linked:
        top, real = linked.pop(0)
        if real in visited:
            walk.loops.append(top)
            continue
        for folder, names, files in os.walk(top):
            if os.path.realpath(folder) in visited:
                names.clear()
                continue
            visited.add(os.path.realpath(folder))
            for name in sorted(names):
                path = Path(folder, name)
                if name.startswith(".") or name.lower() in SYSTEM_FOLDERS:
                    walk.hidden.append(path)
                elif path.is_symlink():
                    walk.links.append(path)
                    linked.append((path, os.path.realpath(path)))
            names[:] = [n for n in names if not (n.startswith(".") or n.lower() in SYSTEM_FOLDERS)]
            for name in files:
                path = Path(folder, name)
                if name.startswith("."):
                    walk.hidden += [path] if path.suffix.lower() in IMAGE_SUFFIXES else []
                elif path.suffix.lower() in IMAGE_SUFFIXES:
                    walk.images.add(path)
                elif path.suffix.lower() not in NOT_IMAGES and ".pixels-" not in name:
                    walk.suffixes[path.suffix.lower() or "without suffix"] += 1


def _notes(walk: _Walk) -> list[str]:
    """The lines about what was passed over, skipped and followed."""
    notes = []
    if walk.suffixes:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in walk.suffixes.most_common(8))
        more = f" and {len(walk.suffixes) - 8} more kinds" if len(walk.suffixes) > 8 else ""
        notes.append(f"passed over, no images by their suffix: {counts}{more}")
    if walk.hidden:
        notes.append(f"skipped {counted(len(walk.hidden), 'hidden or system name')}: {first(walk.hidden)}")
    if followed := [link for link in walk.links if link not in walk.loops]:
        notes.append(f"followed {counted(len(followed), 'linked folder')}: {first(followed)}")
    if walk.loops:
        what = counted(len(walk.loops), "linked folder")
        notes.append(f"not followed: {what} whose target was seen already: {first(walk.loops)}")
    return notes


def read_text(path: Path) -> str:
    """The text of a UTF-8 or UTF-16 file, with or without a byte order mark (UTF-16 needs one).

    Raises:
        ValueError: it is neither; names the file.
    """
    data = path.read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def read_image_list(path: Path) -> tuple[list[Path], list[str]]:
    """The images named in a .txt file, one a line, and notes about names that were found elsewhere or nowhere.

    A name with backslashes is read with slashes. One that does not exist is looked for without its first folders, as
    exports name folders of another machine.

    Raises:
        ValueError: not text; no line names a file.
    """
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    found, shortened, missing = list[Path](), list[str](), list[str]()
    roots = list(dict.fromkeys([path.parent, Path.cwd()]))
    for name in names:
        file = _named(name, roots)
        if file is None and (file := _shortened(name, roots)) is not None:
            shortened.append(name)
        if file is None:
            missing.append(name)
            file = path.parent / name
        found.append(file)
    if names and len(missing) == len(names):
        places = ", ".join(str(root) for root in roots)
        raise ValueError(f"{path}: none of its {len(names)} lines is a file, such as '{names[0]}', looked in {places}")
    notes = []
    if shortened:
        lines = counted(len(shortened), "line")
        notes.append(f"{path}: {lines} found without the first folders of the name: {first(shortened)}")
    if missing:
        notes.append(f"{path}: {len(missing)} of {len(names)} lines name no file: {first(missing)}")
    return found, notes


def _named(name: str, roots: Sequence[Path]) -> Path | None:
    """The file `name` below the first of `roots` that has it, also if its slashes are backslashes."""
    spellings = dict.fromkeys([name, name.replace("\\", "/")])
    tries = (root / Path(spelling).expanduser() for spelling in spellings for root in roots)
    return next((file for file in tries if file.is_file()), None)


def _shortened(name: str, roots: Sequence[Path]) -> Path | None:
    """The file below `roots` with the longest end of `name` that there is; the folder above the file must agree."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    tries = (root.joinpath(*parts[k:]) for k in range(len(parts) - 1) for root in roots)
    return next((file for file in tries if file.is_file()), None)
