"""The trajectory explorer without a browser: what it records, what it draws, what it keeps."""

import matplotlib.pyplot as plt
import pytest
import torch

from flownlib.chapters import shared as recipes
from flownlib.extensions.pca import PCA
from flownlib.generators import FlowGenerator, FlowTraining
from flownlib.plots.explorer import Recorder, draw, trajectory_explorer
from flownlib.scoring import score


@pytest.fixture(scope="module")
def recorder(canonical, tasks):
    encoder = PCA.fit(canonical.train, 6)
    contexts = recipes.support_contexts(recipes.image_features(tasks), tasks, 2, 4, 0)
    flow = FlowGenerator(encoder, width=16, training=FlowTraining(steps=5, batch_size=16)).fit(canonical.train, contexts, 0)
    torch.nn.init.normal_(flow.velocity.leave.weight, std=0.3, generator=torch.Generator().manual_seed(0))  # a field that bends
    priors = {
        "gaussian": lambda n, generator: torch.randn(n, 6, generator=generator),
        "wide": lambda n, generator: 2 * torch.randn(n, 6, generator=generator),
    }
    return Recorder(
        flow, tasks, {name: y[0] for name, y in contexts.items()}, priors, torch.eye(6)[:2], canonical.train.model, 4
    )


def test_a_recording_is_the_generators_trajectory_decoded_and_tested(recorder, tasks):
    name = list(tasks)[1]
    recording = recorder(name, "wide", 2.0, "rk4", 3)
    assert recording.accuracy.shape == (4, 4) and torch.allclose(recording.probabilities.sum(-1), torch.ones(4, 4, 6))
    x_0 = 2 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(recording.points[0], x_0[:, :2])
    way = recorder.generator.trajectory(x_0, recorder.contexts[name], 3, "rk4", guidance=2.0)
    assert torch.equal(recording.points[-1], way.x_1[:, :2])
    weights, test = recorder.generator.encoder.decode(way.x_1), tasks[name].test
    assert torch.allclose(
        recording.accuracy[-1], score(recorder.model, weights, test.x[:100], test.y[:100]).accuracy, atol=0.011
    )
    other = recorder(name, "wide", 1.0, "rk4", 3)
    assert not torch.allclose(recording.points[-1], other.points[-1]) and torch.equal(recording.points[0], other.points[0])


def test_flow_time_is_shown_by_the_solvers_nearest_stop(recorder, tasks):
    recording = recorder(list(tasks)[0], "gaussian", 1.0, "euler", 4)
    assert [recording.stop(t) for t in (0, 0.1, 0.15, 0.5, 0.9, 1)] == [0, 0, 1, 2, 4, 4]
    fig = draw(recording, 0.55, 2)
    assert len(fig.axes) == 6 and "network 2 at t = 0.50" in fig.texts[0].get_text()
    plt.close(fig)


def test_every_control_redraws_and_a_combination_is_recorded_once(recorder):
    asked = []

    def record(**settings):
        asked.append(tuple(settings.values()))
        return recorder(**settings)

    choices = recorder.choices()
    panel = trajectory_explorer(record, choices)
    moves = {name: options[-1] for name, options in choices.items()} | {"t": 1.0, "network": 3}
    assert set(panel.controls) == set(moves) and len(asked) == len(choices["task"])
    for name, value in moves.items():
        before = bytes(panel.image.value)
        panel.controls[name].value = value
        assert bytes(panel.image.value) != before and bytes(panel.image.value).startswith(b"\x89PNG"), name
    for name in reversed(choices):
        panel.controls[name].value = choices[name][0]
    for name in choices:
        panel.controls[name].value = choices[name][-1]
    assert len(asked) == len(set(asked))
    assert not plt.get_fignums()


def test_what_is_painted_over_leaves_no_trace(recorder):
    panel = trajectory_explorer(recorder, recorder.choices())
    before = bytes(panel.image.value)
    panel.controls["t"].value = 0.5
    panel.controls["t"].value = 0.0
    assert bytes(panel.image.value) == before
