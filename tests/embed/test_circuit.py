"""The circuit as a state machine: whatever happens, it lets one call try soon enough, and no more than one."""

from __future__ import annotations

from random import Random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.embed.circuit import FAILURES, LONGEST_S, Admission, Circuit

RESET_S = 5.0


class CircuitMachine(RuleBasedStateMachine):
    """Beside the circuit stands what is known without it: whether the last request succeeded, and who probes."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.circuit = Circuit(RESET_S, lambda: self.now_s, Random(1))
        self.probing = False
        self.failed_since_s: float | None = None
        self.failures = 0

    @rule(seconds=st.floats(0, 2 * LONGEST_S))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def a_call_comes(self) -> None:
        was_closed, due = self.circuit.closed, self.circuit.wait_s() == 0
        admission = self.circuit.admit()
        if was_closed:
            assert admission is Admission.GO
        elif self.probing or not due:
            assert admission is Admission.REFUSED
        else:
            assert admission is Admission.PROBE
            self.probing = True

    @rule()
    def a_request_succeeds(self) -> None:
        was_closed = self.circuit.closed
        assert self.circuit.succeeded() is not was_closed
        assert self.circuit.closed
        self.probing = False
        self.failures, self.failed_since_s = 0, None

    @rule(lasted_s=st.floats(0, 10), for_good=st.booleans())
    def a_request_fails(self, lasted_s: float, for_good: bool) -> None:
        was_closed = self.circuit.closed
        if was_closed and self.failed_since_s is None:
            self.failed_since_s = self.now_s - lasted_s
        self.failures += 1
        opens = self.circuit.failed("x", self.now_s - lasted_s, for_good=for_good)
        if was_closed:
            assert self.failed_since_s is not None
            lasting = self.failures >= FAILURES and self.now_s - self.failed_since_s >= RESET_S
            assert opens == (lasting or for_good)
            assert self.circuit.closed is not opens
        else:
            assert not opens

    @precondition(lambda self: self.probing)
    @rule(how=st.sampled_from(["failed", "postponed"]))
    def the_probe_ends(self, how: str) -> None:
        if how == "failed":
            assert not self.circuit.failed("y", self.now_s, probe=True)
        else:
            self.circuit.postpone()
        self.probing = False
        assert not self.circuit.closed
        assert self.circuit.wait_s() > 0

    @invariant()
    def the_next_try_is_near(self) -> None:
        assert 0 <= self.circuit.wait_s() <= LONGEST_S
        if self.circuit.closed:
            assert not self.probing


TestCircuit = CircuitMachine.TestCase


def test_pauses_double_up_to_a_bound_and_start_over_after_a_success() -> None:
    now_s = 0.0
    circuit = Circuit(RESET_S, lambda: now_s, Random(1))
    assert circuit.failed("x", now_s, for_good=True)
    pauses_s = [circuit.wait_s()]
    for _ in range(8):
        now_s += circuit.wait_s()
        assert circuit.admit() is Admission.PROBE
        circuit.failed("x", now_s, probe=True)
        pauses_s.append(circuit.wait_s())
    assert pauses_s[0] == RESET_S
    for tries, pause_s in enumerate(pauses_s):
        longest_s = min(LONGEST_S, RESET_S * 2**tries)
        assert 0.75 * longest_s <= pause_s <= longest_s
    circuit.succeeded()
    circuit.failed("x", now_s, for_good=True)
    assert circuit.wait_s() == RESET_S
