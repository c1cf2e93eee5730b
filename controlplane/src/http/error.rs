//! The one place that turns refusals and faults into answers.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::{error, warn};
use utoipa::ToSchema;

use crate::domain::{Field, Problem};
use crate::store::StoreError;

/// The only shape of an error.
#[derive(Serialize, ToSchema)]
pub(crate) struct ErrorAnswer {
    /// Always false.
    #[schema(example = false)]
    ok: bool,
    error: ErrorBody,
}

#[derive(Serialize, ToSchema)]
struct ErrorBody {
    /// For programs, such as `invalid_parameter`.
    code: String,
    /// For people.
    message: String,
    /// The fields that are wrong, where fields are.
    details: Vec<Field>,
}

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    details: Vec<Field>,
    /// Seconds.
    retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), details: Vec::new(), retry_after: None }
    }

    /// 400: the request could not be read.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_parameter", message)
    }

    /// 400, because of one field or parameter.
    pub(crate) fn invalid_field(field: impl Into<String>, message: impl Into<String>) -> Self {
        let field = Field::new(field, message);
        let message = format!("{}: {}", field.field, field.message);
        Self { details: vec![field], ..Self::invalid(message) }
    }

    pub(crate) fn credentials(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_credentials", message)
    }

    pub(crate) fn expired() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "token_expired", "the token has expired")
    }

    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
    }

    pub(crate) fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path has no such method")
    }

    pub(crate) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the body did not arrive in time")
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", message)
    }

    pub(crate) fn media_type() -> Self {
        let message = "send the body as Content-Type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    }

    /// 415 for what is no capture.
    pub(crate) fn capture_type() -> Self {
        let message = "send a capture as application/octet-stream with X-Chunk headers, or as multipart/form-data";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    }

    /// 416: a range that the file does not have.
    pub(crate) fn range(bytes: u64) -> Self {
        let message = format!("the file has {bytes} bytes");
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable", message)
    }

    pub(crate) fn rate_limited(retry_after: u64) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", "too many requests: slow down");
        Self { retry_after: Some(retry_after), ..error }
    }

    /// 500, without inner text.
    pub(crate) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "an error of the server; it was logged")
    }

    pub(crate) fn unavailable(reason: &str) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", reason);
        Self { retry_after: Some(5), ..error }
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        let message = problem.to_string();
        match problem {
            Problem::Invalid(details) => {
                Self { details, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "validation_error", message) }
            }
            Problem::Parameter { field, message } => Self::invalid_field(field, message),
            Problem::NotFound(_) => Self::new(StatusCode::NOT_FOUND, "not_found", message),
            Problem::AlreadyExists(_) => Self::new(StatusCode::CONFLICT, "already_exists", message),
            Problem::Forbidden(_) => Self::new(StatusCode::FORBIDDEN, "forbidden", message),
            Problem::TooMany { wait_secs, .. } => Self { message, ..Self::rate_limited(wait_secs) },
            Problem::SubscriptionRequired => Self::new(StatusCode::PAYMENT_REQUIRED, "subscription_required", message),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(fault: StoreError) -> Self {
        match fault {
            StoreError::Problem(problem) => problem.into(),
            StoreError::Unavailable { reason, source } => {
                warn!(reason, error = %source, "the database cannot answer");
                Self::unavailable(&format!("the database cannot answer: {reason}"))
            }
            StoreError::Disk { reason, source } => {
                warn!(reason, error = %source, "the folder of captures cannot be used");
                let unavailable = Self::unavailable(&format!("the folder of captures cannot be used: {reason}"));
                Self { retry_after: Some(60), ..unavailable }
            }
            StoreError::Unexpected { what, source } => {
                error!(what, error = %source, "the database answered what was not expected");
                Self::internal()
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody { code: self.code.to_owned(), message: self.message, details: self.details };
        let mut answer = (self.status, Json(ErrorAnswer { ok: false, error: body })).into_response();
        if let Some(secs) = self.retry_after {
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        answer
    }
}
