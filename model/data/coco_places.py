"""Where the images of a COCO JSON lie. Tools that export data agree on no folder, and not on how names are written."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from model.data.image_files import ImageIndex
from model.data.samples import DataError
from model.data.splits import split_names

FOLDERS_OF_JSON = frozenset({"annotations", "annotation", "labels"})


class ImagePlaces:
    """Where images may lie: some folders by custom, then anywhere below the folder that was named.

    From a folder that was named, nothing is read that lies outside of it.

    Args:
        json_path: the JSON.
        path: what was named: the JSON, or a folder with it.
        images: the folder of images, if it was named.

    Raises:
        DataError: the folder of images does not exist.
    """

    def __init__(self, json_path: Path, path: Path, split: str, images: Path | None) -> None:
        if images is not None:
            if not images.is_dir():
                raise DataError(f"there is no folder of images {images}")
            self._folders, self._root = [images], images
        else:
            beside = dict.fromkeys([json_path.parent, path if path.is_dir() else json_path.parent.parent])
            names = [f"{name}{year}" for name in split_names(split) for year in ("", "2017")]
            places = ["images", *(f"images/{name}" for name in names), *names, "."]
            self._folders = [folder for root in beside for place in places if (folder := root / place).is_dir()]
            is_apart = json_path.parent.name.lower() in FOLDERS_OF_JSON
            self._root = path if path.is_dir() else json_path.parent.parent if is_apart else json_path.parent
        self._index = ImageIndex([self._root], preferred=split_names(split))

    def find(self, file_name: str) -> Path:
        """The image's file, or the path of one that does not exist.

        Some tools write a folder before the name, or a path of someone else's disk, or encode it as an address.
        """
        names = [PurePosixPath(name.replace("\\", "/")) for name in dict.fromkeys([file_name, unquote(file_name)])]
        for stated in names:
            is_inside = not stated.is_absolute() and ".." not in stated.parts
            for name in [str(stated), stated.name] if is_inside else [stated.name]:
                for folder in self._folders:
                    if (folder / name).is_file():
                        return folder / name
        # Names from a disk that takes either case are tried last.
        found = (self._index.named(stated, any_case=any_case) for any_case in (False, True) for stated in names)
        return next((path for path in found if path is not None), self._folders[0] / names[0].name)

    def __str__(self) -> str:
        folders = ", ".join(str(folder) for folder in self._folders[:4])
        return f"Looked in {folders}, and anywhere below {self._root}. Name their folder by --images"
