"""The queue in which owners take turns, against a model of lists."""

from hypothesis import given
from hypothesis import strategies as st

from imagefs.cache.turns import Turns

_STEPS = st.lists(st.one_of(st.integers(0, 3), st.just("pop"), st.tuples(st.just("remove"), st.integers(0, 100))), max_size=60)


@given(_STEPS)
def test_turns(steps: list[int | str | tuple[str, int]]) -> None:
    turns: Turns[int] = Turns()
    model: list[tuple[int, list[int]]] = []  # owners in the order of their turns
    for number, step in enumerate(steps):
        if isinstance(step, int):
            turns.add(step, number)
            queue = next((queue for owner, queue in model if owner == step), None)
            if queue is None:
                model.append((step, [number]))
            else:
                queue.append(number)
        elif step == "pop" and model:
            owner, queue = model.pop(0)
            assert turns.pop() == queue.pop(0)
            model += [(owner, queue)] if queue else []
        elif isinstance(step, tuple) and model:
            owner, queue = model[step[1] % len(model)]
            turns.remove(owner, queue.pop(step[1] % len(queue)))
            model = [(owner, queue) for owner, queue in model if queue]
        assert len(turns) == sum(len(queue) for _, queue in model)
