# SPDX-License-Identifier: Apache-2.0
"""Fair service of several cameras by one model, and iterations cut to a deadline."""

import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from daflow_ros.estimators import FlowEstimate
from daflow_ros.ros.frame_buffer import Drop, Frame, FrameBuffer
from daflow_ros.ros.iteration_budget import IterationBudget
from daflow_ros.ros.model_server import ModelServer


class Model:
    """Flow that tells the pair's camera; its time is a line over the iterations."""

    name, revision, device, default_iterations = 'line', '', 'cpu', 12

    def __init__(self, fixed=0.0, each=0.0):
        self.fixed, self.each = fixed, each
        self.asked = []
        self.gate = threading.Semaphore(0)

    def estimate(self, image1, image2, *, iterations=None, initial_flow=None):
        self.gate.acquire()
        self.asked.append((int(image1[0, 0, 0]), iterations))
        count = iterations or self.default_iterations
        flow = np.full((*image1.shape[:2], 2), image1[0, 0, 0], np.float32)
        return FlowEstimate(flow, None, count, 0, self.fixed + self.each * count)


class Client:
    def __init__(self, number):
        self.number = number
        self.flows, self.errors, self.drops = [], [], []
        self.buffer = FrameBuffer(lambda cause, reason: self.drops.append(cause))
        self.take = self.buffer.take
        self._stamp = 0

    def push(self, server):
        self._stamp += 10**8
        image = np.full((16, 16, 3), self.number, np.uint8)
        self.buffer.push(Frame(self._stamp, image))
        server.notify()

    def finished(self, pair, estimate):
        self.flows.append(float(estimate.flow[0, 0, 0]))

    def failed(self, pair, error):
        self.errors.append(error)


def wait(condition):
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    assert condition()


@pytest.fixture
def serve():
    servers = []

    def start(model, clients):
        server = ModelServer(model)
        servers.append((server, model))
        for client in clients:
            server.add(client)
        server.start()
        return server

    yield start
    for server, model in servers:
        for _ in range(100):
            model.gate.release()
        assert server.stop(30)


def test_a_busy_camera_does_not_starve_the_others(serve):
    """One camera is ten times as fast; the others lose nothing, and nothing is mixed up."""
    model, clients = Model(), [Client(number) for number in range(3)]
    server = serve(model, clients)
    for _ in range(8):
        for client in clients:
            for _ in range(10 if client.number == 0 else 1):
                client.push(server)
        for _ in range(3):
            model.gate.release()
            count = len(model.asked)
            wait(lambda count=count: len(model.asked) > count or not _waiting(clients))
    wait(lambda: all(len(client.flows) >= 7 for client in clients))
    for client in clients:
        assert set(client.flows) == {client.number}
    assert clients[1].drops == clients[2].drops == []
    assert set(clients[0].drops) == {Drop.SUPERSEDED}


def _waiting(clients):
    return any(client.buffer._pending is not None for client in clients)


def test_the_longest_pair_is_remembered(serve):
    model, client = Model(), Client(1)
    server = serve(model, [client])
    assert server.longest == 0
    client.push(server)
    for count, held in ((1, 0.2), (2, 0.0)):
        client.push(server)
        wait(lambda held=held: server.busy_for > held)
        model.gate.release()
        wait(lambda count=count: len(client.flows) == count)
    assert server.longest > 0.2


def test_order_is_in_turn(serve):
    model, clients = Model(), [Client(number) for number in range(3)]
    server = serve(model, clients)
    clients[0].push(server)
    clients[0].push(server)
    wait(lambda: server.busy_for > 0)
    for client in (clients[0], clients[2], clients[1]):
        client.push(server)
        client.push(server)
    for _ in range(4):
        model.gate.release()
    wait(lambda: len(model.asked) == 4)
    assert [number for number, _ in model.asked] == [0, 1, 2, 0]


def test_an_error_is_the_clients_and_the_server_lives(serve):
    model, client = Model(), Client(1)
    server = serve(model, [client])
    good = client.finished
    client.finished = lambda pair, estimate: 1 / 0
    for _ in range(2):
        client.push(server)
    model.gate.release()
    wait(lambda: len(client.errors) == 1)
    client.finished = good
    client.push(server)
    model.gate.release()
    wait(lambda: client.flows == [1.0])
    assert isinstance(client.errors[0], ZeroDivisionError)


def test_stopping_waits_for_the_pair_in_work(serve):
    model, client = Model(), Client(1)
    server = serve(model, [client])
    client.push(server)
    client.push(server)
    wait(lambda: server.busy_for > 0)
    assert not server.stop(0.05)
    model.gate.release()
    assert server.stop(30)
    assert client.flows == [1.0] and server.busy_for == 0


def test_the_deadline_reaches_the_model(serve):
    model, client = Model(fixed=0.02, each=0.01), Client(1)
    server = serve(model, [client])
    server.deadline = 0.1
    client.push(server)
    for count in range(1, 8):
        client.push(server)
        model.gate.release()
        wait(lambda count=count: len(client.flows) == count)
    asked = [iterations for _, iterations in model.asked]
    assert asked[0] == 12 and asked[-1] == 8
    server.deadline, server.iterations = 0.0, 5
    client.push(server)
    model.gate.release()
    wait(lambda: len(model.asked) == 8)
    assert model.asked[-1][1] == 5


def run(budget, full, deadline, fixed, each, pairs=30):
    counts = []
    for _ in range(pairs):
        counts.append(budget.choose(full, deadline))
        budget.measured(counts[-1], fixed + each * counts[-1])
    return counts


@pytest.mark.parametrize('fixed', [0.0, 0.03, 0.08])
def test_the_budget_uses_what_the_deadline_leaves(fixed):
    """It settles at the most iterations that are in time, and never swings."""
    each, deadline = 0.01, 0.125
    best = int((deadline - fixed) / each + 1e-9)
    counts = run(IterationBudget(), 20, deadline, fixed, each)
    assert set(counts[-5:]) <= {best, best - 1} and len(set(counts[-5:])) == 1
    assert run(IterationBudget(), 20, 10.0, fixed, each) == [20] * 30
    assert run(IterationBudget(), 20, 0.001, fixed, each)[-1] == 1


def test_the_budget_recovers_from_a_busy_machine():
    budget = IterationBudget()
    before = run(budget, 12, 0.125, 0.03, 0.01)[-1]
    assert run(budget, 12, 0.125, 0.3, 0.1)[-1] == 1
    assert run(budget, 12, 0.125, 0.03, 0.01, pairs=80)[-1] >= before - 1


def overruns(budget, full, deadline, times, pairs=120):
    """Pairs that took longer than the deadline, by index; and the iterations of all."""
    counts = []
    for _ in range(pairs):
        counts.append(budget.choose(full, deadline))
        budget.measured(counts[-1], times(counts[-1]))
    return [i for i, count in enumerate(counts) if times(count) > deadline], counts


@pytest.mark.parametrize(
    ('full', 'deadline', 'times', 'best'),
    [
        (2, 8.0, lambda n: (3.4, 18.0)[n - 1], 1),
        (12, 0.3, lambda n: 0.02 + 0.01 * n**2, 5),
        (12, 0.2, lambda n: 0.02 + 0.01 * n + (0.2 if n > 6 else 0), 6),
        (12, 0.205, lambda n: 0.05 + 0.05 * n**0.5, 9),
    ],
    ids=['default model', 'square', 'step', 'root'],
)
def test_the_budget_keeps_the_deadline_where_time_is_no_line(full, deadline, times, best):
    late, counts = overruns(IterationBudget(), full, deadline, times)
    settled = [i for i in late if i > 20]
    assert len(settled) <= 100 / 12 and all(b - a > 10 for a, b in pairwise(settled))
    assert sum(i < 20 for i in late) <= 4
    assert counts[20:].count(best) >= 85


def test_the_budget_goes_back_to_a_number_that_was_too_slow():
    budget = IterationBudget()
    overruns(budget, 2, 8.0, lambda n: (3.4, 18.0)[n - 1])
    late, counts = overruns(budget, 2, 8.0, lambda n: (3.4, 6.0)[n - 1], 40)
    assert late == [] and counts[-20:] == [2] * 20
    # A single slow pair among quick ones changes nothing.
    budget.measured(2, 18.0)
    assert budget.choose(2, 8.0) == 2
