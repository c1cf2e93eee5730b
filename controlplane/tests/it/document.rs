//! What tests over every operation read from the OpenAPI document: the operations, and bodies that they take.

use reqwest::Method;
use serde_json::{Map, Value, json};

/// The document, as it is served.
pub(crate) struct Document(Value);

/// One operation of it.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) path: String,
    pub(crate) method: Method,
    pub(crate) value: Value,
}

impl Document {
    pub(crate) fn read() -> Self {
        Self(serde_json::to_value(controlplane::http::document()).unwrap())
    }

    pub(crate) fn operations(&self) -> Vec<Operation> {
        let mut all = Vec::new();
        for (path, item) in self.0["paths"].as_object().unwrap() {
            for (method, value) in item.as_object().unwrap() {
                let method: Method = method.to_uppercase().parse().unwrap();
                all.push(Operation { path: path.clone(), method, value: value.clone() });
            }
        }
        assert!(all.len() >= 80, "only {} operations", all.len());
        all
    }

    pub(crate) fn operation(&self, method: &str, path: &str) -> Option<Operation> {
        let value = self.0["paths"].get(path)?.get(method.to_lowercase())?.clone();
        Some(Operation { path: path.to_owned(), method: method.to_uppercase().parse().unwrap(), value })
    }

    /// Follows a reference.
    pub(crate) fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(pointer) => self.resolve(self.0.pointer(pointer.trim_start_matches('#')).unwrap()),
            None => schema,
        }
    }

    /// The schema of an operation's JSON body.
    pub(crate) fn body_schema<'a>(&'a self, operation: &'a Operation) -> Option<&'a Value> {
        let schema = operation.value.pointer("/requestBody/content/application~1json/schema")?;
        Some(self.resolve(schema))
    }

    /// The smallest value of a schema.
    pub(crate) fn sample(&self, schema: &Value) -> Value {
        let schema = self.resolve(schema);
        for of in ["oneOf", "anyOf", "allOf"] {
            let Some(variants) = schema[of].as_array() else { continue };
            let of_value = |v: &&Value| v["type"] != "null";
            let samples = variants.iter().filter(of_value).map(|v| self.sample(v));
            if of != "allOf" {
                return samples.take(1).next().unwrap_or(Value::Null);
            }
            let all = samples.filter_map(|s| s.as_object().cloned()).flatten();
            return Value::Object(all.collect());
        }
        if let Some(word) = schema["enum"].as_array().and_then(|words| words.first()) {
            return word.clone();
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().find(|k| *k != "null").and_then(Value::as_str),
            kind => kind.as_str(),
        };
        match kind.unwrap_or("object") {
            "string" => match schema["format"].as_str() {
                Some("uuid") => json!("00000000-0000-4000-8000-000000000000"),
                Some("date-time") => json!("2026-05-13T14:30:00Z"),
                _ => json!("x".repeat(schema["minLength"].as_u64().unwrap_or(1).max(1) as usize)),
            },
            "integer" => json!(schema["minimum"].as_f64().unwrap_or(1.0) as i64),
            "number" => json!(schema["minimum"].as_f64().unwrap_or(1.0)),
            "boolean" => json!(true),
            "array" => {
                let count = schema["minItems"].as_u64().unwrap_or(0);
                (0..count).map(|_| self.sample(&schema["items"])).collect()
            }
            _ => {
                let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let fields = required.map(|name| (name.to_owned(), self.sample(&schema["properties"][name])));
                Value::Object(fields.collect::<Map<_, _>>())
            }
        }
    }
}

impl Operation {
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// Who may call it: roles of tokens, `node`, `feed`, or `anyone`.
    pub(crate) fn callers(&self) -> Vec<&str> {
        let listed = self.value["x-callers"].as_array().into_iter().flatten();
        listed.map(|caller| caller.as_str().unwrap()).collect()
    }

    /// Whether its answer has no end.
    pub(crate) fn streams(&self) -> bool {
        self.path.ends_with("/events") || self.path.ends_with("/stream")
    }

    /// What the path is of, if it ends in or goes on after an id: `/api/v1/nodes` of `/api/v1/nodes/{uuid}/metrics`.
    pub(crate) fn collection(&self) -> Option<&str> {
        self.path.split_once("/{").map(|(collection, _)| collection)
    }

    /// The path of this thing.
    pub(crate) fn path_of(&self, id: &str) -> String {
        match (self.path.find('{'), self.path.find('}')) {
            (Some(from), Some(to)) => format!("{}{id}{}", &self.path[..from], &self.path[to + 1..]),
            _ => self.path.clone(),
        }
    }

    /// The path of something that is not there.
    pub(crate) fn path_of_nothing(&self) -> String {
        self.path.replace("{id}", "9999").replace("{uuid}", "00000000-0000-4000-8000-000000000000")
    }

    /// The parameters that lie in `place`, by name, with their schemas.
    pub(crate) fn parameters(&self, place: &str) -> Vec<(String, Value)> {
        let all = self.value["parameters"].as_array().into_iter().flatten();
        let there = all.filter(|p| p["in"] == place);
        there.map(|p| (p["name"].as_str().unwrap().to_owned(), p["schema"].clone())).collect()
    }
}
