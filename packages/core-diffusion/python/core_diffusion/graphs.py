"""A function of tensors as one CUDA graph: of a thousand small kernels the launches cost more than the kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Recorded"]

Tensors = dict[str, Tensor]


class Recorded:
    """Calls a function as it is a few times, then records it once and replays that.

    The function must do the same kernels at every call: no value of a tensor on the host, tensors of one shape. It may
    change tensors of its own in place (parameters, an optimiser's state), and draw from the default generator and
    from `generators`, whose seeds may be set anew between calls.

    Args:
        function: tensors by name -> tensors by name, all on one CUDA device.
        generators: of that device, from which the function draws.
        calls_before: that allocate, choose kernels and compile.
    """

    def __init__(
        self, function: Callable[[Tensors], Tensors], generators: Sequence[torch.Generator] = (), calls_before: int = 3
    ) -> None:
        self.function, self.generators, self.left = function, generators, calls_before
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs, self.outputs = Tensors(), Tensors()
        self.stream = torch.cuda.Stream()

    def __call__(self, inputs: Tensors) -> Tensors:
        """The function's result for `inputs`, in tensors that no later call changes."""
        if self.graph is None:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                if self.left > 0:  # on the stream of the recording, which autograd's accumulators remember
                    self.left -= 1
                    found = self.function(inputs)
                else:
                    self._record(inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            if self.graph is None:
                return found
        for name, value in self.inputs.items():
            value.copy_(inputs[name])
        self.graph.replay()
        return {name: value.clone() for name, value in self.outputs.items()}

    def _record(self, inputs: Tensors) -> None:
        self.inputs = {name: value.clone() for name, value in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, stream=self.stream):
            self.outputs = self.function(self.inputs)
        self.graph = graph
