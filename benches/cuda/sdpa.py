"""Times PyTorch's scaled_dot_product_attention in float16, for benches/cuda.

    python sdpa.py cuda|cpu

Reads requests, one JSON value a line, and answers each with one line. The first line, unasked, says what PyTorch and
the device are, or {"error": ...}. An object with sizes makes tensors for some layers and picks the fastest of PyTorch's
kernels; "time" times all layers once with it, as a CUDA graph; "release" lets the tensors go. `cpu` is for rehearsals.
"""

import json
import sys
import time


def main(device):
    try:
        import torch
    except ImportError as error:
        return print(json.dumps({"error": f"no PyTorch: {error}"}), flush=True)
    if device == "cuda" and not torch.cuda.is_available():
        return print(json.dumps({"error": f"PyTorch {torch.__version__} sees no CUDA device"}), flush=True)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "device": name}), flush=True)
    layers = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request == "release":
                layers = None
                if device == "cuda":
                    torch.cuda.empty_cache()
                answer = {}
            elif request == "time":
                answer = {"ms": layers.time(layers.run)}
            else:
                layers = Layers(torch, device, **request)
                answer = layers.pick()
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


class Layers:
    def __init__(self, torch, device, batch, context, new, query_heads, kv_heads, head_dim, layers):
        self.torch, self.device, self.new, self.group = torch, device, new, query_heads // kv_heads

        def tensor(heads, tokens):
            return torch.randn(batch, heads, tokens, head_dim, dtype=torch.float16, device=device)

        self.query = tensor(query_heads, new)
        # The new token is among the cached ones.
        self.caches = [(tensor(kv_heads, context), tensor(kv_heads, context)) for _ in range(layers)]
        self.run = None

    def by_heads(self, key, value):
        return self.torch.nn.functional.scaled_dot_product_attention(
            self.query, key, value, is_causal=self.new > 1, enable_gqa=True)

    def by_groups(self, key, value):
        """One token's query heads of a KV head as its queries: the cache is read once for all of them."""
        batch, heads, _, channels = self.query.shape
        query = self.query.view(batch, heads // self.group, self.group, channels)
        return self.torch.nn.functional.scaled_dot_product_attention(query, key, value).view(batch, heads, 1, channels)

    def candidates(self):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        ways = {"heads": self.by_heads}
        if self.new == 1 and self.group > 1:
            ways["groups"] = self.by_groups
        for kernel in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
            backend = getattr(SDPBackend, kernel, None)
            if backend is None:
                continue
            for name, way in ways.items():
                # The plain formula repeats the cache for each query head, and keeps all scores of a prompt.
                if kernel == "MATH" and name == "heads" and self.device == "cuda":
                    continue
                yield f"{kernel.lower()} by {name}", way, lambda backend=backend: sdpa_kernel(backend)

    def pick(self):
        """Times all kernels that can; keeps the fastest."""
        times, refused, runs = {}, {}, {}
        expected = None
        for name, way, backend in self.candidates():
            try:
                with backend():
                    output = way(*self.caches[0]).float()
                expected = output if expected is None else expected
                assert self.torch.allclose(output, expected, rtol=1e-2, atol=1e-3), "another result than the first's"
                runs[name] = self.captured(way, backend)
                times[name] = min(self.time(runs[name]) for _ in range(5))
            except Exception as error:
                refused[name] = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not times:
            raise RuntimeError(f"none of PyTorch's kernels can: {refused}")
        kernel = min(times, key=times.get)
        self.run = runs[kernel]
        return {"kernel": kernel, "ms": times, "refused": refused}

    def captured(self, way, backend):
        """All layers by one launch."""
        def run():
            with backend():
                for key, value in self.caches:
                    way(key, value)

        if self.device == "cpu":
            return run
        stream = self.torch.cuda.Stream()
        stream.wait_stream(self.torch.cuda.current_stream())
        with self.torch.cuda.stream(stream):
            for _ in range(2):
                run()
        self.torch.cuda.current_stream().wait_stream(stream)
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            run()
        return graph.replay

    def time(self, run):
        """Milliseconds of one layer, the mean of all of them, after a run that is not timed."""
        run()
        if self.device == "cpu":
            start = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - start) / len(self.caches)
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / len(self.caches)


if __name__ == "__main__":
    main(sys.argv[1])
