from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError

import numpy as np
import pytest

from service.batching.batch_queue import Priority
from service.batching.budgets import Budget, Permit, release_with

NORMAL, LOW, HIGH = Priority.NORMAL, Priority.LOW, Priority.HIGH


def held(budget: Budget, units: int, priority: Priority = NORMAL) -> Permit:
    permit = budget.permit(priority)
    assert permit.reserve(units)
    return permit


def test_a_budget_runs_out_but_never_for_a_permit_that_is_alone() -> None:
    budget = Budget(1000)
    alone = held(budget, 5000)
    assert alone.reserve(1)
    another = budget.permit(NORMAL)
    assert not another.reserve(1)
    alone.release()
    assert another.reserve(600)
    held(budget, 400)
    assert not another.reserve(1)
    assert budget.used == 1000


def test_a_permit_is_released_once_and_holds_nothing_more() -> None:
    budget = Budget(10)
    permit, other = held(budget, 4), held(budget, 5, LOW)
    permit.release()
    permit.release()
    assert budget.used == 5
    assert budget.held_by == {None: {HIGH: 0, NORMAL: 0, LOW: 5}}
    with pytest.raises(CancelledError):
        permit.reserve(1)  # in a decoding thread that comes to it late
    other.release()
    assert budget.used == 0


@pytest.mark.anyio
async def test_a_patient_permit_waits_until_others_are_released() -> None:
    budget = Budget(1000)
    finish, most, inside = asyncio.Event(), 0, 0

    async def hold(units: int) -> None:
        nonlocal most, inside
        permit = budget.permit(NORMAL)
        try:
            while not permit.reserve(units):
                with budget.release() as released:
                    if not permit.fits(units):
                        await released
            inside += units
            most = max(most, inside)
            await finish.wait()
            await asyncio.sleep(0)
            inside -= units
        finally:
            permit.release()

    holders = [asyncio.create_task(hold(units)) for units in (400, 400, 400, 3000, 400)]
    await asyncio.sleep(0.01)
    assert inside == 800
    holders[2].cancel()  # one that waits leaves no trace
    finish.set()
    await asyncio.gather(*holders, return_exceptions=True)
    assert [holder.cancelled() for holder in holders] == [False, False, True, False, False]
    assert most == 3000
    assert budget.used == 0


def test_a_caller_leaves_a_quarter_of_what_it_holds_to_others() -> None:
    budget = Budget(1000)
    greedy, again = budget.permit(NORMAL, "greedy"), budget.permit(NORMAL, "greedy")
    assert greedy.reserve(700)
    assert again.reserve(100)
    assert not again.reserve(1)
    other = budget.permit(NORMAL, "other")
    assert other.reserve(160)
    assert not other.reserve(1)
    third = budget.permit(NORMAL, "third")
    assert third.reserve(32)
    greedy.shrink(100)
    assert greedy.units == 100
    assert other.reserve(300)


@pytest.mark.anyio
async def test_a_permit_is_released_when_a_thing_is_freed() -> None:
    budget = Budget(1000)
    permit, thing = held(budget, 300), np.empty(100, np.uint8)
    release_with(thing, permit.split(100), asyncio.get_running_loop())
    permit.release()
    assert budget.used == 100
    view = thing[3:]
    del thing
    await asyncio.sleep(0)
    assert budget.used == 100
    del view
    await asyncio.sleep(0)
    assert budget.used == 0
    with pytest.raises(CancelledError):
        permit.split(1)
