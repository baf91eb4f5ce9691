"""What the files at a path hold, whatever they are called and wherever they lie: for cache keys."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from submanifold.common.files import read_json, write_json
from submanifold.data.stores import content_of, files_of

log = logging.getLogger(__name__)

# Nanoseconds after which another write of a file shows in its times on every filesystem.
SETTLED = 2 * 10**9
WORTH_A_LINE = 2**28


def fingerprint_path(path: Path, record: Path, suffix: str = "") -> str:
    """The identity of a store's content: another one when a byte changes, the same for a copy.

    What was found is written to `record` with the sizes, times and inodes of the files, so that
    they are read again only when one of these has changed; losing it does no harm. All are looked
    at every time, once in a command (:func:`~submanifold.data.stores.scan`). A very large
    store is sampled (:func:`~submanifold.data.stores.digest_files`); when its files were written
    since they were last seen here, it counts as other data although the samples are the same. So
    what goes unseen is a change that keeps a file's times, and in a copy of a very large store, one
    between the samples. What is not there has the identity that was last seen, if ever, else one of
    its path. The suffix is what else makes the identity.

    Raises:
        UserError: If it is no readable store.
        OSError: If it cannot be read.
    """
    last = read_json(record) or {}
    known = last.get("content", "")
    if not path.exists():
        if not last:
            return f"missing:{path.absolute()}"
        log.info("path=%s is not there now; what was made of it before is used", path)
        return str(last["fingerprint"])
    files = files_of(path)
    stamps, seen = files.stamps, files.digest
    settled = bool((stamps["ctime"] < files.began - SETTLED).all())
    if last.get("files") == seen and last.get("settled"):
        content = known
    else:
        if stamps["size"].sum() > WORTH_A_LINE:
            log.info("reading path=%s to know it again", path)
        content = content_of(path)
        if ":sampled:" in content and known.startswith(content):  # a record of old has no `files`
            content = known if last.get("files", seen) == seen else f"{content}+{seen}"
    found = {"fingerprint": content + suffix, "content": content, "files": seen}
    now = {"path": str(path), **found, "settled": settled}
    if now != last:
        with contextlib.suppress(OSError):  # the next one has more to read
            write_json(record, now)
    return content + suffix
