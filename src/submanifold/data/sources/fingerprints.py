"""Fingerprints of stores, for cache keys: independent of names, places and times of the files."""

import contextlib
import logging
from pathlib import Path

from submanifold.common.files import read_json, write_json
from submanifold.data.sources.stores import files_of, fingerprint_content

log = logging.getLogger(__name__)

# Nanoseconds after which a second write of a file changes its times on every filesystem.
SETTLED = 2 * 10**9


def fingerprint_store(path: Path, record: Path, suffix: str = "") -> str:
    """Fingerprint of a store's content: changes with any byte, and is the same for a copy.

    The result is recorded (in a JSON file) with the sizes, times and inodes of the files, which are
    read again only if one of these has changed. A very large store is sampled; if its files were
    written since then, its fingerprint changes even if the samples do not. A path that does not
    exist has its recorded fingerprint, or one of the path itself.

    Raises:
        UserError, OSError: If it cannot be read.
    """
    last = read_json(record) or {}
    if not path.exists():
        if not last:
            return f"missing:{path.absolute()}"
        log.info("path=%s does not exist; using its last fingerprint", path)
        return str(last["fingerprint"])
    files = files_of(path)
    seen, settled = files.digest, bool((files.stamps["ctime"] < files.began - SETTLED).all())
    content = last.get("content", "")
    if last.get("files") != seen or not last.get("settled"):
        known, content = content, fingerprint_content(path)
        if ":sampled:" in content and known.startswith(content):
            content = known if last.get("files") == seen else f"{content}+{seen}"
    fingerprint = content + suffix
    found = {"path": str(path), "fingerprint": fingerprint, "content": content, "files": seen}
    now = found | {"settled": settled}
    if now != last:
        with contextlib.suppress(OSError):
            write_json(record, now)
    return fingerprint
