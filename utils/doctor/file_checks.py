"""Checks of files: splits, images that cannot be used, labels that belong to nothing, orientation."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from utils.data.annotations import CocoLabels, VocLabels
from utils.data.labels import TextLabels
from utils.doctor.findings import ERROR, NOTE, WARNING, Example, Finding, finding, listed, many
from utils.doctor.survey import ImageRecord, Survey, all_records
from utils.images import IMAGE_SUFFIXES

PASSED_OVER = {
    ".avif",
    ".dng",
    ".gif",
    ".heic",
    ".heif",
    ".ico",
    ".jfif",
    ".jp2",
    ".jxl",
    ".pcx",
    ".pgm",
    ".ppm",
    ".tga",
}
MOST = 0.5  # share of the images of a split from which on a fault is an error
TURNED = {2: "mirrored", 3: "upside down", 4: "mirrored", 5: "sideways", 6: "sideways", 7: "sideways", 8: "sideways"}
COMMON_MODES = {"RGB", ""}


def splits(found: Survey) -> Iterator[Finding]:
    """Splits that are missing, empty or cannot be read."""
    for split in found.values():
        if split.problem:
            level = WARNING if split.name == "test" and "no such file" in split.problem else ERROR
            yield finding(
                "splits", level, f"{split.name}: {split.problem}", "Correct the data YAML or the file.", (), 1
            )
    for name, need in (("train", "nothing can be trained"), ("val", "nothing shows whether training works")):
        if name not in found:
            level = ERROR if name == "train" else WARNING
            yield finding("splits", level, f"there is no {name} split: {need}", f"Add '{name}:' to the YAML.", (), 1)


def unusable_images(found: Survey) -> Iterator[Finding]:
    """Images that training leaves out: missing files, unreadable ones, and those without an entry."""
    advice = {
        "no such file": "Correct the list, or the folder that its lines are relative to.",
        "not a readable image": "Replace or delete these files.",
        "": "Add entries for these images, or take the images out of the split.",
    }
    for split in found.values():
        groups: dict[str, list[ImageRecord]] = defaultdict(list)
        for record in split.records:
            if record.problem:
                groups[next(start for start in advice if record.problem.startswith(start))].append(record)
        for start, records in groups.items():
            level = ERROR if len(records) > MOST * len(split.records) else WARNING
            what = {"no such file": "do not exist", "": "have no entry in the annotation file"}.get(
                start, "are unreadable"
            )
            text = f"{split.name}: {len(records):,} of {many(len(split.records), 'image')} {what} and would be left out"
            yield finding("unusable images", level, text, advice[start], (say(r, r.problem) for r in records))


def damaged_images(found: Survey) -> Iterator[Finding]:
    """Images that one decoder reads and another one complains about: cut short, or of a rare kind."""
    damaged = [record for _, record in all_records(found) if record.damage and record.usable]
    if damaged:
        text = f"{many(len(damaged), 'image')} can be read, but a second decoder complains: cut short or damaged"
        advice = "Look at them: the lower part of a file that was cut short is gray."
        yield finding("damaged images", WARNING, text, advice, (show(r, r.damage) for r in damaged))


def unlabeled_images(found: Survey) -> Iterator[Finding]:
    """Images without a label file, which count as background; and splits that are nothing else."""
    for split in found.values():
        usable = split.usable
        without = [record for record in usable if not record.labeled]
        boxes = sum(len(record.labels.label) for record in usable)
        crowds = sum(int(record.labels.crowd.sum()) for record in usable)
        if usable and boxes == crowds and split.name != "test":
            what = "all labels are crowds, which nothing is learned from" if boxes else "there are no labels"
            text = f"{split.name}: {what} ({many(len(usable), 'image')}, {many(boxes, 'box', 'boxes')})"
            example = Example(f"looked for files such as {usable[0].label_file}")
            yield finding("unlabeled images", ERROR, text, "Put the labels where they are looked for.", [example])
        elif without:
            level = WARNING if len(without) > MOST * len(usable) else NOTE
            text = (
                f"{split.name}: {many(len(without), 'image')} of {len(usable):,} have no label file, so are background"
            )
            advice = "Right if they show no object of any class; an empty label file says so."
            yield finding("unlabeled images", level, text, advice, (show(r, f"no {r.label_file}") for r in without))


def stray_labels(found: Survey) -> Iterator[Finding]:
    """Label files without an image; an error if they look like the missing ones of images that have none."""
    wanted = {record.label_file for _, record in all_records(found)}
    without = {key(r.label_file): r for _, r in all_records(found) if r.problem != "no such file" and not r.labeled}
    mislaid, orphans = list[Example](), list[Example]()
    for file in sorted(label_files(found) - wanted):
        record = without.get(key(file))
        if record:
            mislaid.append(show(record, f"{file} is not read; it would be as {record.label_file}"))
        else:
            orphans.append(Example(f"{file}: no image"))
    if mislaid:
        text = f"{many(len(mislaid), 'label file')} are not read: their names or places do not fit their images"
        yield finding("mislaid labels", ERROR, text, "Rename or move them; the images count as background.", mislaid)
    if orphans:
        text = f"{many(len(orphans), 'label file')} belong to no image of any split"
        yield finding("orphaned labels", WARNING, text, "Find the images, or delete the files.", orphans)


def key(file: Path) -> str:
    """What the names of an image and of its label file share when spelling, suffixes and folders are set aside."""
    stem = Path(file.stem)
    return (stem.stem if stem.suffix.lower() in IMAGE_SUFFIXES else stem.name).casefold()


def label_files(found: Survey) -> set[Path]:
    """All files with labels in the folders of the labels, and beside images that have none."""
    files: set[Path] = set()
    for split in found.values():
        if isinstance(split.reader, TextLabels):
            folders = {record.label_file.parent for record in split.records}
            folders |= {record.path.parent for record in split.records if not record.labeled}
            for folder in filter(Path.is_dir, folders):
                files |= {p for p in folder.iterdir() if p.suffix.lower() == ".txt" and holds_labels(p)}
        elif isinstance(split.reader, VocLabels):
            files |= {p for p in split.reader.folder.rglob("*") if p.suffix.lower() == ".xml"}
    return files


def holds_labels(path: Path) -> bool:
    """Whether a text file is empty or starts with a number and more words: not a list of images, names or notes."""
    try:
        with path.open("rb") as file:
            words = file.read(200).lstrip(b"\xef\xbb\xbf \r\n").split(b"\n")[0].split()
    except OSError:
        return False
    return not words or (len(words) >= 5 and re.fullmatch(rb"[-+.\de]+", words[0]) is not None)


def entries_without_image(found: Survey) -> Iterator[Finding]:
    """Entries of COCO files that no image of the split belongs to."""
    for split in found.values():
        if isinstance(split.reader, CocoLabels):
            entries = (split.reader.entry(record.path) for record in split.records)
            matched = {entry["id"] for entry in entries if entry}
            left = [entry for entry in split.reader.images.values() if entry["id"] not in matched]
            if left:
                text = (
                    f"{split.name}: {many(len(left), 'entry', 'entries')} of {split.reader.path} have no image on disk"
                )
                examples = [Example(str(entry.get("file_name"))) for entry in left]
                yield finding("orphaned labels", WARNING, text, "Find the images, or correct file_name.", examples)


def shared_label_files(found: Survey) -> Iterator[Finding]:
    """Different images of a split with one label file: a.jpg and a.png, or one VOC folder for two cameras."""
    for split in found.values():
        if isinstance(split.reader, CocoLabels):
            continue
        groups: dict[Path, list[ImageRecord]] = defaultdict(list)
        for record in split.records:
            if record.labeled and record.problem != "no such file":
                groups[record.label_file].append(record)
        shared = {file: records for file, records in groups.items() if len({r.digest for r in records}) > 1}
        if shared:
            text = f"{split.name}: {many(len(shared), 'label file')} each serve several different images"
            lines = [Example(f"{f}: {listed([str(r.path) for r in rs])}", pair(rs)) for f, rs in shared.items()]
            yield finding("shared label files", ERROR, text, "Give every image a name of its own.", lines)


def orientation(found: Survey) -> Iterator[Finding]:
    """Images that EXIF turns: training sees them upright, so their labels must be in that frame."""
    turned = [record for _, record in all_records(found) if record.usable and record.orientation in TURNED]
    if turned:
        kinds = Counter(TURNED[record.orientation] for record in turned)
        which = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        sideways = [r for r in turned if TURNED[r.orientation] == "sideways" and len(r.labels.label)]
        text = f"{many(len(turned), 'image')} are turned by EXIF ({which}); the boxes must fit the upright image"
        advice = "Look at the boxes below: some tools write them for the unturned image."
        examples = (show(record, f"orientation {record.orientation}") for record in sideways or turned)
        level = WARNING if sideways else NOTE
        yield finding("orientation", level, text, advice, examples, len(turned))


def image_kinds(found: Survey) -> Iterator[Finding]:
    """Gray, transparent, 16-bit and animated images, and suffixes that are passed over."""
    records = [record for _, record in all_records(found) if record.usable]
    odd = [record for record in records if record.mode not in COMMON_MODES]
    if odd:
        which = ", ".join(f"{count:,} {mode}" for mode, count in Counter(r.mode for r in odd).most_common())
        text = f"{many(len(odd), 'image')} are not plain RGB ({which}); they are converted"
        advice = "L is gray, P a palette, RGBA has transparency, I and F more than 8 bits: check that they look right."
        yield finding("image kinds", NOTE, text, advice, (show(record, record.mode) for record in odd))
    moving = [record for record in records if record.frames > 1]
    if moving:
        text = f"{many(len(moving), 'image file')} hold several frames or pages; only the first is used"
        examples = (show(record, f"{record.frames} frames") for record in moving)
        yield finding("image kinds", WARNING, text, "Split them into files.", examples)
    passed = sorted(p for folder in folders(found) for p in folder.rglob("*") if p.suffix.lower() in PASSED_OVER)
    if passed:
        which = ", ".join(f"{n:,} {suffix}" for suffix, n in Counter(p.suffix.lower() for p in passed).most_common())
        text = f"{many(len(passed), 'file')} in the image folders are passed over because of their suffix ({which})"
        advice = f"Convert them to one of {', '.join(sorted(IMAGE_SUFFIXES))}."
        yield finding("image kinds", WARNING, text, advice, (Example(str(path)) for path in passed))


def folders(found: Survey) -> set[Path]:
    """The folders among the sources of all splits."""
    return {source for split in found.values() for source in split.sources if source.is_dir()}


def show(record: ImageRecord, text: str) -> Example:
    """An example with its image."""
    return Example(f"{record.path}: {text}", (record.path,) if record.size != (0, 0) else ())


def say(record: ImageRecord, text: str) -> Example:
    """An example without its image."""
    return Example(text if text.startswith(str(record.path)) else f"{record.path}: {text}")


def pair(records: list[ImageRecord]) -> tuple[Path, ...]:
    """The first two images of a group that can be shown."""
    return tuple(record.path for record in records if record.size != (0, 0))[:2]


CHECKS = (
    splits,
    unusable_images,
    damaged_images,
    unlabeled_images,
    stray_labels,
    entries_without_image,
    shared_label_files,
    orientation,
    image_kinds,
)
