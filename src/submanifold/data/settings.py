"""What a user can say about the data: `data.*` of the parameters."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from submanifold.data.synthetic import Manifold, manifold
from submanifold.errors import UserError
from submanifold.validation import Settings, read_settings

PARTS = ("train", "valid", "test")

Images = Literal["photos", "celeba", "lsun_bedroom", "folder"]
Synthetic = Literal[
    "linear_gaussian",
    "circle",
    "von_mises_circle",
    "sphere",
    "vmf_sphere",
    "torus",
    "swiss_roll",
    "paraboloid",
]


class Counts(Settings):
    """How many images each split holds; `None` leaves it to the split rule."""

    train: PositiveInt | None = None
    valid: PositiveInt | None = None
    test: PositiveInt | None = None


class ImageSettings(Settings):
    """Where images come from and what shape they take.

    Attributes:
        source: `photos` (inside the installed wheels), `celeba`, `lsun_bedroom` or `folder`.
        path: A folder, a zip or an LMDB folder; `photos` takes none.
        url: Where `celeba` is downloaded from when no path is given and none lies in the raw
            folder; `None` asks torchvision's downloader.
        hash: Checksum of that download, as pooch writes it: `"md5:..."` or `"sha256:..."`.
        size: Side of the square images, in pixels.
        channels: 3 for RGB, 1 for grey.
        crop: `square` is the largest centre square; `celeba` the centre 148 of 178 pixels,
            scaled to the file's size; `auto` is `celeba` for that source, else `square`.
            `photos` are cut into patches instead.
        split: `official` follows the source's own partition file, `random` the seed.
        counts: Images in each split.
        seed: Seed of the split; apart from the training's, so that runs with other seeds are
            compared on the same images.
    """

    source: Images = "photos"
    path: str | None = None
    url: str | None = Field(None, pattern=r"^https?://")
    hash: str | None = Field(None, pattern=r"^(md5|sha1|sha256|sha512):[0-9a-fA-F]+$")
    size: PositiveInt = 32
    channels: Literal[1, 3] = 3
    crop: Literal["auto", "square", "celeba"] = "auto"
    split: Literal["official", "random"] = "random"
    counts: Counts = Counts()
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _no_setting_is_ignored(self) -> "ImageSettings":
        if self.source == "photos" and self.path is not None:
            raise ValueError(
                f"data.path={self.path} is given, but data.source=photos reads no files; "
                "set data.source to folder, celeba or lsun_bedroom, or leave data.path out"
            )
        if self.source in ("folder", "lsun_bedroom") and self.path is None:
            raise ValueError(
                f"data.source={self.source} needs data.path: a folder, a zip or an LMDB folder "
                "of images"
            )
        if self.source != "celeba" and (self.url or self.hash):
            raise ValueError(
                f"data.url and data.hash belong to data.source=celeba; data.source={self.source} "
                "downloads nothing: leave them out and give data.path"
            )
        return self

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

    source: Synthetic
    noise: float | None = Field(None, ge=0)
    counts: Draws = Draws()
    seed: NonNegativeInt = 0

    @property
    def manifold(self) -> Manifold:
        """The manifold and its density."""
        return manifold(self.source, self.noise)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one point: (ambient dimension,)."""
        return (self.manifold.ambient_dim,)


DataSettings = ImageSettings | SyntheticSettings


def read_data_settings(mapping: Mapping[str, Any]) -> DataSettings:
    """Validate `data.*`.

    Raises:
        UserError: Naming what cannot work.
    """
    source = mapping.get("source", "photos")
    known = [*get_args(Images), *get_args(Synthetic)]
    if source not in known:
        raise UserError(
            f"data.source={source} is not known; known: {', '.join(known)}. Change it in "
            "conf/base/parameters.yml, or with --params=dataset=<name>."
        )
    if source in get_args(Synthetic):
        return read_settings(SyntheticSettings, mapping, "data")
    return read_settings(ImageSettings, mapping, "data")
