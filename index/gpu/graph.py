"""A user tower on a GPU: its operators launched together, since launching them one by one takes longer than they do."""

import torch

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Of a user tower: vectors (B, L, D) float32, types (B, L) int64, ages (B, L) float32, lengths (B,) int64."""
_DTYPES = (torch.float32, torch.int64, torch.float32, torch.int64)
_ALIGNED = 16  # bytes
_WARM_UPS = 3  # before recording: libraries take their workspaces at first calls


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

    Inputs are on the host, outputs on the device; both are valid until the next call. Larger batches than `most` run one
    operator after another. One thread uses it at a time.
    """

    def __init__(self, tower: torch.nn.Module, device: torch.device, *, length: int, dim: int, most: int) -> None:
        """Records one graph for each power of two up to `most`, or the next above.

        Raises RuntimeError for a tower that cannot be recorded, such as one that looks at values on the host.
        """
        super().__init__()
        self._one_by_one = DeviceTower(tower, device)
        self._length = length
        self._graphs: dict[int, _Graph] = {}
        rows = 1
        while rows < 2 * most:
            self._graphs[rows] = _Graph(tower, device, rows, length, dim)
            rows *= 2

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        batch, length = inputs[1].shape
        graph = self._graphs.get(1 << (batch - 1).bit_length())
        if graph is None or length > self._length:
            encoded: torch.Tensor = self._one_by_one(*inputs)
            return encoded
        return graph.replay(inputs)[:batch]


class _Graph:
    """The tower for one size of batch, recorded, with the memory that it reads and writes."""

    def __init__(self, tower: torch.nn.Module, device: torch.device, rows: int, length: int, dim: int) -> None:
        shapes = ((rows, length, dim), (rows, length), (rows, length), (rows,))
        sizes = [torch.Size(shape).numel() * dtype.itemsize for shape, dtype in zip(shapes, _DTYPES, strict=True)]
        starts = [0]
        for size in sizes:
            starts.append(-(-(starts[-1] + size) // _ALIGNED) * _ALIGNED)
        # All inputs in one piece of memory on either side, so that one copy brings them over.
        self._on_host = torch.zeros(starts[-1], dtype=torch.uint8, pin_memory=True)
        self._on_device = torch.zeros(starts[-1], dtype=torch.uint8, device=device)

        def views(memory: torch.Tensor) -> list[torch.Tensor]:
            places = zip(starts, sizes, _DTYPES, shapes, strict=False)
            return [memory[start : start + size].view(dtype).view(shape) for start, size, dtype, shape in places]

        self._host_inputs, inputs = views(self._on_host), views(self._on_device)
        self._host_inputs[3].fill_(1)  # a history has an event, in rows that nobody asked for too
        self._on_device.copy_(self._on_host)
        self._graph = torch.cuda.CUDAGraph()
        stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                tower(*inputs)
            stream.synchronize()
            # thread_local: another thread may take memory meanwhile, as that of the live release does.
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._output: torch.Tensor = tower(*inputs)
            finally:
                self._graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)

    def replay(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        batch, length = inputs[1].shape
        self._on_host.zero_()  # what is padding now may have been an event
        self._host_inputs[3].fill_(1)
        for mine, given in zip(self._host_inputs[:3], inputs[:3], strict=True):
            mine[:batch, :length] = given
        self._host_inputs[3][:batch] = inputs[3]
        self._on_device.copy_(self._on_host, non_blocking=True)
        self._graph.replay()
        return self._output
