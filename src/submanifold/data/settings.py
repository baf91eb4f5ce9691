"""Settings of the data: `data.*` of the parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from submanifold.common.errors import did_you_mean, unexpected
from submanifold.common.files import expand_user
from submanifold.common.settings import Settings, read_settings
from submanifold.data.fields import FOLDER_GROUPS, Fields, ImageFields, Seed, TableFields
from submanifold.data.sources import SOURCES, Source
from submanifold.data.sources.stores import identify
from submanifold.data.synthetic import MANIFOLDS, Manifold, manifold

if TYPE_CHECKING:
    from submanifold.data.tables.schema import TableSchema

INSTALLED = {
    "breast_cancer": "569 tumors, 30 measurements of cell nuclei; the label is benign or malignant",
    "diabetes": "442 patients, 10 measurements; the label is the progression of the disease",
    "digits_table": "1,797 handwritten digits, 64 pixels of 17 grey levels; the label is the digit",
    "wine": "178 wines, 13 chemical measurements; the label is the cultivar",
}
"""Tables that are installed with scikit-learn, with descriptions."""
TABLE_SOURCES = ("table", *INSTALLED)

Kind = Literal["images", "synthetic", "table"]
"""Kind of data: images, points of a manifold with a known density, or rows of a table."""


class ImageSettings(ImageFields):
    """Where images come from, and their shape."""

    kind: ClassVar[Kind] = "images"
    source: Literal[tuple(SOURCES)] = "photos"  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _check_rules(self) -> "ImageSettings":
        kind, source = SOURCES[self.source], f"with source={self.source}"
        supported = {
            "path": kind.path,
            "groups": kind.image_files,
            "labels": kind.labels,
            "other_labels": kind.labels,
            "condition": kind.labels,
        }
        expected = {
            name: f"none {source}"
            for name, is_supported in supported.items()
            if getattr(self, name) is not None and not is_supported
        }
        if self.path is None and kind.path_required:
            expected["path"] = f"{kind.path} {source}"
        if self.labels and self.other_labels:
            expected["other_labels"] = f"none with labels={[*self.labels]}"
        if 2 * self.margin >= self.size:
            expected["margin"] = f"less than half of size={self.size}"
        if self.split == "official" and not kind.official_split:
            expected["split"] = f"random {source}"
        problems = [
            f"{name}: expected {text}, got {getattr(self, name) or 'none'}"
            for name, text in expected.items()
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def open(self, raw_folder: Path) -> Source:
        """Open the source, after its download if necessary; UserError if it has no images."""
        return SOURCES[self.source].open(self, raw_folder)

    def fingerprint(self, raw_folder: Path) -> str:
        """Identity of the files: not the place, and the same before and after a download."""
        files, groups = SOURCES[self.source].files(self, raw_folder), self.groups
        try:
            if groups not in (None, FOLDER_GROUPS):
                groups = identify(expand_user(groups))
            return f"{'standard' if files is None else identify(*files)}+groups:{groups}"
        except OSError as error:
            name, got = f"path={self.path}", f"an error ({error})"
            raise unexpected(name, "files that can be read", got, "Correct it") from error


class Draws(Settings):
    """Number of points in each split."""

    train: PositiveInt = 50_000
    valid: PositiveInt = 2_000
    test: PositiveInt = 5_000


class SyntheticSettings(Fields):
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


class TableSettings(TableFields):
    """Rows of a table."""

    kind: ClassVar[Kind] = "table"
    source: Literal[TABLE_SOURCES] = "table"  # type: ignore[valid-type]
    _schema: Any = None

    @model_validator(mode="after")
    def _check_path(self) -> "TableSettings":
        if (self.source == "table") != (self.path is not None):
            expected = "the path of a table" if self.path is None else "none"
            got = f"with source={self.source}, got {self.path}"
            raise ValueError(f"path: expected {expected} {got}")
        return self

    def read(self, record: Path | None = None) -> "TableSchema":
        """Find the columns and the splits, once; see :func:`.tables.schema.read_schema`."""
        if self._schema is None:
            from submanifold.data.tables.schema import read_schema  # imports pandas

            self._schema = read_schema(self, record)
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
        from submanifold.data.tables.schema import fingerprint  # imports pandas

        return fingerprint(self)


DataSettings = ImageSettings | SyntheticSettings | TableSettings


def read_data_settings(mapping: Mapping[str, Any]) -> DataSettings:
    """Validate the settings of images, points or a table, by their `source`.

    A UserError names every setting that is not allowed.
    """
    source = mapping.get("source", "photos")
    kinds: dict[str, type[DataSettings]] = dict.fromkeys(SOURCES, ImageSettings)
    kinds |= dict.fromkeys(MANIFOLDS, SyntheticSettings) | dict.fromkeys(
        TABLE_SOURCES, TableSettings
    )
    if source not in kinds:
        fix = "Change it with --params=dataset=<name>"
        hint = did_you_mean(str(source), kinds)
        raise unexpected("data.source", "the name of a source", source, fix, hint)
    return read_settings(kinds[source], mapping, "data")
