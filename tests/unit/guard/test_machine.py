"""Random users, a simulated engine, small memory: what must hold in every state."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mlx_guarded_llm.errors import GenerationFailed, InvalidRequest, LoadFailed
from mlx_guarded_llm.guard import Load, LoadDeadline, Status
from tests.unit.guard.simulation import Footprint, Simulation

MODELS = ("a", "b", "c", "d")
models = st.sampled_from(MODELS)
seconds = st.integers(1, 30)


class Users(RuleBasedStateMachine):
    """Everything the owner may call, in any order and at any time."""

    deadline: LoadDeadline = "pause"
    sim: Simulation
    closed = False

    @initialize(
        sizes=st.lists(st.integers(1, 9), min_size=len(MODELS), max_size=len(MODELS)),
        budget=st.one_of(st.none(), st.integers(9, 16)),
        load_wait=st.sampled_from([0, 1, 7, 40]),
        window=st.sampled_from([0, 1, 5, 20]),
        batch_wait=st.sampled_from([0, 3, 30]),
        max_active=st.integers(1, 3),
        max_queue=st.sampled_from([2, 1000]),
        keep_alive=st.sampled_from([None, 0, 3, 50]),
        load_seconds=st.integers(1, 15),
    )
    def begin(
        self,
        sizes: list[int],
        budget: int | None,
        load_wait: int,
        window: int,
        batch_wait: int,
        max_active: int,
        max_queue: int,
        keep_alive: int | None,
        load_seconds: int,
    ) -> None:
        self.sim = Simulation(
            sizes={m: Footprint(s, prefill=s % 2) for m, s in zip(MODELS, sizes, strict=True)},
            budget=budget,
            load_wait=load_wait,
            fairness_window=window,
            batch_wait=batch_wait,
            on_load_deadline=self.deadline,
            max_active=max_active,
            max_queue=max_queue,
            keep_alive=keep_alive,
            load_seconds=load_seconds,
        )

    @rule(model=models, length=seconds, tokens=st.integers(0, 5), batch=st.booleans())
    def submit(self, model: str, length: int, tokens: int, batch: bool) -> None:
        self.sim.submit(model, length, tokens=tokens, batch=batch)

    @rule(model=models, length=seconds, timeout=st.integers(0, 40))
    def submit_with_timeout(self, model: str, length: int, timeout: int) -> None:
        self.sim.submit(model, length, timeout=timeout)

    @rule(model=models, length=seconds, tokens=st.integers(0, 5), timeout=st.integers(0, 40))
    def ask(self, model: str, length: int, tokens: int, timeout: int) -> None:
        self.sim.ask(model, length, tokens=tokens, timeout=timeout)

    @precondition(lambda self: self.sim.state.early)
    @rule(data=st.data())
    def fetched(self, data: st.DataObject) -> None:
        self.sim.fetched(data.draw(st.sampled_from(sorted(self.sim.state.early))))

    @precondition(lambda self: self.sim.state.early and self.sim.back_at is None)
    @rule(data=st.data())
    def prepared(self, data: st.DataObject) -> None:
        self.sim.prepared(data.draw(st.sampled_from(sorted(self.sim.state.early))))

    @precondition(lambda self: self.sim.state.early)
    @rule(data=st.data())
    def answered(self, data: st.DataObject) -> None:
        """Of one that is being prepared; nothing happens to any other."""
        name = data.draw(st.sampled_from(sorted(self.sim.open)))
        was = self.sim.guard.status(name)
        self.sim.guard.answered(name)
        if was is Status.PREPARING:
            self.sim.open.remove(name)
        else:
            assert self.sim.guard.status(name) is was

    @precondition(lambda self: self.sim.open)
    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.sim.open)))
        with pytest.raises(InvalidRequest):
            self.sim.guard.submit(self.sim.now, name, "a")

    @precondition(lambda self: self.sim.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.sim.cancel(data.draw(st.sampled_from(sorted(self.sim.open))))

    @rule(model=models)
    def unpin(self, model: str) -> None:
        self.sim.unpin(model)

    @rule(model=models, pin=st.booleans())
    def ask_load(self, model: str, pin: bool) -> None:
        self.sim.ask_load(model, pin=pin)

    @rule(model=models)
    def ask_unload(self, model: str) -> None:
        self.sim.ask_unload(model)

    @rule(label=st.sampled_from(["cell", *MODELS]))
    def ask_run(self, label: str) -> None:
        self.sim.ask_run(label)

    @precondition(lambda self: self.sim.callers)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.sim.callers)))
        with pytest.raises(InvalidRequest):
            self.sim.guard.ask_run(self.sim.now, name, "cell")

    @precondition(lambda self: self.sim.callers)
    @rule(data=st.data())
    def cancel_job(self, data: st.DataObject) -> None:
        self.sim.cancel_job(data.draw(st.sampled_from(sorted(self.sim.callers))))

    @rule(time=st.integers(0, 60))
    def wait(self, time: int) -> None:
        self.sim.advance(time)

    @precondition(lambda self: self.sim.job is not None)
    @rule(done=st.booleans())
    def job_fails(self, done: bool) -> None:
        """The running job will fail, with its evictions done or none of them."""
        self.sim.job_error = LoadFailed("bad weights")
        assert self.sim.state.running is not None
        self.sim.job_left = self.sim.state.running.leaving if done else ()

    @precondition(lambda self: isinstance(self.sim.job, Load))
    @rule(done=st.booleans())
    def load_is_tried_again(self, done: bool) -> None:
        self.job_fails(done)
        self.sim.job_again = True

    @rule(outage=st.integers(0, 20), reported=st.booleans())
    def die(self, outage: int, reported: bool) -> None:
        self.sim.die(outage, reported=reported)

    @precondition(lambda self: self.sim.generations)
    @rule(data=st.data())
    def interrupt(self, data: st.DataObject) -> None:
        self.sim.interrupt(data.draw(st.sampled_from(sorted(self.sim.generations))))

    @rule()
    def evict_idle(self) -> None:
        self.sim.evict_idle()

    @precondition(lambda self: self.sim.generations)
    @rule(data=st.data())
    def out_of_memory(self, data: st.DataObject) -> None:
        self.sim.evict_idle()
        if self.sim.generations:
            self.sim.interrupt(data.draw(st.sampled_from(sorted(self.sim.generations))))

    @precondition(lambda self: self.sim.back_at is not None)
    @rule(model=models)
    def refuse(self, model: str) -> None:
        error = LoadFailed("it was at work in too many deaths")
        self.sim.do(self.sim.guard.refuse(self.sim.now, model, error))
        assert model not in self.sim.state.models
        assert model not in {request.model for request in self.sim.state.requests.values()}

    @precondition(lambda self: self.sim.back_at is not None)
    @rule()
    def end_all(self) -> None:
        error = LoadFailed("no engine works for long")
        self.sim.do(self.sim.guard.end_all(self.sim.now, error))
        assert self.sim.guard.quiet

    @precondition(lambda self: self.sim.generations)
    @rule(data=st.data())
    def generation_fails(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.sim.generations)))
        self.sim.end_generation(name, GenerationFailed("condemned"))

    @rule()
    def nonsense(self) -> None:
        sim = self.sim
        timing, actions = sim.guard.ended(sim.now, "nobody")
        assert timing.queued == 0
        sim.do(actions)
        sim.do(sim.guard.job_ended(sim.now, "nothing"))
        sim.do(sim.guard.interrupted(sim.now, "nobody", "nothing"))
        sim.do(sim.guard.refuse(sim.now, "no model", LoadFailed("")))
        sim.do(sim.guard.cancel(sim.now, "nobody"))
        sim.do(sim.guard.cancel_job(sim.now, "nobody"))
        sim.do(sim.guard.tick(sim.now))
        sim.guard.first_token(sim.now, "nobody")
        sim.guard.fetched("nobody")
        sim.guard.answered("nobody")
        sim.do(sim.guard.prepared(sim.now, "nobody"))

    @precondition(lambda self: not self.closed)
    @rule(really=st.integers(0, 9))
    def close(self, really: int) -> None:
        if really == 0:
            self.closed = True
            self.sim.close()
            assert not self.sim.state.jobs

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "sim"):
            self.sim.settle_time()
            self.sim.check()

    def teardown(self) -> None:
        if hasattr(self, "sim"):
            self.sim.finish()
            self.sim.check()
            self.sim.advance(100)


class RaisingUsers(Users):
    deadline = "raise"


@pytest.mark.parametrize("machine", [Users, RaisingUsers])
def test_random_users(machine: type[Users]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
