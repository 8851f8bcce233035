"""Eight simulated devices, in a process of their own: `make test-distributed`."""

import jax
import pytest

DEVICES = 8


@pytest.fixture(scope="session", autouse=True)
def eight_devices():
    if jax.device_count() != DEVICES:
        pytest.fail(
            f"expected {DEVICES} devices, got {jax.device_count()}: run `make test-distributed`, "
            f"which sets XLA_FLAGS=--xla_force_host_platform_device_count={DEVICES}"
        )
