//! The outer form of lists, `{"schema", "generated_at", "items"}`, and how answers are described.

use axum::{extract::Request, http::header, middleware::Next, response::Response};
use quelea_wire::{ErrorCode, time::unix_ms};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::inference::InferError;

/// Describes answers that `json!` makes, or parts of such: their fields, and behind `;` those that may be missing. That the
/// answers are so is seen in tests/it/openapi.rs, which compares those of a running node with the document.
macro_rules! answers {
    ($(
        $(#[$about:meta])*
        $name:ident $(= $schema:literal)? {
            $($(#[$of:meta])* $field:ident: $type:ty,)*
            $(; $($(#[$opt_of:meta])* $opt:ident: $opt_type:ty,)*)?
        }
    )*) => {$(
        $(#[$about])*
        #[derive(utoipa::ToSchema)]
        #[expect(dead_code, reason = "describes what json! makes")]
        pub(super) struct $name {
            $(#[schema(pattern = $schema)] schema: String,)?
            $($(#[$of])* #[schema(required = true)] $field: $type,)*
            $($($(#[$opt_of])* #[schema(required = false)] $opt: $opt_type,)*)?
        }
    )*};
}
pub(super) use answers;

/// A list, made at the moment of `generated_at`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what json! makes")]
pub(super) struct List<T: ToSchema> {
    /// `quelea.<what>/v1`.
    schema: String,
    /// RFC 3339, in UTC.
    generated_at: String,
    items: Vec<T>,
}

/// What every error of the control API looks like.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what json! makes")]
pub(super) struct Failure {
    error: InferError,
}

/// Bytes as they are.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "describes a body")]
pub(super) struct Binary(Vec<u8>);

/// The longest error of what stands before the routes.
const ERROR_MAX: usize = 64 << 10;

/// Errors of what reads requests before their routes do are plain text; here they get the shape of all others.
pub(super) async fn errors(request: Request, next: Next) -> Response {
    let control = request.uri().path().starts_with("/api/");
    let told = format!("{} is not answered here", request.method());
    let response = next.run(request).await;
    let status = response.status();
    let json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if !control || json || !status.is_client_error() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, ERROR_MAX).await.unwrap_or_default();
    let message = if body.is_empty() { told } else { String::from_utf8_lossy(&body).into_owned() };
    let shaped = super::failure(status, &InferError::new(ErrorCode::Usage, message));
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.extend(shaped.headers().clone());
    Response::from_parts(parts, shaped.into_body())
}

/// A list as the API gives it, made now.
pub(crate) fn list(schema: &str, items: Vec<Value>) -> Value {
    json!({ "schema": schema, "generated_at": rfc3339(unix_ms()), "items": items })
}

/// Unix seconds as a float, for instants inside items.
pub(super) fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}

/// An instant (Unix milliseconds) as RFC 3339 has it, in UTC.
pub(crate) fn rfc3339(ms: u64) -> String {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    let (days, ms) = (ms / DAY_MS, ms % DAY_MS);
    // Years begin in March, so that the leap day is the last; eras of 400 years all have 146,097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + later;
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_read_as_the_standard_has_them() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
            (1_795_390_000_007, "2026-11-22T23:26:40.007Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
        }
    }
}
