"""A user tower on a GPU: its operators launched together, since launching them one by one takes longer than they do."""

import threading
from contextlib import suppress

import torch

RECORDING = threading.Lock()
"""Held while a graph is recorded: what concerns the whole device, such as giving back its memory, must wait until then."""
_DTYPES = (torch.float32, torch.int64, torch.float32, torch.int64)
_ALIGNED = 16  # bytes
_WARM_UPS = 3  # before recording: libraries make what they keep at first calls


class DeviceTower(torch.nn.Module):
    """Takes inputs on the host to a tower's device, and runs its operators one by one."""

    def __init__(self, tower: torch.nn.Module, device: torch.device) -> None:
        super().__init__()
        self._tower = tower
        self._device = device

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        encoded: torch.Tensor = self._tower(*(one.to(self._device) for one in inputs))
        return encoded


class GraphedTower(torch.nn.Module):
    """Replays the tower as CUDA graphs, which have fixed shapes: a batch is padded to a power of two, histories to `length`.

    It takes what the tower takes, vectors (B, L, D) float32, types (B, L) int64, ages (B, L) float32 and lengths (B,) int64, on
    the host; the output is on the device, and valid until the next call. Larger batches than `most` run one operator after
    another. One thread uses it at a time.
    """

    def __init__(self, tower: torch.nn.Module, device: torch.device, *, length: int, dim: int, most: int) -> None:
        """Records one graph for each power of two up to `most`, or the next above.

        Raises RuntimeError for a tower that cannot be recorded, such as one that looks at values on the host.
        """
        super().__init__()
        self._one_by_one = DeviceTower(tower, device)
        self._length = length
        recorder = _Recorder(tower, device)
        sizes = [1 << power for power in range((most - 1).bit_length() + 1)]
        # The largest first: the others then fit into its memory.
        self._graphs = {rows: _Graph(recorder, rows, length, dim) for rows in reversed(sizes)}

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        batch, length = inputs[1].shape
        graph = self._graphs.get(1 << (batch - 1).bit_length())
        if graph is None or length > self._length:
            encoded: torch.Tensor = self._one_by_one(*inputs)
            return encoded
        return graph.replay(inputs)[:batch]


class _Recorder:
    """Records a tower's graphs on one stream and in one pool of memory: only one of them runs at a time."""

    def __init__(self, tower: torch.nn.Module, device: torch.device) -> None:
        self._tower = tower
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()
        # Of high priority, since nothing else here takes such streams from torch's small stock of them.
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]

    def record(self, inputs: list[torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """The graph, and where it leaves its output. Raises RuntimeError if the tower cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with RECORDING, torch.inference_mode(), torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                self._tower(*inputs)
            self._stream.synchronize()
            # So that cuBLAS takes its workspace from the pool, which is the graphs' alone, and not one that others use too.
            torch._C._cuda_clearCublasWorkspaces()
            # thread_local: another thread may take memory meanwhile, as that of the live release does.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                output: torch.Tensor = self._tower(*inputs)
            except BaseException:
                self._give_up(graph)
                raise
            graph.capture_end()
            torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        return graph, output

    def _give_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """Ends a recording that failed. Where torch finds it invalid it leaves its allocator recording, for good."""
        try:
            graph.capture_end()
        except RuntimeError:
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(self.device.index or 0, self._pool)
                torch._C._cuda_releasePool(self.device.index or 0, self._pool)


class _Graph:
    """The tower for one size of batch, recorded, with the memory that it reads and writes."""

    def __init__(self, recorder: _Recorder, rows: int, length: int, dim: int) -> None:
        shapes = ((rows, length, dim), (rows, length), (rows, length), (rows,))
        sizes = [torch.Size(shape).numel() * dtype.itemsize for shape, dtype in zip(shapes, _DTYPES, strict=True)]
        starts = [0]
        for size in sizes:
            starts.append(-(-(starts[-1] + size) // _ALIGNED) * _ALIGNED)
        # All inputs in one piece of memory on either side, so that one copy brings them over.
        self._on_host = torch.zeros(starts[-1], dtype=torch.uint8, pin_memory=True)
        self._on_device = torch.zeros(starts[-1], dtype=torch.uint8, device=recorder.device)

        def views(memory: torch.Tensor) -> list[torch.Tensor]:
            places = zip(starts, sizes, _DTYPES, shapes, strict=False)
            return [memory[start : start + size].view(dtype).view(shape) for start, size, dtype, shape in places]

        self.host_inputs, inputs = views(self._on_host), views(self._on_device)
        self.host_inputs[3].fill_(1)  # a history has an event, in rows that nobody asked for too
        self._on_device.copy_(self._on_host)
        self._graph, self._output = recorder.record(inputs)

    def replay(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        batch, length = inputs[1].shape
        self._on_host.zero_()  # what is padding now may have been an event
        self.host_inputs[3].fill_(1)
        for mine, given in zip(self.host_inputs[:3], inputs[:3], strict=True):
            mine[:batch, :length] = given
        self.host_inputs[3][:batch] = inputs[3]
        self._on_device.copy_(self._on_host, non_blocking=True)
        self._graph.replay()
        return self._output
