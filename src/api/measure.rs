//! How long requests over HTTP take, to the last byte of their answers, and how many are under way.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{Method, header},
    middleware::Next,
    response::Response,
};
use hyper::body::{Frame, SizeHint};

use crate::telemetry::metrics::Metrics;

/// What stands for routes that there are not, and for methods that nobody has heard of.
const NO_ROUTE: &str = "none";
const NO_METHOD: &str = "_OTHER";

/// A request under way.
struct Underway {
    metrics: Metrics,
    method: &'static str,
    route: String,
    began: Instant,
    /// What it was answered with; nothing where its time means nothing.
    status: Option<u16>,
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.metrics.http_ended(&self.route);
        if let Some(status) = self.status {
            self.metrics.http_took(self.method, &self.route, status, self.began.elapsed());
        }
    }
}

/// Measures a request.
pub(super) async fn measure(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = matched.unwrap_or(NO_ROUTE).to_owned();
    metrics.http_began(&route);
    let method = method(request.method());
    // The client has gone away before there was an answer unless there is a status.
    let mut underway = Underway { metrics, method, route, began: Instant::now(), status: None };
    let response = next.run(request).await;
    let kind = response.headers().get(header::CONTENT_TYPE);
    // A stream of events lasts as long as somebody listens; an answer that is streamed ends.
    let endless = underway.route.starts_with("/api/") && kind.is_some_and(|kind| kind == "text/event-stream");
    underway.status = (!endless).then(|| response.status().as_u16());
    response.map(|body| Body::new(Measured { body, _underway: underway }))
}

fn method(method: &Method) -> &'static str {
    const KNOWN: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or(NO_METHOD)
}

/// A body whose end is the request's.
struct Measured {
    body: Body,
    _underway: Underway,
}

impl HttpBody for Measured {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
