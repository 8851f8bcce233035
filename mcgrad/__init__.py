"""Losses for JAX whose gradients are known in closed form."""

from mcgrad._modes import forward_mode, pair, plain
from mcgrad.checking import GradientReport, check_gradients
from mcgrad.losses import LOSSES
from mcgrad.losses.least_squares import (
    LeastSquaresMoments,
    least_squares_moments,
    linear_least_squares_loss,
    moment_least_squares_loss,
)
from mcgrad.losses.logistic_network import Activation, logistic_network_loss
from mcgrad.losses.squared_relu import squared_relu_norm
from mcgrad.losses.task_covariance import optimal_task_covariance, task_covariance_penalty
from mcgrad.losses.weston_watkins import linear_weston_watkins_loss, weston_watkins_loss
from mcgrad.sharding import shard

__all__ = [
    "LOSSES",
    "Activation",
    "GradientReport",
    "LeastSquaresMoments",
    "check_gradients",
    "forward_mode",
    "least_squares_moments",
    "linear_least_squares_loss",
    "linear_weston_watkins_loss",
    "logistic_network_loss",
    "moment_least_squares_loss",
    "optimal_task_covariance",
    "pair",
    "plain",
    "shard",
    "squared_relu_norm",
    "task_covariance_penalty",
    "weston_watkins_loss",
]
