"""Duplicates: images of the same bytes, and near-duplicates by a perceptual hash; above all between splits."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations

import numpy as np

from utils.data.objects import ImageLabels
from utils.doctor.findings import ERROR, NOTE, WARNING, Example, Finding, finding
from utils.doctor.survey import THUMB, ImageRecord, Survey
from utils.text import counted

MAX_BITS = 4  # of 64 that differ between the hashes of near-duplicates
MAX_THUMB = 0.25  # mean difference of their miniatures, in standard deviations of the image
FLAT = 2.0  # standard deviation, in gray levels, that counts at least: below it everything is noise
CELLS = 2**22  # pairs of hashes that are compared at a time: 40 MB
CANDIDATES = 256  # images of similar hashes whose miniatures are compared
ROBOFLOW = re.compile(r"(.+?)\.rf\.[0-9a-zA-Z]{16,}$")  # the stem of an export: name of the source, hash of the version


def leaks(found: Survey) -> Iterator[Finding]:
    """Images of one split whose bytes are also in another one: they are measured on what was learned."""
    for first, second in combinations(found, 2):
        ours = {record.digest: record for record in found[first].usable}
        shared = [(ours[r.digest], r) for r in found[second].usable if r.digest in ours]
        if shared:
            same = all(a.path == b.path for a, b in shared)
            how = "the same files" if same else "byte for byte"
            text = f"{counted(len(shared), 'image')} of {second} also in {first}, {how}"
            advice = f"Metrics on {second} are too good to be true: take these images out of one of the two."
            examples = (Example(f"{a.path} = {b.path}", (a.path,)) for a, b in shared)
            yield finding("leaks", ERROR, text, advice, examples)


def repeats(found: Survey) -> Iterator[Finding]:
    """Images that a split holds more than once, and equal images with different labels."""
    for split in found.values():
        groups: dict[bytes, list[ImageRecord]] = defaultdict(list)
        for record in split.usable:
            groups[record.digest].append(record)
        copies = [records for records in groups.values() if len(records) > 1]
        apart = [records for records in copies if len({label_key(r.labels) for r in records}) > 1]
        if copies:
            extra = sum(len(records) - 1 for records in copies)
            text = f"{split.name}: {counted(extra, 'image')} equal to another one of the split, byte for byte"
            examples = (Example(" = ".join(str(r.path) for r in rs[:3]), (rs[0].path,)) for rs in copies)
            yield finding("copies", WARNING, text, "They count twice: delete one of each.", examples, extra)
        if apart:
            text = f"{split.name}: {counted(len(apart), 'image')} with copies that have other labels"
            examples = (Example(" != ".join(str(r.path) for r in rs[:3]), (rs[0].path, rs[1].path)) for rs in apart)
            yield finding("contradicting copies", WARNING, text, "Keep the copy whose labels are right.", examples)


def label_key(labels: ImageLabels) -> bytes:
    """Equal for equal labels, in any order."""
    rows = np.column_stack([labels.label, labels.xywhn.round(4)])
    return rows[np.lexsort(rows.T)].tobytes()


def near_duplicates(found: Survey) -> Iterator[Finding]:
    """Images that look like one of another split, and images that look like an earlier one of their own."""
    names = [name for name, split in found.items() if split.usable]
    hashes = {name: Hashes(found[name].usable) for name in names}
    for first, second in combinations(names, 2):
        pairs = nearest(hashes[second], hashes[first])
        if pairs:
            text = f"{counted(len(pairs), 'image')} of {second} much like one of {first}"
            advice = "Frames of one video and versions of one photo belong in one split: look, and move them."
            yield finding("near-duplicates", WARNING, text, advice, (example(*pair) for pair in pairs))
    for name in names:
        pairs = nearest(hashes[name], hashes[name])
        if pairs:
            text = f"{name}: {counted(len(pairs), 'image')} much like an earlier one of the split"
            advice = "Versions of one photo and frames of one scene add less than other images."
            yield finding("near-duplicates", NOTE, text, advice, (example(*pair) for pair in pairs))


class Hashes:
    """The hashes and miniatures of the images that could be read.

    Attributes:
        records: (n) of the images. digests: (n,) of the files' bytes. bits: (n,) uint64.
        thumbs: (n, k) float32, zero mean, in standard deviations.
    """

    def __init__(self, records: list[ImageRecord]):
        self.records = [record for record in records if record.thumb is not None]
        self.digests = np.array([int.from_bytes(r.digest[:8], "big") for r in self.records], dtype=np.uint64)
        self.bits = np.array([record.dhash for record in self.records], dtype=np.uint64)
        thumbs = [record.thumb for record in self.records if record.thumb is not None]
        gray = np.array(thumbs, dtype=np.float32).reshape(-1, THUMB * THUMB)
        gray -= gray.mean(axis=1, keepdims=True)
        self.thumbs = gray / np.maximum(gray.std(axis=1, keepdims=True), FLAT)

    def __len__(self) -> int:
        return len(self.records)


def nearest(ours: Hashes, others: Hashes) -> list[tuple[ImageRecord, ImageRecord, int]]:
    """(image, most similar one of `others`, bits that differ) for the images of `ours` that have a near-duplicate.

    Files of the same bytes are left out. If both are the same object, only earlier images are compared.
    """
    found = []
    rows = max(CELLS // max(len(others), 1), 1)
    for start in range(0, len(ours), rows):
        block = ours.bits[start : start + rows]
        theirs = others.bits[: start + len(block)] if ours is others else others.bits
        distance = np.bitwise_count(block[:, None] ^ theirs[None])
        if ours is others:
            distance[np.arange(len(theirs)) >= np.arange(start, start + len(block))[:, None]] = 64
        for row in np.flatnonzero((distance <= MAX_BITS).any(axis=1)):
            pair = closest(ours, start + int(row), others, distance[row])
            if pair is not None:
                found.append((ours.records[start + row], others.records[pair], int(distance[row, pair])))
    return found


def closest(ours: Hashes, i: int, others: Hashes, distance: np.ndarray) -> int | None:
    """The index of the near-duplicate of image `i` whose miniature differs least; None if there is none.

    Args:
        distance: (n,) bits by which the hashes of `others` differ from that of the image.
    """
    near = np.flatnonzero(distance <= MAX_BITS)
    near = near[others.digests[near] != ours.digests[i]]
    if not len(near):
        return None
    near = near[np.argsort(distance[near], kind="stable")[:CANDIDATES]]
    apart = np.abs(others.thumbs[near] - ours.thumbs[i]).mean(axis=1)
    best = int(apart.argmin())
    return int(near[best]) if apart[best] <= MAX_THUMB else None


def example(image: ImageRecord, other: ImageRecord, bits: int) -> Example:
    """A pair of near-duplicates."""
    return Example(f"{image.path} ~ {other.path}: {bits} of 64 bits differ", (image.path, other.path))


def common_sources(found: Survey) -> Iterator[Finding]:
    """Versions or tiles of one photo in two splits, by the names that Roboflow gives to exported files."""
    sources: dict[str, dict[str, list[ImageRecord]]] = defaultdict(lambda: defaultdict(list))
    for split in found.values():
        for record in split.usable:
            match = ROBOFLOW.match(record.path.stem)
            if match:
                sources[split.name][match[1]].append(record)
    for first, second in combinations(sources, 2):
        shared = sources[first].keys() & sources[second].keys()
        if shared:
            images = [(r, sources[first][name][0]) for name in sorted(shared) for r in sources[second][name]]
            text = f"{counted(len(images), 'image')} of {second} from {counted(len(shared), 'photo')} of {first}"
            advice = "Split by photo first, then cut or augment."
            examples = (Example(f"{a.path} and {b.path}", (a.path, b.path)) for a, b in images)
            yield finding("common sources", WARNING, text, advice, examples)


CHECKS = (leaks, repeats, near_duplicates, common_sources)
