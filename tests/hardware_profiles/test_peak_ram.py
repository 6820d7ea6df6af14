"""Peak RAM and flash: against a simulation that allocates and frees, and against hand counts."""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpq
from mpq import CostTable, Precision, Problem
from mpq.errors import InputError, LimitError
from mpq.hardware_profiles import Pricing, Workload, load_device
from mpq.hardware_profiles.peak_ram import flash_table, peak_ram_bytes, peak_ram_tables, undominated
from mpq.network.layer import Layer
from mpq.network.liveness import Lifetimes, Step, Value
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.solution import Status
from mpq.solvers import IntegerLinearProgram, Lagrangian

NAMES = ("a", "b", "c")
CHOICES = tuple(map(Precision.parse, ("w2a3", "w4a4", "w8a8")))
BITS = (3, 4, 8)
LAYERS = tuple(Layer(n, "linear", (5, 3), 5, (2, 3), (2, 5), 6, 10, 30) for n in NAMES)


@dataclass(frozen=True)
class Graph:
    """What ``Lifetimes.of`` takes."""

    values: tuple[Value, ...]
    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def lifetimes(self) -> Lifetimes:
        """What is tested."""
        return Lifetimes.of(self.values, self.steps, self.inputs, self.outputs)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Up to 9 steps: layers, elementwise and other operations, changes in place, two results."""
    sizes = st.sampled_from([1, 5, 7, 16])
    values = [Value(draw(sizes)), Value(draw(sizes), draw(st.sampled_from([None, 8, 32])))]
    inputs = (0, 1)
    steps = []
    for number in range(draw(st.integers(1, 9))):
        old = st.integers(0, len(values) - 1)
        reads = draw(st.lists(old, min_size=1, max_size=3, unique=True))
        kind = draw(st.sampled_from(["layer", "elementwise", "elementwise", "other", "change"]))
        layer = draw(st.sampled_from(NAMES)) if kind == "layer" else None
        if kind == "change":
            writes = [reads[0]]
        else:
            like = values[reads[-1]] if kind == "elementwise" else Value(draw(sizes))
            made = [like, Value(draw(sizes))][: draw(st.sampled_from([1, 1, 1, 2]))]
            writes = list(range(len(values), len(values) + len(made)))
            values += made
        is_elementwise = kind in ("elementwise", "change")
        steps.append(Step(f"s{number}", tuple(reads), tuple(writes), layer, is_elementwise))
    outputs = draw(st.lists(st.integers(0, len(values) - 1), max_size=2, unique=True))
    return Graph(tuple(values), tuple(steps), inputs, tuple(outputs))


def simulated_peak(graph: Graph, bits: dict[str, int], batch_size: int = 1) -> int:
    """Bytes, by running through the steps with a set of what is allocated."""
    values, steps = graph.values, graph.steps

    def quantizes(step: Step) -> bool:
        return step.layer is not None and any(values[r].bits is None for r in step.reads)

    def next_layers(value: int, after: int) -> list[int]:
        found = []
        for position in range(after + 1, len(steps)):
            step = steps[position]
            if value not in step.reads:
                continue
            if step.layer is None:
                found += [x for w in step.writes for x in next_layers(w, position)]
            elif quantizes(step):
                found.append(position)
        return found

    def former_layers(value: int, before: int) -> list[int]:
        for position in reversed(range(before)):
            step = steps[position]
            if value in step.writes:
                if step.layer is not None:
                    return [position] if quantizes(step) else []
                return [x for r in step.reads for x in former_layers(r, position)]
        return []

    def size(value: int) -> int:
        width = values[value].bits
        if width is None:
            readers = [s.layer for s in steps if s.layer and value in s.reads]
            following = next_layers(value, -1)
            former = former_layers(value, len(steps))
            nearest = [min(following)] if following else [max(former)] if former else []
            names = readers or [str(steps[position].layer) for position in nearest]
            width = max((bits[name] for name in names), default=32)
        return (values[value].elements * batch_size * width + 7) // 8

    def is_needed_after(value: int, position: int) -> bool:
        later = (value in step.reads for step in steps[position + 1 :])
        return value in graph.outputs or any(later)

    allocated = {v: size(v) for v in graph.inputs if is_needed_after(v, -1)}
    peak = 0
    for position, step in enumerate(steps):
        born = [v for v in step.writes if v not in allocated and v not in graph.inputs]
        born = [v for v in born if not any(v in s.writes for s in steps[:position])]
        born = [v for v in born if step.layer or is_needed_after(v, position)]
        replaced = None
        if step.is_elementwise and len(born) == 1:
            free = (r for r in step.reads if not is_needed_after(r, position))
            replaced = next((r for r in free if values[r] == values[born[0]]), None)
        for value in born:
            allocated[value] = size(value)
        if replaced is None:
            peak = max(peak, sum(allocated.values()))
        else:
            smaller = min(allocated[replaced], allocated[born[0]])
            peak = max(peak, sum(allocated.values()) - smaller)
        for value in list(allocated):
            if not is_needed_after(value, position):
                del allocated[value]
    return peak


def every_assignment(
    graph: Graph, batch_size: int = 1
) -> list[tuple[np.typing.NDArray[np.intp], int]]:
    """Every choice per layer, with the peak of the simulation."""
    candidates = (np.array(c, dtype=np.intp) for c in product(range(3), repeat=len(NAMES)))
    return [
        (c, simulated_peak(graph, {n: BITS[i] for n, i in zip(NAMES, c, strict=True)}, batch_size))
        for c in candidates
    ]


@settings(max_examples=200)
@given(graph=graphs(), batch_size=st.integers(1, 3))
def test_peak_equals_the_simulation(graph: Graph, batch_size: int) -> None:
    """At every assignment: from buffers, from all steps' tables, and from those that are kept."""
    lifetimes = graph.lifetimes
    tables = peak_ram_tables(lifetimes, LAYERS, CHOICES, batch_size)
    kept = undominated(tables)

    for candidate, expected in every_assignment(graph, batch_size):
        precisions = {n: CHOICES[i] for n, i in zip(NAMES, candidate, strict=True)}
        peak, step = peak_ram_bytes(lifetimes, precisions, batch_size)

        assert peak == expected
        assert step in lifetimes.steps
        assert max(table.total(candidate) for table in tables) == expected
        assert max(table.total(candidate) for table in kept) == expected


@given(graph=graphs())
def test_kept_tables_are_all_needed(graph: Graph) -> None:
    """Each exceeds each other one somewhere, and none that was left out exceeds all of them."""
    tables = peak_ram_tables(graph.lifetimes, LAYERS, CHOICES)

    kept = undominated(tables)

    candidates = [candidate for candidate, _ in every_assignment(graph)]
    costs = {t.name: np.array([t.total(candidate) for candidate in candidates]) for t in tables}
    for one, other in product(kept, repeat=2):
        assert one is other or (costs[one.name] > costs[other.name]).any()
    for table in tables:
        assert any((costs[table.name] <= costs[one.name]).all() for one in kept)


@given(graph=graphs())
def test_solvers_reach_the_least_peak_and_no_less(graph: Graph) -> None:
    """One limit, a table a step: the ILP meets the least peak, and a byte less is refused."""
    peaks = [peak for _, peak in every_assignment(graph)]
    kept = undominated(peak_ram_tables(graph.lifetimes, LAYERS, CHOICES))
    loss = CostTable("loss", "nats", NAMES, CHOICES, np.tile([3.0, 2.0, 1.0], (3, 1)))

    def solved(limit: float) -> tuple[Problem, mpq.Solution]:
        problem = Problem(loss, Constraints((Budget("peak_ram", kept, limit),)))
        return problem, IntegerLinearProgram().solve(problem)

    problem, found = solved(min(peaks))
    refused = solved(min(peaks) - 1)[1]

    assert found.columns is not None
    assert problem.is_feasible(found.columns)
    (used,) = (b.used(found.columns) for b in problem.budgets)
    assert used == min(peaks)
    assert refused.status is Status.INFEASIBLE
    (shortfall,) = refused.shortfalls
    assert shortfall.smallest == min(peaks)
    assert "peak_ram (at s" in str(shortfall)
    assert str(shortfall).endswith("1 bytes too much")
    assert refused.conflict == ("peak_ram",)


@given(graph=graphs())
def test_ties_need_one_table_per_step(graph: Graph) -> None:
    """Where all layers share a precision, no step has a choice of the widest reader."""
    tables = peak_ram_tables(graph.lifetimes, LAYERS, CHOICES, ties=(NAMES,))

    assert [table.name for table in tables] == list(graph.lifetimes.steps)
    for column, bits in enumerate(BITS):
        expected = simulated_peak(graph, dict.fromkeys(NAMES, bits))
        candidate = np.full(3, column, dtype=np.intp)
        assert max(table.total(candidate) for table in undominated(tables, (NAMES,))) == expected


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_of_equal_maxima_the_larger_table_is_kept(constant: float) -> None:
    """Wherever it stands, and whether its bytes are in the constant or in the cells."""
    names, precisions = ("a",), CHOICES[:2]
    small = CostTable("small", "bytes", names, precisions, np.array([[1.0, 3.0]]))
    cells = np.full((1, 2), 3.0 - constant)
    large = CostTable("large", "bytes", names, precisions, cells, constant)

    for tables in ((small, large), (large, small)):
        assert [table.name for table in undominated(tables)] == ["large"]


def test_a_chain_by_hand() -> None:
    """10 -> a -> 20 -> relu -> b -> 4: input and output of a layer are there at once."""
    steps = (
        Step("a", (0,), (1,), "a"),
        Step("relu", (1,), (2,), None, is_elementwise=True),
        Step("b", (2,), (3,), "b"),
    )
    lifetimes = Lifetimes.of([Value(10), Value(20), Value(20), Value(4)], steps, [0], [3])

    held = [sum(b.elements for b in lifetimes.alive(step)) for step in range(3)]

    assert held == [30, 20, 24]
    assert peak_ram_bytes(lifetimes, dict.fromkeys(NAMES, CHOICES[2])) == (30.0, "a")
    mixed = {"a": CHOICES[2], "b": CHOICES[1]}  # 10 at 8 bits, 20 at 4
    assert peak_ram_bytes(lifetimes, mixed) == (20.0, "a")
    sixteen = {"a": CHOICES[2], "b": Precision.parse("w8aint16")}  # 10 at 8 bits, 20 at 16
    assert peak_ram_bytes(lifetimes, sixteen) == (50.0, "a")


def test_a_residual_block_by_hand() -> None:
    """x -> a -> b, + x: three tensors in b, two in the addition, which overwrites one."""
    steps = (
        Step("a", (0,), (1,), "a"),
        Step("b", (1,), (2,), "b"),
        Step("add", (2, 0), (3,), None, is_elementwise=True),
        Step("c", (3,), (4,), "c"),
    )
    values = [Value(8), Value(8), Value(8), Value(8), Value(1)]

    lifetimes = Lifetimes.of(values, steps, [0], [4])

    held = [sum(b.elements for b in lifetimes.alive(step)) for step in range(4)]
    assert held == [16, 24, 16, 9]
    assert peak_ram_bytes(lifetimes, dict.fromkeys(NAMES, CHOICES[2])) == (24.0, "b")


def test_a_concatenation_by_hand() -> None:
    """Both parts and the whole are there at once; the whole is read at 4 bits, and so the parts."""
    steps = (
        Step("a", (0,), (1,), "a"),
        Step("b", (0,), (2,), "b"),
        Step("cat", (1, 2), (3,)),
        Step("c", (3,), (4,), "c"),
    )
    lifetimes = Lifetimes.of([Value(2), Value(8), Value(6), Value(14), Value(3)], steps, [0], [4])
    precisions = {"a": CHOICES[2], "b": CHOICES[2], "c": CHOICES[1]}

    held = [sum(b.elements for b in lifetimes.alive(step)) for step in range(4)]

    assert held == [10, 16, 28, 17]
    assert peak_ram_bytes(lifetimes, precisions) == (14.0, "cat")


def test_a_branch_that_is_read_by_unlike_layers_by_hand() -> None:
    """Without a tie, what two layers read is as wide as the wider wants it; two tables say so."""
    steps = (Step("a", (0,), (1,), "a"), Step("b", (0,), (2,), "b"))
    lifetimes = Lifetimes.of([Value(100), Value(2), Value(2)], steps, [0], [1, 2])
    mixed = np.array([1, 2, 0], dtype=np.intp)  # a at 4 bits, b at 8

    tables = peak_ram_tables(lifetimes, LAYERS, CHOICES)

    # The outputs reach no layer: they are held in the formats of those that made them.
    assert [table.total(mixed) for table in tables] == [51, 101, 53, 103]
    assert [table.name for table in tables][2:] == [
        "b (reader 1)",
        "b (reader 2)",
    ]


def test_layers_left_out_and_tensors_without_a_format() -> None:
    """A tensor read by a layer that is not quantized keeps 32 bits; ids and masks their own."""
    steps = (
        Step("lookup", (0,), (1,), "lookup"),
        Step("out", (1,), (2,), "out"),
        Step("where", (2, 3), (4,)),
        Step("a", (4,), (5,), "a"),
    )
    values = [Value(4, 32), Value(10), Value(6), Value(6, 8), Value(6), Value(1)]
    lifetimes = Lifetimes.of(values, steps, [0, 3], [5])

    (peak, step) = peak_ram_bytes(lifetimes, {"a": CHOICES[2]})

    # 10 numbers for `out`, which is left out; 6 of 8 bits for `a`; a mask of 6 bytes.
    assert (peak, step) == (4 * 4 + 10 * 4 + 6, "lookup")
    tables = peak_ram_tables(lifetimes, LAYERS, CHOICES)
    assert tables[0].constant == 62.0
    assert not tables[0].values.any()


def test_too_many_combinations_are_refused() -> None:
    """Seven tensors that are each read by two layers of their own are not multiplied out."""
    names = [f"l{i}" for i in range(14)]
    layers = [replace(LAYERS[0], name=name) for name in names]
    steps = [
        Step(name, (i // 2,), (7 + i,), name) for i, name in enumerate(names[::2] + names[1::2])
    ]
    steps = [replace(step, reads=(position % 7,)) for position, step in enumerate(steps)]
    lifetimes = Lifetimes.of([Value(3)] * 21, steps, range(7), [])

    with pytest.raises(InputError, match="more than 64 combinations; tie those that read one"):
        peak_ram_tables(lifetimes, layers, CHOICES)


def test_flash_counts_weights_scales_and_what_is_not_quantized() -> None:
    """15 weights in 4 bits, 5 scales of 32 bits, and 7 parameters of 4 bytes."""
    table = flash_table(LAYERS[:1], CHOICES[1:2], num_unquantized=7)

    assert table.total(np.zeros(1, dtype=np.intp)) == 8 + 5 * 4 + 7 * 4
    assert table.column == "flash_bytes"


def test_flash_holds_the_devices_code() -> None:
    """Of a device whose runtime has a known size, whatever the precisions; of others nothing."""
    precisions = dict.fromkeys(NAMES, CHOICES[2])
    profile = load_device("cortex-m4")

    alone = Pricing(LAYERS, None, num_unquantized=3).amount("flash", precisions)
    on_device = Pricing(LAYERS, profile, num_unquantized=3).amount("flash", precisions)
    on_server = Pricing(LAYERS, load_device("nvidia-t4"), num_unquantized=3)

    assert on_device == alone + profile.numbers()["code_bytes"].value > alone
    assert on_server.amount("flash", precisions) == alone


def priced(batch_size: int = 1) -> Pricing:
    """Three layers and two steps."""
    steps = (Step("a", (0,), (1,), "a"), Step("b", (1,), (2,), "b"))
    lifetimes = Lifetimes.of([Value(10), Value(4), Value(2)], steps, [0], [2])
    return Pricing(LAYERS, None, Workload(batch_size), lifetimes, 3)


def test_pricing_knows_memory() -> None:
    """Peak RAM grows with the batch, flash does not."""
    precisions = dict.fromkeys(NAMES, CHOICES[2])

    one, three = priced(), priced(batch_size=3)

    assert (one.amount("peak_ram", precisions), three.amount("peak_ram", precisions)) == (14, 42)
    assert one.amount("flash", precisions) == three.amount("flash", precisions) == 3 * 35 + 12
    assert {"flash", "peak_ram"} <= set(one.resources)
    assert "peak_ram" not in Pricing(LAYERS).resources


def test_pricing_refuses_peaks_it_does_not_know() -> None:
    """No sum over layers, no lifetimes, other tokens: each is said."""
    with pytest.raises(InputError, match="maximum over the steps of a forward pass, not a sum"):
        priced().table("peak_ram", CHOICES)
    with pytest.raises(InputError, match="peak_ram needs a network that was traced"):
        Pricing(LAYERS).tables("peak_ram", CHOICES)
    with pytest.raises(InputError, match="leave phase and tokens out"):
        replace(priced(), workload=Workload(phase="decode")).tables("peak_ram", CHOICES)


def test_a_problem_takes_one_limit_for_all_steps() -> None:
    """``within`` sets the limit of all steps; a relative limit refers to the peak."""
    kept = undominated(priced().tables("peak_ram", CHOICES))
    loss = CostTable("loss", "nats", NAMES, CHOICES, np.zeros((3, 3)))
    problem = Problem(loss, Constraints((Budget("peak_ram", kept, 100.0),)))

    relative, absolute = problem.within(["peak_ram=0.5x:w8a8"]), problem.within(["peak_ram=6B"])

    assert [budget.limit for budget in relative.budgets] == [7.0]
    assert [budget.limit for budget in absolute.budgets] == [6.0]
    assert Lagrangian().solve(absolute).columns is not None
    with pytest.raises(LimitError, match="unit 'ms' does not measure bytes"):
        problem.within(["peak_ram=6ms"])
