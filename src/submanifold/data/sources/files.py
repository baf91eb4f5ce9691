"""Sources of image files: a folder, a zip or an LMDB of any images."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from submanifold.common.errors import UserError
from submanifold.data.images import SUFFIXES, decode
from submanifold.data.sources.base import Source, SourceType
from submanifold.data.sources.stores import (
    DATABASE,
    STORES,
    digest,
    fingerprint_store,
    open_store,
)
from submanifold.data.splits import check_groups, fingerprint_groups, group_images

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings


def open_files(
    settings: ImageSettings, path: Path, official: Mapping[str, str] | None = None
) -> Source:
    """Open the images in a folder, a zip or an LMDB.

    With an official split of file names (without folders), other images are skipped.
    """
    store = open_store(path)
    names, skipped = store.names(), store.skipped
    splits: dict[str, str] | None = None
    if official is not None:
        listed = {name: official.get(name.rsplit("/", 1)[-1]) for name in names}
        splits = {name: split for name, split in listed.items() if split}
        names = list(splits)
        reason = "not in the official partition"
        skipped += [{"name": name, "reason": reason} for name in listed if name not in splits]
    if not names:
        raise UserError(
            f"path={path}: expected images{'' if official is None else ' of the official split'} "
            f"({', '.join(SUFFIXES)}; hidden files are ignored), got none. Set path to a folder of "
            f"images, a zip of images, or the unpacked folder that contains an LMDB's {DATABASE}."
        )
    groups = None if settings.groups is None else group_images(settings.groups, names)
    if groups and splits:
        check_groups(groups, splits)
    return Source(
        names=names,
        read=store.read,
        decode=partial(decode, **settings.form),
        splits=splits,
        split_rule="official" if splits else "groups" if groups else "random",
        crop=settings.crop_rule,
        groups=groups,
        skipped=skipped,
        other_files=store.others,
        close=store.close,
    )


def fingerprint_files(
    settings: ImageSettings,
    path: Path,
    raw_folder: Path,
    suffix: Callable[[], str] = lambda: "",
) -> str:
    """Fingerprint of the images at a path, recorded in ``.fingerprints`` of the raw folder.

    The result of `suffix`, such as the identity of an official partition, is appended.
    """
    given = f"{Path(settings.path or path).expanduser().absolute()} {settings.split}"
    record = raw_folder / ".fingerprints" / f"{digest([given])}.json"
    try:
        return with_groups(settings, fingerprint_store(path, record, suffix()))
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"path={path}: expected {STORES}, got a path that cannot be read ({error}). Correct it."
        ) from error


def with_groups(settings: ImageSettings, fingerprint: str) -> str:
    """Append the identity of the groups to a fingerprint."""
    groups = settings.groups
    return fingerprint if groups is None else f"{fingerprint}+groups:{fingerprint_groups(groups)}"


def _path(settings: ImageSettings) -> Path:
    return Path(str(settings.path)).expanduser()


FILES = SourceType(
    open=lambda settings, raw_folder: open_files(settings, _path(settings)),
    fingerprint=lambda settings, raw_folder: fingerprint_files(
        settings, _path(settings), raw_folder
    ),
    path=STORES,
    path_required=True,
    image_files=True,
)
