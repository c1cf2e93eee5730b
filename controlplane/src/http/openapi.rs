//! The OpenAPI document: what the handlers do not say themselves, and where it can be read.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::Value;
use utoipa::Number;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{AdditionalProperties, ArrayItems, KnownFormat, Schema, SchemaFormat};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, Header, InfoBuilder, License, ObjectBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Required,
    Response as Described, ResponseBuilder, Type,
};
use utoipa::{PartialSchema, ToSchema};

use super::error::{ApiError, ErrorAnswer};
use super::{Context, access};

/// The document before the handlers add themselves.
pub(super) fn base() -> OpenApi {
    let info = InfoBuilder::new()
        .title("ftagent control plane")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Nodes, incidents, firewall rules and audit records of ftagent. Every answer is an object with `ok`; a \
             refusal has `error` with `code`, `message` and `details`. Lists answer `total` and are ordered newest \
             first. Times are RFC 3339, UTC.",
        ))
        .license(Some(License::new("Apache-2.0 OR MIT")));
    OpenApiBuilder::new().info(info.build()).build()
}

/// Bodies by operation.
const EXAMPLES: &str = include_str!("examples.json");

/// The errors that every operation can answer, by the reason why.
const ERRORS: [(&str, &str); 8] = [
    ("400", "`invalid_parameter`: the path, the query or the body cannot be read"),
    ("404", "`not_found`"),
    ("405", "`method_not_allowed`"),
    ("408", "`request_timeout`: the body did not arrive in time"),
    ("413", "`payload_too_large`: the body is larger than 1 MiB, or 6 MiB of a firewall rule"),
    ("429", "`rate_limited`: see `Retry-After`"),
    ("500", "`internal_error`"),
    ("503", "`unavailable`: try again after `Retry-After` seconds"),
];
const AUTH_ERRORS: [(&str, &str); 2] =
    [("401", "`invalid_credentials` or `token_expired`"), ("403", "`forbidden`: the token's role does not allow this")];
const WRITE_ERRORS: [(&str, &str); 4] = [
    ("402", "`subscription_required`: the workspace has no active subscription"),
    ("409", "`already_exists`"),
    ("415", "`unsupported_media_type`: send `application/json`"),
    ("422", "`validation_error`: values are out of bounds, `details` names them"),
];

/// Adds what holds for every operation: errors and headers.
pub(super) fn complete(mut document: OpenApi) -> OpenApi {
    let components = document.components.get_or_insert_default();
    let mut schemas = vec![(ErrorAnswer::name().into_owned(), ErrorAnswer::schema())];
    ErrorAnswer::schemas(&mut schemas);
    components.schemas.extend(schemas);
    let named = components.schemas.clone();
    for name in ["Action", "Trigger", "RuleScope", "Schedule", "ProfileVerdict"] {
        close_variants(components.schemas.get_mut(name), &named);
    }
    components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    components.add_security_scheme("feed_token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    components.add_security_scheme("node_key", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    components
        .add_security_scheme("node_uuid", SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-Node-UUID"))));
    components.schemas.values_mut().for_each(leave_unsigned);
    let examples: Value = serde_json::from_str(EXAMPLES).expect("a test reads every example");
    for (path, item) in &mut document.paths.paths {
        let operations = [
            ("get", &mut item.get, false),
            ("post", &mut item.post, true),
            ("patch", &mut item.patch, true),
            ("delete", &mut item.delete, true),
        ];
        for (method, operation, writes) in operations {
            if let Some(operation) = operation {
                operation.operation_id = Some(operation_id(method, path));
                give_example(operation, &examples[format!("{} {path}", method.to_uppercase())]);
                complete_operation(operation, writes, method == "post");
            }
        }
    }
    document
}

/// Says that the variants of a tagged enum refuse unknown fields, which the derive says of structs alone. A variant that
/// is a struct of its own becomes one object with its tag: as a struct that refuses unknown fields it would refuse the
/// tag.
fn close_variants(schema: Option<&mut RefOr<Schema>>, named: &BTreeMap<String, RefOr<Schema>>) {
    let Some(RefOr::T(Schema::OneOf(variants))) = schema else { return };
    for variant in &mut variants.items {
        if let RefOr::T(Schema::AllOf(parts)) = variant {
            let mut merged = None::<utoipa::openapi::Object>;
            for part in &parts.items {
                let Some(object) = as_object(part, named) else { continue };
                let whole = merged.get_or_insert_with(|| {
                    let mut whole = object.clone();
                    whole.description.clone_from(&parts.description);
                    whole.properties.clear();
                    whole.required.clear();
                    whole
                });
                whole.properties.extend(object.properties.clone());
                whole.required.extend(object.required.iter().cloned());
            }
            if let Some(whole) = merged {
                *variant = RefOr::T(Schema::Object(whole));
            }
        }
        if let RefOr::T(Schema::Object(object)) = variant {
            object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
        }
    }
}

/// The object that a schema is or refers to.
fn as_object<'a>(
    schema: &'a RefOr<Schema>,
    named: &'a BTreeMap<String, RefOr<Schema>>,
) -> Option<&'a utoipa::openapi::Object> {
    let schema = match schema {
        RefOr::Ref(reference) => named.get(reference.ref_location.rsplit('/').next()?)?,
        schema => schema,
    };
    match schema {
        RefOr::T(Schema::Object(object)) => Some(object),
        _ => None,
    }
}

/// Takes the formats `int32` and `int64` from numbers that begin at 0: they end at 2^32 - 1 and 2^64 - 1, for which
/// OpenAPI has no word.
fn leave_unsigned(schema: &mut RefOr<Schema>) {
    let RefOr::T(schema) = schema else { return };
    match schema {
        Schema::Object(object) => {
            let format = object.format.as_ref();
            let signed = matches!(format, Some(SchemaFormat::KnownFormat(KnownFormat::Int32 | KnownFormat::Int64)));
            let from_zero = match object.minimum {
                Some(Number::Int(least)) => least == 0,
                Some(Number::UInt(least)) => least == 0,
                Some(Number::Float(least)) => least == 0.0,
                None => false,
            };
            if signed && from_zero {
                object.format = None;
            }
            object.properties.values_mut().for_each(leave_unsigned);
        }
        Schema::Array(array) => {
            if let ArrayItems::RefOrSchema(items) = &mut array.items {
                leave_unsigned(items);
            }
        }
        Schema::OneOf(of) => of.items.iter_mut().for_each(leave_unsigned),
        Schema::AllOf(of) => of.items.iter_mut().for_each(leave_unsigned),
        Schema::AnyOf(of) => of.items.iter_mut().for_each(leave_unsigned),
        _ => {}
    }
}

/// Shows a body that the operation takes.
fn give_example(operation: &mut Operation, example: &Value) {
    if example.is_null() {
        return;
    }
    let Some(RefOr::T(body)) = &mut operation.request_body else { return };
    if let Some(RefOr::T(content)) = body.content.get_mut("application/json") {
        content.example = Some(example.clone());
    }
}

/// A name of its own for each operation: `get_nodes_uuid_metrics`.
fn operation_id(method: &str, path: &str) -> String {
    let words = path.split(['/', '-', '{', '}', '.']).filter(|w| !matches!(*w, "" | "api" | "v1"));
    let version = if path.starts_with("/api/v1/deploy") { Some("v1") } else { None };
    [method].into_iter().chain(words).chain(version).collect::<Vec<_>>().join("_")
}

fn complete_operation(operation: &mut Operation, writes: bool, posts: bool) {
    let callers = access::callers(operation);
    let (agent, open) = (callers == ["node"], callers == ["anyone"]);
    let mut errors: Vec<_> = ERRORS.to_vec();
    if !open {
        errors.extend(AUTH_ERRORS);
    }
    if writes {
        errors.extend(WRITE_ERRORS);
    }
    for (status, description) in errors {
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| RefOr::T(error(description)));
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            for (name, what) in [
                ("X-RateLimit-Limit", "Requests allowed in the window"),
                ("X-RateLimit-Remaining", "Requests left in the window"),
                ("X-RateLimit-Reset", "When the window ends, in seconds since the Unix epoch"),
            ] {
                response.headers.insert(name.to_owned(), integer_header(what));
            }
        }
    }
    for status in ["429", "503"] {
        if let Some(RefOr::T(response)) = operation.responses.responses.get_mut(status) {
            response.headers.insert("Retry-After".to_owned(), integer_header("Seconds to wait"));
        }
    }
    if posts && !agent {
        let key = ParameterBuilder::new()
            .name("Idempotency-Key")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some("The same key and body within 24 h give the first answer again"))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(255))))
            .build();
        operation.parameters.get_or_insert_default().push(RefOr::T(key));
    }
}

fn integer_header(what: &str) -> RefOr<Header> {
    let mut header = Header::new(ObjectBuilder::new().schema_type(Type::Integer));
    header.description = Some(what.to_owned());
    RefOr::T(header)
}

fn error(description: &str) -> Described {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(ErrorAnswer::name()))).build();
    ResponseBuilder::new().description(description).content("application/json", content).build()
}

/// `/api/openapi.json` and `/api/docs`, all from this program.
pub(super) fn routes(document: Arc<OpenApi>) -> Router<Context> {
    let json = document.to_json().expect("the document is made of strings and numbers");
    let config = Arc::new(utoipa_swagger_ui::Config::from("/api/openapi.json").validator_url("none"));
    let page = config.clone();
    Router::new()
        .route("/api/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], json) }))
        .route("/api/docs", get(|| async move { asset("index.html", page) }))
        .route("/api/docs/{*path}", get(|Path(path): Path<String>| async move { asset(&path, config) }))
}

fn asset(path: &str, config: Arc<utoipa_swagger_ui::Config<'static>>) -> Response {
    let Ok(Some(file)) = utoipa_swagger_ui::serve(path, config) else { return ApiError::not_found().into_response() };
    let mut bytes = file.bytes.into_owned();
    if path == "index.html"
        && let Ok(text) = std::str::from_utf8(&bytes)
    {
        // The page is served without a trailing slash and never redirects, so relative links need their folder.
        bytes =
            text.replace("\"./", "\"/api/docs/").replace("href=\"index.css", "href=\"/api/docs/index.css").into_bytes();
    }
    let mut answer = ([(header::CONTENT_TYPE, file.content_type)], bytes).into_response();
    answer.headers_mut().insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
        ),
    );
    answer
}
