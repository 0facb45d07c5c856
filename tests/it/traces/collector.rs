//! A collector of traces: OTLP over HTTP, protobuf as the specification's own definitions have it.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::post,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::any_value::Value,
    trace::v1::Span,
};
use prost::Message as _;

use crate::harness::until;

/// A span, and who sent it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `service.instance.id`: the node's peer id.
    pub node: String,
    /// `service.name`.
    pub service: String,
    pub span: Span,
}

impl Seen {
    pub fn attribute(&self, key: &str) -> Option<Value> {
        self.span.attributes.iter().find(|kv| kv.key == key)?.value.clone()?.value
    }

    pub fn text(&self, key: &str) -> Option<String> {
        match self.attribute(key)? {
            Value::StringValue(text) => Some(text),
            other => panic!("{key} is {other:?}"),
        }
    }

    pub fn number(&self, key: &str) -> Option<i64> {
        match self.attribute(key)? {
            Value::IntValue(n) => Some(n),
            other => panic!("{key} is {other:?}"),
        }
    }
}

type Spans = Arc<Mutex<Vec<Seen>>>;

pub struct Collector {
    addr: SocketAddr,
    spans: Spans,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Collector {
    pub async fn start() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap()).await
    }

    /// At this address, which nobody has.
    pub async fn at(addr: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let spans = Spans::default();
        let router = Router::new().route("/v1/traces", post(take)).with_state(spans.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { addr, spans, task }
    }

    /// The flag that sends traces here.
    pub fn flag(&self) -> String {
        format!("--otlp-endpoint=http://{}", self.addr)
    }

    pub fn spans(&self) -> Vec<Seen> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has so many spans of a name from a node.
    pub async fn of(&self, node: &str, name: &str, count: usize) -> Vec<Seen> {
        until(&format!("{count} spans {name:?} of {node}"), async || {
            let of = |seen: &Seen| seen.node == node && seen.span.name == name;
            let spans: Vec<Seen> = self.spans().into_iter().filter(of).collect();
            (spans.len() >= count).then_some(spans)
        })
        .await
    }
}

/// An address where nobody listens.
pub fn nobody() -> SocketAddr {
    StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn take(State(spans): State<Spans>, headers: HeaderMap, body: Bytes) -> Response {
    if headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind != "application/x-protobuf") {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
    }
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let mut kept = spans.lock().unwrap_or_else(PoisonError::into_inner);
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.unwrap_or_default();
        let named = |key: &str| {
            let value = resource.attributes.iter().find(|kv| kv.key == key)?.value.clone()?.value?;
            if let Value::StringValue(text) = value { Some(text) } else { None }
        };
        let (node, service) = (named("service.instance.id").unwrap(), named("service.name").unwrap());
        for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            kept.push(Seen { node: node.clone(), service: service.clone(), span });
        }
    }
    let answer = ExportTraceServiceResponse::default().encode_to_vec();
    ([(header::CONTENT_TYPE, "application/x-protobuf")], answer).into_response()
}
