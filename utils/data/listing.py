"""The image files of a data set: in folders, .txt lists and single names; what was passed over on the way."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.images import IMAGE_SUFFIXES
from utils.reading import check_file, is_file, lines_of, read_text
from utils.text import clean, counted, first

MAX_NAME = 4096  # characters of a path, as in Linux
MAX_LEVELS = 32  # of folders, from the end of a name that is looked for without its first ones
MAX_SEARCHES = 10_000  # of such names in one list that are found nowhere; later ones are only looked for as written
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
    """What was seen in folders: images, suffixes of other files, skipped, linked and unreadable folders."""

    images: set[Path] = field(default_factory=set)
    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    loops: list[Path] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)


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
        elif not is_file(source):
            if source.exists():
                check_file(source, "image")  # which says what it is
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
        raise ValueError(f"{first(places)}: no images, expected files ending in {suffixes}{seen}")
    return Listing(sorted(walk.images), notes)


def _walk(root: Path, walk: _Walk) -> None:
    """Add what is below `root` to `walk`; links to folders come last, so that no real folder is seen through one."""
    visited, linked = set[tuple[int, int]](), [root]
    while linked:
        top = linked.pop(0)
        if _identity(top) in visited:
            walk.loops.append(top)
            continue
        waiting = [str(top)]
        while waiting:  # os.walk calls itself, which ends at a thousand levels
            folder = waiting.pop()
            identity = _identity(folder)
            if identity in visited:
                continue
            visited.add(identity)
            try:
                with os.scandir(folder) as entries:
                    found = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                walk.closed.append(f"{folder} ({error.strerror})")
                continue
            folders = [entry for entry in found if _is_folder(entry)]
            for entry in reversed(folders):
                path = Path(entry.path)
                if entry.name.startswith(".") or entry.name.lower() in SYSTEM_FOLDERS:
                    walk.hidden.append(path)
                elif entry.is_symlink():
                    walk.links.append(path)
                    linked.append(path)
                else:
                    waiting.append(entry.path)
            names = {entry.name for entry in folders}
            for entry in found:
                if entry.name not in names:
                    _add_file(Path(entry.path), walk)


def _identity(folder: str | Path) -> tuple[int, int]:
    """What is the same for a folder and every link to it; (0, 0) if it cannot be reached."""
    try:
        state = os.stat(folder)
    except OSError:
        return 0, 0
    return state.st_dev, state.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _add_file(path: Path, walk: _Walk) -> None:
    name, suffix = path.name, path.suffix.lower()
    if name.startswith("."):
        walk.hidden += [path] if suffix in IMAGE_SUFFIXES else []
    elif suffix in IMAGE_SUFFIXES:
        walk.images.add(path)
    elif suffix not in NOT_IMAGES and ".pixels-" not in name:
        walk.suffixes[suffix or "without suffix"] += 1


def _notes(walk: _Walk) -> list[str]:
    """The lines about what was passed over, skipped and followed."""
    notes = []
    if walk.suffixes:
        counts = ", ".join(f"{count} {clean(suffix, 40)}" for suffix, count in walk.suffixes.most_common(8))
        more = f" and {len(walk.suffixes) - 8} more kinds" if len(walk.suffixes) > 8 else ""
        notes.append(f"passed over, no images by their suffix: {counts}{more}")
    if walk.closed:
        notes.append(f"not read, {counted(len(walk.closed), 'folder')} that cannot be opened: {first(walk.closed)}")
    if walk.hidden:
        notes.append(f"skipped {counted(len(walk.hidden), 'hidden or system name')}: {first(walk.hidden)}")
    if followed := [link for link in walk.links if link not in walk.loops]:
        notes.append(f"followed {counted(len(followed), 'linked folder')}: {first(followed)}")
    if walk.loops:
        what = counted(len(walk.loops), "linked folder")
        notes.append(f"not followed: {what} whose target was seen already: {first(walk.loops)}")
    return notes


def read_image_list(path: Path) -> tuple[list[Path], list[str]]:
    """The images named in a .txt file, one a line, and notes about names that were found elsewhere or nowhere.

    A name with backslashes is read with slashes. One that does not exist is looked for without its first folders, as
    exports name folders of another machine.

    Raises:
        ValueError: not text; no line names a file.
    """
    names = [name for line in lines_of(read_text(path, "list of images")) if (name := line.strip())]
    for name in names:
        if len(name) > MAX_NAME or "\0" in name or not Path(name).name:
            raise ValueError(f"{path}: '{clean(name, 60)}' is not the name of a file, expected one image a line")
    found, shortened, missing = list[Path](), list[str](), list[str]()
    roots = list(dict.fromkeys([path.parent, Path.cwd()]))
    for name in names:
        file = _named(name, roots)
        search = file is None and len(missing) < MAX_SEARCHES
        if search and (file := _shortened(name, roots)) is not None:
            shortened.append(name)
        if file is None:
            missing.append(name)
            file = path.parent / name
        found.append(file)
    if names and len(missing) == len(names):
        places = ", ".join(str(root) for root in roots)
        example = clean(names[0], 90)
        raise ValueError(f"{path}: none of its {len(names)} lines is a file, such as '{example}', looked in {places}")
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
    tries = (root / os.path.expanduser(spelling) for spelling in spellings for root in roots)
    return next((file for file in tries if is_file(file)), None)


def _shortened(name: str, roots: Sequence[Path]) -> Path | None:
    """The file below `roots` with the longest end of `name` that there is; the folder above the file must agree."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    ends = [parts[k:] for k in range(max(len(parts) - MAX_LEVELS, 0), len(parts) - 1)]
    tries = (root.joinpath(*end) for end in ends for root in roots)
    return next((file for file in tries if is_file(file)), None)
