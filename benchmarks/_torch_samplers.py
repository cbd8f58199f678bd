"""The torch side of `benchmarks.sampling_rivals`: the same network, others' samplers.

A package that is not installed leaves its rows out, with a line that says so.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks._timing import usable_cores

Weights = list[tuple[np.ndarray, np.ndarray]]
Sampler = Callable[[], tuple[np.ndarray, int]]


def found(name: str) -> Any:
    """Return the module, or None and a line on what is left out."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(
            f"The rows of {name} are left out: no module {error.name}. "
            "`pip install 'flowjax-matching[bench]'` has it."
        )
        return None


def make_network(torch: Any, weights: Weights) -> Any:
    """Return the perceptron of [x, t] as a `torch.nn.Sequential`."""
    layers = []
    for weight, bias in weights:
        layer = torch.nn.Linear(*weight.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight.T.copy()))
            layer.bias.copy_(torch.from_numpy(bias))
        layers += [layer, torch.nn.SiLU()]
    return torch.nn.Sequential(*layers[:-1])


class Field:
    """The field in torch's two orders of arguments; it counts its evaluations."""

    def __init__(self, torch: Any, network: Any) -> None:
        self.torch = torch
        self.network = network
        self.evaluations = 0

    def time_first(self, t: Any, x: Any) -> Any:
        """Return v(x, t), called as torchdiffeq does."""
        self.evaluations += 1
        return self.network(self.torch.cat([x, t.expand(len(x), 1)], dim=1))

    def state_first(self, x: Any, t: Any) -> Any:
        """Return v(x, t), called as flow_matching does."""
        return self.time_first(t, x)


def torch_field(weights: Weights, compiled: bool) -> Field | None:
    """Return the field, or None without torch.

    Args:
        weights: of the layers, [in, out] and [out].
        compiled: by `torch.compile`.
    """
    torch = found("torch")
    if torch is None:
        return None
    # As many threads as this process has cores, as JAX does.
    torch.set_num_threads(usable_cores())
    network = make_network(torch, weights)
    return Field(torch, torch.compile(network) if compiled else network)


def torch_forward(field: Field, x0: np.ndarray) -> Callable[[], np.ndarray]:
    """Return one evaluation at t = 1/2."""
    x, t = field.torch.from_numpy(x0), field.torch.tensor(0.5)

    def forward() -> np.ndarray:
        with field.torch.no_grad():
            return field.time_first(t, x).numpy()

    return forward


def torch_samplers(
    field: Field, x0: np.ndarray, steps: int, tolerance: float
) -> dict[tuple[str, str], Sampler]:
    """Return ``(method, name) -> () -> (samples, evaluations)``.

    Args:
        field: from `torch_field`.
        x0: noise [batch, dim].
        steps: evaluations of the methods with fixed steps.
        tolerance: of the adaptive ones.
    """
    x, torch = field.torch.from_numpy(x0), field.torch
    torchdiffeq, solver = found("torchdiffeq"), found("flow_matching.solver")
    accuracy = {"rtol": tolerance, "atol": tolerance}
    methods = {
        "adaptive": ("dopri5", None),
        "Euler": ("euler", 1 / steps),
        "midpoint": ("midpoint", 2 / steps),
    }

    def by_hand() -> Any:
        y, h = x, 1 / steps
        for i in range(steps):
            y = y + h * field.time_first(torch.tensor(i * h), y)
        return y

    def by_torchdiffeq(method: str, step: float | None) -> Any:
        options = {"step_size": step} if step else None
        ends, more = torch.linspace(0, 1, 2), {"method": method, "options": options}
        return torchdiffeq.odeint(field.time_first, x, ends, **accuracy, **more)[-1]

    def by_flow_matching(method: str, step: float | None) -> Any:
        sample = solver.ODESolver(velocity_model=field.state_first).sample
        return sample(x, step_size=step, method=method, **accuracy)

    solves: dict[tuple[str, str], Any] = {("Euler", "bare torch loop"): by_hand}
    for name, method in methods.items():
        if torchdiffeq is not None:
            solves[name, "torchdiffeq"] = partial(by_torchdiffeq, *method)
        if solver is not None:
            solves[name, "flow_matching"] = partial(by_flow_matching, *method)
    return {names: partial(counted, field, solve) for names, solve in solves.items()}


def counted(field: Field, solve: Callable[[], Any]) -> tuple[np.ndarray, int]:
    """Return the samples and how many evaluations they took."""
    field.evaluations = 0
    with field.torch.no_grad():
        x1 = solve()
    return x1.numpy(), field.evaluations
