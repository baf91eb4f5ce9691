"""The known answers on surfaces, in their own module so that they run in parallel."""

import pytest

from test_known_answers import (
    SURFACES,
    answers_of,
    parameters,
    test_every_exact_value_follows_from_a_formula,
    test_every_value_is_in_its_interval,
    test_the_page_names_every_quantity_and_its_exact_value,
)

pytestmark = pytest.mark.pipeline

__all__ = [
    "test_every_exact_value_follows_from_a_formula",
    "test_every_value_is_in_its_interval",
    "test_the_page_names_every_quantity_and_its_exact_value",
]


@pytest.fixture(scope="module", params=parameters(SURFACES), ids="case {}".format)
def found(request):
    yield from answers_of(request.param)
