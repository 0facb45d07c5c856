//! Traces leave by OTLP: protobuf over HTTP, in batches, from a bounded queue.
//!
//! Whoever ends a span never waits. What does not fit the queue, and what the collector does not take, is dropped and counted
//! by its reason; the node is the same with a collector that is away.

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use libp2p::PeerId;
use opentelemetry::{Context, KeyValue, metrics::Meter};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Span as SdkSpan, SpanData, SpanExporter as _, SpanProcessor},
};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{Recent, Rules, Traces};
use crate::{http, telemetry::stats::Gauge};

/// Spans that wait to be sent: at a kilobyte each, 2 MiB.
const QUEUE: usize = 2048;

/// Spans of one request to the collector.
const BATCH: usize = 512;

/// How long a span may wait for others to go with.
const LINGER: Duration = Duration::from_secs(1);

/// How long the collector may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer of a collector that is read: it says how many spans it did not take.
const MAX_ANSWER: usize = 64 << 10;

/// Where traces go, and which.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TraceSettings {
    /// The collector's whole URL, with its path.
    pub(crate) endpoint: url::Url,
    /// `service.name`.
    pub(crate) service: String,
    /// The share of traces that are exported where no caller has decided it, 0 to 1.
    pub(crate) ratio: f64,
    /// Coordinators whose spans become parents of this node's.
    pub(crate) parents_from: Vec<PeerId>,
}

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
#[error("cannot export traces to {endpoint}: {why}")]
pub(crate) struct TracesError {
    endpoint: String,
    why: String,
}

/// Why a span was dropped.
#[derive(Debug, Clone, Copy)]
enum Dropped {
    QueueFull,
    ExportFailed,
    Stopping,
}

impl Dropped {
    const ALL: [(Self, &'static str); 3] =
        [(Self::QueueFull, "queue_full"), (Self::ExportFailed, "export_failed"), (Self::Stopping, "stopping")];
}

/// Where spans go when they end.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    pub(super) recent: Mutex<Recent>,
    queue: OnceLock<mpsc::Sender<SpanData>>,
    exported: Gauge,
    dropped: [Gauge; Dropped::ALL.len()],
}

impl Sink {
    fn drop_spans(&self, why: Dropped, count: usize) {
        if let Some(counter) = self.dropped.get(why as usize) {
            counter.add(u64::try_from(count).unwrap_or(u64::MAX));
        }
    }

    /// Spans that came to nothing, for any reason.
    #[cfg(test)]
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.iter().map(Gauge::get).sum()
    }

    #[cfg(test)]
    pub(super) fn fill(&self) -> mpsc::Receiver<SpanData> {
        let (queue, spans) = mpsc::channel(QUEUE);
        assert!(self.queue.set(queue).is_ok());
        spans
    }
}

/// Shows what is counted.
pub(crate) fn observe(meter: &Meter, traces: &Traces) {
    let sink = traces.sink().clone();
    meter
        .u64_observable_counter("quelea_trace_spans_exported")
        .with_description("Spans that a collector of traces has taken")
        .with_callback(move |observer| observer.observe(sink.exported.get(), &[]))
        .build();
    let sink = traces.sink().clone();
    meter
        .u64_observable_counter("quelea_trace_spans_dropped")
        .with_description("Spans that no collector of traces got, by reason")
        .with_callback(move |observer| {
            for ((_, reason), count) in Dropped::ALL.iter().zip(&sink.dropped) {
                observer.observe(count.get(), &[KeyValue::new("reason", *reason)]);
            }
        })
        .build();
}

/// Hands over what ends.
#[derive(Debug)]
pub(super) struct Hand(pub(super) Arc<Sink>);

impl SpanProcessor for Hand {
    fn on_start(&self, _: &mut SdkSpan, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.recent.lock().unwrap_or_else(PoisonError::into_inner).add(&span);
        let Some(queue) = self.0.queue.get().filter(|_| span.span_context.is_sampled()) else { return };
        match queue.try_send(span) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => self.0.drop_spans(Dropped::QueueFull, 1),
            Err(mpsc::error::TrySendError::Closed(_)) => self.0.drop_spans(Dropped::Stopping, 1),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Traces {
    /// From now on traces are exported, until `stopping` says so; the task ends when all that waited is sent or dropped. A
    /// second call does nothing.
    ///
    /// # Errors
    /// When no client can be made for the endpoint. Whether anybody listens there is found out later, and does not matter.
    pub(crate) fn export(
        &self,
        settings: TraceSettings,
        local: PeerId,
        stopping: impl Future<Output = ()> + Send + 'static,
    ) -> Result<JoinHandle<()>, TracesError> {
        let endpoint = settings.endpoint.to_string();
        let exporter = exporter(&settings, local).map_err(|why| TracesError { endpoint: endpoint.clone(), why })?;
        let (queue, spans) = mpsc::channel(QUEUE);
        let rules = Rules { ratio: settings.ratio, parents_from: settings.parents_from.into_iter().collect() };
        if self.inner.sink.queue.set(queue).is_ok() {
            let _ = self.inner.rules.set(rules);
        }
        let sending = Sending { exporter, sink: self.inner.sink.clone(), endpoint, away: false };
        Ok(tokio::spawn(sending.run(spans, stopping)))
    }
}

fn exporter(settings: &TraceSettings, local: PeerId) -> Result<SpanExporter, String> {
    // The system's certificates are of use for TLS only, and a container may lack them.
    let client = if settings.endpoint.scheme() == "https" { http::web() } else { http::local() };
    let client = client.redirect(reqwest::redirect::Policy::none()).timeout(TIMEOUT);
    let client = client.build().map_err(|e| e.to_string())?;
    // It takes headers, such as a collector's key, from OTEL_EXPORTER_OTLP_HEADERS: never from a flag, which others see.
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(settings.endpoint.as_str())
        .with_timeout(TIMEOUT)
        .with_http_client(Client(client))
        .build();
    let mut exporter = exporter.map_err(|e| e.to_string())?;
    let resource = Resource::builder().with_service_name(settings.service.clone()).with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", local.to_string()),
    ]);
    exporter.set_resource(&resource.build());
    Ok(exporter)
}

struct Sending {
    exporter: SpanExporter,
    sink: Arc<Sink>,
    endpoint: String,
    /// Whether the last batch was not taken: said once, not for each.
    away: bool,
}

impl Sending {
    async fn run(mut self, mut spans: mpsc::Receiver<SpanData>, stopping: impl Future<Output = ()> + Send) {
        tokio::pin!(stopping);
        let mut stops = false;
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let came = tokio::select! {
                came = spans.recv_many(&mut batch, BATCH) => came,
                () = &mut stopping, if !stops => {
                    // What waits is still sent; what ends from now on is too late.
                    stops = true;
                    spans.close();
                    continue;
                }
            };
            if came == 0 {
                return;
            }
            if !stops && batch.len() < BATCH {
                tokio::select! {
                    () = tokio::time::sleep(LINGER) => {}
                    () = &mut stopping => {
                        stops = true;
                        spans.close();
                    }
                }
                while batch.len() < BATCH
                    && let Ok(span) = spans.try_recv()
                {
                    batch.push(span);
                }
            }
            self.send(std::mem::take(&mut batch)).await;
        }
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let count = batch.len();
        match self.exporter.export(batch).await {
            Ok(()) => {
                self.sink.exported.add(u64::try_from(count).unwrap_or(u64::MAX));
                if std::mem::take(&mut self.away) {
                    tracing::info!(endpoint = self.endpoint, "the collector takes traces again");
                }
            }
            Err(error) => {
                self.sink.drop_spans(Dropped::ExportFailed, count);
                if !std::mem::replace(&mut self.away, true) {
                    tracing::warn!(endpoint = self.endpoint, %error, "traces are dropped: the collector does not take them");
                }
            }
        }
    }
}

/// The HTTP client that everything here has.
struct Client(reqwest::Client);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request)?;
        let mut response = self.0.execute(request).await?;
        let mut answer = Response::builder().status(response.status());
        if let Some(headers) = answer.headers_mut() {
            std::mem::swap(headers, response.headers_mut());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len().saturating_add(chunk.len()) > MAX_ANSWER {
                return Err(format!("the collector's answer is longer than {MAX_ANSWER} bytes").into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(answer.body(body.into())?)
    }
}
