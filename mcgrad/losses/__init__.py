"""The losses, one file each: the equation, and beside it its gradient in closed form."""

from typing import Any

from mcgrad.losses.least_squares import linear_least_squares_loss, moment_least_squares_loss
from mcgrad.losses.logistic_network import logistic_network_loss
from mcgrad.losses.squared_relu import squared_relu_norm
from mcgrad.losses.task_covariance import task_covariance_penalty
from mcgrad.losses.weston_watkins import linear_weston_watkins_loss, weston_watkins_loss

LOSSES: dict[str, Any] = {
    loss.__name__: loss
    for loss in (
        linear_weston_watkins_loss,
        weston_watkins_loss,
        squared_relu_norm,
        task_covariance_penalty,
        linear_least_squares_loss,
        moment_least_squares_loss,
        logistic_network_loss,
    )
}
