"""What /metrics says, in Prometheus' text format. Names are listed in docs/serve.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from libremoe.engine.engine import Stats

# Seconds. A small model on a GPU answers within the first buckets, Grok-1 streamed from disk within the last.
FIRST_TOKEN_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
TOKEN_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
GAUGES = {
    "waiting": "Sequences in the queue",
    "waiting_tokens": "Tokens that the queue may take: prompts and the most that may be generated",
    "running": "Sequences that are being computed",
}
COUNTERS = {
    "prompt_tokens": "Prompt tokens computed",
    "generated_tokens": "Tokens generated",
    "preemptions": "Sequences put back into the queue for want of KV cache",
    "steps": "Steps of the engine",
    "prefix_lookup_tokens": "Prompt tokens looked up in the prefix cache",
    "prefix_hit_tokens": "Prompt tokens found in the prefix cache",
}


class Metrics:
    """Counters of one server."""

    def __init__(self, stats: Callable[[], Stats], expert_stats: Callable[[], dict[str, float]] | None = None):
        """expert_stats: StreamStats.counters of streamed experts; None where all experts are resident."""
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(stats, expert_stats))
        self.requests = Counter("libremoe_requests_total", "Answers by route and HTTP status", ["route", "status"],
                                registry=self.registry)
        self.first_token = Histogram(
            "libremoe_time_to_first_token_seconds",
            "From a request's arrival to its first token",
            buckets=FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.between_tokens = Histogram(
            "libremoe_time_between_tokens_seconds",
            "From a token to the next of its sequence",
            buckets=TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.disconnects = Counter("libremoe_disconnects_total", "Clients that left before their answer ended",
                                   registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    def __init__(self, stats: Callable[[], Stats], expert_stats: Callable[[], dict[str, float]] | None):
        self.stats = stats
        self.expert_stats = expert_stats

    def collect(self) -> Iterator[Metric]:
        stats = self.stats()
        for name, meaning in GAUGES.items():
            yield GaugeMetricFamily(f"libremoe_{name}", meaning, value=getattr(stats, name))
        for name, meaning in COUNTERS.items():
            yield CounterMetricFamily(f"libremoe_{name}", meaning, value=getattr(stats, name))
        blocks = GaugeMetricFamily("libremoe_kv_blocks", "Blocks of the KV cache", labels=["state"])
        blocks.add_metric(["used"], stats.blocks_used)
        blocks.add_metric(["cached"], stats.blocks_cached)
        blocks.add_metric(["free"], stats.blocks - stats.blocks_used - stats.blocks_cached)
        yield blocks
        finished = CounterMetricFamily("libremoe_finished", "Sequences that ended, by reason", labels=["reason"])
        for reason, count in stats.finished.items():
            finished.add_metric([reason], count)
        yield finished
        if self.expert_stats is not None:
            for name, value in self.expert_stats().items():
                yield CounterMetricFamily(f"libremoe_expert_{name}", f"Streamed experts: {name.replace('_', ' ')}",
                                          value=value)
