from typing import Annotated, Literal

import pytest
from pydantic import Field, field_validator

from submanifold.common.errors import UserError, import_extra
from submanifold.common.settings import Settings, read_settings


class Cat(Settings):
    type: Literal["cat"]
    lives: int = Field(gt=0)


class Dog(Settings):
    type: Literal["dog"]
    tricks: list[str] = Field(default=[])


class House(Settings):
    rooms: int
    colour: str = "red"

    @field_validator("colour")
    @classmethod
    def not_pink(cls, value):
        if value == "pink":
            raise ValueError("house.colour=pink is not a colour for a house")
        return value


class World(Settings):
    pet: Annotated[Cat | Dog, Field(discriminator="type")]
    house: House
    second_house: House | None = None


GOOD = {"pet": {"type": "cat", "lives": 9}, "house": {"rooms": 3}}


def test_valid_settings_are_typed_and_frozen():
    world = read_settings(World, GOOD, "world")
    assert isinstance(world.pet, Cat)
    assert world.house.rooms == 3
    with pytest.raises(ValueError, match="frozen"):
        world.house = None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hous": 1}, "second_house. Did you mean house?"),
        ({"house": {"rooms": 3, "room": 1}}, "world.house.room is not a setting; known: rooms, "),
        ({"house": {}}, "world.house.rooms is missing"),
        ({"pet": {"type": "cow"}}, "world.pet.type=cow is not known; known: cat, dog"),
        ({"pet": {"type": "dog", "lives": 9}}, "world.pet.lives is not a setting; known: type, "),
        ({"pet": {"type": "cat", "lives": 0}}, "world.pet.lives=0 cannot be used"),
        ({"house": {"rooms": 1, "colour": "pink"}}, "house.colour=pink is not a colour"),
    ],
)
def test_invalid_setting_is_named_with_the_allowed_values(changes, message):
    with pytest.raises(UserError) as caught:
        read_settings(World, {**GOOD, **changes}, "world")
    assert message in str(caught.value)
    assert "conf/" not in str(caught.value), "which a folder of `submanifold train` does not have"
    assert "--params=world.<name>=<value>" in str(caught.value)


def test_all_invalid_settings_are_named_at_once():
    with pytest.raises(UserError) as caught:
        read_settings(World, {"house": {"rooms": "x", "dors": 1}}, "world")
    for part in ("world.pet is missing", "world.house.rooms=x", "world.house.dors is not"):
        assert part in str(caught.value)


@pytest.mark.parametrize("code", ["import no_such_dependency", "raise ImportError('libGL.so.1')"])
def test_only_a_missing_package_is_reported_as_not_installed(tmp_path, monkeypatch, code):
    with pytest.raises(UserError, match=r"not installed. Install it with pip install '.*\[some\]'"):
        import_extra("broken_package", "some")
    (tmp_path / "broken_package.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"no_such_dependency|libGL\.so\.1"):
        import_extra("broken_package", "some")
