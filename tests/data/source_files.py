"""Small files of all kinds of sources."""

import gzip
import io
import struct
import zipfile

import lmdb
import numpy as np
from PIL import Image

SIDE = 8


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(colour=(255, 0, 0), size=(8, 8), kind="PNG"):
    return encode(Image.new("RGB", size, colour), kind)


def numbered(value, kind="PNG", side=4):
    """A uniform image that stores a number below 65536 in two of its channels."""
    return plain((value // 256, value % 256, 0), (side, side), kind)


def write_zip(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def write_lmdb(path, contents):
    with lmdb.open(str(path)) as env, env.begin(write=True) as writer:
        for name, content in contents.items():
            writer.put(name, content)
    return path


def write_folder(path, contents):
    for name, content in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_celeba(folder, count=10, codes=None, content=None):
    """CelebA's zip and, of the codes, its partition file."""
    names = [f"img_align_celeba/{i:06d}.jpg" for i in range(count if codes is None else len(codes))]
    contents = {name: content or numbered(i, "BMP") for i, name in enumerate(names)}
    write_zip(folder / "img_align_celeba.zip", contents)
    if codes is not None:
        lines = [f"{i:06d}.jpg {code}\n" for i, code in enumerate(codes)]
        (folder / "list_eval_partition.txt").write_text("".join(lines))
    return folder


def pictures(labels, *tail):
    """Pictures whose first pixel is their label and whose second counts them."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (len(labels), SIDE, SIDE, *tail), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = [
        np.reshape(values, (-1, *[1] * len(tail))) for values in (labels, range(len(labels)))
    ]
    return images


TRAIN, TEST = [n % 10 for n in range(60)], [n % 10 for n in range(20)]


def write_idx(folder, packed=False, train=TRAIN, test=TEST):
    folder.mkdir(parents=True, exist_ok=True)
    for name, labels in (("train", np.array(train, np.uint8)), ("t10k", np.array(test, np.uint8))):
        for kind, array in (("images-idx3", pictures(labels)), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape)
            content = header + array.tobytes()
            file = folder / f"{name}-{kind}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(content) if packed else content)
    return folder


def write_medmnist(path, labels=TRAIN, **more):
    labels = np.array(labels)
    images = pictures(labels if labels.ndim == 1 else labels[:, 0])
    arrays = {}
    for name in ("train", "val", "test"):
        arrays |= {f"{name}_images": images, f"{name}_labels": labels.reshape(len(labels), -1)}
    np.savez(path, **{**arrays, **more})
    return path


class FakeDataset:
    """Replaces torchvision's CIFAR10 and SVHN, which verify the MD5 of the real files."""

    def __init__(self, root, train=True, split=None, download=False):
        labels = TRAIN if train and split != "test" else TEST
        images = pictures(np.array(labels), 3)
        self.data = images if split is None else images.transpose(0, 3, 1, 2)
        self.targets = self.labels = labels
