"""Fields of the settings of data, which sources and tables read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from submanifold.common.files import expand_user
from submanifold.common.settings import Settings, flatten

FOLDER_GROUPS = "folder"  #: Value of the setting `groups` that makes each folder a group.

Missing = Literal["model", "drop"]
Scale = Literal["standard", "none"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
ColumnKind = Literal["integer", "number", "category", "ignore"]
"""Kind of a column that a user sets."""
Texts = tuple[Annotated[str, Field(min_length=1)], ...]
Paths = Annotated[Texts, BeforeValidator(lambda x: (x,) if isinstance(x, str) else x)]
AsList = BeforeValidator(lambda x: x.split(",") if isinstance(x, str) else x)
Patterns = Annotated[Texts, AsList]


def _join_names(columns: Any) -> Any:
    """Join names of columns with dots, of which YAML and --params make nested groups."""
    return flatten(columns) if isinstance(columns, Mapping) else columns


class Counts(Settings):
    """Number of images or rows in each split; `None` leaves it to the split rule."""

    train: PositiveInt | None = None
    valid: PositiveInt | None = None
    test: PositiveInt | None = None


class Fields(Settings):
    """Base of the settings of data."""

    @property
    def content(self) -> dict[str, Any]:
        """The settings on which the data depend, besides the fingerprint of their files."""
        return self.model_dump(mode="json", exclude={"path"})


class ImageFields(Fields):
    """Fields of the settings of images, which sources read.

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

    source: str = "photos"
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

    @property
    def file(self) -> Path:
        """The file or folder at `path`."""
        return expand_user(str(self.path))

    @property
    def form(self) -> dict[str, Any]:
        """Arguments of :func:`submanifold.data.images.crop_and_resize`."""
        crop = "celeba" if self.source == "celeba" else "square"
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


class TableFields(Fields):
    """Fields of the settings of a table.

    Attributes:
        source: `table` (files at `path`), or a table that is installed with scikit-learn:
            `breast_cancer`, `diabetes`, `digits_table` or `wine`.
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
        missing: `model`: the density is that of the values that a row has, given which are
            missing; or `drop` rows with missing values.
        strict: Refuse a table with other columns than finite numbers, instead of finding what can
            be done with them.
        scale: `standard` (mean 0, standard deviation 1), or `none`.
        split: `random`, or the name of a column with the values train, valid and test.
        groups: Column of groups of rows that are not independent of each other. No group is in two
            splits, and confidence intervals are over groups. None: all rows are independent.
        counts: Number of rows in each split; by default a tenth for validation and test, 20 to
            100,000 but at most a quarter.
        seed: Seed of the split.
    """

    source: str = "table"
    path: Paths | None = None
    inputs: Patterns | None = None
    drop: Patterns = ()
    label: str | None = Field(None, min_length=1)
    id: str | None = Field(None, min_length=1)
    condition: Patterns | None = None
    columns: Annotated[dict[str, ColumnKind], BeforeValidator(_join_names)] = Field(
        default_factory=dict
    )
    missing: Missing = "model"
    strict: bool = False
    scale: Scale = "standard"
    split: str = Field("random", min_length=1)
    groups: str | None = Field(None, min_length=1)
    counts: Counts = Counts()
    seed: Seed = 0

    @property
    def label_column(self) -> str | None:
        """The label, with the default of installed tables."""
        return self.label or (None if self.source == "table" else "target")
