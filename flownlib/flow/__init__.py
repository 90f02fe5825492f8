"""Conditional flow matching: a path from a prior to the data, a velocity that follows it, an ODE that uses it."""

from flownlib.flow import couplings, fitting, networks, paths, priors, solvers
from flownlib.flow.couplings import COUPLINGS, couple, optimal_coupling
from flownlib.flow.fitting import CollapseWarning, FlowLog, FlowTraining, flow_matching_loss, train_flow
from flownlib.flow.networks import NeuronTokens, TimeFeatures, VelocityMLP, VelocityNetwork, context_perceptron
from flownlib.flow.paths import (
    PATHS,
    PREDICTIONS,
    PathSample,
    ShrinkingPath,
    StraightPath,
    VariancePreservingPath,
    velocity_from_x_1,
)
from flownlib.flow.priors import FreshNetworks, GaussianPrior, Prior
from flownlib.flow.solvers import (
    FIXED_STEP_SOLVERS,
    SOLVERS,
    Trajectory,
    Velocity,
    divergence,
    guided,
    integrate,
    log_likelihood,
)

CODE = (paths, couplings, priors, networks, solvers, fitting)  # what a cached result of this package depends on

__all__ = [
    "CODE",
    "COUPLINGS",
    "FIXED_STEP_SOLVERS",
    "PATHS",
    "PREDICTIONS",
    "SOLVERS",
    "CollapseWarning",
    "FlowLog",
    "FlowTraining",
    "FreshNetworks",
    "GaussianPrior",
    "NeuronTokens",
    "PathSample",
    "Prior",
    "ShrinkingPath",
    "StraightPath",
    "TimeFeatures",
    "Trajectory",
    "VariancePreservingPath",
    "Velocity",
    "VelocityMLP",
    "VelocityNetwork",
    "context_perceptron",
    "couple",
    "divergence",
    "flow_matching_loss",
    "guided",
    "integrate",
    "log_likelihood",
    "optimal_coupling",
    "train_flow",
    "velocity_from_x_1",
]
