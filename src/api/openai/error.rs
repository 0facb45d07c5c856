//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, with `quelea_code` and `hint` besides, and
//! headers that tell a client whether to ask again.
//!
//! Clients ask again by themselves after 408, 409, 429 and 5xx, twice. Where peers may have been paid for what failed, they
//! are told not to (`x-should-retry: false`); where nothing was charged and later may be better, when to (`Retry-After`).

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use quelea_wire::ErrorCode;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::inference::InferError;

/// What every error of the OpenAI API looks like.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what json! makes")]
pub(crate) struct OpenAiFailure {
    error: OpenAiError,
}

/// What went wrong, in OpenAI's words; `quelea_code` and `hint` are this node's.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what json! makes")]
struct OpenAiError {
    message: String,
    r#type: String,
    #[schema(required = true)]
    param: Option<String>,
    #[schema(required = true)]
    code: Option<String>,
    #[schema(nullable = false)]
    quelea_code: Option<String>,
    #[schema(nullable = false)]
    hint: Option<String>,
}

/// When to come back if nobody has said when there may be room.
const RETRY_AFTER_MS: u32 = 1000;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const RETRY_AFTER_IN_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Marks an answer whose error has this shape.
#[derive(Clone, Copy)]
pub(super) struct Shaped;

/// An error as OpenAI's clients understand it; boxed, as it is returned everywhere.
#[derive(Debug, Clone)]
pub(crate) struct ApiError(Box<Described>);

#[derive(Debug, Clone)]
struct Described {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    quelea_code: Option<String>,
    hint: Option<String>,
    /// Whether the same request may succeed later.
    retryable: bool,
    retry_after_ms: Option<u32>,
    /// Whether what was done may have to be paid.
    charged: bool,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self(Box::new(Described {
            status,
            kind,
            code,
            param: None,
            message: message.into(),
            quelea_code: None,
            hint: None,
            retryable: false,
            retry_after_ms: None,
            charged: false,
        }))
    }

    /// A request that makes no sense.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
    }

    /// A field of a request that makes no sense.
    pub(super) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(message).with_code("invalid_value").about(param)
    }

    /// A field that would change what is answered, and cannot be followed.
    pub(super) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(message).with_code("unsupported_parameter").about(param)
    }

    /// A route that there is not.
    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::invalid(message).with_status(StatusCode::NOT_FOUND).with_code("unknown_url")
    }

    /// A model that there is not.
    pub(super) fn no_model(model: &str) -> Self {
        let message = format!("the model {model:?} does not exist, or no peer that is known serves it");
        let mut error = Self::not_found(message).with_code("model_not_found").about("model");
        error.0.hint = Some("GET /v1/models lists those that can be asked".into());
        error
    }

    /// Too many answers are under way.
    pub(super) fn busy(most: usize) -> Self {
        let message = format!("this node has {most} answers under way, and takes no more");
        let code = Some("rate_limit_exceeded");
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code, message);
        (error.0.retryable, error.0.retry_after_ms) = (true, Some(RETRY_AFTER_MS));
        error
    }

    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        self.0.status = status;
        self
    }

    pub(super) fn with_code(mut self, code: &'static str) -> Self {
        self.0.code = Some(code);
        self
    }

    fn about(mut self, param: impl Into<String>) -> Self {
        self.0.param = Some(param.into());
        self
    }

    /// The object under `error`.
    pub(super) fn to_json(&self) -> Value {
        let described = &*self.0;
        let mut error = json!({
            "message": described.message,
            "type": described.kind,
            "param": described.param,
            "code": described.code,
        });
        let more = [("quelea_code", &described.quelea_code), ("hint", &described.hint)];
        for (name, value) in more.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            error[name] = json!(value);
        }
        error
    }
}

/// Status, type and code of an error of ours.
fn shape(code: ErrorCode) -> (StatusCode, &'static str, Option<&'static str>) {
    const INVALID: &str = "invalid_request_error";
    const UNAVAILABLE: (StatusCode, &str) = (StatusCode::SERVICE_UNAVAILABLE, "service_unavailable_error");
    let unavailable = |code| (UNAVAILABLE.0, UNAVAILABLE.1, Some(code));
    match code {
        ErrorCode::Usage | ErrorCode::ModelFile | ErrorCode::ProfileMismatch => {
            (StatusCode::BAD_REQUEST, INVALID, None)
        }
        ErrorCode::ContextFull => (StatusCode::BAD_REQUEST, INVALID, Some("context_length_exceeded")),
        ErrorCode::Unauthorized => (StatusCode::UNAUTHORIZED, "authentication_error", Some("invalid_api_key")),
        ErrorCode::ModelUnknown | ErrorCode::ModelFileNeeded | ErrorCode::NotFound => {
            (StatusCode::NOT_FOUND, INVALID, Some("model_not_found"))
        }
        ErrorCode::NoCredit | ErrorCode::AccountFrozen | ErrorCode::PaymentRequired | ErrorCode::PriceTooHigh => {
            (StatusCode::PAYMENT_REQUIRED, "insufficient_quota", Some("insufficient_credit"))
        }
        ErrorCode::NoRoute => unavailable("no_route"),
        ErrorCode::ShuttingDown => unavailable("shutting_down"),
        ErrorCode::Overloaded | ErrorCode::NoKvPages | ErrorCode::TooManySessions | ErrorCode::NoMemory => {
            unavailable("overloaded")
        }
        ErrorCode::DeadlineExceeded | ErrorCode::HopSilent | ErrorCode::NextSilent => {
            (StatusCode::GATEWAY_TIMEOUT, "server_error", Some("timeout"))
        }
        ErrorCode::Internal | ErrorCode::EngineFailed | ErrorCode::Cancelled | ErrorCode::StorageFailed => {
            (StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("server_error"))
        }
        _ => (StatusCode::BAD_GATEWAY, "server_error", Some("peer_failed")),
    }
}

impl From<&InferError> for ApiError {
    fn from(error: &InferError) -> Self {
        let (status, kind, code) = shape(error.error_code());
        let mut this = Self::new(status, kind, code, error.message.clone());
        this.0.quelea_code = Some(error.code.clone());
        this.0.hint.clone_from(&error.hint);
        this.0.retryable = error.retryable;
        this.0.retry_after_ms = error.retry_after_ms;
        this.0.charged = error.charged;
        this
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Described { status, retryable, retry_after_ms, charged, .. } = *self.0;
        let mut response = (status, Json(json!({ "error": self.to_json() }))).into_response();
        response.extensions_mut().insert(Shaped);
        let headers = response.headers_mut();
        let again = matches!(status.as_u16(), 408 | 409 | 429 | 500..);
        if again {
            let retry = retryable && !charged;
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(if retry { "true" } else { "false" }));
            if retry {
                let ms = retry_after_ms.unwrap_or(RETRY_AFTER_MS);
                headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)));
                headers.insert(RETRY_AFTER_IN_MS, HeaderValue::from(ms));
            }
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(response: &Response, name: &str) -> Option<String> {
        response.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn what_was_charged_is_not_asked_for_again() {
        let lost = InferError::new(ErrorCode::HopLost, "peer x is lost");
        let free = ApiError::from(&lost).into_response();
        assert_eq!(header(&free, "x-should-retry").as_deref(), Some("true"));
        assert!(header(&free, "retry-after").is_some());
        let charged = ApiError::from(&InferError { charged: true, ..lost }).into_response();
        assert_eq!(header(&charged, "x-should-retry").as_deref(), Some("false"));
        assert!(header(&charged, "retry-after").is_none() && header(&charged, "retry-after-ms").is_none());
    }

    #[test]
    fn errors_have_the_statuses_that_clients_know() {
        for (code, status, name) in [
            (ErrorCode::Usage, 400, None),
            (ErrorCode::ContextFull, 400, Some("context_length_exceeded")),
            (ErrorCode::Unauthorized, 401, Some("invalid_api_key")),
            (ErrorCode::NoCredit, 402, Some("insufficient_credit")),
            (ErrorCode::ModelUnknown, 404, Some("model_not_found")),
            (ErrorCode::Internal, 500, Some("server_error")),
            (ErrorCode::NoRoute, 503, Some("no_route")),
        ] {
            let error = ApiError::from(&InferError::new(code, "why").hint("do this"));
            let json = error.to_json();
            assert_eq!((json["message"].as_str(), json["hint"].as_str()), (Some("why"), Some("do this")));
            assert_eq!(json["code"].as_str(), name);
            assert!(json.get("param").is_some_and(Value::is_null));
            let response = error.into_response();
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(header(&response, "x-should-retry").is_some(), status >= 500, "{status}");
        }
        let full = ApiError::from(&InferError::new(ErrorCode::NoKvPages, "full").retry_after(2500)).into_response();
        assert_eq!(header(&full, "retry-after").as_deref(), Some("3"));
        assert_eq!(header(&full, "retry-after-ms").as_deref(), Some("2500"));
        let busy = ApiError::busy(1).into_response();
        assert_eq!((busy.status().as_u16(), header(&busy, "x-should-retry").as_deref()), (429, Some("true")));
    }
}
