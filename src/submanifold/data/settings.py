"""Settings of the data: `data.*` of the parameters."""

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from submanifold.common.errors import did_you_mean, unexpected
from submanifold.common.settings import Settings, read_settings
from submanifold.data.sources import SOURCES, Source
from submanifold.data.sources.stores import identify
from submanifold.data.splits import FOLDER
from submanifold.data.synthetic import MANIFOLDS, Manifold, manifold

if TYPE_CHECKING:
    from submanifold.data.tables.schema import TableSchema

INSTALLED = {
    "breast_cancer": "569 tumors, 30 measurements of cell nuclei; the label is benign or malignant",
    "diabetes": "442 patients, 10 measurements; the label is the progression of the disease",
    "digits": "1,797 handwritten digits, 64 pixels of 17 grey levels; the label is the digit",
    "wine": "178 wines, 13 chemical measurements; the label is the cultivar",
}
"""Tables that are installed with scikit-learn, with descriptions."""
TABLES = ("table", *INSTALLED)

Kind = Literal["images", "synthetic", "table"]
"""Kind of data: images, points of a manifold with a known density, or rows of a table."""
Categorical = Literal["refuse", "intervals"]
Missing = Literal["refuse", "drop", "median"]
Scale = Literal["standard", "none"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
ColumnKind = Literal["integer", "number", "category", "ignore"]
"""Kind of a column that a user sets."""


class Counts(Settings):
    """Number of images or rows in each split; `None` leaves it to the split rule."""

    train: PositiveInt | None = None
    valid: PositiveInt | None = None
    test: PositiveInt | None = None


class _Data(Settings):
    @property
    def content(self) -> dict[str, Any]:
        """The settings on which the data depend, besides the fingerprint of their files."""
        return self.model_dump(mode="json", exclude={"path"})


class ImageSettings(_Data):
    """Where images come from, and their shape.

    Attributes:
        source: `photos` (in the installed packages), `celeba`, `lsun_bedroom`, `folder`, a data set
            of torchvision (`mnist`, `fashion_mnist`, `kmnist`, `cifar10`, `svhn`), or `medmnist`.
        path: A folder, a zip or an LMDB folder of images; of torchvision's data sets the folder of
            their files, which are downloaded if it is omitted; of MedMNIST an npz file.
        size: Side of the square images, pixels.
        margin: Black pixels on each side, within the size: 2 pads MNIST's 28 pixels to 32.
        channels: 3 for RGB, 1 for grey.
        split: `official` uses the source's own partition, `random` the seed.
        counts: Number of images in each split. If a source has no official validation images, they
            are a tenth of its training images.
        labels: Use only images with one of these labels.
        other_labels: Use only images with none of these labels.
        condition: `label`: the density of an image is given its label; None: not conditional.
        groups: Groups of images that are not independent of each other: `folder` makes each folder
            a group; or the path of a text file with lines `name group`. No group is in two splits,
            and confidence intervals are over groups. None: all images are independent.
        seed: Seed of the split. It differs from the seed of the training, so that runs are
            compared on the same images.
    """

    kind: ClassVar[Kind] = "images"
    source: Literal[tuple(SOURCES)] = "photos"  # type: ignore[valid-type]
    path: str | None = None
    size: PositiveInt = 32
    margin: NonNegativeInt = 0
    channels: Literal[1, 3] = 3
    split: Literal["official", "random"] = "random"
    counts: Counts = Counts()
    labels: tuple[int, ...] | None = Field(None, min_length=1)
    other_labels: tuple[int, ...] | None = Field(None, min_length=1)
    condition: Literal["label"] | None = None
    groups: str | None = Field(None, min_length=1)
    seed: Seed = 0

    @model_validator(mode="after")
    def _check_rules(self) -> "ImageSettings":
        kind, source = SOURCES[self.source], f"with source={self.source}"
        supported = {"path": kind.path, "groups": kind.image_files, "labels": kind.labels,
                     "other_labels": kind.labels, "condition": kind.labels}  # fmt: skip
        expected = {name: f"none {source}" for name, is_supported in supported.items()
                    if getattr(self, name) is not None and not is_supported}  # fmt: skip
        if self.path is None and kind.path_required:
            expected["path"] = f"{kind.path} {source}"
        if self.labels and self.other_labels:
            expected["other_labels"] = f"none with labels={[*self.labels]}"
        if 2 * self.margin >= self.size:
            expected["margin"] = f"less than half of size={self.size}"
        if self.split == "official" and not kind.official_split:
            expected["split"] = f"random {source}"
        problems = [f"{name}: expected {text}, got {getattr(self, name) or 'none'}"
                    for name, text in expected.items()]  # fmt: skip
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def file(self) -> Path:
        """The file or folder at `path`."""
        return Path(str(self.path)).expanduser()

    @property
    def form(self) -> dict[str, Any]:
        """Arguments of :func:`submanifold.data.images.crop_and_resize`."""
        crop = SOURCES[self.source].crop
        return {"size": self.size, "channels": self.channels, "crop": crop, "margin": self.margin}

    @property
    def facts(self) -> dict[str, Any]:
        """Description of the images in a model's file, for :func:`.images.load_pictures`."""
        condition = {"condition": self.condition} if self.condition else {}
        return {**self.form, "value_range": [-0.5, 0.5], "bits": 8, **condition}

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one image: (channels, size, size)."""
        return self.channels, self.size, self.size

    def open(self, raw_folder: Path) -> Source:
        """Open the source, after its download if necessary; UserError if it has no images."""
        return SOURCES[self.source].open(self, raw_folder)

    def fingerprint(self, raw_folder: Path) -> str:
        """Identity of the files: names, sizes and times of change, but not the folder.

        It is the same before and after a download.
        """
        files, groups = SOURCES[self.source].files(self, raw_folder), self.groups
        try:
            if groups not in (None, FOLDER):
                groups = identify(Path(groups).expanduser())
            return f"{'standard' if files is None else identify(*files)}+groups:{groups}"
        except OSError as error:
            name, got = f"path={self.path}", f"an error ({error})"
            raise unexpected(name, "files that can be read", got, "Correct it") from error


class Draws(Settings):
    """Number of points in each split."""

    train: PositiveInt = 50_000
    valid: PositiveInt = 2_000
    test: PositiveInt = 5_000


class SyntheticSettings(_Data):
    """Points of a manifold with a known density.

    Attributes:
        source: A name in :data:`submanifold.data.synthetic.MANIFOLDS`.
        noise: Standard deviation of the normal noise in all directions, or the default.
        counts: Number of points in each split.
        seed: Seed of the draws.
    """

    kind: ClassVar[Kind] = "synthetic"
    source: Literal[tuple(MANIFOLDS)]  # type: ignore[valid-type]
    noise: float | None = Field(None, ge=0)
    counts: Draws = Draws()
    seed: Seed = 0

    @property
    def manifold(self) -> Manifold:
        """The manifold and its density."""
        return manifold(self.source, self.noise)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one point: (ambient dimension,)."""
        return (self.manifold.ambient_dim,)

    @property
    def facts(self) -> dict[str, Any]:
        """Description of the points in a model's file."""
        return {"dim": self.manifold.ambient_dim, "noise": self.manifold.noise}

    def fingerprint(self, raw_folder: Path) -> str:
        """Identity of the points: they are determined by the name and the settings."""
        return self.source


Texts = tuple[Annotated[str, Field(min_length=1)], ...]
Paths = Annotated[Texts, BeforeValidator(lambda x: (x,) if isinstance(x, str) else x)]
AsList = BeforeValidator(lambda x: re.split("[|,]", x) if isinstance(x, str) else x)
Patterns = Annotated[Texts, AsList]


class TableSettings(_Data):
    """Rows of a table.

    Attributes:
        source: `table` (files at `path`), or a table that is installed with scikit-learn:
            `breast_cancer`, `diabetes`, `digits` or `wine`.
        path: A CSV, Parquet, Feather, NPY or NPZ file, a folder of them, or a list of files. All
            files have the same columns.
        inputs: Names or patterns of the columns that the model describes, as a list or as text
            (`age,pixel_*`); None: all.
        drop: Names or patterns of columns that it does not describe.
        label: Column that is kept with the rows and is no input of the model.
        id: Column of identifiers, which is no input of the model and the first one of its scores.
        condition: Names or patterns of columns that the density of the others is given.
        columns: Kinds of columns by name or pattern, instead of those that are found: `integer`
            (noise over the step is added), `number`, `category`, or `ignore`, which is like `drop`.
        categorical: `refuse` text, or map categories to numbers (`intervals`).
        missing: `refuse` missing values, `drop` their rows, or replace them by the column's
            `median`.
        scale: `standard` (mean 0, standard deviation 1), or `none`.
        split: `random`, or the name of a column with the values train, valid and test.
        groups: Column of groups of rows that are not independent of each other. No group is in two
            splits, and confidence intervals are over groups. None: all rows are independent.
        counts: Number of rows in each split; by default a tenth for validation and test, 20 to
            100,000 but at most a quarter.
        seed: Seed of the split.
    """

    kind: ClassVar[Kind] = "table"
    source: Literal[TABLES] = "table"  # type: ignore[valid-type]
    path: Paths | None = None
    inputs: Patterns | None = None
    drop: Patterns = ()
    label: str | None = Field(None, min_length=1)
    id: str | None = Field(None, min_length=1)
    condition: Patterns | None = None
    columns: dict[str, ColumnKind] = Field(default_factory=dict)
    categorical: Categorical = "refuse"
    missing: Missing = "refuse"
    scale: Scale = "standard"
    split: str = Field("random", min_length=1)
    groups: str | None = Field(None, min_length=1)
    counts: Counts = Counts()
    seed: Seed = 0
    _schema: Any = None

    @model_validator(mode="after")
    def _check_path(self) -> "TableSettings":
        if (self.source == "table") != (self.path is not None):
            expected = "the path of a table" if self.path is None else "none"
            got = f"with source={self.source}, got {self.path}"
            raise ValueError(f"path: expected {expected} {got}")
        return self

    @property
    def label_column(self) -> str | None:
        """The label, with the default of installed tables."""
        return self.label or (None if self.source == "table" else "target")

    def read(self, raw_folder: Path | None = None) -> "TableSchema":
        """Find the columns and the splits, once; see :func:`.tables.schema.read_schema`."""
        if self._schema is None:
            from submanifold.data.tables.schema import read_schema  # imports pandas

            self._schema = read_schema(self, raw_folder)
        schema: TableSchema = self._schema
        return schema

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one row: (coordinates,); constant columns are none."""
        return (len(self.read().inputs.varying),)

    @property
    def facts(self) -> dict[str, Any]:
        """Description of the rows in a model's file: the preprocessor, and the label."""
        schema = self.read()
        condition = {"condition": schema.context.to_dict()} if schema.context else {}
        names = {"label": self.label_column, "id": self.id}
        return {"table": schema.inputs.to_dict(), **names, **condition}

    def fingerprint(self, raw_folder: Path | None = None) -> str:
        """Identity of the files: names, sizes and times of change."""
        from submanifold.data.tables.files import list_files  # imports pandas

        if self.path is None:
            return f"scikit-learn {version('scikit-learn')}:{self.source}"
        return f"table:{identify(*list_files(self.path))}"


DataSettings = ImageSettings | SyntheticSettings | TableSettings


def read_data_settings(mapping: Mapping[str, Any], name: str = "data") -> DataSettings:
    """Validate the settings of images, points or a table, by their `source`.

    A UserError names every setting that is not allowed.
    """
    source = mapping.get("source", "photos")
    kinds: dict[str, type[DataSettings]] = dict.fromkeys(SOURCES, ImageSettings)
    kinds |= dict.fromkeys(MANIFOLDS, SyntheticSettings) | dict.fromkeys(TABLES, TableSettings)
    if source not in kinds:
        fix = "Change it in conf/base/parameters_datasets.yml, or with --params=dataset=<name>"
        hint = did_you_mean(str(source), kinds)
        raise unexpected("data.source", "the name of a source", source, fix, hint)
    return read_settings(kinds[source], mapping, name)
