"""An agent that is watched: traces and metrics by OpenTelemetry, to where its standard variables say.

    python examples/opentelemetry_livekit.py
    OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 python examples/opentelemetry_livekit.py

Without an endpoint they are printed. The session is a real one; only the edges of its call are simulated, so
that it needs no key. Beside moss-voice it needs opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http.
docs/observability.md tells what each number means, and observability/grafana.json shows them.
"""

import asyncio
import os
import tempfile

from livekit.agents import Agent
from livekit.agents.telemetry import set_tracer_provider
from livekit.plugins import moss_voice
from livekit.plugins.moss_voice.testing import ScriptedLLM, SimulatedCall
from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from moss_voice import DocumentInfo, MossClient

FAQ = [
    DocumentInfo("refunds", "Refunds reach your card within five working days."),
    DocumentInfo("hours", "The hotline is open from eight to eight, on Sundays from ten."),
]


def line(span: ReadableSpan) -> str:
    """Return what is printed of a span."""
    return f"{span.name} {dict(span.attributes or {})}\n"


def is_sent(signal: str) -> bool:
    """Tell whether the environment says where traces or metrics go."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return any(name in os.environ for name in names)


def watch() -> tuple[TracerProvider, MeterProvider]:
    """Set up traces and metrics for this process; in a worker, at the top of its setup function."""
    os.environ.setdefault("OTEL_SERVICE_NAME", "support-agent")
    tracing = TracerProvider()
    # LiveKit's own spans hold the conversation; False takes it out of all that is exported. Ours hold
    # no text unless `attach(trace_text=True)`, and then this takes it out too.
    set_tracer_provider(tracing, allow_pii=False)
    sender = OTLPSpanExporter() if is_sent("TRACES") else ConsoleSpanExporter(formatter=line)
    tracing.add_span_processor(BatchSpanProcessor(sender))
    exporter = OTLPMetricExporter() if is_sent("METRICS") else ConsoleMetricExporter()
    metering = MeterProvider([PeriodicExportingMetricReader(exporter)])
    metrics.set_meter_provider(metering)
    return tracing, metering


async def main(folder: str) -> None:
    """Have a short call."""
    async with MossClient(cloud=folder) as client:
        await client.create_index("support-faqs", FAQ)
        call = SimulatedCall(ScriptedLLM(lambda _: "I see."))
        await moss_voice.attach(call.session, client, knowledge=["support-faqs"], window=4)
        async with call:
            await call.start(Agent(instructions="You are a support agent."))
            await call.caller_says("hi, I was charged twice, forty nine ninety nine")
            await call.caller_says("how long does a refund take until it is on my card")


if __name__ == "__main__":
    providers = watch()
    try:
        with tempfile.TemporaryDirectory() as place:
            asyncio.run(main(place))
    finally:
        for provider in providers:
            provider.shutdown()  # sends what was not sent yet
