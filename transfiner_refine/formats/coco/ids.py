"""The ids that a COCO file gives to what comes from any format: the source's own as far as it has them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any, Protocol, runtime_checkable

from transfiner_refine.formats.coco.photos import ImageId
from transfiner_refine.formats.records import ImageRecord, Instance, RecordFault, Source

__all__ = ["Ids"]

_LONGEST_NUMBER = 18  # digits of a file name that is taken for a number


@runtime_checkable
class _KnowsStuff(Protocol):
    """A source that says which of its categories are no things, used or not."""

    @property
    def stuff(self) -> Collection[int]: ...


class Ids:
    """Ids for images, categories and instances of a source.

    Image ids are the source's if it has them; else the numbers that the file names consist of, if they do and
    differ; else 1, 2, 3 ... in the order of the source. Categories keep their ids; what has none gets a
    category "object". Instances keep their ids if these differ in the whole source; else they are counted.

    Attributes:
        own_images: the image ids are the source's own.
        categories: what to write as ``categories``, by rising id.
    """

    def __init__(self, source: Source) -> None:
        """Iterates the source once."""
        images, numbers, instances = set[ImageId | None](), set[int | None](), set[int | None]()
        used, stuff, no_category = set[int](), set[int](), False
        num_images = num_instances = 0
        for item in source:
            if isinstance(item, RecordFault):
                continue
            num_images += 1
            images.add(item.image_id)
            numbers.add(_number(item))
            for instance in item.instances:
                num_instances += 1
                instances.add(instance.instance_id)
                if instance.category_id is None:
                    no_category = True
                else:
                    used.add(instance.category_id)
                    if instance.is_stuff:
                        stuff.add(instance.category_id)
        self.own_images = None not in images and len(images) == num_images
        self._numbered = None not in numbers and len(numbers) == num_images
        self._own_instances = None not in instances and len(instances) == num_instances
        if isinstance(source, _KnowsStuff):
            stuff |= set(source.stuff)
        names = dict(source.categories)
        names.update(
            {category_id: f"class {category_id}" for category_id in used if category_id not in names}
        )
        self._no_category = max(names, default=0) + 1
        if no_category:
            names[self._no_category] = "object"
        self.categories: list[dict[str, Any]] = [
            {"id": category_id, "name": name} | ({"isthing": 0} if category_id in stuff else {})
            for category_id, name in sorted(names.items())
        ]

    def image_id(self, record: ImageRecord, position: int) -> ImageId:
        """The id of the image that comes at ``position``, counted from 0."""
        if self.own_images:
            assert record.image_id is not None
            return record.image_id
        number = _number(record) if self._numbered else None
        return position + 1 if number is None else number

    def category_id(self, instance: Instance) -> int:
        """The id of an instance's category."""
        return self._no_category if instance.category_id is None else instance.category_id

    def instance_id(self, instance: Instance, position: int) -> int:
        """The id of the instance that is written at ``position``, counted from 0."""
        own = instance.instance_id if self._own_instances else None
        return position + 1 if own is None else own


def _number(record: ImageRecord) -> int | None:
    stem = PurePosixPath(record.file_name or record.name).stem
    is_number = stem.isascii() and stem.isdigit() and len(stem) <= _LONGEST_NUMBER
    return int(stem) if is_number else None
