"""What a user can say about the data: `data.*` of the parameters."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from submanifold.common.errors import UserError
from submanifold.common.settings import Settings, read_settings
from submanifold.data.synthetic import MANIFOLDS, Manifold, manifold

PARTS = ("train", "valid", "test")

Images = Literal[
    "photos", "celeba", "lsun_bedroom", "folder",
    "mnist", "fashion_mnist", "kmnist", "cifar10", "svhn", "medmnist",
]  # fmt: skip
LABELLED = ("mnist", "fashion_mnist", "kmnist", "cifar10", "svhn", "medmnist")
OF_PLACE = frozenset({"path", "url", "hash"})
"""Settings that say where data lie, which changes nothing about them."""


class Counts(Settings):
    """How many images each split holds; `None` leaves it to the split rule."""

    train: PositiveInt | None = None
    valid: PositiveInt | None = None
    test: PositiveInt | None = None


class ImageSettings(Settings):
    """Where images come from and what shape they take.

    Attributes:
        source: `photos` (inside the installed wheels), `celeba`, `lsun_bedroom`, `folder`, a data
            set of torchvision's (`mnist`, `fashion_mnist`, `kmnist`, `cifar10`, `svhn`), or
            `medmnist`.
        path: A folder, a zip or an LMDB folder; `photos` takes none. Of torchvision's data sets the
            folder of their files, which are downloaded when it is left out; MedMNIST's npz file.
        url: Where `celeba` is downloaded from when no path is given and none lies in the raw
            folder; `None` asks torchvision's downloader. It needs a hash, which makes http as safe
            as https.
        hash: Checksum of what lies at `url`, as pooch writes it: `"md5:..."` or `"sha256:..."`.
        size: Side of the square images, in pixels.
        margin: Black pixels on each side of a picture, within the size: 2 makes MNIST's 28 to 32.
        channels: 3 for RGB, 1 for grey.
        crop: `square` is the largest centre square; `celeba` the centre 148 of 178 pixels,
            scaled to the file's size; `auto` is `celeba` for that source, else `square`.
            `photos` are cut into patches instead.
        split: `official` follows the source's own partition file, `random` the seed.
        counts: Images in each split. Of a training set without validation images a tenth are taken.
        labels: Only images that have one of these labels are used, of data that have labels.
        other_labels: Only images that have none of these are used.
        groups: What makes groups of images that are not independent of each other: `folder`, where
            each folder is a group, or the path of a text file with lines `name group`. No group is
            in two splits, and intervals are over groups. None: each image is independent. Those of
            `photos` are cells of the photographs.
        seed: Of the split; apart from the training's, so that runs are compared on the same images.
    """

    source: Images = "photos"
    path: str | None = None
    url: str | None = Field(None, pattern=r"^https?://")
    hash: str | None = Field(None, pattern=r"^(md5|sha1|sha256|sha512):[0-9a-fA-F]+$")
    size: PositiveInt = 32
    margin: NonNegativeInt = 0
    channels: Literal[1, 3] = 3
    crop: Literal["auto", "square", "celeba"] = "auto"
    split: Literal["official", "random"] = "random"
    counts: Counts = Counts()
    labels: tuple[int, ...] | None = Field(None, min_length=1)
    other_labels: tuple[int, ...] | None = Field(None, min_length=1)
    groups: str | None = Field(None, min_length=1)
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _no_setting_is_ignored(self) -> "ImageSettings":
        source, path = f"source={self.source}", self.path
        if self.source == "photos" and path is not None:
            raise ValueError(
                f"{source} reads no files; leave out path={path}, or set source=folder"
            )
        if self.source == "photos" and self.crop != "auto":
            raise ValueError(
                f"{source} is cut into patches, not by crop={self.crop}; leave crop out"
            )
        if self.source in ("folder", "lsun_bedroom") and path is None:
            raise ValueError(f"{source} needs path: a folder, a zip or an LMDB folder of images")
        if self.source == "medmnist" and path is None:
            raise ValueError(f"{source} needs path: one of MedMNIST's npz files")
        for name in ("labels", "other_labels"):
            wanted = getattr(self, name)
            if wanted is not None and self.source not in LABELLED:
                raise ValueError(
                    f"{source} has no labels; leave out {name}={list(wanted)}, or choose one of "
                    f"{', '.join(LABELLED)}"
                )
        if self.groups is not None and self.source in ("photos", *LABELLED):
            raise ValueError(
                f"groups: expected none with {source}, got {self.groups}. Leave it out, or set "
                "source to folder, celeba or lsun_bedroom."
            )
        if self.labels is not None and self.other_labels is not None:
            raise ValueError("labels says which images are used; leave out other_labels")
        if self.source in LABELLED and self.crop != "auto":
            raise ValueError(f"{source} is square; leave out crop={self.crop}")
        if self.margin and (self.source == "photos" or 2 * self.margin >= self.size):
            raise ValueError(
                f"margin={self.margin} leaves nothing of size={self.size}; set it below half of it"
                if self.source != "photos" else
                f"{source} are patches of larger pictures; leave out margin={self.margin}"
            )  # fmt: skip
        if self.source not in ("celeba", *LABELLED) and self.split == "official":
            raise ValueError(f"{source} has no partition for split=official; set split=random")
        if (self.url or self.hash) and (self.source != "celeba" or path is not None):
            raise ValueError(
                f"{source} with path={path} downloads nothing, but url or hash is given, which "
                "belong to source=celeba without path; leave them out"
            )
        if self.hash and not self.url:
            raise ValueError(f"hash={self.hash} is of the file at url; give url too")
        if self.url and not self.hash:
            raise ValueError(
                f"url={self.url} needs hash, or whoever answers there chooses the data: set hash "
                "to sha256:<what `sha256sum` prints of the file>"
            )
        return self

    @property
    def crop_rule(self) -> Literal["square", "celeba"]:
        """What is kept of a picture: `crop`, or the source's own."""
        auto: Literal["square", "celeba"] = "celeba" if self.source == "celeba" else "square"
        return auto if self.crop == "auto" else self.crop

    @property
    def facts(self) -> dict[str, Any]:
        """What a model has to know of its images, for its file and for `load_pictures`."""
        return {**self.form, "value_range": [-0.5, 0.5], "bits": 8}

    @property
    def form(self) -> dict[str, Any]:
        """What becomes of a picture, as :func:`submanifold.data.images.frame` takes it."""
        return {"size": self.size, "channels": self.channels, "crop": self.crop_rule,
                "margin": self.margin}  # fmt: skip

    @property
    def content(self) -> dict[str, Any]:
        """What the images depend on; settings that came later only where they are set.

        Groups are part of the source's fingerprint.
        """
        later = {name for name in ("margin", "labels", "other_labels") if not getattr(self, name)}
        return self.model_dump(exclude={*OF_PLACE, *later, "groups"})

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one image: (channels, size, size)."""
        return self.channels, self.size, self.size


class Draws(Settings):
    """How many points are drawn for each split."""

    train: PositiveInt = 50_000
    valid: PositiveInt = 2_000
    test: PositiveInt = 5_000


class SyntheticSettings(Settings):
    """A manifold with a known density.

    Attributes:
        source: One of :data:`submanifold.data.synthetic.MANIFOLDS`.
        noise: Standard deviation of the normal noise in all directions; None is the manifold's own.
        counts: Points in each split.
        seed: Seed of the draws.
    """

    source: Literal[tuple(MANIFOLDS)]  # type: ignore[valid-type]
    noise: float | None = Field(None, ge=0)
    counts: Draws = Draws()
    seed: int = Field(0, ge=0, lt=2**32)

    @property
    def manifold(self) -> Manifold:
        """The manifold and its density."""
        return manifold(self.source, self.noise)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one point: (ambient dimension,)."""
        return (self.manifold.ambient_dim,)

    @property
    def content(self) -> dict[str, Any]:
        """The settings on which the points depend."""
        return self.model_dump()

    @property
    def facts(self) -> dict[str, Any]:
        """What a model has to know of its points, for its file."""
        return {"dim": self.manifold.ambient_dim, "noise": self.manifold.noise}


DataSettings = ImageSettings | SyntheticSettings


def read_data_settings(mapping: Mapping[str, Any], name: str = "data") -> DataSettings:
    """Validate `data.*`, or what else has a source.

    Raises:
        UserError: Naming what cannot work.
    """
    source = mapping.get("source", "photos")
    known = [*get_args(Images), *MANIFOLDS]
    if source not in known:
        raise UserError(
            f"data.source={source} is not known; known: {', '.join(known)}. Change it in "
            "conf/base/parameters.yml, or with --params=dataset=<name>."
        )
    model: type[DataSettings] = SyntheticSettings if source in MANIFOLDS else ImageSettings
    return read_settings(model, mapping, name)
