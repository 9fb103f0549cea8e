from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.filter import Filter
from gateway.live.batch import Batch
from gateway.live.filters import MANY, Filters, Verdicts, parts
from tests.live.support import World, patch, put

scalars = st.sampled_from([0, 1, 1.0, 2, True, False, None, "1", "a"])
values = scalars | st.lists(scalars | st.lists(scalars, max_size=2), max_size=3)
documents = st.fixed_dictionaries({}, optional={"x": values, "y": st.fixed_dictionaries({}, optional={"z": values})})
tests = scalars | st.fixed_dictionaries({"$eq": scalars}) | st.builds(lambda one: {"$in": [one]}, scalars)
conditions = st.fixed_dictionaries(
    {}, optional={"x": tests, "y.z": tests, "$not": st.builds(lambda v: {"x": v}, scalars)}
)


@given(st.lists(conditions, max_size=6), documents)
def test_no_filter_that_fits_is_passed_over(sources: list[dict[str, Any]], document: dict[str, Any]) -> None:
    filters = Filters()
    parsed = [Filter(source) for source in sources]
    numbers = [filters.take(where) for where in parsed]
    fitting = {number for number, where in zip(numbers, parsed, strict=True) if where.matches(document)}
    assert fitting <= set(filters.possible(document))


@given(st.lists(conditions, max_size=6), documents)
def test_what_is_released_leaves_nothing(sources: list[dict[str, Any]], document: dict[str, Any]) -> None:
    filters = Filters()
    for number in [filters.take(Filter(source)) for source in sources]:
        filters.release(number)
    assert not filters.possible(document)
    assert not any(filters.by_number)


def test_equal_filters_share_a_number_and_free_ones_are_used_again() -> None:
    filters = Filters()
    first = filters.take(Filter({"x": 1, "y": 2}))
    assert filters.take(Filter({"y": 2, "x": 1})) == first
    filters.release(first)
    other = filters.take(Filter({"x": 2}))
    assert other != first
    filters.release(first)
    assert filters.take(Filter({"x": 3})) == first


def test_each_filter_judges_each_document_once() -> None:
    world, filters = World(), Filters()
    where = Filter({"x": {"$gte": 1}})
    judged: list[dict[str, Any]] = []

    class Counting(Filter):
        def matches(self, metadata: dict[str, Any]) -> bool:
            judged.append(metadata)
            return super().matches(metadata)

    number = filters.take(Counting({"x": {"$gte": 1}}))
    assert number == filters.take(where)
    world.commit(put("a", 1, 1, 1, 1, metadata={"x": 0}), put("b", 1, 1, 1, 1, metadata={"x": 2}))
    applied = world.commit(patch("a", x=3), patch("b", x=4))
    assert applied is not None
    batch = Batch(applied, 4, world.spec.metric)
    verdicts = Verdicts(filters, batch)
    columns = {column.document.id: i for i, column in enumerate(batch.columns)}
    pairs = np.full(3, number), np.array([columns["a"], columns["b"], columns["a"]])
    for _ in range(2):
        assert verdicts.fit(*pairs).tolist() == [True, True, True]
    assert sorted(one["x"] for one in judged) == [3, 4]
    # It came into the filter with this commit; the other was there before.
    assert verdicts.enter(*pairs).tolist() == [True, False, True]


def test_watches_with_a_filter_that_many_have_are_compared_with_what_may_come_into_it() -> None:
    world, filters = World(), Filters()
    red, blue, small = (filters.take(Filter({"x": value})) for value in ("red", "blue", "small"))
    applied = world.commit(*(put(f"d{i}", i, 1, 0, 0, metadata={"x": ("red", "small")[i % 2]}) for i in range(6)))
    assert applied is not None
    possible = Verdicts(filters, Batch(applied, world.spec.dimension, world.spec.metric)).possible(6)
    watches = np.array([red] * MANY + [blue] * MANY + [small] * (MANY - 1) + [red])
    first, second = parts(watches, 1000, possible)
    assert isinstance(first.rows, np.ndarray)
    assert first.rows.tolist() == [*range(1000, 1000 + MANY), 1000 + len(watches) - 1]
    assert first.columns is not None
    assert first.columns.tolist() == [0, 2, 4]
    assert isinstance(second.rows, np.ndarray)
    assert second.rows.tolist() == [*range(1000 + 2 * MANY, 1000 + 3 * MANY - 1)], "blue is what nothing may be"
    assert second.columns is None, "they are few"
