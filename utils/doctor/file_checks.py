"""Checks of files: splits, images that cannot be used, labels that belong to nothing, orientation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from utils.data.coco import CocoLabels
from utils.data.voc import VocLabels
from utils.doctor.findings import ERROR, NOTE, WARNING, Example, Finding, finding, listed
from utils.doctor.survey import ImageRecord, Survey, all_records
from utils.text import counted, first

MOST = 0.5  # share of the images of a split from which on a fault is an error
TURNED = {2: "mirrored", 3: "upside down", 4: "mirrored", 5: "sideways", 6: "sideways", 7: "sideways", 8: "sideways"}
COMMON_MODES = {"RGB", ""}
UNREADABLE, NO_ENTRY = "not a readable image", "no annotations that are certainly theirs"
UNKNOWN_IMAGES = "of images that it does not list"  # words of a note about a COCO file
# Notes of the search, by their words -> (check, level, advice); without a check: another check has more about it
NOTES = (
    ("without a label file", "", NOTE, ""),
    ("not among the", "", NOTE, ""),
    ("has no entry", "", NOTE, ""),
    ("fit several entries", "", NOTE, ""),
    ("left out, another has the same name", "", NOTE, ""),
    ("used for several images", "", NOTE, ""),
    ("name no file", "", NOTE, ""),
    ("followed", "linked folders", NOTE, "Check that no image is meant twice."),
    ("skipped", "hidden files", NOTE, "Usually made by the system or a notebook."),
    ("found under another name or place", "misplaced labels", NOTE, "They are used; other programs may not find them."),
    ("in another folder", "misplaced labels", NOTE, "They are used; check the pairs."),
    ("by the end of file_name", "misplaced labels", NOTE, "They are used; check the pairs."),
    ("without the first folders", "misplaced images", NOTE, "They are used; check the list."),
    ("passed over", "passed over", WARNING, "Convert them if they are images."),
    ("without an image", "orphaned labels", WARNING, "Find the images, or delete the files."),
    (UNKNOWN_IMAGES, "orphaned labels", WARNING, "Correct image_id, or take these annotations out."),
    ("", "files", WARNING, "Correct the files."),
)


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
        UNREADABLE: "Replace or delete these files.",
        NO_ENTRY: "Add entries for these images, or take the images out of the split.",
    }
    for split in found.values():
        groups: dict[str, list[ImageRecord]] = defaultdict(list)
        for record in split.records:
            if record.problem:
                entry = record.problem == record.labels.skip_reason
                kind = NO_ENTRY if entry else "no such file" if record.problem == "no such file" else UNREADABLE
                groups[kind].append(record)
        for why, records in groups.items():
            level = ERROR if len(records) > MOST * len(split.records) else WARNING
            text = f"{split.name}: {counted(len(records), 'image')} of {len(split.records):,} left out: {why}"
            yield finding("unusable images", level, text, advice[why], (say(r, r.problem) for r in records))


def damaged_images(found: Survey) -> Iterator[Finding]:
    """Images that OpenCV decodes and Pillow refuses: damaged, or of a rare kind."""
    damaged = [record for _, record in all_records(found) if record.damage and record.usable]
    if damaged:
        text = f"{counted(len(damaged), 'image')} with damage, decoded by one of two decoders only"
        advice = "Look at them; other programs may refuse them: save them anew."
        yield finding("damaged images", WARNING, text, advice, (show(r, r.damage) for r in damaged))


def unlabeled_images(found: Survey) -> Iterator[Finding]:
    """Images without a label file, which count as background; and splits that are nothing else."""
    for split in found.values():
        usable = split.usable
        without = [record for record in usable if not record.labeled]
        boxes = sum(len(record.labels.label) for record in usable)
        crowds = sum(int(record.labels.crowd.sum()) for record in usable)
        if usable and boxes and boxes == crowds:
            text = f"{split.name}: all {counted(boxes, 'box', 'boxes')} are crowds or difficult: nothing can be learned"
            advice = "Correct 'iscrowd' or 'difficult' in the annotations."
            yield finding("crowds only", ERROR, text, advice, (show(r, "only crowds") for r in usable))
        elif usable and not boxes and not any(record.labels.errors for record in usable):
            level = WARNING if split.name == "test" else ERROR
            text = f"{split.name}: there are no labels in {counted(len(usable), 'image')}"
            example = Example(f"looked for files such as {usable[0].label_file}")
            yield finding("unlabeled images", level, text, "Put the labels where they are looked for.", [example])
        elif without:
            level = WARNING if len(without) > MOST * len(usable) else NOTE
            text = f"{split.name}: {counted(len(without), 'image')} of {len(usable):,} without a label file: background"
            advice = "Right if they show no object of any class; an empty label file says so."
            yield finding("unlabeled images", level, text, advice, (show(r, f"no {r.label_file}") for r in without))


def notes(found: Survey) -> Iterator[Finding]:
    """What the search for images and labels said: files passed over, found elsewhere, or without a counterpart."""
    for split in found.values():
        for line in split.notes:
            check, level, advice = next(row[1:] for row in NOTES if row[0] in line)
            if UNKNOWN_IMAGES in line and any(not len(record.labels.label) for record in split.usable):
                level, advice = ERROR, f"{advice} Images without annotations count as background."
            if check:
                yield finding(check, level, f"{split.name}: {line}", advice, (), 1)


def orphaned_annotations(found: Survey) -> Iterator[Finding]:
    """Entries of COCO files and VOC files that belong to no image of any split."""
    orphans, where = list[str](), set[Path]()
    coco = [(split.reader, split) for split in found.values() if isinstance(split.reader, CocoLabels)]
    for path, images in {reader.path: reader.images for reader, _ in coco}.items():
        rows = [reader.entry(r.path) for reader, split in coco if reader.path == path for r in split.records]
        matched = {row["id"] for row in rows if row}
        left = [str(row["file_name"]) for row in images.values() if row["id"] not in matched]
        orphans, where = orphans + left, where | ({path} if left else set())
    folders = {split.reader.folder for split in found.values() if isinstance(split.reader, VocLabels)}
    used = {record.label_file for _, record in all_records(found)}
    for folder in folders:
        files = {p for p in folder.rglob("*") if p.suffix.lower() == ".xml" and not p.name.startswith(".")}
        orphans, where = orphans + sorted(map(str, files - used)), where | ({folder} if files - used else set())
    if orphans:
        text = f"{counted(len(orphans), 'annotated image')} of {first(sorted(where))} in no split"
        advice = "Find the images, or take the annotations out."
        yield finding("orphaned labels", WARNING, text, advice, map(Example, orphans), len(orphans))


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
            text = f"{split.name}: {counted(len(shared), 'label file')} shared by different images"
            lines = [Example(f"{f}: {listed([str(r.path) for r in rs])}", pair(rs)) for f, rs in shared.items()]
            yield finding("shared label files", ERROR, text, "Give every image a name of its own.", lines)


def orientation(found: Survey) -> Iterator[Finding]:
    """Images that EXIF turns: training sees them upright, so their labels must be in that frame."""
    turned = [record for _, record in all_records(found) if record.usable and record.orientation in TURNED]
    if turned:
        kinds = Counter(TURNED[record.orientation] for record in turned)
        which = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        sideways = [r for r in turned if TURNED[r.orientation] == "sideways" and len(r.labels.label)]
        text = f"{counted(len(turned), 'image')} turned by EXIF ({which}); the boxes must fit the upright image"
        advice = "Look at the boxes below: some tools write them for the unturned image."
        examples = (show(record, f"orientation {record.orientation}") for record in sideways or turned)
        level = WARNING if sideways else NOTE
        yield finding("orientation", level, text, advice, examples, len(turned))


def image_kinds(found: Survey) -> Iterator[Finding]:
    """Gray, transparent, 16-bit and animated images."""
    records = [record for _, record in all_records(found) if record.usable]
    odd = [record for record in records if record.mode not in COMMON_MODES]
    if odd:
        which = ", ".join(f"{count:,} {mode}" for mode, count in Counter(r.mode for r in odd).most_common())
        text = f"{counted(len(odd), 'image')} not plain RGB ({which}), converted"
        advice = "L is gray, P a palette, RGBA has transparency, I and F more than 8 bits: check that they look right."
        yield finding("image kinds", NOTE, text, advice, (show(record, record.mode) for record in odd))
    moving = [record for record in records if record.frames > 1]
    if moving:
        text = f"{counted(len(moving), 'image file')} with several frames or pages, of which only the first is used"
        examples = (show(record, f"{record.frames} frames") for record in moving)
        yield finding("image kinds", WARNING, text, "Split them into files.", examples)


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
    notes,
    orphaned_annotations,
    shared_label_files,
    orientation,
    image_kinds,
)
