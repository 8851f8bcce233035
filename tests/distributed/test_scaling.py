"""What is sent over a mesh is what the formulas say, and docs/scale.md says what they give."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharded import make_mesh

import mcgrad
from bench import distributed, scaling
from bench.collectives import messages
from bench.scaling import LOSSES, MILLION, Case, Cost, Mesh, Point, Program
from tests.test_readme import expected

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text()
RESULTS = json.loads(scaling.RESULTS.read_text())

# The page.


@pytest.mark.implicit_promotion
def test_every_block_of_the_page_prints_what_it_says():
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert " ".join(printed.getvalue().split()) == expected(code) != "", code


def test_the_tables_of_the_page_are_those_of_the_formulas():
    tables = scaling.tables(RESULTS["million"])
    assert tables.strip() in PAGE
    assert PAGE.count("\n| 512 |") == tables.count("\n| 512 |")
    for case in RESULTS["million"]:
        assert Cost(**case["cost"]) == scaling.hinge_cost(MILLION, Mesh(*case["mesh"]))


def test_the_programs_of_the_committed_run_agree():
    points = [
        Point(**point | {"mesh": Mesh(*point["mesh"]), "program": Program(**point["program"])})
        for point in RESULTS["points"]
    ]
    cases = [
        Case(Mesh(*case["mesh"]), Cost(**case["cost"]), Program(**case["program"]))
        for case in RESULTS["million"]
    ]
    assert len(points) == len(scaling.sweep(quick=False)) and len(cases) == len(
        scaling.million_meshes()
    )
    assert scaling.agree(points, cases)
    for case in cases:
        weights, inputs, *_ = case.cost
        labels = 4 * MILLION["batch"] // case.mesh.data
        assert case.program.arguments == weights + inputs + labels
        assert 0 <= case.program.results - weights - inputs < 100  # The value.
        assert 0.8 < case.cost.temporaries / case.program.temporaries < 2.5


def test_what_the_page_says_of_the_tables():
    cost = {mesh: scaling.hinge_cost(MILLION, mesh) for mesh in scaling.million_meshes()}
    sent = {mesh: sum(of.sent.values()) for mesh, of in cost.items()}
    examples, classes, square = (of(512) for of in scaling.MESHES.values())
    best = scaling.least_sent(512)
    assert "On 512 of them 48 operations" in PAGE
    assert round(cost[examples].operations / sent[examples]) == 48
    assert "thirty times less" in PAGE and 25 < sent[examples] / sent[classes] < 35
    assert f"{best.data}×{best.model} sends less than half of what" in PAGE
    assert f"{square.data}×{square.model} sends" in PAGE
    assert sent[best] < sent[square] / 2 and cost[best].held < cost[square].held
    assert MILLION["columns"] % 512 == 0 and "1 000 448 classes" in PAGE
    half = {mesh: scaling.hinge_cost(MILLION, mesh, storage=2) for mesh in cost}
    assert all(0.75 < half[mesh].held / cost[mesh].held <= 1 for mesh in cost)


def test_the_seconds_on_the_page_are_those_of_the_launcher():
    grace, patience = distributed.GRACE, distributed.PATIENCE
    assert f"after {distributed.HEARTBEAT} seconds in which it sent no sign" in PAGE
    assert f"{grace} seconds after the first has ended, it is asked" in PAGE
    assert f"and {patience} seconds later it is killed" in PAGE
    assert f"ended {grace + patience} seconds after the first" in PAGE


# The formulas.


@pytest.mark.parametrize("mesh", [Mesh(8, 1), Mesh(1, 8), Mesh(2, 4), Mesh(1, 1)], ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_a_program_sends_what_the_formula_says(loss, mesh):
    if "data" not in loss.sent and mesh.data > 1:
        mesh = Mesh(1, mesh.model)
    sizes = mesh.whole(loss.sizes)
    program = scaling.compiled(loss, sizes, mesh)
    assert program.given == scaling.sent(loss, sizes, mesh)
    assert program.kinds == (["all-reduce"] if mesh.devices > 1 else [])


def test_a_program_that_sends_something_else_is_found():
    program = Program({"data": 4}, ["all-reduce"], 0, 0, 0)
    point = Point("a loss", "weak", "data", Mesh(2, 1), {}, {"data": 4}, program)
    assert scaling.agree([point], [])
    assert not scaling.agree([point._replace(formula={"data": 8})], [])
    assert not scaling.agree([point._replace(program=program._replace(kinds=["all-gather"]))], [])


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_a_ring_sends_what_it_is_said_to(devices):
    """The parts of a sum travel around: added up on the first round, known on the second."""
    parts = np.random.default_rng(0).integers(0, 9, (devices, devices, 5))  # device, part, number
    held, sent = parts.copy(), np.zeros(devices, int)
    for turn in range(2 * (devices - 1)):
        for device in range(devices):
            part, after = (device - turn) % devices, (device + 1) % devices
            known = turn >= devices - 1
            given = held[device, part] + (0 if known else held[after, part])
            held[after, part] = given
            sent[device] += given.size
    np.testing.assert_array_equal(held, np.broadcast_to(parts.sum(0), held.shape))
    (said,) = scaling.on_the_wire({"model": held[0].size}, Mesh(1, devices)).values()
    assert sent == pytest.approx(said)


def test_the_operations_are_those_of_three_products():
    sizes = {"batch": 256, "columns": 512, "features": 1024}  # A single tile.
    mesh = Mesh(2, 4)
    argument = jax.ShapeDtypeStruct
    n = mesh.part(sizes)
    loss = jax.jit(jax.value_and_grad(mcgrad.linear_weston_watkins_loss, (0, 1)))
    program = loss.lower(
        argument((n["columns"], n["features"]), jnp.float32),
        argument((n["batch"], n["features"]), jnp.float32),
        argument((n["batch"],), jnp.int32),
    ).compile()
    measured = program.cost_analysis()["flops"]
    assert 1 <= measured / scaling.hinge_cost(sizes, mesh).operations < 1.02


def test_the_best_mesh_is_the_best_of_all():
    sizes = {"batch": 1 << 15, "columns": 1 << 20, "features": 4096}
    for devices in (8, 64, 512):
        best = scaling.least_sent(devices)
        # As many classes as examples in a part: 2^20 / model = 2^15 / data.
        ideal = np.sqrt(devices / (sizes["columns"] / sizes["batch"]))
        assert max(ideal / 2, 1) <= best.data <= max(2 * ideal, 1), devices


# The reader of compiled programs.


def program(function, specs, shape):
    mesh = make_mesh(shape)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=jax.P())
    return jax.jit(mapped).lower(jnp.ones((8, 16))).compile().as_text()


@pytest.mark.parametrize(
    "axes, group", [("data", (0, 4)), ("model", (0, 1, 2, 3)), (("data", "model"), (*range(8),))]
)
def test_the_reader_knows_what_is_sent_and_with_whom(axes, group):
    def total(x):
        return jax.lax.psum(x, axes)

    (message,) = messages(program(total, jax.P(axes), (2, 4)))
    assert message.kind == "all-reduce" and message.times == 1
    assert message.group == group
    rows = 8 // len(group)
    assert message.shapes == ((rows, 16),) and message.bytes == (4 * rows * 16,)


def test_the_reader_counts_a_loop_as_often_as_it_runs():
    def summed(x, axis):
        return jax.lax.pcast(jax.lax.psum(jnp.sin(x), axis), axis, to="varying")

    def sums(x):
        def inner(total, _):
            return summed(total, "model"), None

        def outer(total, _):
            return jax.lax.scan(inner, summed(total, "data"), None, 3)[0], None

        total, _ = jax.lax.scan(outer, jnp.sum(x, 0), None, 5)
        return jax.lax.psum(total, ("data", "model"))

    found = [
        (message.group, message.times)
        for message in messages(program(sums, jax.P(("data", "model")), (2, 4)))
        if message.times > 1
    ]
    assert sorted(found) == [((0, 1, 2, 3), 15), ((0, 4), 5)]


HLO = """
%body (x: f32[]) -> f32[] {{
  %r = f32[7]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%add
}}

ENTRY %main (x: f32[]) -> f32[] {{
  ROOT %w = f32[] {operation}
}}
"""


@pytest.mark.parametrize(
    "groups, first",
    [
        ("{{0,2},{1,3}}", (0, 2)),
        ("[2,2]<=[4]", (0, 1)),
        ("[2,2]<=[2,2]T(1,0)", (0, 2)),
        ("[4,4]<=[2,2,4]T(1,0,2)", (0, 1, 2, 3)),
        ("mesh['data'=2,'model'=4] {'model'}", (0, 1, 2, 3)),
        ("mesh['data'=2,'model'=4] {'data'}", (0, 4)),
        ("mesh['data'=2,'model'=2] {'data','model'}", (0, 1, 2, 3)),
    ],
)
def test_the_reader_knows_every_way_to_write_groups(groups, first):
    (message,) = messages(HLO.format(groups=groups, operation="call(%x), to_apply=%body"))
    assert message.group == first and message.bytes == (28,)


@pytest.mark.parametrize(
    "groups, operation, told",
    [
        ("{{0,1}}", "while(%x), condition=%c, body=%body", "of unknown length"),
        ("{{0,1}}", "conditional(%x), branch_computations={%other, %body}", "a branch that sends"),
        ("@somewhere", "call(%x), to_apply=%body", "in a form that is not known"),
    ],
)
def test_the_reader_refuses_what_it_cannot_count(groups, operation, told):
    text = HLO.format(groups=groups, operation=operation) + "\n%other (x: f32[]) -> f32[] {\n}\n"
    with pytest.raises(ValueError, match=told):
        messages(text)


# The command.


def test_the_command_prints_writes_and_draws(tmp_path):
    files = ["--json", tmp_path / "new" / "run.json", "--plot", tmp_path / "new" / "run.png"]
    command = [sys.executable, "-m", "bench", "scaling", "--quick", *files]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    points = json.loads(files[1].read_text())["points"]
    assert len(points) == len(scaling.sweep(quick=True)) == run.stdout.count("equal")
    assert files[3].read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_the_tables_of_the_page():
    command = [sys.executable, "-m", "bench", "scaling", "--table"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() in PAGE
