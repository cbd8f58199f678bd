"""Decoded images, kept as ArrayRecord: decoded once, read at random afterwards."""

import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.data.image_files import ReadingRule, in_threads, or_error
from flowjax.extras import require


@dataclasses.dataclass(frozen=True)
class CachedRecords(Sequence):
    """Decoded images in an ArrayRecord file: four bytes of label, then the pixels."""

    source: Any
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        return self._decode(self.source[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self._decode(record) for record in self.source.__getitems__(indices)]

    def _decode(self, record: bytes) -> dict[str, Any]:
        pixels = np.frombuffer(record, np.uint8, offset=4).reshape(self.shape)
        return {"image": pixels, "label": int(np.frombuffer(record, "<i4", 1)[0])}


def cached_records(
    place: Path,
    root: Path,
    files: Sequence[Path],
    labels: Sequence[int],
    rule: ReadingRule,
    shape: tuple[int, int, int],
) -> tuple[CachedRecords, dict[Path, str]]:
    """Return the cached images, decoded now if need be, and what could not be read."""
    module = require("array_record.python.array_record_data_source", extra="data")
    stats = [(str(f.relative_to(root)), f.stat()) for f in files]
    said = [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
    text = json.dumps([rule, shape, said, list(labels)])
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    target = place / f"images-{name}.array_record"
    lost: dict[Path, str] = {}
    if not target.is_file():
        lost = _write_cache(target, files, labels, rule)
    return CachedRecords(module.ArrayRecordDataSource(str(target)), shape), lost


def _write_cache(
    target: Path, files: Sequence[Path], labels: Sequence[int], rule: ReadingRule
) -> dict[Path, str]:
    module = require("array_record.python.array_record_module", extra="data")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    lost = {}
    try:
        writer = module.ArrayRecordWriter(str(part), "group_size:1")
        read = in_threads(or_error(rule.read), files)
        for file, label, image in zip(files, labels, read, strict=True):
            if isinstance(image, OSError):
                lost[file] = str(image)
            else:
                writer.write(np.array([label], "<i4").tobytes() + image.tobytes())
        writer.close()
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return lost
